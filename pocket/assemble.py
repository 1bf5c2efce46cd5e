"""Assemble the trained model into the folder that the package ships.

    python -m pocket.assemble WORK [--to FOLDER]

It copies the model, its tokenizer, its units, its vocoder and the held-out questions. It writes the
layout into `config.json`, and fits the exit heads on the model's own full-depth replies.
"""

from __future__ import annotations

import argparse
import random
import shutil
from pathlib import Path

import torch
from tqdm import tqdm

from eepolicy.fitting import FitConfig, fit, generate_replies
from eepolicy.io import read_json, write_json
from eepolicy.loading.pocket import load_spoken, pocket_folder
from eepolicy.speech.units import VOCODER
from pocket.sequences import LAYOUT

TRAIN_REPLIES = 900  # replies to training questions
DEV_REPLIES = 100  # replies to dev questions
EPOCHS = 6


def copy_model(work: Path, to: Path) -> None:
    """Copy the files of the model, without heads."""
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
    for name in ("units.safetensors", VOCODER):
        shutil.copy(work / name, to / name)
    config = read_json(work / "model" / "config.json")
    config["speech_layout"] = LAYOUT.to_dict()
    write_json(to / "config.json", config, indent=2)
    splits = read_json(work / "pairs.json")
    held_out = {name: splits[name] for name in ("test", "dev")}
    write_json(to / "held_out.json", held_out, indent=0)


def fit_heads(work: Path, to: Path) -> None:
    """Fit a tuned lens at every depth and write it to the model's folder."""
    model = load_spoken(to)
    splits = read_json(work / "pairs.json")
    chosen = random.Random(0).sample(splits["train"], TRAIN_REPLIES)
    train = generate_replies(model, [p["question"] for p in chosen], batch=64, progress=tqdm)
    dev = generate_replies(model, [p["question"] for p in splits["dev"][:DEV_REPLIES]])
    fitted = fit(model, train, dev, FitConfig(epochs=EPOCHS), report=tqdm.write, progress=tqdm)
    notes = {
        "data": f"{TRAIN_REPLIES} of the model's own replies to training questions",
        "held_out": f"{DEV_REPLIES} replies to dev questions",
        **fitted.notes,
    }
    fitted.heads.save(to / "heads.safetensors", model.model, notes)


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
