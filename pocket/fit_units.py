"""Fit the speech units and write every answer as units.

    python -m pocket.fit_units WORK

writes `WORK/units.safetensors` and, for each answer and each of two offsets of the 40-ms grid,
its units: `WORK/units.json`.  Run again, it keeps what is there.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from tqdm import tqdm

from eepolicy.speech.mel import MELS, log_mel
from eepolicy.speech.units import FRAMES, UNIT_SAMPLES, Units, patches
from pocket.corpus import read_waves
from pocket.sequences import UNITS

OFFSETS = (0, FRAMES // 2)  # frames; the shifted grid is a second reading of the same speech
FITTED_ON = 3000  # answers


def as_wave(samples: NDArray[np.int16]) -> torch.Tensor:
    """16-bit samples as (samples,) in -1..1."""
    return torch.from_numpy(samples.astype(np.float32) / 32767)


def readings(units: Units, wave: torch.Tensor) -> list[list[int]]:
    """The units of a wave (samples,) on each of the shifted grids."""
    frames = log_mel(wave)[: len(wave) // UNIT_SAMPLES * FRAMES]
    found = []
    for offset in OFFSETS:
        shifted = frames[offset:]
        whole = len(shifted) // FRAMES
        found.append(
            units.nearest(shifted[: whole * FRAMES].reshape(whole, FRAMES * MELS)).tolist()
        )
    return found


def fit(sets: dict[str, list[dict[str, Any]]], waves: dict[str, NDArray[np.int16]]) -> Units:
    """K-means over the patches of some training answers."""
    answers = list(dict.fromkeys(p["answer"] for p in sets["train"]))
    chosen = random.Random(0).sample(answers, FITTED_ON)
    points = torch.cat([patches(as_wave(waves[x])) for x in chosen]).numpy()
    print(f"k-means: {UNITS} units on {len(points)} patches")
    kmeans = MiniBatchKMeans(UNITS, batch_size=8192, n_init=1, max_iter=8, random_state=0)
    return Units(torch.from_numpy(kmeans.fit(points).cluster_centers_).float())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    waves = read_waves(work / "waves")
    sets = json.loads((work / "pairs.json").read_text())
    if not (work / "units.safetensors").exists():
        fit(sets, waves).save(work / "units.safetensors")
    units = Units.load(work / "units.safetensors")
    path = work / "units.json"
    encoded = json.loads(path.read_text()) if path.exists() else {}
    wanted = dict.fromkeys(p["answer"] for part in sets.values() for p in part)
    for answer in tqdm(wanted, desc="units", unit="answer"):
        if answer not in encoded:
            encoded[answer] = readings(units, as_wave(waves[answer]))
    path.write_text(json.dumps({x: encoded[x] for x in wanted}))


if __name__ == "__main__":
    main()
