"""Measure the error of Whisper's word times on the training voice, whose synthesizer gives them.

    python -m pocket.word_times

It speaks held-out answers with festival, aligns their words with Whisper, in the voice's own sound
and in the sound of its units, and prints the errors in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from eepolicy import held_out, load
from eepolicy.analysis.studies.spoken_words import LAG
from eepolicy.speech.asr import Whisper
from eepolicy.speech.mel import SAMPLE_RATE
from eepolicy.speech.units import Units
from eepolicy.speech.word_times import WordTime
from pocket.speak import quoted, run_festival, sounding

_SCRIPT = """
(voice_cmu_us_slt_arctic_hts)
(define (say text name)
  (let ((utt (utt.synth (eval (list 'Utterance 'Text text)))))
    (utt.wave.resample utt {rate})
    (utt.save.wave utt name 'riff)
    (mapcar
      (lambda (word)
        (format t "%s %s %s\\n"
          (item.name word) (item.feat word 'word_start) (item.feat word 'word_end)))
      (utt.relation.items utt 'Word))
    (format t "\\n")))
"""


def spoken(texts: list[str]) -> list[tuple[NDArray[np.float32], list[WordTime]]]:
    """Speak texts, each with the times of its words; without silence at the ends."""
    with tempfile.TemporaryDirectory() as folder:
        lines = [_SCRIPT.format(rate=SAMPLE_RATE)]
        lines += [f'(say {quoted(text)} "{folder}/{i}.wav")' for i, text in enumerate(texts)]
        blocks = run_festival("\n".join(lines), folder).strip("\n").split("\n\n")
        waves = [soundfile.read(f"{folder}/{i}.wav")[0] for i in range(len(texts))]
    utterances = []
    for wave, block in zip(waves, blocks, strict=True):
        kept = sounding(wave)
        shift = kept.start / SAMPLE_RATE
        rows = [line.split() for line in block.splitlines()]
        words = [WordTime(w, float(start) - shift, float(end) - shift) for w, start, end in rows]
        utterances.append((wave[kept].astype(np.float32), words))
    return utterances


def errors(asr: Whisper, wave: Tensor, text: str, true: list[WordTime]) -> list[list[float]]:
    """Errors of the starts and ends of the words, seconds: (words, 2).

    A text whose words the synthesizer splits otherwise, such as numbers in digits, has none.
    """
    aligned = asr.align(wave, text)
    if [w.word.strip(".,?!").lower() for w in aligned] != [w.word.lower() for w in true]:
        return []
    return [[a.start - t.start, a.end - t.end] for a, t in zip(aligned, true, strict=True)]


def summary(values: list[list[float]]) -> dict[str, Any]:
    """Mean error, and the size of the errors less `LAG`, in milliseconds."""
    array = 1000 * np.array(values)  # (words, 2)
    rows: dict[str, Any] = {"words": len(array)}
    for index, name in enumerate(("start", "end")):
        column = array[:, index]
        size = np.abs(column - 1000 * LAG)
        rows[name] = {
            "mean": round(float(column.mean())),
            "median size": round(float(np.median(size))),
            "90 %": round(float(np.percentile(size, 90))),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=100)
    answers = [pair["answer"] for pair in held_out("test")[: parser.parse_args().answers]]
    units = load("pocket").vocoder
    assert isinstance(units, Units)
    asr, own, vocoded = Whisper(), [], []
    for text, (samples, true) in zip(answers, spoken(answers), strict=True):
        wave = torch.from_numpy(samples)
        own += errors(asr, wave, text, true)
        vocoded += errors(asr, units.decode(units.encode(wave)), text, true)
    print(json.dumps({"own sound": summary(own), "sound of the units": summary(vocoded)}))


if __name__ == "__main__":
    main()
