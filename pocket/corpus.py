"""Write question-answer pairs and the speech of their answers.

    python -m pocket.corpus WORK

It writes `WORK/pairs.json` and `WORK/waves/*.npz`. A second run synthesizes only the answers that
have no speech yet.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from eepolicy.io import write_atomically, write_json
from pocket.questions import HELD_OUT, Pair, split
from pocket.speak import RATES, speak

BATCH = 500  # answers per file


def pairs() -> dict[str, list[Pair]]:
    """Return the pairs of the splits `train`, `dev` and `test`.

    `dev` is for early stopping and calibration, `test` for results.
    """
    train, held_out = split(2 * HELD_OUT)
    return {"train": train, "dev": held_out[:HELD_OUT], "test": held_out[HELD_OUT:]}


def rate_of(answer: str) -> float:
    """Return the speaking rate of an answer: random, but the same for equal answers."""
    return random.Random(answer).choice(RATES)


def read_waves(folder: Path) -> dict[str, NDArray[np.int16]]:
    """Read the speech of each answer, (samples,) of int16."""
    waves: dict[str, NDArray[np.int16]] = {}
    for path in sorted(folder.glob("*.npz")):
        file = np.load(path)
        parts = np.split(file["flat"], np.cumsum(file["lengths"])[:-1])
        waves |= zip(file["answers"].tolist(), parts, strict=True)
    return waves


def write_waves(path: Path, answers: list[str], waves: list[NDArray[np.int16]]) -> None:
    """Write a file of speech atomically."""
    flat, lengths = np.concatenate(waves), [len(w) for w in waves]
    write_atomically(
        path,
        lambda part: np.savez(part, answers=answers, flat=flat, lengths=lengths),
        flat.nbytes,
    )


def speak_all(answers: list[str], folder: Path) -> None:
    """Synthesize every answer that has no speech yet."""
    folder.mkdir(parents=True, exist_ok=True)
    waves_of = read_waves(folder)
    missing = [x for x in dict.fromkeys(answers) if x not in waves_of]
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
    splits = pairs()
    plain = {name: [p.as_dict() for p in part] for name, part in splits.items()}
    write_json(work / "pairs.json", plain)
    speak_all([p.answer for part in splits.values() for p in part], work / "waves")


if __name__ == "__main__":
    main()
