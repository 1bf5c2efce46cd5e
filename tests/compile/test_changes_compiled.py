"""Changes of a model after it was compiled, against the stock model with the same changes."""

from __future__ import annotations

import copy
import shutil
import warnings

import pytest
import torch
from conftest import tiny
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from eepolicy import HookedModel

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
    # warnings of the compiler about its own code
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

PROMPT = torch.tensor([5, 33, 21, 8])


class Compared:
    """Compares compiled replies with those of the stock model."""

    def __init__(self, stock: nn.Module) -> None:
        self.stock, self.model = stock, HookedModel(stock)
        self.seen: list[list[int]] = []

    def check(self, *policies: str) -> str:
        """Compare full depth, and give the warning of `compile=True`; then further policies."""
        ids = PROMPT[None]
        mask = torch.ones_like(ids)
        out = self.stock.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False)
        expected = out[0, len(PROMPT) :].tolist()
        self.seen.append(expected)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for policy in ("full", *policies):
                ours = self.model.generate(PROMPT, policy, 9, accept="exact", compile=True)
                assert ours.tokens.tolist() == expected
        messages = [str(w.message) for w in caught if "compile=True" in str(w.message)]
        return "; ".join(messages)

    def kernels(self) -> int:
        executor = self.model.compiled_executor()
        assert executor is not None
        return executor.kernels


def add(module, args, out):
    return out + 1.5


@pytest.mark.slow
@torch.no_grad()
def test_hooks_and_modules_that_change_after_the_first_call(monkeypatch):
    """The structure of the layers stays; those without a hook stay compiled."""
    compared = Compared(stock := tiny("llama", 30))
    assert compared.check() == ""

    hook = stock.model.layers[1].register_forward_hook(add)
    warning = compared.check()
    assert warning == (
        "compile=True: layer 2 runs uncompiled, with the same tokens: it has a forward hook"
    )
    with monkeypatch.context() as patched:
        called = []
        run = HookedModel.run_layer
        patched.setattr(
            HookedModel,
            "run_layer",
            lambda self, i, *rest: (called.append(i), run(self, i, *rest))[1],
        )
        assert compared.check() == ""  # one warning is enough
    assert {*called} == {1}
    hook.remove()
    assert compared.check() == ""
    assert compared.seen[0] == compared.seen[-1] != compared.seen[1]

    stock.model.layers[2].mlp.up_proj.weight.neg_()  # in place
    assert compared.check() == ""
    layer = stock.model.layers[3]
    layer.mlp.gate_proj.weight = nn.Parameter(-layer.mlp.gate_proj.weight, requires_grad=False)
    assert compared.check() == ""
    layer.self_attn.v_proj.weight.data = -layer.self_attn.v_proj.weight
    assert compared.check() == ""
    stock.model.layers[0] = copy.deepcopy(stock.model.layers[4])
    stock.model.layers[0].self_attn.layer_idx = 0
    assert compared.check() == ""
    stock.model.norm = copy.deepcopy(stock.model.norm)
    stock.model.norm.weight.neg_()
    assert compared.check() == ""
    executor = compared.model.compiled_executor()
    assert not executor._broken
    assert len(executor._structures) == 1
    assert len({*map(tuple, compared.seen)}) == 7


@pytest.mark.slow
def test_global_hooks_and_hooks_of_the_output_embedding_run():
    compared = Compared(stock := tiny("llama", 30))
    assert compared.check() == ""
    hook = stock.lm_head.register_forward_hook(lambda module, args, out: -out)
    assert compared.check("text=static@2") == ""
    hook.remove()
    hook = register_module_forward_hook(
        lambda module, args, out: -out if module is stock.lm_head else None
    )
    try:
        assert "6 layers run uncompiled" in compared.check()
    finally:
        hook.remove()
    assert compared.check() == ""
    assert compared.seen[0] == compared.seen[3] != compared.seen[1] == compared.seen[2]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["q_proj", "lm_head", "embed_tokens"])
def test_adapters_that_change_after_the_first_call(target):
    compared = Compared(stock := tiny("llama", 31))
    compared.check()
    adapted = get_peft_model(stock, LoraConfig(target_modules=[target], r=4)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.5, generator=generator)
    made = []
    for _ in range(2):
        compared.check()
        with adapted.disable_adapter():
            compared.check()
        if target != "q_proj":  # a layer takes long to compile
            adapted.merge_adapter()
            compared.check()
            adapted.unmerge_adapter()
        made.append(compared.kernels())
    assert made[0] == made[1]  # structures that were met before need no other kernels
    if target == "lm_head":
        adapted.base_model.model.lm_head.set_scale("default", 3.0)
        compared.check()
    assert compared.seen[0] == compared.seen[2]
    assert len({*map(tuple, compared.seen)}) == (3 if target == "lm_head" else 2)
