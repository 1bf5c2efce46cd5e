"""Weights in int8: the product, the layers that are compiled, and those that are not."""

from __future__ import annotations

import ctypes
import shutil
import warnings

import pytest
import torch
from conftest import LAYOUT, tiny

import eepolicy
from eepolicy import EepolicyError, HookedModel
from eepolicy.compile.native import MAX_ROWS, native_library
from eepolicy.heads import KINDS, int8
from eepolicy.heads.fingerprint import digest, fingerprint
from eepolicy.heads.int8 import Int8Linear, quantize_int8

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
    # the compiler's warnings about its own parts
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
PROMPT = torch.tensor([5, 9, 13, 2, 7])


def quantised(family: str) -> HookedModel:
    """A small model whose layers and output embedding have weights in int8."""
    model = HookedModel(tiny(family), layout=LAYOUT)
    for layer in model.layers:
        quantize_int8(layer)
    quantize_int8(model.model, only=model.lens.head)
    return model


@pytest.mark.parametrize(("out", "width"), [(1, 16), (7, 5), (12, 33), (64, 48), (515, 40)])
def test_products_equal_those_of_torch(out, width):
    """Weights whose rows and columns are no multiples of a tile, for every number of rows."""
    native = native_library()
    assert native is not None
    product = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 7)(native.int8_product)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-128, 128, (out, width), generator=generator, dtype=torch.int8)
    scale = torch.rand(out, generator=generator) / 100
    for rows in range(1, MAX_ROWS + 2):
        x = torch.randn(rows, width, generator=generator)
        ours = torch.full((rows, out), torch.nan)
        product(*(t.data_ptr() for t in (x, weight, scale, ours)), rows, out, width)
        expected = x.double() @ (weight.double() * scale.double()[:, None]).T
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.fixture(scope="module")
def llama() -> HookedModel:
    """One model, so that its layers are compiled once."""
    return quantised("llama")


# of the Llama, other tests compare compiled layers with those that are not
@pytest.mark.parametrize("family", ["qwen2", pytest.param("llama", marks=pytest.mark.exhaustive)])
def test_compiled_layers_give_the_tokens_of_the_quantised_stock_model(family):
    model = quantised(family)
    stock = model.model.generate(PROMPT[None], max_new_tokens=24, do_sample=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # no layer runs uncompiled
        full = model.generate(PROMPT, max_new_tokens=24, compile=True)
        early = model.generate(PROMPT, "spark:triple@2", max_new_tokens=24, compile=True)
    assert full.tokens.tolist() == stock[0, len(PROMPT) :].tolist()
    eager = model.generate(PROMPT, "spark:triple@2", max_new_tokens=24)
    assert early.tokens.tolist() == eager.tokens.tolist()
    assert early.trace.depth.min() == 2


def test_a_weight_is_rounded_to_the_nearest_multiple_of_its_scale():
    linear = torch.nn.Linear(5, 3)
    with torch.no_grad():
        linear.weight[1] = 0
    rounded = Int8Linear(linear)
    weight = rounded.values.double() * rounded.scale.double()[:, None]
    most = linear.weight.abs().amax(1).double()
    assert ((weight - linear.weight).abs() <= most[:, None] / 254 + 1e-7).all()
    assert rounded.values.abs().amax(1).tolist() == [127, 0, 127]
    vectors = torch.randn(2, 4, 5)
    expected = vectors.double() @ weight.T + linear.bias
    torch.testing.assert_close(rounded(vectors).double(), expected, rtol=1e-5, atol=1e-5)
    assert repr(rounded) == "Int8Linear(5, 3, bias=True)"


def test_a_large_weight_is_copied_in_parts(monkeypatch):
    rounded = Int8Linear(torch.nn.Linear(5, 31))
    vectors = torch.randn(2, 3, 5)
    expected = rounded(vectors)
    monkeypatch.setattr(int8, "MAX_COPIED", 20)
    torch.testing.assert_close(rounded(vectors), expected)
    torch.testing.assert_close(rounded.product(vectors, slice(3, 17)), expected[..., 3:17])


def test_an_output_embedding_whose_inputs_accelerate_moves_stays():
    model = tiny("llama")
    model.lm_head._hf_hook = object()
    quantize_int8(model, only=model.lm_head)
    assert type(model.lm_head) is torch.nn.Linear


def test_models_in_int8_with_other_weights_have_other_fingerprints():
    prints = []
    for shift in (0, 1):
        model = tiny("llama")
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[-1] += shift
        quantize_int8(model)
        prints.append(fingerprint(model))
    assert prints[0] != prints[1]


def test_a_layer_with_a_hook_runs_uncompiled(llama):
    hook = llama.layers[1].mlp.up_proj.register_forward_hook(lambda *_: None)
    try:
        with pytest.warns(UserWarning, match="layer 2 runs uncompiled.* a forward hook"):
            ours = llama.generate(PROMPT, "static@3", max_new_tokens=12, compile=True)
        eager = llama.generate(PROMPT, "static@3", max_new_tokens=12)
    finally:
        hook.remove()
    assert ours.tokens.tolist() == eager.tokens.tolist()


def test_weights_that_are_rounded_later_are_used():
    model = HookedModel(tiny("llama"), layout=LAYOUT)
    model.generate(PROMPT, max_new_tokens=4, compile=True)
    for layer in model.layers:
        quantize_int8(layer)
    after = model.generate(PROMPT, "static@3", max_new_tokens=24, compile=True)
    eager = model.generate(PROMPT, "static@3", max_new_tokens=24)
    assert after.tokens.tolist() == eager.tokens.tolist()
    assert fingerprint(model.model) != fingerprint(tiny("llama"))
    with pytest.raises(EepolicyError, match="weights in int8"):
        KINDS.get("branch").untrained(model.lens, (2,), width=32)


# the small models above are compiled in each run
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_pocket_model_in_int8(compiled, pocket, tmp_path):
    model = eepolicy.load("pocket", torch.int8)
    assert all(
        not isinstance(m, torch.nn.Linear)
        for layer in model.layers  # those of the branches too
        for m in layer.modules()
    )
    assert len(model.layers) > model.depth
    assert type(model.model.get_output_embeddings()) is Int8Linear
    assert model.model.get_input_embeddings().weight.dtype == torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        out = model.generate("What color is snow?", "static@6", compile=compiled)
    assert out.text == "Snow is white."
    assert out.audio is not None
    assert digest(model.heads) != digest(pocket.heads)
    with pytest.raises(EepolicyError, match="weights in int8 are not saved"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_range_of_the_vocabulary_reads_its_rows_alone(llama):
    model, head = llama, llama.model.lm_head
    assert isinstance(head, Int8Linear)
    hidden = torch.randn(3, model.width)
    ids = slice(7, 23)
    torch.testing.assert_close(model.lens.product(hidden, ids), head(hidden)[:, ids])
    options = {"policy": "both=static@2", "max_new_tokens": 16, "restrict_vocab": True}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ours = model.generate(PROMPT, compile=True, **options)
    assert ours.tokens.tolist() == model.generate(PROMPT, **options).tokens.tolist()
    seen: list[int] = []
    hook = head.register_forward_hook(lambda *_: seen.append(1))
    model.lens.product(hidden, ids)
    hook.remove()
    assert seen  # a hook sees the whole output embedding


def test_wide_blocks_convert_the_weights(llama, monkeypatch):
    """torch's product in int8 takes forty times as long as a conversion on 50 rows."""
    prompt = torch.randint(5, 60, (MAX_ROWS + 1,), generator=torch.Generator().manual_seed(0))
    rows: list[int] = []
    product = torch._weight_int8pack_mm
    monkeypatch.setattr(
        torch, "_weight_int8pack_mm", lambda x, *rest: rows.append(len(x)) or product(x, *rest)
    )
    eager = llama.generate(prompt, max_new_tokens=6)
    ours = llama.generate(prompt, max_new_tokens=6, compile=True)
    assert ours.tokens.tolist() == eager.tokens.tolist()
    assert max(rows, default=0) <= MAX_ROWS
