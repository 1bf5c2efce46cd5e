"""Fills against plain loops over the stock layers, and the cache after a catch-up."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, LAYERS, LAYOUT, tiny
from decoding import PROMPT, ByPlace, RandomDepths
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from eepolicy import (
    FullDepth,
    HookedModel,
    Static,
)
from eepolicy.decode.batch import Batch
from eepolicy.decode.batch_options import BatchOptions
from eepolicy.decode.rebatch import NeverRebatch, ShareRebatch
from eepolicy.decode.step import run_step
from eepolicy.policies import Step

# Largest differences measured over 400 random cases of test_keys_and_values_after_a_catch_up, 20 a
# family and precision: keys and values 1.5e-5 in float32 (OLMo 2), 5e-15 in float64; logits less.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}
# Eager attention takes the softmax in float32 whatever the model's precision is. A step and the
# whole sequence have different shapes, and whether their softmaxes round alike depends on the width
# of the processor's vectors. Measured in float64: 2e-15 with AVX-512, 2.3e-6 with AVX2 and without
# vectors.
EAGER_TOLERANCE = {torch.float32: 1e-4, torch.float64: 2e-5}


def plain_loop(model, prompt: list[int], depths: list[int], fill: str) -> list[int]:
    """Greedy early exit, one token at a time, written without the package, for Llama and Qwen2.

    A layer that did not run stores nothing with `mask`, so that its part of the stock cache is
    simply shorter; with `propagate` it stores what it makes of the exit's hidden state.
    """
    inner, cache, tokens, hidden = model.model, DynamicCache(), list(prompt), None
    depths = [LAYERS] * (len(prompt) - 1) + depths
    for position, depth in enumerate(depths):
        hidden = inner.embed_tokens(torch.tensor([[tokens[position]]]))
        cos, sin = inner.rotary_emb(hidden, torch.tensor([[position]]))
        for layer in inner.layers[:depth]:
            hidden = layer(
                hidden,
                attention_mask=None,
                past_key_values=cache,
                use_cache=True,
                position_embeddings=(cos, sin),
            )
        for index, layer in enumerate(inner.layers):
            if index >= depth and fill == "propagate":
                normed = layer.input_layernorm(hidden)
                keys, values = (
                    project(normed).view(1, 1, -1, layer.self_attn.head_dim).transpose(1, 2)
                    for project in (layer.self_attn.k_proj, layer.self_attn.v_proj)
                )
                cache.update(apply_rotary_pos_emb(keys, keys, cos, sin)[1], values, index)
        if position >= len(prompt) - 1:
            tokens.append(int(model.lm_head(inner.norm(hidden))[0, -1].argmax()))
            if tokens[-1] == LAYOUT.end:
                break
    return tokens[len(prompt) :]


@settings(max_examples=10)
@given(
    family=st.sampled_from(["llama", "qwen2"]),
    seed=st.integers(0, 10_000),
    depths=st.lists(st.integers(1, LAYERS), min_size=1, max_size=25),
    fill=st.sampled_from(["propagate", "mask"]),
)
def test_other_fills_equal_a_plain_loop(family, seed, depths, fill):
    model = tiny(family, seed % 7)
    with torch.no_grad():
        expected = plain_loop(model, PROMPT.tolist(), depths, fill)
    hooked = HookedModel(model, layout=LAYOUT)
    out = hooked.generate(PROMPT, ByPlace(depths), max_new_tokens=len(depths), fill=fill)
    assert out.tokens.tolist() == expected
    assert out.trace.layer_calls.tolist() == depths[: len(expected)]
    skipped = [LAYERS - d for d in depths[: len(expected)]]
    assert out.trace.filled.tolist() == (skipped if fill == "propagate" else [0] * len(skipped))


@pytest.mark.parametrize("cap", [1, 3])
def test_max_pending_limits_pending_positions(stock, hooked, cap):
    policy = RandomDepths(5)
    ids = torch.randint(60, (3, 20), generator=torch.Generator().manual_seed(cap))
    batch = Batch(hooked, [0, 2, 1], 20, BatchOptions(max_pending=cap))
    step = Step(*torch.ones(5, 3, dtype=torch.long), full_depth=LAYERS)
    most = 0
    with torch.no_grad():
        batch.prefill(ids[:, :3])
        for column in range(3, 20):
            run_step(batch, ids[:, column : column + 1], [0, 1, 2], policy, step)
            most = max(most, *(batch.num_pending(row) for row in range(3)))
    assert most == cap
    free = hooked.generate(PROMPT, Static(2, on="both"), max_new_tokens=30)
    capped = hooked.generate(PROMPT, Static(2, on="both"), max_new_tokens=30, max_pending=cap)
    assert capped.trace.depth.tolist() == free.trace.depth.tolist() == [2] * len(free.tokens)
    assert capped.tokens.tolist() == free.tokens.tolist()
    assert capped.trace.layer_calls.sum() > free.trace.layer_calls.sum()


@settings(max_examples=24)
@given(
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    share=st.none() | st.floats(0, 1),
)
def test_keys_and_values_after_a_catch_up(family, seed, lengths, dtype, share):
    """Whatever exits happened, after a catch-up each row's cache is the stock model's."""
    model = tiny(family, seed % 7, dtype=dtype)
    hooked = HookedModel(model, layout=LAYOUT)
    eager = model.config._attn_implementation == "eager"
    tolerance = (EAGER_TOLERANCE if eager else TOLERANCE)[dtype]
    generator = torch.Generator().manual_seed(seed)
    padding = [max(lengths) - n for n in lengths]
    ids = torch.randint(60, (len(lengths), max(lengths) + 7), generator=generator)
    rebatch = NeverRebatch() if share is None else ShareRebatch(share)
    batch = Batch(hooked, padding, ids.shape[1], BatchOptions(rebatch=rebatch))
    policy, rows = RandomDepths(seed), list(range(len(lengths)))
    with torch.no_grad():
        batch.prefill(ids[:, : max(lengths) - 1])
        for column in range(max(lengths) - 1, ids.shape[1] - 1):
            step = Step(*torch.ones(5, len(rows), dtype=torch.long), full_depth=LAYERS)
            run_step(batch, ids[:, column : column + 1], rows, policy, step)
        taken = run_step(batch, ids[:, -1:], rows, FullDepth(), step)
        assert taken.depth == [LAYERS] * len(rows)
        for row, empty in enumerate(padding):
            assert batch.num_pending(row) == 0
            whole, cache = ids[row : row + 1, empty:], DynamicCache()
            expected = model(whole, past_key_values=cache, use_cache=True).logits[0, -1]
            torch.testing.assert_close(taken.logits[row], expected, rtol=0, atol=tolerance)
            for index, theirs in enumerate(cache.layers):
                keys, values = batch.cache.layer(index, ids.shape[1])
                for ours, stocks in ((keys, theirs.keys), (values, theirs.values)):
                    torch.testing.assert_close(
                        ours[row, :, empty:], stocks[0], rtol=0, atol=tolerance
                    )
