"""Models on several devices, which are pretended, and layers on the CPU or the disk."""

from __future__ import annotations

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from conftest import DECODINGS, LAYOUT, layers_of, tiny
from pretended_devices import KIND, PretendedDevices, put
from transformers import PreTrainedModel

import eepolicy
from eepolicy import HookedModel

FAMILIES = ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3", "gpt2"))]
PROMPTS = [torch.arange(3, 9), torch.arange(5, 16), torch.arange(2, 6)]


def on_two_devices(family: str) -> HookedModel:
    """A model whose last three layers are on another device, as accelerate places them."""
    model = tiny(family)
    put(model, f"{KIND}:0")
    layers = [*layers_of(model)]
    for layer in layers[3:]:
        put(layer, f"{KIND}:1")
        add_hook_to_module(layer, AlignDevicesHook(f"{KIND}:1"))
    within = {module for layer in layers for module in layer.modules()}
    for module in {*model.modules()} - within:
        if module._parameters:  # embeddings, the last norm, the output embedding
            add_hook_to_module(module, AlignDevicesHook(f"{KIND}:0"))
    return HookedModel(model, LAYOUT)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_devices_give_the_replies_of_one(family):
    expected = HookedModel(tiny(family), LAYOUT)
    with PretendedDevices() as devices:
        model = on_two_devices(family)
        assert str(model.device) == f"{KIND}:0"
        for policy, options in DECODINGS:
            replies = model.generate(PROMPTS, policy, 11, **options)
            alone = expected.generate(PROMPTS, policy, 11, **options)
            for ours, plain in zip(replies, alone, strict=True):
                assert ours.tokens.tolist() == plain.tokens.tolist(), policy
                assert ours.trace.depth.tolist() == plain.trace.depth.tolist(), policy
    assert devices.moves > 100


def places_of(model: PreTrainedModel, others: dict[int, str]) -> dict[str, str]:
    """A device map: some layers elsewhere, by index, and everything else on the CPU."""
    layers = [*layers_of(model)]
    within = {module for layer in layers for module in layer.modules()}
    places = {}
    for name, module in model.named_modules():
        if module in layers:
            places[name] = others.get(layers.index(module), "cpu")
        elif module not in within and (module._parameters or module._buffers):
            places[name] = "cpu"
    return places


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_on_the_disk_give_the_stock_tokens(family, tmp_path):
    stock = tiny(family)
    stock.save_pretrained(tmp_path / "model")
    places = places_of(stock, {1: "disk", 3: "disk", 4: "disk"})
    model = eepolicy.load(
        tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "offload")
    )
    offloaded = [layer for layer in model.parts.layers if next(layer.parameters()).is_meta]
    assert len(offloaded) == 3
    assert model.device == torch.device("cpu")
    plain = HookedModel(stock)
    for prompt in PROMPTS:
        expected = stock.generate(prompt[None], max_new_tokens=12, do_sample=False)
        expected = expected[0, len(prompt) :].tolist()
        assert model.generate(prompt, "full", 12).tokens.tolist() == expected
        exact = model.generate(prompt, "text=static@2", 12, accept="exact")
        assert exact.tokens.tolist() == expected
    for fill in ("catch_up", "propagate", "mask"):
        ours, one = (m.generate(PROMPTS, "text=static@2", 12, fill=fill) for m in (model, plain))
        assert [o.tokens.tolist() for o in ours] == [o.tokens.tolist() for o in one]
    ours, one = (eepolicy.probe(m, PROMPTS[0], statistics=["entropy"]) for m in (model, plain))
    assert (ours.entropy == one.entropy).all()
