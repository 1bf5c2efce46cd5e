"""Write the pocket model's card from what was measured.

    eepolicy compare full --prompts 200 --out WORK/full
    eepolicy compare full --prompts 60 --set familiar --out WORK/familiar
    python -m pocket.ceiling WORK --prompts 100
    python -m pocket.card WORK

The card is `README.md` beside the weights; no figure in it is typed by hand.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from analysis.records import Record, RunFolder
from eepolicy.heads.base import ExitHead
from eepolicy.modality import Modality
from eepolicy.model.hooked import HookedModel
from eepolicy.models.pocket import held_out, load_spoken, pocket_folder
from eepolicy.probe import probe

PROBED = 60


def by_layer(model: HookedModel, records: list[Record], heads: ExitHead) -> dict[str, np.ndarray]:
    """Agreement with the last layer and entropy (nats) by depth: `text agreement`: (depths,)."""
    probes = [probe(model, r.question, torch.tensor(r.tokens), heads) for r in records]
    modality = np.concatenate([p.modality for p in probes])
    agreement = np.concatenate([p.agreement() for p in probes], axis=1)
    entropy = np.concatenate([p.entropy for p in probes], axis=1)
    found = {}
    for m in Modality:
        found[f"{m.name.lower()} agreement"] = agreement[:, modality == m].mean(1)
        found[f"{m.name.lower()} entropy"] = entropy[:, modality == m].mean(1)
    return found


def by_suite(records: list[Record], split: str) -> list[tuple[str, int, float, float]]:
    """Suite, answers, share right in the text, share right in the speech."""
    suite_of = {p["question"]: p["suite"] for p in held_out(split)}
    groups = defaultdict(list)
    for record in records:
        groups[suite_of[record.question]].append(record)
    return [
        (
            name,
            len(group),
            float(np.mean([r.right_text for r in group])),
            float(np.mean([bool(r.right_speech) for r in group])),
        )
        for name, group in sorted(groups.items())
    ]


def full_depth(path: Path) -> tuple[list[Record], dict[str, Any]]:
    """The full-depth records of a run and its row of the table."""
    records = RunFolder(path).records().values()
    row = json.loads((path / "results.json").read_text())[0]
    return [r for r in records if r.policy == "full"][: row["prompts"]], row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    torch.set_num_threads(2)
    folder = pocket_folder()
    model = load_spoken(folder)
    records, row = full_depth(work / "full")
    familiar, familiar_row = full_depth(work / "familiar")
    layers: dict[str, Any] = {
        "lens": by_layer(model, records[:PROBED], model.lens),
        "heads": by_layer(model, records[:PROBED], model.heads),
    }
    log = json.loads((work / "log.json").read_text())
    values = {
        "sets": {"new sentences": row, "familiar sentences": familiar_row},
        "ceiling": json.loads((work / "ceiling.json").read_text()),
        "layers": layers,
        "depths": [*range(1, model.depth, 2), model.depth],
        "probed": len(records[:PROBED]),
        "suites": {
            "new": by_suite(records, "test"),
            "familiar": by_suite(familiar, "familiar"),
        },
        "log": [*log[:-1][:: max(1, len(log) // 6)], log[-1]],
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "megabytes": (folder / "model.safetensors").stat().st_size / 1e6,
        "train": len(json.loads((work / "pairs.json").read_text())["train"]),
        "config": model.model.config,
    }
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["percent"] = lambda x: f"{100 * x:.1f}"
    (folder / "README.md").write_text(environment.get_template("card.md").render(values) + "\n")


if __name__ == "__main__":
    main()
