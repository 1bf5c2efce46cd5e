"""Write the pocket model's card from measured results.

    eepolicy compare full --prompts 300 --mos distillmos --out WORK/full
    python -m pocket.ceiling WORK
    python -m pocket.card WORK

The card is `README.md` in the folder of the weights.  All measured numbers in it come from files.
`pocket/training.json` has what the logs of both trainings said.
"""

from __future__ import annotations

import argparse
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
from eepolicy.hooked import HookedModel
from eepolicy.io import read_json, read_jsonl, write_text
from eepolicy.layerwise import probe
from eepolicy.loading.pocket import held_out, load_spoken, pocket_folder
from eepolicy.modality import Modality
from eepolicy.speech.units import Units
from pocket.closeness import by_position, inside

PROBED = 60  # replies to probe


def by_layer(
    model: HookedModel, records: list[Record], heads: ExitHead
) -> dict[str, NDArray[np.float64]]:
    """Agreement with the last layer and entropy in nats, by depth.

    Returns:
        An array (depths,) for each of `text agreement`, `text entropy` and so on.
    """
    result = probe(
        model, (r.document(model) for r in records), heads=heads, statistics=("top1", "entropy")
    )
    modality, agreement, entropy = result.modality, result.agreement, result.entropy
    columns = {}
    for m in Modality:
        columns[f"{m.name.lower()} agreement"] = agreement[:, modality == m].mean(1)
        columns[f"{m.name.lower()} entropy"] = entropy[:, modality == m].mean(1)
    return columns


def grouped(records: list[Record], by: str) -> list[tuple[str, list[Record]]]:
    """Group records by the suite or kind of their question."""
    name_of = {p["question"]: p[by] for p in held_out()}
    groups = defaultdict(list)
    for record in records:
        groups[name_of[record.question]].append(record)
    return sorted(groups.items())


def full_depth(path: Path, model: HookedModel) -> tuple[list[Record], dict[str, Any]]:
    """Read the full-depth records of a run, and its row of the table.

    Raises:
        RuntimeError: the run is of another model, or had no speech recognition.
    """
    identity = read_json(path / "run.json")["identity"]
    if identity["model"] != fingerprint(model.model) or not identity["speech recognition"]:
        raise RuntimeError(f"{path} is not a run of this model with speech recognition")
    records = [r for group in RunFolder(path).records().values() for r in group]
    row = read_json(path / "results.json")[0]
    return [r for r in records if r.policy == "full"][: row["prompts"]], row


def above_ceiling(records: list[Record], errors: list[tuple[int, int]]) -> Interval[float]:
    """Difference of word error rates: the model's speech minus resynthesized true units.

    Args:
        records: replies of the model.
        errors: word errors and words of the true units, for the first of these questions.
    """
    own = [(r.errors, r.words) for r in records[: len(errors)]]
    (own_errors, own_words), (true_errors, true_words) = (
        zip(*e, strict=True) for e in (own, errors)
    )
    return paired_difference((own_errors, true_errors), (own_words, true_words))


def training(work: Path) -> dict[str, Any]:
    """Values of the card about the trainings of model and vocoder, and their data."""
    splits = read_json(work / "pairs.json")
    vocoder = read_jsonl(work / "vocoder.jsonl")
    trainings: dict[str, Any] = read_json(Path(__file__).with_name("training.json"))
    return trainings | {
        "train": len(splits["train"]),
        "vocoder_log": [*vocoder[:-1][:: max(1, len(vocoder) // 5)], vocoder[-1]],
        "in_answers": inside(splits["test"], splits["train"], "answer"),
        "in_questions": inside(splits["test"], splits["train"], "question"),
        "by_position": by_position(splits["test"]),
    }


def vocoder_parameters(model: HookedModel) -> int:
    """Number of parameters of the neural vocoder."""
    assert isinstance(model.vocoder, Units)
    assert model.vocoder.network is not None
    return sum(p.numel() for p in model.vocoder.network.parameters())


def render(values: dict[str, Any]) -> str:
    """Fill in the template of the card."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["percent"] = lambda x: f"{100 * x:.1f}"
    return environment.get_template("card.md").render(values) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    folder = pocket_folder()
    model = load_spoken(folder)
    records, row = full_depth(args.work / "full", model)
    ceiling = read_json(args.work / "ceiling.json")
    layers: dict[str, Any] = {
        "lens": by_layer(model, records[:PROBED], model.lens),
        "heads": by_layer(model, records[:PROBED], model.heads),
    }
    values = training(args.work) | {
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
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "vocoder_parameters": vocoder_parameters(model),
        "megabytes": (folder / "model.safetensors").stat().st_size / 1e6,
        "config": model.model.config,
    }
    write_text(folder / "README.md", render(values))


if __name__ == "__main__":
    main()
