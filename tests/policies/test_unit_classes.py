"""Exits by classes of units: against a plain loop, files, messages, and the fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import LAYOUT, tiny

from eepolicy import EepolicyError, HookedModel, Modality, parse_policy
from eepolicy.fitting.unit_classes import fit_unit_classes
from eepolicy.policies import Silence, Steady
from eepolicy.probing import Document
from eepolicy.testing import check_policy
from eepolicy.testing.models import PROMPTS

#: classes of the 40 units of `LAYOUT`: two sounds, and silence in every third
SOUNDS = [unit % 2 for unit in range(40)]
SILENT = list(range(0, 40, 3))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "classes.json"
    content = {"version": 1, "first": 20, "sounds": SOUNDS, "silent": SILENT, "notes": {}}
    path.write_text(json.dumps(content))
    return path


def expected_depths(tokens: list[int], modality: list[int], name: str) -> list[int]:
    """The depth of each token, by a plain loop over the units before it."""
    depths, units = [], []
    for token, kind in zip(tokens, modality, strict=True):
        steady = len(units) > 1 and SOUNDS[units[-1]] == SOUNDS[units[-2]]
        silent = len(units) > 0 and units[-1] in SILENT
        exits = steady if name == "steady" else silent
        depths.append(2 if exits and kind == Modality.SPEECH else 6)
        if 20 <= token < 60:
            units.append(token - 20)
    return depths


@pytest.mark.parametrize("name", ["steady", "silence"])
def test_a_whole_decode_against_a_plain_loop(file, name):
    model = HookedModel(tiny("llama"), layout=LAYOUT)
    outputs = model.generate(PROMPTS, f"{name}:{file}@2", 40)
    used = set()
    for output in outputs:
        depths = output.trace.depth.tolist()
        modality = output.trace.modality.tolist()
        assert depths == expected_depths(output.tokens.tolist(), modality, name)
        used.update(depths)
    assert used == {2, 6}


@pytest.mark.parametrize("cls", [Steady, Silence])
def test_conformance_with_units_among_the_tokens(tmp_path, cls):
    """The checks draw tokens from 0 to 10, and so the shipped file never exits in them."""
    path = tmp_path / "classes.json"
    content = {"first": 2, "sounds": [0, 0, 1, 1, 0], "silent": [1, 3], "notes": {}}
    path.write_text(json.dumps(content))
    check_policy(cls(str(path), 2))


def test_the_shipped_classes_are_those_of_the_pocket_model(pocket):
    classes = Steady("pocket", 6).classes
    assert classes.first == pocket.layout.speech[0]
    assert len(classes.sounds) == pocket.layout.num_units
    # units of one class are nearer to each other than others are
    codebook, sounds = pocket.vocoder.codebook, torch.tensor(classes.sounds)
    pairs = torch.randint(len(sounds), (2, 20_000), generator=torch.Generator().manual_seed(0))
    distance = (codebook[pairs[0]] - codebook[pairs[1]]).norm(dim=-1)
    same = sounds[pairs[0]] == sounds[pairs[1]]
    assert distance[same].mean() < 0.6 * distance[~same].mean()
    # and a silent unit has little power in every band (log-mel)
    silent = torch.zeros(len(sounds), dtype=torch.bool)
    silent[classes.silent] = True
    assert codebook[silent].mean() < codebook[~silent].mean() - 1


def test_spec_strings_and_messages(tmp_path):
    assert parse_policy("steady:a/b.json@6") == Steady("a/b.json", 6)
    assert parse_policy("both=silence:pocket@6").spec == "both=silence:pocket@6"
    for policy in (Steady("My Runs/me@host.json", 6), Silence("a b@7/c.json", 2)):
        assert parse_policy(policy.spec) == policy
    assert parse_policy(" steady : my file.json @ 6 ") == Steady("my file.json", 6)
    with pytest.raises(EepolicyError, match=r"no policy.*write steady:FILE@DEPTH"):
        parse_policy("steady@6")
    with pytest.raises(EepolicyError, match=r"does not exist; .*fit_unit_classes writes one"):
        Steady(str(tmp_path / "none.json"), 6).check(20)
    with pytest.raises(EepolicyError, match="depth 9, but the model has depths 1 to 6"):
        Silence("pocket", 9).check(6)
    path = tmp_path / "wrong.json"
    path.write_text('{"first": 0, "sounds": [0, 1], "silent": [2], "notes": {}}')
    with pytest.raises(EepolicyError, match=r"wrong\.json: expected silent units below 2; got 2"):
        Steady(str(path), 1).check(6)


class TwoSounds:
    """A vocoder: even units are near to each other, and units from 30 on are quiet."""

    def __init__(self) -> None:
        noise = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        self.codebook = noise + 50 * (torch.arange(40) % 2)[:, None]

    def decode(self, units):
        return torch.where(units < 30, 0.5, 0.005).repeat_interleave(160)


def test_the_fit_groups_near_units_and_finds_quiet_ones(tmp_path):
    model = HookedModel(tiny("llama"), layout=LAYOUT, vocoder=TwoSounds())
    reply = Document(torch.tensor([1, 2, *range(20, 56)]), prompt=2)  # units 36 to 39 are unknown
    classes = fit_unit_classes(model, [reply], sounds=2, save=tmp_path / "classes.json")
    sounds = np.array(classes.sounds)
    assert len({*sounds[::2]}) == len({*sounds[1::2]}) == 1
    assert sounds[0] != sounds[1]
    assert classes.silent == list(range(30, 36))
    assert Steady(str(tmp_path / "classes.json"), 2).classes == classes
    with pytest.raises(EepolicyError, match=r"41 sound classes need a vocoder .* 40 units"):
        fit_unit_classes(model, [reply], sounds=41)
