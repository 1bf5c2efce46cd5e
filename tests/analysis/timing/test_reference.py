"""The fixed loop that compares machines."""

from __future__ import annotations

import time

import pytest
import torch
from transformers import AutoConfig

from eepolicy.analysis.timing import reference
from eepolicy.analysis.timing.reference import ReferenceTime, reference_seconds
from eepolicy.loading.pocket import pocket_folder


def test_matrices_are_those_of_the_pocket_model():
    config = AutoConfig.from_pretrained(pocket_folder())
    width, mlp = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * config.head_dim
    attention = [(width, width), (keys, width), (keys, width), (width, width)]
    assert list(reference.LAYER) == [*attention, (mlp, width), (mlp, width), (width, mlp)]
    assert config.num_hidden_layers == reference.LAYERS
    assert (config.vocab_size, width) == reference.OUTPUT_EMBEDDING


def test_seconds_are_those_of_a_clock_and_threads_stay():
    torch.set_num_threads(2)
    try:
        start = time.perf_counter()
        measured = reference_seconds(steps=3, passes=1)
        elapsed = time.perf_counter() - start
        assert torch.get_num_threads() == measured.threads == 2
    finally:
        torch.set_num_threads(1)
    assert 0 < measured.one_thread < elapsed
    assert 0 < measured.all_threads < elapsed


def test_more_steps_take_longer():
    # thirty times the work: a busy machine does not turn that around
    short = reference_seconds(steps=1, passes=5)
    assert reference_seconds(steps=30, passes=1).one_thread > 2 * short.one_thread


def test_ratios_are_over_the_machine_of_the_docs():
    twice = ReferenceTime(
        2 * reference.ONE_THREAD_SECONDS, 3 * reference.ALL_THREADS_SECONDS, threads=2
    )
    assert twice.one_thread_ratio == pytest.approx(2)
    assert twice.to_dict()["all_threads_ratio"] == pytest.approx(3)
    assert "(2.00 times the machine of the docs)" in str(twice)
    assert "on 2 thread(s) (3.00 times)" in str(twice)
