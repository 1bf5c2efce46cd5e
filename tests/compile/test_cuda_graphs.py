"""Spans of layers as CUDA graphs capture them, against the stock layers."""

from __future__ import annotations

import warnings
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from conftest import DECODINGS, LAYERS, LAYOUT, assert_same_replies, tiny

from eepolicy import HookedModel
from eepolicy.compile import cuda_graphs as captured
from eepolicy.compile.cuda_graphs import CudaGraphExecutor
from eepolicy.compile.parity import UncompiledKernels
from eepolicy.compile.sdpa import matmul_attention
from eepolicy.decode import overlap as ahead

QUESTION = torch.tensor([5, 33, 21, 8])
ONE = [QUESTION]
RAGGED = [QUESTION, torch.tensor([7, 8]), torch.tensor([1, 2, 3, 9, 5, 6, 7])]
ALL = [*DECODINGS, ("spark:triple@2", {"record": True})]
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


class Rerun(CudaGraphExecutor):
    """Stands in for CUDA graphs: a replay reads the tensors that it was made with."""

    def __init__(self, model):
        super().__init__(model)
        self._kernels = UncompiledKernels()
        self.replays = 0

    def run_layers(self, first, stop, hidden, rotations, masks, cache):
        self.now = cache
        hidden = super().run_layers(first, stop, hidden, rotations, masks, cache)
        del self.now  # a reference would keep its buffer from being used again
        return hidden

    def _capture(self, inputs, cache):
        static, buffer = [t.clone() for t in inputs.tensors], cache.buffer

        def replay(tensors):
            assert self.now.buffer is buffer  # a graph belongs to one buffer
            for old, new in zip(static, tensors, strict=True):
                old.copy_(new)
            self.replays += 1
            return self._run_span(inputs, static, self.now)

        return replay


SPAN_FAMILIES = ["llama", "gemma2", "gemma3", "gpt2", "glm"]
#: families and prompts of which all decodings are compared in each run; the others are slow, and
#: have a decoding of one prompt in `test_the_oldest_graphs_are_dropped`
FAST = [("llama", "one")]
#: one prompt needs no mask of padding, and Gemma 3 then has layers with and without a mask
EXHAUSTIVE = [("gemma2", "one"), ("gpt2", "one"), ("glm", "one")]
PROMPTS = {"one": ONE, "ragged": RAGGED}


@pytest.fixture(params=SPAN_FAMILIES)
def spans(request, monkeypatch) -> HookedModel:
    """A model whose compiled layers run in spans and attend to unfilled columns too."""
    monkeypatch.setattr(captured, "KV_BUCKET", 16)
    model = HookedModel(tiny(request.param), layout=LAYOUT)
    model._executor = Rerun(model)
    return model


def same(model: HookedModel, prompts, policy, options, plain=None) -> None:
    # as many tokens as need a second bucket of columns, and two chunks of text and speech
    plain = plain or model.generate(prompts, policy, max_new_tokens=16, **options)
    ours = model.generate(prompts, policy, max_new_tokens=16, compile=True, **options)
    assert_same_replies(ours, plain)


def marks_of(case: tuple[str, str]) -> tuple[pytest.MarkDecorator, ...]:
    if case in FAST:
        return ()
    return (pytest.mark.exhaustive if case in EXHAUSTIVE else pytest.mark.slow,)


@pytest.mark.parametrize(
    ("spans", "prompts"),
    [pytest.param(*case, marks=marks_of(case)) for case in product(SPAN_FAMILIES, PROMPTS)],
    indirect=["spans"],
)
def test_replies_equal_those_of_the_stock_layers(spans, prompts):
    for policy, options in ALL:
        same(spans, PROMPTS[prompts], policy, options)
    assert spans._executor.replays > LAYERS


def test_graphs_are_few(spans, monkeypatch):
    """One for each span, width and bucket, independent of the number of replies."""
    monkeypatch.setattr(captured, "KV_BUCKET", 8)
    counts = []
    for _ in range(3):
        spans.generate(ONE, "both=spark:triple@2", max_new_tokens=20, compile=True)
        (buffer,) = spans._executor._pool._spare
        counts.append(len(buffer.replays))
    assert counts[1] == counts[2]
    # three spans (up to depth 2, after it, and all layers) and three buckets; beyond its window a
    # layer takes a mask, which is another graph
    assert counts[0] <= 3 * 3 * 2


def test_the_oldest_graphs_are_dropped(spans, monkeypatch):
    monkeypatch.setattr(captured, "MAX_GRAPHS", 2)
    same(spans, ONE, "both=spark:triple@2", {})
    (buffer,) = spans._executor._pool._spare
    assert len(buffer.replays) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are graphs")
def test_layers_stay_compiled_where_capturing_fails():
    model = HookedModel(tiny("llama"), layout=LAYOUT)
    layers = CudaGraphExecutor(model)
    layers._kernels = UncompiledKernels()
    model._executor = layers
    with pytest.warns(UserWarning, match="CUDA graphs are not used"):
        same(model, ONE, "spark:triple@2", {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one warning is enough
        same(model, ONE, "both=static@2", {})
    assert not layers._broken


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["none", "bool", "added"])
def test_attention_as_matrix_products(kind, dtype):
    """Against torch's own; on 200 seeds the largest difference was 7e-7, 1.3e-15 in float64."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 3, 8, generator=generator, dtype=dtype)
    key, value = torch.randn(2, 2, 2, 9, 8, generator=generator, dtype=dtype)
    mask = torch.rand(2, 1, 3, 9, generator=generator) < 0.7
    mask[..., 0] = True
    if kind == "added":
        mask = torch.randn(2, 1, 3, 9, generator=generator, dtype=dtype).masked_fill(~mask, -1e9)
    given = None if kind == "none" else mask
    expected = F.scaled_dot_product_attention(query, key, value, given, scale=0.3, enable_gqa=True)
    out = matmul_attention(query, key, value, given, 0.3)
    assert out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(out, expected, rtol=0, atol=tolerance)


@on_cuda
@pytest.mark.parametrize("prompts", [ONE, RAGGED], ids=["one", "ragged"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_graphs_give_the_replies_of_the_stock_layers(family, prompts, monkeypatch):
    """The stock replies are decoded without overlap with the host."""
    model = HookedModel(tiny(family), layout=LAYOUT).to("cuda")
    for policy, options in ALL:
        with monkeypatch.context() as waiting:
            waiting.setattr(ahead, "is_async", lambda device: False)
            plain = model.generate(prompts, policy, max_new_tokens=16, **options)
        same(model, prompts, policy, options, plain)
    layers = model.compiled_executor()
    assert isinstance(layers, CudaGraphExecutor)
    assert not layers._broken
    buffers = layers._pool._spare
    assert any(r is not None for buffer in buffers for r in buffer.replays.values())
