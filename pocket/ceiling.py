"""What the units cost: word error rates of the held-out speech before and after them.

    python -m pocket.ceiling WORK [--prompts 300]

prints three rates of Whisper tiny.en on the true answers: of the original speech, of the same
through log-mel and Griffin-Lim without units, and of its true units re-synthesised.  The last is
the ceiling that the model's own speech is judged against.
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
    sets = json.loads((args.work / "pairs.json").read_text())
    pairs = sets["test"][: args.prompts]
    spoken = read_waves(args.work / "waves")
    waves = [as_wave(spoken[p["answer"]]) for p in pairs]
    whisper, mos = Whisper(), DistillMos()
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "original": lambda wave: wave,
        "without_units": lambda wave: griffin_lim(log_mel(wave)),
        "ceiling": lambda wave: units.decode(units.encode(wave)),
    }
    results = {}
    for name, way in ways.items():
        heard, rated = [], []
        for wave in tqdm(waves, desc=name):
            result = way(wave)
            heard.append(whisper.transcribe(result))
            rated.append(mos.rate(result))
        scored = zip(pairs, heard, strict=True)
        errors = [word_errors(p["answer"], h) for p, h in scored]
        wrong, words = zip(*errors, strict=True)
        wer = ratio(wrong, words)
        right = [is_right(h, p["keys"]) for p, h in zip(pairs, heard, strict=True)]
        results[name] = {
            "prompts": len(pairs),
            "wer": (wer.value, wer.low, wer.high),
            "accuracy": sum(right) / len(right),
            "mos": sum(rated) / len(rated),
            "errors": errors,
        }
        print(json.dumps({name: results[name]}))
    (args.work / "ceiling.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
