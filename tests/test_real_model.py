"""A real text model of 30 layers: SmolLM2-135M, loaded as any other."""

from __future__ import annotations

import pytest
import torch

import eepolicy
from benchmarks.smollm2 import packaged, unpack
from eepolicy.decode.batch import Batch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(packaged() is None, reason="SmolLM2 is not installed"),
]

# Largest difference measured in the keys and values below, which reach 20: 6.1e-5, in float32.
TOLERANCE = 5e-4

TOKENS = 12
PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a little girl who",
    "Water boils at",
    "def fibonacci(n):",
]


@pytest.fixture(scope="module")
def smol(tmp_path_factory) -> eepolicy.HookedModel:
    folder = tmp_path_factory.mktemp("smollm2")
    unpack(folder)
    return eepolicy.load(str(folder))


def stock_replies(smol, count: int, **options) -> list[list[int]]:
    tokenizer = smol.tokenizer
    tokenizer.padding_side = "left"
    given = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    out = smol.model.generate(**given, max_new_tokens=count, do_sample=False, **options)
    end = smol.model.generation_config.eos_token_id
    rows = out[:, given.input_ids.shape[1] :].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def test_full_depth_is_stock_generate_on_a_ragged_batch(smol):
    outs = smol.generate(PROMPTS, max_new_tokens=TOKENS)
    assert [out.tokens.tolist() for out in outs] == stock_replies(smol, TOKENS)
    assert "Paris" in outs[0].text


@pytest.mark.parametrize("policy", ["text=spark:triple@20", "text=static@15"])
def test_exact_acceptance_is_stock_greedy(smol, policy):
    options = {"repetition_penalty": 1.2}
    outs = smol.generate(PROMPTS, policy, TOKENS, accept="exact", **options)
    assert [out.tokens.tolist() for out in outs] == stock_replies(smol, TOKENS, **options)
    assert any((out.trace.draft_status == 2).any() for out in outs)


@torch.no_grad()
def test_keys_and_values_after_a_catch_up_are_the_stock_ones(smol):
    ids = smol.encode(PROMPTS[1] + " lived in a house by the sea with her")
    batch = Batch(smol, [0], len(ids))
    batch.prefill(ids[None, :3])
    depths = [20, 5, 30, 12, 28, 1, 9, 30, 16, 2, 7, 4, 29, 14, 3, 18]
    for i, column in enumerate(range(3, len(ids))):
        block = batch.begin_step(ids[None, column : column + 1], [0])
        batch.run(block, smol.depth if column == len(ids) - 1 else depths[i % len(depths)])
        batch.exit(block)
    stock = smol.model(ids[None], use_cache=True).past_key_values
    for index, theirs in enumerate(stock.layers):
        keys, values = batch.cache.layer(index, len(ids))
        torch.testing.assert_close(keys, theirs.keys, rtol=TOLERANCE, atol=TOLERANCE)
        torch.testing.assert_close(values, theirs.values, rtol=TOLERANCE, atol=TOLERANCE)
