"""Measure what units and vocoders cost: word errors, ratings and time on the held-out speech.

    python -m pocket.ceiling WORK [--prompts 300] [--rated 100]

The true answers are transcribed as recorded, through log-mel and Griffin-Lim, and from their true
units through Griffin-Lim and through the vocoder.  The last one is the best that the model's speech
can reach.  White noise, and units that are shuffled among three neighbours, are only rated: a rater
that cannot tell these from the voice says nothing.  Results are in `WORK/ceiling.json`.  Each kind
of speech is stored when it is finished; a second run continues from there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eepolicy.analysis.evaluation.scoring import is_right, word_errors
from eepolicy.analysis.stats.bootstrap import paired_difference, ratio
from eepolicy.io import read_json, write_json
from eepolicy.loading.pocket import pocket_folder
from eepolicy.speech.asr import Whisper
from eepolicy.speech.mel import SAMPLE_RATE, griffin_lim, log_mel
from eepolicy.speech.mos import RATERS
from eepolicy.speech.units import Units
from pocket.corpus import read_waves
from pocket.fit_units import as_wave

#: raters of the speech
RATED_BY = ("distillmos", "dnsmos")
#: kinds of speech that are rated only
CONTROLS = ("shuffled", "noise")


def shuffled(units: Tensor) -> Tensor:
    """Shuffle units (units,) in groups of three."""
    random = torch.Generator().manual_seed(0)
    return torch.cat([part[torch.randperm(len(part), generator=random)] for part in units.split(3)])


def noise(wave: Tensor) -> Tensor:
    """White noise (samples,) with the power of a waveform (samples,)."""
    white = torch.randn(len(wave), generator=torch.Generator().manual_seed(0))
    return (white * wave.square().mean().sqrt()).clamp(-1, 1)


def conversions(units: Units) -> dict[str, Callable[[Tensor], Tensor]]:
    """The kinds of speech: functions from the recorded waveform (samples,) to another one."""
    plain = Units(units.codebook)
    return {
        "original": lambda wave: wave,
        "without_units": lambda wave: griffin_lim(log_mel(wave)),
        "griffin_lim": lambda wave: plain.decode(plain.encode(wave)),
        "ceiling": lambda wave: units.decode(units.encode(wave)),
        "shuffled": lambda wave: units.decode(shuffled(units.encode(wave))),
        "noise": noise,
    }


def transcribed(waves: list[Tensor], pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Word errors and right answers of speech in the transcript of Whisper tiny.en."""
    whisper = Whisper()
    transcripts = [whisper.transcribe(wave) for wave in tqdm(waves, desc="transcripts")]
    scored = list(zip(pairs, transcripts, strict=True))
    errors = [word_errors(p["answer"], t) for p, t in scored]
    wrong, words = zip(*errors, strict=True)
    wer = ratio(wrong, words)
    return {
        "wer": (wer.value, wer.low, wer.high),
        "accuracy": sum(is_right(t, p["keys"]) for p, t in scored) / len(scored),
        "errors": errors,
    }


def rated(waves: list[Tensor]) -> dict[str, float]:
    """The mean rating of each rater."""
    ratings = {}
    for name in RATED_BY:
        rater = RATERS[name]()
        ratings[name] = float(np.mean([rater.rate(w) for w in tqdm(waves, desc=name)]))
    return ratings


def real_time_factors(units: Units, waves: list[Tensor], rounds: int = 5) -> dict[str, Any]:
    """Seconds of computing for a second of speech on one thread, both vocoders in turns.

    Returns:
        For each vocoder the median over rounds, and the lowest and the highest value.
    """
    torch.set_num_threads(1)
    encoded = [units.encode(wave) for wave in waves]
    seconds = sum(len(wave) for wave in waves) / SAMPLE_RATE
    vocoders = {"vocoder": units, "griffin_lim": Units(units.codebook)}
    times: dict[str, list[float]] = {name: [] for name in vocoders}
    for _ in range(rounds):
        for name, vocoder in vocoders.items():
            began = time.perf_counter()
            for row in encoded:
                vocoder.decode(row)
            times[name].append((time.perf_counter() - began) / seconds)
    return {name: (float(np.median(t)), min(t), max(t)) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--prompts", type=int, default=300, help="answers that are transcribed")
    parser.add_argument("--rated", type=int, default=100, help="answers that are rated")
    args = parser.parse_args()
    units = Units.load(pocket_folder() / "units.safetensors")
    pairs = read_json(args.work / "pairs.json")["test"][: args.prompts]
    samples = read_waves(args.work / "waves")
    waves = [as_wave(samples[p["answer"]]) for p in pairs]
    path = args.work / "ceiling.json"
    results: dict[str, Any] = read_json(path) if path.exists() else {}
    for name, convert in conversions(units).items():
        if name in results:
            continue
        number = args.rated if name in CONTROLS else args.prompts
        converted = [convert(wave) for wave in tqdm(waves[:number], desc=name)]
        row: dict[str, Any] = {"prompts": number, "rated": args.rated}
        if name not in CONTROLS:
            row |= transcribed(converted, pairs)
        row |= rated(converted[: args.rated])
        results[name] = row
        print(json.dumps({name: {k: v for k, v in row.items() if k != "errors"}}))
        write_json(path, results, indent=1)
    new, old = ([e for e, _ in results[name]["errors"]] for name in ("ceiling", "griffin_lim"))
    words = [n for _, n in results["ceiling"]["errors"]]
    gain = paired_difference((new, old), (words, words))
    results["gain"] = (gain.value, gain.low, gain.high)
    results["real_time_factor"] = real_time_factors(units, waves[:20])
    print(json.dumps({name: results[name] for name in ("gain", "real_time_factor")}))
    write_json(path, results, indent=1)


if __name__ == "__main__":
    main()
