"""Branches beside the tuned lens of the pocket model."""

from __future__ import annotations

import shutil

import torch

from eepolicy.heads import KINDS, load_heads, read_notes
from eepolicy.loading.pocket import load_spoken, pocket_folder
from pocket.branches import add_branches


def test_branches_are_preferred_and_the_tuned_lens_stays(tmp_path):
    to = tmp_path / "model"
    shutil.copytree(pocket_folder(), to)
    model = load_spoken(to)
    file = to / "heads.safetensors"
    tuned = load_heads(file, model.lens, model.model, kind="tuned")
    before = read_notes(file)["notes"]
    files = []
    for depth, shift in ((6, 0.5), (4, 0.25), (6, 1.0)):  # the second file of depth 6 replaces
        heads = KINDS.get("branch").untrained(model.lens, (depth,), width=256, num_layers=1)
        with torch.no_grad():
            heads.at(depth).norm.weight += shift
        files.append(tmp_path / f"{len(files)}.safetensors")
        heads.save(files[-1], model.model, {"shift": shift})
    heads = add_branches(files, to)
    assert heads.branch_depths == (4, 6)
    assert heads.depths == tuned.depths
    norm = model.lens.norm.weight
    torch.testing.assert_close(heads.at(6).norm.weight, norm + 1.0, atol=2e-3, rtol=2e-3)
    kept = load_heads(file, model.lens, model.model, kind="tuned")
    assert kept.depths == tuned.depths
    assert all(
        torch.equal(a, b) for a, b in zip(kept.parameters(), tuned.parameters(), strict=True)
    )
    notes = read_notes(file)["notes"]
    assert [each["shift"] for each in notes.pop("branches")] == [0.5, 0.25, 1.0]
    before.pop("branches", None)
    assert notes == before
