"""Write the pocket model's card from what was measured.

    eepolicy compare full --prompts 200 --out WORK/full
    python -m pocket.ceiling WORK --prompts 100
    python -m pocket.card WORK FIRST

The card is `README.md` beside the weights; no measured figure in it is typed by hand.  `FIRST` is
the work folder of the training that the second one started from.
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
from numpy.typing import NDArray

from eepolicy.analysis.evaluation.records import Record, RunFolder
from eepolicy.analysis.stats.bootstrap import Interval, paired_difference
from eepolicy.heads.base import ExitHead
from eepolicy.heads.fingerprint import fingerprint
from eepolicy.hooked import HookedModel, probe
from eepolicy.loading.pocket import held_out, load_spoken, pocket_folder
from eepolicy.modality import Modality
from pocket.closeness import bare, by_place, inside

PROBED = 60


def by_layer(
    model: HookedModel, records: list[Record], heads: ExitHead
) -> dict[str, NDArray[np.float64]]:
    """Agreement with the last layer and entropy (nats) by depth: `text agreement`: (depths,)."""
    result = probe(
        model, (r.document(model) for r in records), heads=heads, statistics=("top1", "entropy")
    )
    modality, agreement, entropy = result.modality, result.agreement, result.entropy
    found = {}
    for m in Modality:
        found[f"{m.name.lower()} agreement"] = agreement[:, modality == m].mean(1)
        found[f"{m.name.lower()} entropy"] = entropy[:, modality == m].mean(1)
    return found


def grouped(records: list[Record], by: str) -> list[tuple[str, list[Record]]]:
    """The records of each suite or kind of question, by name."""
    name_of = {p["question"]: p[by] for p in held_out()}
    groups = defaultdict(list)
    for record in records:
        groups[name_of[record.question]].append(record)
    return sorted(groups.items())


def full_depth(path: Path, model: HookedModel) -> tuple[list[Record], dict[str, Any]]:
    """The full-depth records of a run of this model, with ears, and its row of the table."""
    identity = json.loads((path / "run.json").read_text())["identity"]
    if identity["model"] != fingerprint(model.model) or not identity["speech recognition"]:
        raise RuntimeError(f"{path} is no run of this model with speech recognition")
    records = [r for held in RunFolder(path).records().values() for r in held]
    row = json.loads((path / "results.json").read_text())[0]
    return [r for r in records if r.policy == "full"][: row["prompts"]], row


def above_ceiling(records: list[Record], errors: list[tuple[int, int]]) -> Interval:
    """By how much the model's word error rate is above that of true units, same questions."""
    own = [(r.errors, r.words) for r in records[: len(errors)]]
    (own_errors, own_words), (true_errors, true_words) = (
        zip(*e, strict=True) for e in (own, errors)
    )
    return paired_difference((own_errors, true_errors), (own_words, true_words))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("first", type=Path)
    args = parser.parse_args()
    work = args.work
    torch.set_num_threads(2)
    folder = pocket_folder()
    model = load_spoken(folder)
    records, row = full_depth(work / "full", model)
    ceiling = json.loads((work / "ceiling.json").read_text())
    layers: dict[str, Any] = {
        "lens": by_layer(model, records[:PROBED], model.lens),
        "heads": by_layer(model, records[:PROBED], model.heads),
    }
    log = json.loads((work / "log.json").read_text())
    sets, first = (json.loads((f / "pairs.json").read_text()) for f in (work, args.first))
    first_dev = {bare(p["answer"]) for p in first["dev"]}
    values = {
        "row": row,
        "ceiling": ceiling,
        "above": above_ceiling(records, ceiling["ceiling"]["errors"]),
        "layers": layers,
        "depths": [*range(1, model.depth, 2), model.depth],
        "probed": len(records[:PROBED]),
        "suites": [
            (
                name,
                len(group),
                float(np.mean([r.right_text for r in group])),
                float(np.mean([bool(r.right_speech) for r in group])),
            )
            for name, group in grouped(records, "suite")
        ],
        "wrong_kinds": [
            (name, wrong, len(group))
            for name, group in grouped(records, "kind")
            if (wrong := sum(not r.right_text for r in group))
        ],
        "log": [*log[:-1][:: max(1, len(log) // 6)], log[-1]],
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "megabytes": (folder / "model.safetensors").stat().st_size / 1e6,
        "train": len(sets["train"]),
        "first": len(first["train"]),
        "first_log": json.loads((args.first / "log.json").read_text())[-1],
        "first_dev": sum(bare(p["answer"]) in first_dev for p in sets["test"]),
        "near": inside(sets["test"], sets["train"], "answer"),
        "asked": inside(sets["test"], sets["train"], "question"),
        "by_place": by_place(sets["test"]),
        "config": model.model.config,
    }
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["percent"] = lambda x: f"{100 * x:.1f}"
    (folder / "README.md").write_text(environment.get_template("card.md").render(values) + "\n")


if __name__ == "__main__":
    main()
