"""Fit the speech units and encode every answer.

    python -m pocket.fit_units WORK

It writes the codebook to `WORK/units.safetensors`, and the units of each answer to
`WORK/units.json`, once for each of two offsets of the 40-ms grid. A second run keeps existing
results.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from tqdm import tqdm

from eepolicy.io import read_json, write_json
from eepolicy.speech.mel import MELS, log_mel
from eepolicy.speech.units import FRAMES, UNIT_SAMPLES, Units, patches
from pocket.corpus import read_waves
from pocket.sequences import UNITS

OFFSETS = (0, FRAMES // 2)  # frames; the shifted grid gives a second encoding of the same speech
FIT_ANSWERS = 3000  # answers for k-means


def as_wave(samples: NDArray[np.int16]) -> torch.Tensor:
    """Convert 16-bit samples to (samples,) in -1..1."""
    return torch.from_numpy(samples.astype(np.float32) / 32767)


def encodings(units: Units, wave: torch.Tensor) -> list[list[int]]:
    """Encode a waveform (samples,) on each of the shifted grids."""
    frames = log_mel(wave)[: len(wave) // UNIT_SAMPLES * FRAMES]
    encoded = []
    for offset in OFFSETS:
        shifted = frames[offset:]
        whole = len(shifted) // FRAMES
        encoded.append(
            units.nearest(shifted[: whole * FRAMES].reshape(whole, FRAMES * MELS)).tolist()
        )
    return encoded


def fit(splits: dict[str, list[dict[str, Any]]], waves: dict[str, NDArray[np.int16]]) -> Units:
    """Fit k-means on the patches of some training answers."""
    answers = list(dict.fromkeys(p["answer"] for p in splits["train"]))
    chosen = random.Random(0).sample(answers, FIT_ANSWERS)
    points = torch.cat([patches(as_wave(waves[x])) for x in chosen]).numpy()
    print(f"k-means: {UNITS} units on {len(points)} patches")
    kmeans = MiniBatchKMeans(UNITS, batch_size=8192, n_init=1, max_iter=8, random_state=0)
    return Units(torch.from_numpy(kmeans.fit(points).cluster_centers_).float())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    waves = read_waves(work / "waves")
    splits = read_json(work / "pairs.json")
    if not (work / "units.safetensors").exists():
        fit(splits, waves).save(work / "units.safetensors")
    units = Units.load(work / "units.safetensors")
    path = work / "units.json"
    encoded = read_json(path) if path.exists() else {}
    answers = dict.fromkeys(p["answer"] for part in splits.values() for p in part)
    for answer in tqdm(answers, desc="units", unit="answer"):
        if answer not in encoded:
            encoded[answer] = encodings(units, as_wave(waves[answer]))
    write_json(path, {x: encoded[x] for x in answers})


if __name__ == "__main__":
    main()
