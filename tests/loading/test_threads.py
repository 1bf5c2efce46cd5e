"""The number of CPU threads that `load` sets, and that it sets none by default."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny
from torch import nn

import eepolicy
from eepolicy import EepolicyError
from eepolicy.loading.threads import SMALL_MODEL, set_threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "expected"), [(None, 2), ("auto", 1), (1, 1), (3, 3)])
def test_load_sets_threads_only_on_request(two_threads, tmp_path, threads, expected):
    tiny("llama").save_pretrained(tmp_path)
    eepolicy.load(str(tmp_path), threads=threads)
    assert torch.get_num_threads() == expected


def test_a_large_model_keeps_the_threads_of_pytorch(two_threads):
    for parameters, expected in ((SMALL_MODEL, 2), (SMALL_MODEL - 1, 1)):
        large = nn.ParameterList([nn.Parameter(torch.empty(parameters, device="meta"))])
        set_threads(large, "auto")
        assert torch.get_num_threads() == expected


@pytest.mark.parametrize("threads", [0, -1, 1.5, "two", True])
def test_other_numbers_of_threads_are_refused(two_threads, threads):
    with pytest.raises(EepolicyError, match="threads is 1 or more, or 'auto'"):
        set_threads(nn.Linear(1, 1), threads)
    assert torch.get_num_threads() == 2
