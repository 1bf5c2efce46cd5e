"""Question-answer pairs and the speech of their answers, on disk, shard by shard.

    python -m pocket.corpus WORK

writes `WORK/pairs.json` and `WORK/waves/*.npz`; run again, it goes on with the missing shards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pocket.questions import Pair, generate, split, unseen
from pocket.speak import RATES, speak

PER_KIND = 1000
HELD_OUT = 300  # in each held-out set
SHARD = 500
#: the order in which answers are spoken and counted
SETS = ("familiar", "dev", "train", "test")


def pairs() -> dict[str, list[Pair]]:
    """The pairs of the four sets.

    `train`; `dev`, for early stopping and calibration; `test`, sentences that were never trained
    on; `familiar`, sentences of which most were trained on behind another opening.
    """
    train, held_out = split(generate(PER_KIND), 2 * HELD_OUT)
    random.Random(0).shuffle(held_out)
    familiar, dev = held_out[:HELD_OUT], held_out[HELD_OUT:]
    test = unseen(train + dev, HELD_OUT)
    return {"familiar": familiar, "dev": dev, "train": train, "test": test}


def place_of(sets: dict[str, list[Any]], name: str) -> slice:
    """Where a set's answers stand among all answers."""
    start = sum(len(sets[n]) for n in SETS[: SETS.index(name)])
    return slice(start, start + len(sets[name]))


def speak_all(sets: dict[str, list[Pair]], folder: Path) -> None:
    """Speak every answer, at a rate drawn for it."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = [p.answer for name in SETS for p in sets[name]]
    rng = random.Random(1)
    rates = [rng.choice(RATES) for _ in answers]
    for start in tqdm(range(0, len(answers), SHARD), desc="speech", unit="shard"):
        part_of = slice(start, start + SHARD)
        # named by what is spoken, so that a changed generator never gets old speech
        spoken = json.dumps([answers[part_of], rates[part_of]])
        path = folder / f"{start:06d}-{hashlib.sha256(spoken.encode()).hexdigest()[:8]}.npz"
        if path.exists():
            continue
        for old in folder.glob(f"{start:06d}-*.npz"):
            old.unlink()
        waves = speak(answers[part_of], rates[part_of], batch=250)
        flat = np.concatenate([(np.clip(w, -1, 1) * 32767).astype(np.int16) for w in waves])
        part = path.with_suffix(".part.npz")
        np.savez(part, flat=flat, lengths=[len(w) for w in waves])
        part.rename(path)


def read_waves(folder: Path) -> list[np.ndarray]:
    """All waves, in the order of `SETS`; (samples,) int16 each."""
    waves: list[np.ndarray] = []
    for path in sorted(p for p in folder.glob("*.npz") if ".part" not in p.name):
        shard = np.load(path)
        waves += np.split(shard["flat"], np.cumsum(shard["lengths"])[:-1])
    return waves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    sets = pairs()
    plain = {name: [p.as_dict() for p in part] for name, part in sets.items()}
    (work / "pairs.json").write_text(json.dumps(plain))
    speak_all(sets, work / "waves")


if __name__ == "__main__":
    main()
