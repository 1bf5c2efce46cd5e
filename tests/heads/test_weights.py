"""Output embeddings and models whose weights cannot be read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from conftest import LAYERS, tiny
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import PreTrainedModel

import eepolicy
from eepolicy import EepolicyError, HookedModel
from eepolicy.heads import KINDS
from eepolicy.heads.fingerprint import fingerprint
from eepolicy.heads.weights import is_readable, obstacle

PROMPT = torch.tensor([5, 33, 21, 8, 40, 2, 17])


class PackedWeight(nn.Parameter):
    """A weight in integers, whose type says how it is multiplied."""


class PackedLinear(nn.Linear):
    """A quantised layer whose `weight` has another shape than the matrix, as in bitsandbytes.

    Args:
        linear: layer to quantise.
        scale: of the activations: `None` to leave them, `"row"` or `"call"` for what has one scale.
    """

    def __init__(self, linear: nn.Linear, scale: str | None = None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = linear.weight.shape
        self.scale, self.bias = scale, linear.bias
        step = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        packed = (linear.weight.detach() / step).round().to(torch.int8)
        self.weight = PackedWeight(packed.reshape(-1, 1), requires_grad=False)
        self.register_buffer("step", step)

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is not None:
            largest = x.abs().amax() if self.scale == "call" else x.abs().amax(-1, keepdim=True)
            step = largest.clamp(min=1e-6) / 7
            x = (x / step).round() * step
        matrix = self.weight.view(self.out_features, self.in_features) * self.step
        return F.linear(x, matrix, self.bias)


def quantise(model: nn.Module, scale: str | None = None) -> nn.Module:
    for name, module in [*model.named_modules()]:
        if type(module) is nn.Linear:
            model.set_submodule(name, PackedLinear(module, scale))
    return model


def adapt(model: PreTrainedModel) -> None:
    adapted = get_peft_model(model, LoraConfig(target_modules=["lm_head"], r=4)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))


STATES = {
    "plain": lambda model: None,
    "hook": lambda model: model.lm_head.register_forward_hook(lambda m, i, out: 2 * out),
    "quantised": lambda model: setattr(model, "lm_head", PackedLinear(model.lm_head)),
    "offloaded": lambda model: cpu_offload(model.lm_head, torch.device("cpu")),
    "everything offloaded": lambda model: cpu_offload(model, torch.device("cpu")),
    "adapter": adapt,
    "compiled": lambda model: setattr(
        model, "lm_head", torch.compile(model.lm_head, backend="eager")
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_heads_of_an_output_embedding_that_cannot_be_read(change):
    """A part of the vocabulary, and heads that start from the output embedding."""
    stock = tiny("llama", 4)
    model = HookedModel(stock)
    change(stock)
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    expected = stock.lm_head(stock.model.norm(hidden))
    assert is_readable(stock.lm_head) == (change is STATES["plain"])
    ranges = ((3, 9), (20, 60))
    among = model.logits(hidden, LAYERS, ranges)
    whole = torch.full_like(expected, torch.finfo(expected.dtype).min)
    for start, stop in ranges:
        whole[:, start:stop] = expected[:, start:stop]
    torch.testing.assert_close(among, whole, rtol=0, atol=1e-5)
    for kind in ("linear", "low-rank", "tuned"):
        head = KINDS.get(kind).untrained(model.lens, (2,), width=32)
        torch.testing.assert_close(head.logits(hidden, 2), expected, rtol=0, atol=1e-4)
        part = head.logits_over(hidden, 2, slice(5, 8))
        torch.testing.assert_close(part, expected[:, 5:8], rtol=0, atol=1e-4)


def test_an_output_embedding_that_is_not_linear_starts_no_linear_head():
    class Cubed(nn.Linear):
        def forward(self, x):
            return super().forward(x) ** 3

    stock = tiny("llama", 4)
    stock.lm_head = Cubed(32, 60)
    model = HookedModel(stock)
    with pytest.raises(EepolicyError, match="is not: fit a tuned lens"):
        KINDS.get("linear").untrained(model.lens, (2,), width=32)


def stock_tokens(model: PreTrainedModel) -> list[int]:
    ids = PROMPT[None]
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False
    )
    return out[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("everything", [True, False], ids=["everything", "some layers"])
def test_offloaded_models_give_the_stock_tokens(everything):
    stock, offloaded = tiny("llama", 5), tiny("llama", 5)
    for module in (offloaded,) if everything else offloaded.model.layers[2:4]:
        cpu_offload(module, torch.device("cpu"))
    model = HookedModel(offloaded)
    assert model.device == torch.device("cpu")
    expected = stock_tokens(stock)
    assert model.generate(PROMPT, "full", 9).tokens.tolist() == expected
    early = model.generate(PROMPT, "text=static@2", 9, accept="exact")
    assert early.tokens.tolist() == expected
    assert fingerprint(offloaded) == fingerprint(stock)
    ours, plain = (eepolicy.probe(m, PROMPT, statistics=["entropy"]) for m in (model, stock))
    assert (ours.entropy == plain.entropy).all()
    with pytest.raises(EepolicyError, match="a branch and a drafter copy LlamaDecoderLayer"):
        KINDS.get("branch").untrained(model.lens, (2,), width=32)


@pytest.mark.parametrize("scale", [None, "row"])
def test_quantised_models_give_the_stock_tokens(scale):
    stock = quantise(tiny("llama", 6), scale)
    model = HookedModel(stock)
    expected = stock_tokens(stock)
    assert model.generate(PROMPT, "full", 9).tokens.tolist() == expected
    early = model.generate(PROMPT, "text=static@2", 9, accept="exact")
    assert early.tokens.tolist() == expected
    assert obstacle(stock.model.layers[0]) == "quantised weights (PackedWeight)"
    assert fingerprint(stock) != fingerprint(tiny("llama", 6))


def test_a_model_with_one_activation_scale_per_call_is_refused():
    message = "itself gives other logits when the same text comes in two blocks .*PackedWeight"
    with pytest.raises(EepolicyError, match=message):
        HookedModel(quantise(tiny("llama", 6), "call"))


def test_obstacles_are_found_in_nested_modules():
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Tanh()))
    assert obstacle(module) is None
    module[1][0].register_forward_hook(lambda *_: None)
    assert obstacle(module) == "a forward hook"
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].forward = lambda x: x
    assert obstacle(module) == "a method forward that replaces that of its class"
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].vector = torch.zeros(2)
    assert obstacle(module) == "a tensor that is neither a parameter nor a buffer"
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].compile(backend="eager")
    assert obstacle(module) == "code of torch.compile"
    handle = register_module_forward_hook(lambda *_: None)
    try:
        assert obstacle(nn.Tanh()) == "a global hook of torch.nn.Module"
    finally:
        handle.remove()
