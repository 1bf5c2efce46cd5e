"""Layers that are started before the host knows the token, against those that wait for it."""

from __future__ import annotations

import pytest
import torch
from conftest import DECODINGS, LAYERS, LAYOUT, assert_same_replies, layers_of, tiny

from eepolicy import EepolicyError, ExitPolicy, HookedModel
from eepolicy.decode import overlap as ahead

ONE = [torch.tensor([5, 33, 21, 8])]
#: ids that end a reply, so many that rows end one by one
ENDS = [4, 11, 23, 31, 46]
RAGGED = [*ONE, torch.tensor([7, 8]), torch.tensor([1, 2, 3, 9, 5, 6, 7]), torch.tensor([11, 2])]


@pytest.fixture(params=["llama", "mistral"])
def model(request) -> HookedModel:
    return HookedModel(tiny(request.param), layout=LAYOUT)


@pytest.fixture
def always(monkeypatch) -> None:
    """The device counts as one that works by itself."""
    monkeypatch.setattr(ahead, "is_async", lambda device: True)


@pytest.mark.parametrize("prompts", [ONE, RAGGED], ids=["one", "ragged"])
@pytest.mark.parametrize(
    ("policy", "options"),
    [
        *DECODINGS,
        ("both=random:4.0@2", {}),
        ("both=patience:2@2", {"rebatch": 0.4}),
        ("oracle@2", {}),
        ("text=static@3,speech=spark:triple@2", {"temperature": 0.8, "seed": 3}),
        ("spark:triple@2", {"repetition_penalty": 1.2}),
        ("spark:triple@2", {"record": True}),
    ],
    ids=str,
)
def test_replies_and_costs_are_the_same(model, monkeypatch, prompts, policy, options):
    plain = model.generate(prompts, policy, max_new_tokens=30, eos_token_id=ENDS, **options)
    monkeypatch.setattr(ahead, "is_async", lambda device: True)
    ours = model.generate(prompts, policy, max_new_tokens=30, eos_token_id=ENDS, **options)
    if prompts is RAGGED:  # rows end while the next step of all rows runs
        assert len({len(out.tokens) for out in plain}) > 1
    assert_same_replies(ours, plain)


@pytest.mark.parametrize(("policy", "early"), [("full", LAYERS), ("both=spark:triple@2", 2)])
def test_layers_start_before_the_host_reads_the_token(model, always, monkeypatch, policy, early):
    """Before the host reads a token, the layers run that every next token needs."""
    events = ""
    async_to_host = ahead.async_to_host

    def note(event):
        nonlocal events
        events += event

    def watched(tokens):
        note("D")  # a token is drawn
        look = async_to_host(tokens)
        return lambda: (note("L"), look())[1]  # the host reads it

    monkeypatch.setattr(ahead, "async_to_host", watched)
    for layer in layers_of(model.model):
        layer.register_forward_hook(lambda *_: note("."))
    model.generate(ONE, policy, max_new_tokens=5, min_new_tokens=5)
    before_looks = [part.split("L")[0] for part in events.split("D")[1:]]
    assert [len(layers) for layers in before_looks] == [early] * 4 + [0]  # nothing follows the last


class ExitsBelowMinDepth(ExitPolicy):
    """Exits below its declared `min_depth`."""

    def depths(self, step):
        return torch.full_like(step.phase, 2)

    def min_depth(self, full_depth):
        return 3


def test_a_reply_may_end_at_the_last_position_of_the_model(monkeypatch):
    model = HookedModel(tiny("gpt2"), layout=LAYOUT)
    limit = model.parts.max_positions
    prompt = torch.arange(limit - 4) % 40 + 5
    plain = model.generate(prompt, "full", 4, eos_token_id=-1)
    end = plain.tokens.tolist()[3]
    options = {"eos_token_id": end, "max_new_tokens": 9}
    expected = model.generate(prompt, "full", **options)
    monkeypatch.setattr(ahead, "is_async", lambda device: True)
    assert model.generate(prompt, "full", **options).tokens.tolist() == expected.tokens.tolist()


def test_a_policy_that_exits_below_its_min_depth_is_refused(model):
    """On every device, so that a policy that works on one device works on all."""
    with pytest.raises(EepolicyError, match="below its min_depth 3"):
        model.generate(ONE, ExitsBelowMinDepth(), max_new_tokens=5)


def test_a_least_depth_that_the_model_does_not_have_is_refused(model, monkeypatch):
    depth = LAYERS + 1
    monkeypatch.setattr(ExitsBelowMinDepth, "min_depth", lambda self, full_depth: depth)
    with pytest.raises(EepolicyError, match=f"at depth {depth}, but the model has depths 1 to 6"):
        model.generate(ONE, ExitsBelowMinDepth(), max_new_tokens=5)
