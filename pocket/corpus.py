"""Question-answer pairs and the speech of their answers, on disk, shard by shard.

    python -m pocket.corpus WORK

writes `WORK/pairs.json` and `WORK/waves/*.npz`; run again, it goes on with the missing shards.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pocket.questions import Pair, generate, split
from pocket.speak import RATES, speak

PER_KIND = 1000
HELD_OUT = 600  # the first half is for tests, the second for early stopping and calibration
SHARD = 500


def pairs() -> dict[str, list[Pair]]:
    """The pairs of the three sets: `train`, `test`, `dev`."""
    train, held_out = split(generate(PER_KIND), HELD_OUT)
    random.Random(0).shuffle(held_out)
    return {"train": train, "test": held_out[: HELD_OUT // 2], "dev": held_out[HELD_OUT // 2 :]}


def speak_all(sets: dict[str, list[Pair]], folder: Path) -> None:
    """Speak every answer, at a rate drawn for it; held-out sets first."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = [p.answer for name in ("test", "dev", "train") for p in sets[name]]
    rng = random.Random(1)
    rates = [rng.choice(RATES) for _ in answers]
    for start in tqdm(range(0, len(answers), SHARD), desc="speech", unit="shard"):
        path = folder / f"{start:06d}.npz"
        if path.exists():
            continue
        waves = speak(answers[start : start + SHARD], rates[start : start + SHARD], batch=250)
        flat = np.concatenate([(np.clip(w, -1, 1) * 32767).astype(np.int16) for w in waves])
        part = path.with_suffix(".part.npz")
        np.savez(part, flat=flat, lengths=[len(w) for w in waves])
        part.rename(path)


def read_waves(folder: Path, most: int | None = None) -> list[np.ndarray]:
    """Waves in the order test, dev, train, `most` of them or all; (samples,) int16 each."""
    waves: list[np.ndarray] = []
    for path in sorted(p for p in folder.glob("*.npz") if ".part" not in p.name):
        shard = np.load(path)
        waves += np.split(shard["flat"], np.cumsum(shard["lengths"])[:-1])
        if most is not None and len(waves) >= most:
            break
    return waves[:most]


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
