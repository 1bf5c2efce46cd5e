"""Put the trained model together as the package ships it.

    python -m pocket.assemble WORK [--to FOLDER]

copies the model, its tokenizer, its units and the held-out questions, writes the layout into its
`config.json`, and fits the exit heads on the model's own full-depth replies.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path

import torch
from tqdm import tqdm

from eepolicy.fitting import FitConfig, fit, generate_replies
from eepolicy.loading.pocket import load_spoken, pocket_folder
from pocket.sequences import LAYOUT

FITTED_ON = 900  # training questions
JUDGED_BY = 100  # dev questions
EPOCHS = 6


def copy_model(work: Path, to: Path) -> None:
    """The files of the model, without heads."""
    to.mkdir(parents=True, exist_ok=True)
    (to / "heads.safetensors").unlink(missing_ok=True)
    names = (
        "model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    )
    for name in names:
        shutil.copy(work / "model" / name, to / name)
    shutil.copy(work / "units.safetensors", to / "units.safetensors")
    config = json.loads((work / "model" / "config.json").read_text())
    config["speech_layout"] = LAYOUT.to_dict()
    (to / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    sets = json.loads((work / "pairs.json").read_text())
    held_out = {name: sets[name] for name in ("test", "dev")}
    (to / "held_out.json").write_text(json.dumps(held_out, indent=0) + "\n")


def fit_heads(work: Path, to: Path) -> None:
    """Fit a tuned lens at every depth and write it beside the model."""
    model = load_spoken(to)
    sets = json.loads((work / "pairs.json").read_text())
    chosen = random.Random(0).sample(sets["train"], FITTED_ON)
    train = generate_replies(model, [p["question"] for p in chosen], batch=64, progress=tqdm)
    dev = generate_replies(model, [p["question"] for p in sets["dev"][:JUDGED_BY]])
    found = fit(model, train, dev, FitConfig(epochs=EPOCHS), report=tqdm.write, progress=tqdm)
    notes = {
        "data": f"{FITTED_ON} of the model's own replies to training questions",
        "held_out": f"{JUDGED_BY} replies to dev questions",
        **found.notes,
    }
    found.heads.save(to / "heads.safetensors", model.model, notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--to", type=Path, default=pocket_folder())
    args = parser.parse_args()
    torch.set_num_threads(2)
    copy_model(args.work, args.to)
    fit_heads(args.work, args.to)


if __name__ == "__main__":
    main()
