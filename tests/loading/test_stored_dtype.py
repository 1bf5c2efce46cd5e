"""The data type of a checkpoint, which commands use on a GPU."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import tiny
from safetensors.torch import save_file

from eepolicy import EepolicyError
from eepolicy.cli.options import torch_dtype
from eepolicy.loading.stored_dtype import stored_dtype


@pytest.mark.parametrize(
    ("config", "weights", "expected"),
    [
        ({"dtype": "bfloat16"}, torch.float32, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float32, torch.float16),
        ({"text_config": {"torch_dtype": "bfloat16"}}, torch.float32, torch.bfloat16),
        ({"dtype": "float32"}, torch.bfloat16, torch.float32),
        ({}, torch.bfloat16, torch.bfloat16),
        ({}, torch.float32, torch.float32),
        ({"dtype": "int8"}, None, torch.float32),
        ({}, None, torch.float32),
    ],
)
def test_the_stored_dtype_comes_from_the_config_or_weights(tmp_path, config, weights, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if weights is not None:
        save_file({"w": torch.zeros(2, dtype=weights)}, tmp_path / "model.safetensors")
    assert stored_dtype(str(tmp_path)) == expected


def test_exit_heads_do_not_determine_the_stored_dtype(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for name, dtype in (("heads", torch.float16), ("model", torch.float32)):
        save_file({"w": torch.zeros(2, dtype=dtype)}, tmp_path / f"{name}.safetensors")
    assert stored_dtype(str(tmp_path)) == torch.float32


def test_commands_use_the_stored_dtype_on_a_gpu(tmp_path):
    tiny("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    name = str(tmp_path)
    assert (
        torch_dtype("auto", name, "cuda:1") == torch_dtype("auto", name, "auto") == torch.bfloat16
    )
    assert torch_dtype("auto", name, "cpu") == torch.float32
    assert torch_dtype("float16", name, "cpu") == torch.float16
    assert torch_dtype("auto", "pocket", "cuda") == torch.float32
    with pytest.raises(EepolicyError, match="--dtype is auto, float32"):
        torch_dtype("int4", name, "cpu")
