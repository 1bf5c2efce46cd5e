"""The benchmark against llama.cpp: the GGUF file, the order of trials, and the table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from conftest import tiny
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

pytest.importorskip("gguf")

from benchmarks import gguf_file
from benchmarks.llama_cpp import HEADINGS, Decoder, Measured, Table, measure, page, rows
from eepolicy import EepolicyError


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_transformers_reads_the_same_model_from_the_file(tmp_path, tied):
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 5_000.0},
        rms_norm_eps=2e-5,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0.0, 0.2)
    file = tmp_path / "model.gguf"
    gguf_file.write_gguf(model, file)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name).eval()
    assert read.config.rms_norm_eps == pytest.approx(2e-5)
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    weights = sum(p.nbytes for p in model.parameters())
    table = model.get_input_embeddings().weight.nbytes
    assert gguf_file.weight_bytes(file) == weights - (0 if tied else table)


def test_other_models_are_refused(tmp_path):
    with pytest.raises(EepolicyError, match="only a Llama"):
        gguf_file.write_gguf(tiny("qwen2"), tmp_path / "model.gguf")


def test_a_llama_with_biases_is_refused(tmp_path):
    model = tiny("llama")
    model.config.mlp_bias = True
    with pytest.raises(EepolicyError, match="without biases"):
        gguf_file.write_gguf(model, tmp_path / "model.gguf")


def decoder(
    library: str, weights: str, seconds: float, calls: list[str], token: int = 1
) -> Decoder:
    def decode(prompt: Sequence[int], tokens: int) -> tuple[list[int], float]:
        calls.append(weights)
        return [token] * tokens, seconds

    return Decoder(library, weights, 1_000_000, decode)


def test_decoders_take_turns():
    calls: list[str] = []
    decoders = [
        decoder("eepolicy", "float32", 0.002, calls),
        decoder("llama.cpp", "F32", 0.003, calls, token=2),
    ]
    measured = measure(decoders, [[1], [2]], 4, 3, lambda: 1e9)
    assert calls[:4] == ["float32", "float32", "F32", "F32"]  # replies, which are compared
    assert calls[4:8] == ["float32", "F32", "F32", "float32"]
    assert calls[4:].count("F32") == calls[4:].count("float32") == 6
    assert measured == Measured([[0.002] * 2, [0.003] * 2], [1.0, 0.0], 1e9)
    table = rows(decoders, measured)
    assert table == [
        ["eepolicy", "float32", "1", "2.00", "0.50", "1.50 [1.50, 1.50] (F32)"],
        ["llama.cpp", "F32", "1", "3.00", "0.33", "–"],
    ]
    assert {len(row) for row in table} == {len(HEADINGS)}
    args = argparse.Namespace(
        model="work/model", prompts=2, tokens=4, rounds=3, weights=["float32", "F32"], threads=[1]
    )
    text = page({1: Table(decoders, measured)}, args, "0.3")
    assert "Of the tokens in float32, 0.0 % are equal in both libraries." in text
    assert "--weights float32 F32 --prompts 2 --tokens 4 --rounds 3 --threads 1" in text
    assert "## 1 thread\n" in text


def test_bits_are_compared_with_those_of_llama_cpp():
    names = [("eepolicy", "bfloat16"), ("llama.cpp", "F16"), ("llama.cpp", "BF16")]
    decoders = [decoder(library, weights, 1.0, []) for library, weights in names]
    measured = Measured([[0.1], [0.2], [0.3]], [1.0] * 3, 1e9)
    cells = np.array(rows(decoders, measured))
    assert cells[0, -1] == "2.00 [2.00, 2.00] (F16); 3.00 [3.00, 3.00] (BF16)"
