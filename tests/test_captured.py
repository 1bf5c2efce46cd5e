"""Stretches of layers as they are captured on a CUDA device, against the layers as they are."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYERS, LAYOUT, tiny

from eepolicy import Fill, HookedModel
from eepolicy.model import captured
from eepolicy.model.captured import CapturedLayers
from eepolicy.model.compiled import _AsWritten

QUESTION = torch.tensor([5, 33, 21, 8])
ONE = [QUESTION]
RAGGED = [QUESTION, torch.tensor([7, 8]), torch.tensor([1, 2, 3, 9, 5, 6, 7])]
WAYS = [
    ("full", {}),
    ("spark:triple@2", {}),
    ("spark:triple@2", {"fill": "propagate"}),
    ("spark:even@3", {"fill": "mask"}),
    ("both=static@2", {"fill": Fill(max_pending=3)}),
    ("both=static@2", {"accept": "exact", "fill": Fill(max_pending=3)}),
    ("both=entropy<2@2", {}),
    ("both=random:4.0@2", {"fill": Fill(along=0.4)}),
    ("spark:triple@2", {"narrow": True}),
    ("both=entropy<2@2", {"temperature": 0.8, "seed": 3}),
    ("spark:triple@2", {"record": True}),
]
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


class Rerun(CapturedLayers):
    """Stands in for CUDA graphs: a replay reads the tensors that it was made with."""

    def __init__(self, model):
        super().__init__(model)
        self._kernels = _AsWritten()
        self.replays = 0

    def run_layers(self, first, behind, hidden, rotations, masks, cache):
        self.now = cache
        return super().run_layers(first, behind, hidden, rotations, masks, cache)

    def _captured(self, asked, cache):
        held, room = [t.clone() for t in asked.tensors], cache.room

        def replay(tensors):
            assert self.now.room is room  # a graph knows no other place
            for old, new in zip(held, tensors, strict=True):
                old.copy_(new)
            self.replays += 1
            return self._run(asked, held, self.now)

        return replay


@pytest.fixture(params=["llama", "gemma2", "gemma3", "gpt2", "glm"])
def stretched(request, monkeypatch) -> HookedModel:
    """A model whose compiled layers run in stretches, reaching over what is not filled yet."""
    monkeypatch.setattr(captured, "REACH", 16)
    model = HookedModel(tiny(request.param), layout=LAYOUT)
    model._kernels = Rerun(model), True
    return model


def same(model: HookedModel, prompts, policy, options) -> None:
    plain = model.generate(prompts, policy, max_new_tokens=25, **options)
    ours = model.generate(prompts, policy, max_new_tokens=25, compile=True, **options)
    for left, right in zip(ours, plain, strict=True):
        assert left.tokens.tolist() == right.tokens.tolist()
        assert left.trace.depth.tolist() == right.trace.depth.tolist()
        assert left.trace.layer_calls.tolist() == right.trace.layer_calls.tolist()


@pytest.mark.parametrize("prompts", [ONE, RAGGED], ids=["one", "ragged"])
def test_replies_are_those_of_the_layers_as_they_are(stretched, prompts):
    for policy, options in WAYS:
        same(stretched, prompts, policy, options)
    assert stretched._kernels[0].replays > LAYERS


def test_graphs_are_few(stretched):
    """One for each stretch, width and reach, however often it is asked for."""
    for _ in range(3):
        stretched.generate(ONE, "both=spark:triple@2", max_new_tokens=40, compile=True)
    (room,) = stretched._kernels[0]._rooms._spare
    stretches = {kind[2][0][:2] for kind in room.replays}
    assert stretches <= {(0, 2), (2, LAYERS), (0, LAYERS)}
    reaches = {kind[2][0][2] for kind in room.replays}
    assert reaches <= {16, 32, 48}
    # beyond its window a layer takes a mask: another graph, and other widths of a refresh
    assert len(room.replays) <= 2 * len(stretches) * len(reaches)


@on_cuda
@pytest.mark.parametrize("prompts", [ONE, RAGGED], ids=["one", "ragged"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_graphs_give_the_replies_of_the_layers_as_they_are(family, prompts):
    model = HookedModel(tiny(family), layout=LAYOUT).to("cuda")
    for policy, options in WAYS:
        same(model, prompts, policy, options)
    layers = model._compiled()
    assert isinstance(layers, CapturedLayers)
    assert not layers._broken
    rooms = layers._rooms._spare
    assert any(replay is not None for room in rooms for replay in room.replays.values())
