"""The layer loop on every family, against the stock model, and what an unknown family gets."""

from __future__ import annotations

import dataclasses
from importlib.metadata import EntryPoint

import pytest
import torch
from conftest import CONFIGS, FAMILIES, LAYERS, LAYOUT, layers_of, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, MptConfig, MptForCausalLM

import eepolicy
from eepolicy import EepolicyError, HookedModel, registry
from eepolicy.model import families as adapters
from eepolicy.model.families import resolve
from eepolicy.registry import NameTable
from eepolicy.testing.configs import WINDOW

# Without a cache the loop makes the stock model's own calls: the largest difference of logits over
# 600 random cases, 30 a family in float32 and in float64, was 0.0.
TOLERANCE = 1e-6


@settings(max_examples=40)
@given(
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 10_000),
    length=st.integers(1, 3 * WINDOW),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_layer_loop_gives_the_stock_logits(family, seed, length, dtype):
    model = tiny(family, seed % 5, dtype)
    hooked = HookedModel(model, layout=LAYOUT)
    ids = torch.randint(60, (1, length), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        *_, last = hooked.hidden_states(ids)
        torch.testing.assert_close(
            hooked.logits(last, LAYERS), model(ids).logits, rtol=0, atol=TOLERANCE
        )


def test_a_sliding_window_is_shorter_than_the_prompts_here():
    """Otherwise the test above would not cover windows."""
    ids = torch.arange(5, 5 + 2 * WINDOW)[None]
    model = tiny("mistral")
    with torch.no_grad():
        sliding = model(ids).logits
        model.config.sliding_window = None
        assert (model(ids).logits - sliding).abs().max() > 1e-2


def test_wrapping_does_not_change_the_model(stock):
    ids = torch.tensor([[5, 33, 21, 8]])
    with torch.no_grad():
        before, hooks = stock(ids).logits, [dict(m._forward_hooks) for m in stock.modules()]
        forwards = [layer.forward for layer in layers_of(stock)]
        hooked = eepolicy.wrap(stock, layout=LAYOUT)
        hooked.generate(ids, "spark:triple@2", max_new_tokens=10)
        assert hooked.unwrap() is stock
        assert torch.equal(stock(ids).logits, before)
    assert [dict(m._forward_hooks) for m in stock.modules()] == hooks
    assert [layer.forward for layer in layers_of(stock)] == forwards


def test_an_unknown_family_gets_what_an_adapter_needs():
    stock = tiny("llama")
    stock.config.model_type = "unknown"
    with pytest.raises(EepolicyError, match=r"no adapter for model type 'unknown'.*families\.md"):
        eepolicy.wrap(stock)


def test_a_refused_family_gets_the_reason():
    config = MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=60)
    with pytest.raises(EepolicyError, match="'mpt' is refused: its attention counts columns"):
        eepolicy.wrap(MptForCausalLM(config))


def test_a_model_without_an_output_head_is_refused():
    with pytest.raises(EepolicyError, match=r"LlamaModel has no output embedding.*ForCausalLM"):
        eepolicy.wrap(tiny("llama").model)


def test_a_model_without_weights_is_refused():
    with pytest.raises(EepolicyError, match="weights of LlamaForCausalLM are on the device 'meta'"):
        eepolicy.wrap(tiny("llama").to("meta"))


def test_more_tokens_than_learned_positions_are_refused():
    model = eepolicy.wrap(tiny("gpt2"))
    limit = model.model.config.n_positions
    prompt = torch.full((limit - 2,), 5)
    assert len(model.generate(prompt, max_new_tokens=3, eos_token_id=[]).tokens) == 3
    sentence = f"positions for {limit} tokens here, and prompt and reply need {limit + 1}"
    with pytest.raises(EepolicyError, match=sentence):
        model.generate(prompt, max_new_tokens=4, eos_token_id=[])
    with pytest.raises(EepolicyError, match=f"need {limit + 10}"):
        eepolicy.probe(model, torch.full((limit + 10,), 5))


def test_an_adapter_by_entry_point(stock, family, monkeypatch):
    """An installed package offers one under the model's type."""
    model_type = stock.config.model_type
    own = adapters.FAMILIES.get(model_type)
    table = NameTable(kind="model family", group="eepolicy.families")
    monkeypatch.setattr(resolve, "FAMILIES", table)
    with pytest.raises(EepolicyError, match="no adapter"):
        eepolicy.wrap(stock)
    point = EntryPoint(model_type, f"{__name__}:offered", table.group)
    monkeypatch.setattr(
        registry,
        "entry_points",
        lambda group, name=None: [
            p for p in [point] if p.group == group and name in (None, p.name)
        ],
    )
    monkeypatch.setitem(globals(), "offered", own)
    assert eepolicy.wrap(stock).depth == LAYERS


def test_an_adapter_that_does_not_fit_is_refused(stock):
    parts = adapters.parts_of(stock)
    linear = dataclasses.replace(parts, attention=("linear_attention",) * LAYERS)
    with pytest.raises(EepolicyError, match="the model has linear_attention"):
        eepolicy.wrap(stock, parts=linear)
    for wrong in (
        dataclasses.replace(parts, layers=parts.layers[:-1]),
        dataclasses.replace(parts, norm=torch.nn.Identity()),
        dataclasses.replace(parts, head=lambda hidden: 1.5 * parts.head(hidden)),
    ):
        with pytest.raises(EepolicyError, match=r"differs from the stock .* by .*: the adapter"):
            eepolicy.wrap(stock, parts=wrong)


def test_a_layer_that_ignores_its_mask_is_refused(monkeypatch):
    """Without a cache it is causal by itself, so the second block shows the difference."""
    stock = tiny("llama", 3)
    layer = stock.model.layers[2]
    forward = layer.forward

    def unmasked(hidden, attention_mask=None, **rest):
        return forward(hidden, attention_mask=None, **rest)

    eepolicy.wrap(stock)
    monkeypatch.setattr(layer, "forward", unmasked)
    with pytest.raises(EepolicyError, match=r"differs from the stock .* by .*: the adapter"):
        eepolicy.wrap(stock)


def test_masks_are_made_if_causal_order_is_not_enough():
    """Gemma 3 has layers with full attention and layers with a window."""
    stock = tiny("gemma3", 1)
    model, window = HookedModel(stock), stock.config.sliding_window
    all_columns = torch.ones(1, window, dtype=torch.bool)
    for tokens, start, kept, masked in (
        (window, 0, None, set()),
        (window, 0, all_columns, {"full_attention", "sliding_attention"}),
        (window + 1, 0, None, {"sliding_attention"}),
        (window - 1, 1, None, {"full_attention", "sliding_attention"}),
        (1, window - 1, None, set()),
        (1, window, None, {"sliding_attention"}),
    ):
        masks = model.block_masks(tokens, start, kept)
        assert {kind for kind, mask in masks.items() if mask is not None} == masked
    stock.config._attn_implementation = "eager"
    assert None not in model.block_masks(window, 0).values()


def test_unsupported_attention_is_refused():
    model = tiny("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(EepolicyError, match="load it with attn_implementation='sdpa'"):
        eepolicy.wrap(model)


CHANGING = {
    "dynamic": dict(rope_type="dynamic", factor=4.0, rope_theta=1e4),
    "longrope": dict(
        rope_type="longrope",
        rope_theta=1e4,
        short_factor=[1.0, 1.5, 2.0, 2.5],
        long_factor=[4.0, 5.0, 6.0, 7.0],
        original_max_position_embeddings=24,
    ),
}


@pytest.mark.parametrize("kind", CHANGING)
def test_length_dependent_rotations_are_exact_up_to_their_limit(kind):
    """They are exact up to the length at which they change, and refused beyond it."""
    config = CONFIGS["llama"]()
    config.rope_parameters = CHANGING[kind]
    config.max_position_embeddings = 24 if kind == "dynamic" else 96
    torch.manual_seed(0)
    stock = LlamaForCausalLM(config).eval()
    model = eepolicy.wrap(stock)
    ids = torch.randint(5, 60, (1, 12), generator=torch.Generator().manual_seed(3))
    options = dict(max_new_tokens=13, do_sample=False)
    expected = stock.generate(ids, eos_token_id=None, **options)[0, 12:].tolist()
    for policy, accept in (("full", "all"), ("text=static@2", "exact")):
        reply = model.generate(ids, policy, 13, accept=accept, eos_token_id=[])
        assert reply.tokens.tolist() == expected
    with pytest.raises(EepolicyError, match="positions for 24 tokens here"):
        model.generate(ids, max_new_tokens=14, eos_token_id=[])
    assert stock.generate(ids, eos_token_id=None, **options)[0, 12:].tolist() == expected


LEFTOVER = "the config names sliding_window=16, and {} attends to all positions"


@pytest.mark.parametrize("family", ["llama", "olmo2", "glm"])
def test_an_unused_window_in_the_config_warns_and_is_ignored(family):
    """A window left over in the config of a family that does not slide."""
    stock = tiny(family)
    stock.config.sliding_window = 16
    ids = torch.randint(5, 60, (1, 40), generator=torch.Generator().manual_seed(2))
    with pytest.warns(UserWarning, match=LEFTOVER.format(type(stock).__name__)):
        model = eepolicy.wrap(stock)
    options = dict(do_sample=False, max_new_tokens=12, eos_token_id=None)
    tokens = model.generate(ids, max_new_tokens=12, eos_token_id=[]).tokens.tolist()
    assert tokens == stock.generate(ids, use_cache=False, **options)[0, 40:].tolist()
    stock.config.sliding_window = None  # the stock cache drops keys beyond a window otherwise
    assert tokens == stock.generate(ids, **options)[0, 40:].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_readout_that_differs_a_little_is_refused(dtype):
    stock = tiny("gemma2", 0, dtype)
    parts = adapters.parts_of(stock)
    eepolicy.wrap(stock, parts=parts)
    for wrong in (
        dataclasses.replace(parts, logit_softcap=None),
        dataclasses.replace(parts, logit_softcap=lambda x: 1.03 * parts.logit_softcap(x)),
    ):
        with pytest.raises(EepolicyError, match="the readout differs from the stock Gemma2"):
            eepolicy.wrap(stock, parts=wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [598, None, 600])
def test_a_long_wrong_window_is_refused(dtype, window):
    stock = tiny("mistral", 0, dtype)
    stock.config.sliding_window = 599
    parts = adapters.parts_of(stock)
    kinds = parts.attention if window else ("full_attention",) * LAYERS
    eepolicy.wrap(stock, parts=parts)
    wrong = dataclasses.replace(parts, window=window, attention=kinds)
    with pytest.raises(EepolicyError, match="layer loop at position 607 differs from the stock"):
        eepolicy.wrap(stock, parts=wrong)
