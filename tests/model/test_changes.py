"""Changes of a model after wrapping, against the stock model with the same changes."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import tiny
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import PreTrainedModel

import eepolicy
from eepolicy import EepolicyError, HookedModel
from eepolicy.heads import TunedLens
from eepolicy.model.changes import Snapshot
from eepolicy.model.families import parts_of
from eepolicy.testing.configs import small_config
from eepolicy.testing.models import random_model

PROMPT = torch.tensor([5, 33, 21, 8, 40, 2, 17])


def stock_tokens(model: nn.Module) -> list[int]:
    ids = PROMPT[None]
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
    )
    return out[0, len(PROMPT) :].tolist()


def assert_equals_stock(model: HookedModel, stock: nn.Module) -> list[int]:
    """Full depth, and early exits that are verified, give the stock tokens."""
    expected = stock_tokens(stock)
    assert model.generate(PROMPT, "full", 8).tokens.tolist() == expected
    early = model.generate(PROMPT, "text=static@2", 8, accept="exact")
    assert early.tokens.tolist() == expected
    return expected


def add_adapter(stock: PreTrainedModel, *targets: str) -> nn.Module:
    """The model with a LoRA adapter whose weights are not zero."""
    adapted = get_peft_model(stock, LoraConfig(target_modules=[*targets], r=4)).eval()
    randomise_adapters(adapted)
    return adapted


@torch.no_grad()
def randomise_adapters(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.normal_(0, 0.5, generator=generator)


def negated(module: nn.Module) -> nn.Module:
    changed = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.neg_()
    return changed


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("lm_head", False),
        ("lm_head", True),
        ("model.embed_tokens", False),
        ("model.norm", True),
        ("model.layers", False),
    ],
)
def test_modules_that_are_replaced_after_wrapping(name, given):
    stock = tiny("llama")
    model = HookedModel(stock, parts=parts_of(stock) if given else None)
    model.heads = heads = TunedLens.untrained(model.lens, (2,), width=32)
    before = assert_equals_stock(model, stock)
    if name == "model.layers":
        stock.model.layers[1] = negated(stock.model.layers[3])
        stock.model.layers[1].self_attn.layer_idx = 1
    else:
        stock.set_submodule(name, negated(stock.get_submodule(name)))
    assert assert_equals_stock(model, stock) != before
    hidden = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = stock.lm_head(stock.model.norm(hidden))
        assert torch.equal(model.heads.logits(hidden, 2), expected)
        assert torch.equal(model.lens.logits(hidden, 6), expected)
    assert model.heads is heads


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head", "q_proj"]])
def test_adapters_that_are_added_after_wrapping(targets):
    stock = tiny("llama", 1)
    model = HookedModel(stock)
    seen = [assert_equals_stock(model, stock)]
    adapted = add_adapter(stock, *targets)
    seen.append(assert_equals_stock(model, adapted))
    with adapted.disable_adapter():
        assert assert_equals_stock(model, adapted) == seen[0]
    adapted.add_adapter("other", LoraConfig(target_modules=targets, r=2))
    randomise_adapters(adapted, 1)
    adapted.set_adapter("other")
    seen.append(assert_equals_stock(model, adapted))
    adapted.merge_adapter()
    assert_equals_stock(model, adapted)
    assert len({*map(tuple, seen)}) == 3  # the adapters change the tokens


def test_a_peft_model_is_wrapped_as_the_model_in_it():
    adapted = add_adapter(tiny("llama", 2), "lm_head", "v_proj")
    model = HookedModel(adapted)
    assert model.unwrap() is adapted.get_base_model()
    assert_equals_stock(model, adapted)


def test_a_model_in_torch_compile_is_wrapped_as_the_model_in_it():
    stock = tiny("llama", 2)
    assert eepolicy.wrap(torch.compile(stock)).unwrap() is stock


def test_what_cannot_be_wrapped_is_refused():
    prefix = PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    for model, message in (
        (get_peft_model(tiny("llama"), prefix), "only adapters inside the layers"),
        (tiny("llama").model, "LlamaModel has no output embedding"),
        (nn.Linear(2, 2), "expected a causal language model of transformers; got Linear"),
        (tiny("llama").to("meta"), "are on the device 'meta', which has no values"),
    ):
        with pytest.raises(EepolicyError, match=message):
            HookedModel(model)


class Part(nn.Linear):
    """A module with settings as layers of PEFT have them."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.register_buffer("shift", torch.zeros(3))
        self.active, self.scales, self.inner = ["a"], {"a": {"b": 1.0}}, nn.Sequential(nn.Tanh())


def replace_data(part: Part) -> None:
    part.weight.data = part.weight.data.clone()


CHANGES = {
    "a hook": lambda part: part.register_forward_hook(lambda *_: None),
    "a hook before": lambda part: part.inner[0].register_forward_pre_hook(lambda *_: None),
    "a new weight": lambda part: setattr(part, "weight", nn.Parameter(part.weight.clone())),
    "moved numbers": replace_data,
    "a new buffer": lambda part: setattr(part, "shift", part.shift.clone()),
    "another module": lambda part: part.inner.__setitem__(0, nn.ReLU()),
    "one more module": lambda part: part.inner.append(nn.ReLU()),
    "another setting": lambda part: setattr(part, "out_features", 4),
    "a new setting": lambda part: setattr(part, "forward", lambda x: x),
    "a setting fewer": lambda part: delattr(part, "scales"),
    "a longer list": lambda part: part.active.append("b"),
    "another item": lambda part: part.scales["a"].update(b=2.0),
    "another key": lambda part: part.scales.update(c=part.scales.pop("a")),
    "training": lambda part: part.train(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_snapshot_detects_changes(change):
    part, other = Part().eval(), Part()
    snapshot = Snapshot((part, other))
    assert snapshot.is_current((part, other))
    assert not snapshot.is_current((part, Part()))
    change(part)
    assert not snapshot.is_current((part, other))


def test_a_snapshot_ignores_weight_values_and_detects_global_hooks():
    stock = tiny("llama", 3)
    model = HookedModel(add_adapter(stock, "q_proj", "lm_head"))
    snapshot = Snapshot((stock,))
    model.generate(PROMPT, "full", 3)
    with torch.no_grad():
        stock.model.norm.weight.neg_()
    assert snapshot.is_current((stock,))
    handle = register_module_forward_hook(lambda *_: None)
    try:
        assert not snapshot.is_current((stock,))
    finally:
        handle.remove()
    assert snapshot.is_current((stock,))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("family", "layers"), [("gpt_neox", "gpt_neox.layers"), ("bloom", "transformer.h")]
)
def test_an_adapted_layer_that_is_replaced_after_wrapping(family, layers, given):
    """These families have layers with other arguments than Llama's."""
    stock = random_model(small_config(family, layers=3), dtype=torch.float32)
    model = HookedModel(stock, parts=parts_of(stock) if given else None)
    before = assert_equals_stock(model, stock)
    stock.get_submodule(layers)[1] = negated(stock.get_submodule(layers)[1])
    assert assert_equals_stock(model, stock) != before
