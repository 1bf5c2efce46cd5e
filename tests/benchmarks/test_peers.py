"""The probe and the decoder against other libraries, where the extra `peers` is installed."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import LAYERS, LAYOUT, tiny
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from eepolicy import HookedModel, probe
from eepolicy.heads import FittedHead, TunedLens

IDS = torch.randint(60, (17,), generator=torch.Generator().manual_seed(8))


def entropy(logits: torch.Tensor) -> np.ndarray:
    logs = logits.detach().double().log_softmax(-1)
    return -(logs.exp() * logs).sum(-1).numpy()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_nnsight_sees_the_same_layers(stock, hooked):
    nnsight = pytest.importorskip("nnsight")
    traced = nnsight.NNsight(stock)
    layers = traced.transformer.h if hasattr(stock, "transformer") else traced.model.layers
    with traced.trace(IDS[None]):
        saved = list().save()
        for layer in layers:
            saved.append(layer.output)
    states = [(h[0] if isinstance(h, tuple) else h).reshape(len(IDS), -1) for h in saved]
    result = probe(hooked, IDS, hidden_states="all", dtype=torch.float32)
    for ours, theirs in zip(result.hidden_states, states, strict=True):
        np.testing.assert_allclose(ours, theirs.detach(), atol=2e-5)  # measured 4e-6
    for depth in (2, LAYERS):
        with torch.no_grad():
            theirs = entropy(hooked.lens.logits(states[depth - 1], depth))
        np.testing.assert_allclose(result.entropy[depth - 1], theirs, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_tuned_lens_has_the_same_logits(stock, family):
    """Its translators in ours: the same logits at each depth, from the same numbers."""
    nn = pytest.importorskip("tuned_lens.nn.lenses")
    if find_spec("transformer_lens"):
        pytest.skip("tuned-lens 0.2 does not work beside transformer-lens 4")
    from tuned_lens.nn.unembed import Unembed

    hooked = HookedModel(stock, layout=LAYOUT)
    theirs = nn.TunedLens(Unembed(stock), nn.TunedLensConfig("tiny", 32, LAYERS))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for layer in theirs.layer_translators:
            layer.weight.copy_(0.1 * torch.randn(32, 32, generator=generator))
            layer.bias.copy_(0.1 * torch.randn(32, generator=generator))
    below = list(theirs.layer_translators)[1:]  # its first one reads the embedding
    translators = {
        depth: TunedLens(hooked.lens, t.weight.detach(), t.bias.detach())
        for depth, t in enumerate(below, start=1)
    }
    ours = FittedHead(translators)
    result = probe(hooked, IDS, heads=ours, hidden_states="all", dtype=torch.float32)
    for depth in range(1, LAYERS):
        states = torch.from_numpy(result.hidden_states[depth - 1].copy())
        with torch.no_grad():
            logits = theirs(states, depth)
        np.testing.assert_allclose(result.entropy[depth - 1], entropy(logits), atol=2e-5)
        np.testing.assert_array_equal(result.top1[depth - 1], logits.argmax(-1))


def test_transformer_lens_gives_the_same_states_and_entropy(tmp_path):
    bridge_module = pytest.importorskip("transformer_lens.model_bridge")
    stock = tiny("llama", 2)
    stock.save_pretrained(tmp_path)
    words = Tokenizer(WordLevel({str(i): i for i in range(60)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    bridge = bridge_module.TransformerBridge.boot_transformers(
        str(tmp_path), hf_model=stock, device="cpu", tokenizer=tokenizer
    )
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(IDS[None])
    hooked = HookedModel(tiny("llama", 2), layout=LAYOUT)
    result = probe(hooked, IDS, hidden_states="all", dtype=torch.float32)
    for index in range(LAYERS):
        theirs = cache[f"blocks.{index}.hook_resid_post"]
        np.testing.assert_allclose(
            result.hidden_states[index], theirs.reshape(len(IDS), -1), atol=2e-5
        )
    np.testing.assert_allclose(result.entropy[-1], entropy(logits[0]), atol=2e-5)


@pytest.mark.parametrize("family", ["llama", pytest.param("qwen2", marks=pytest.mark.exhaustive)])
def test_economize_gives_the_same_tokens(stock):
    """Fixed and decreasing depths, CALM with its fill, cycles and lossless drafts."""
    pytest.importorskip("economize")
    from benchmarks.peers import tasks

    stock.generation_config.eos_token_id = None  # their fastest call ignores end tokens
    model, replies = HookedModel(stock), []
    for task, (theirs, policy, options) in tasks(model, 12).items():
        for prompt in (IDS, IDS.flip(0)):
            ours = model.generate(prompt, policy, 12, **options)
            assert [ours.tokens.tolist()] == theirs([prompt]), task
            replies.append((task, ours.trace.layer_calls.tolist()))
    assert len({str(calls) for _, calls in replies}) > 5  # the tasks differ
