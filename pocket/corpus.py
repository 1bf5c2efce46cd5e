"""Question-answer pairs and the speech of their answers, on disk.

    python -m pocket.corpus WORK

writes `WORK/pairs.json` and `WORK/waves/*.npz`; run again, it speaks only the answers that are not
there yet.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pocket.questions import Pair, split
from pocket.speak import RATES, speak

HELD_OUT = 300  # in each held-out set
BATCH = 500  # answers a file


def pairs() -> dict[str, list[Pair]]:
    """The pairs of the three sets.

    `train`; `dev`, for early stopping and calibration; `test`, for figures.
    """
    train, held_out = split(2 * HELD_OUT)
    return {"train": train, "dev": held_out[:HELD_OUT], "test": held_out[HELD_OUT:]}


def rate_of(answer: str) -> float:
    """The rate that an answer is spoken at: drawn, but always the same for the same answer."""
    return random.Random(answer).choice(RATES)


def read_waves(folder: Path) -> dict[str, NDArray[np.int16]]:
    """The speech of each answer, (samples,) int16."""
    waves: dict[str, NDArray[np.int16]] = {}
    for path in sorted(folder.glob("*.npz")):
        file = np.load(path)
        parts = np.split(file["flat"], np.cumsum(file["lengths"])[:-1])
        waves |= zip(file["answers"].tolist(), parts, strict=True)
    return waves


def write_waves(path: Path, answers: list[str], waves: list[NDArray[np.int16]]) -> None:
    """One file of speech, whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        lengths = [len(w) for w in waves]
        np.savez(file, answers=answers, flat=np.concatenate(waves), lengths=lengths)
    part.rename(path)


def speak_all(answers: list[str], folder: Path) -> None:
    """Speak every answer that has no speech yet."""
    folder.mkdir(parents=True, exist_ok=True)
    spoken = read_waves(folder)
    missing = [x for x in dict.fromkeys(answers) if x not in spoken]
    number = len(list(folder.glob("*.npz")))
    for start in tqdm(range(0, len(missing), BATCH), desc="speech", unit="file"):
        batch = missing[start : start + BATCH]
        waves = speak(batch, [rate_of(x) for x in batch], batch=BATCH // 2)
        samples = [(np.clip(w, -1, 1) * 32767).astype(np.int16) for w in waves]
        write_waves(folder / f"{number:04d}.npz", batch, samples)
        number += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    sets = pairs()
    plain = {name: [p.as_dict() for p in part] for name, part in sets.items()}
    (work / "pairs.json").write_text(json.dumps(plain))
    speak_all([p.answer for part in sets.values() for p in part], work / "waves")


if __name__ == "__main__":
    main()
