"""Measure how much the speech units raise the word error rate of the held-out speech.

    python -m pocket.ceiling WORK [--prompts 300]

It prints three word error rates of Whisper tiny.en on the true answers: of the original speech, of
speech that went through log-mel and Griffin-Lim, and of speech resynthesized from the true units.
The last one is the best that the model's speech can reach.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from eepolicy.analysis.evaluation.scoring import is_right, word_errors
from eepolicy.analysis.stats.bootstrap import ratio
from eepolicy.io import read_json, write_json
from eepolicy.speech.asr import Whisper
from eepolicy.speech.mel import griffin_lim, log_mel
from eepolicy.speech.mos import DistillMos
from eepolicy.speech.units import Units
from pocket.corpus import read_waves
from pocket.fit_units import as_wave


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--prompts", type=int, default=300)
    args = parser.parse_args()
    units = Units.load(args.work / "units.safetensors")
    pairs = read_json(args.work / "pairs.json")["test"][: args.prompts]
    samples = read_waves(args.work / "waves")
    waves = [as_wave(samples[p["answer"]]) for p in pairs]
    whisper, mos = Whisper(), DistillMos()
    conversions: dict[str, Callable[[Tensor], Tensor]] = {
        "original": lambda wave: wave,
        "without_units": lambda wave: griffin_lim(log_mel(wave)),
        "ceiling": lambda wave: units.decode(units.encode(wave)),
    }
    results = {}
    for name, convert in conversions.items():
        transcripts, ratings = [], []
        for wave in tqdm(waves, desc=name):
            converted = convert(wave)
            transcripts.append(whisper.transcribe(converted))
            ratings.append(mos.rate(converted))
        scored = list(zip(pairs, transcripts, strict=True))
        errors = [word_errors(p["answer"], t) for p, t in scored]
        wrong, words = zip(*errors, strict=True)
        wer = ratio(wrong, words)
        right = [is_right(t, p["keys"]) for p, t in scored]
        results[name] = {
            "prompts": len(pairs),
            "wer": (wer.value, wer.low, wer.high),
            "accuracy": sum(right) / len(right),
            "mos": sum(ratings) / len(ratings),
            "errors": errors,
        }
        print(json.dumps({name: results[name]}))
    write_json(args.work / "ceiling.json", results, indent=1)


if __name__ == "__main__":
    main()
