"""Text to speech for the training answers: festival with the HTS voice `slt`, at three rates."""

from __future__ import annotations

import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from eepolicy.speech.mel import SAMPLE_RATE

#: values of the HTS rate parameter; 1.0 is the default speed of the voice
RATES = (0.92, 1.02, 1.12)

_SCRIPT = """
(voice_cmu_us_slt_arctic_hts)
(set! base_params hts_engine_params)
(define (say text rate name)
  (set! hts_engine_params (cons (list "-r" rate) base_params))
  (let ((utt (utt.synth (eval (list 'Utterance 'Text text)))))
    (utt.wave.resample utt {rate})
    (utt.save.wave utt name 'riff)))
"""


def trimmed(wave: NDArray[Any], floor: float = 0.01, margin: float = 0.05) -> NDArray[Any]:
    """Cut the silence at both ends of a waveform.

    Args:
        wave: (samples,) in -1..1.
        floor: a sample below this share of the peak is silent.
        margin: seconds of silence to keep at each end.
    """
    return wave[sounding(wave, floor, margin)]


def sounding(wave: NDArray[Any], floor: float = 0.01, margin: float = 0.05) -> slice:
    """The samples of a waveform without the silence at both ends; arguments as in `trimmed`."""
    loud = np.flatnonzero(np.abs(wave) > floor * np.abs(wave).max())
    keep = int(margin * SAMPLE_RATE)
    return slice(max(loud[0] - keep, 0), loud[-1] + keep)


def quoted(text: str) -> str:
    """A text as a string of Scheme; quotation marks and backslashes are dropped."""
    return '"' + text.replace('"', "").replace("\\", "") + '"'


def run_festival(script: str, folder: str) -> str:
    """Run a script of festival, written to a folder, and return what it prints."""
    file = Path(folder, "say.scm")
    file.write_text(script)
    command = ["festival", "-b", str(file)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _speak_batch(batch: list[tuple[str, float]]) -> list[NDArray[Any]]:
    with tempfile.TemporaryDirectory() as folder:
        lines = [_SCRIPT.format(rate=SAMPLE_RATE)]
        for i, (text, rate) in enumerate(batch):
            lines.append(f'(say {quoted(text)} {rate} "{folder}/{i}.wav")')
        run_festival("\n".join(lines), folder)
        return [trimmed(soundfile.read(f"{folder}/{i}.wav")[0]) for i in range(len(batch))]


def speak(
    texts: list[str], rates: list[float], workers: int = 2, batch: int = 200
) -> list[NDArray[Any]]:
    """Synthesize texts, each at its own rate.

    Args:
        texts: sentences.
        rates: HTS rate of each text; see `RATES`.
        workers: number of parallel festival processes.
        batch: number of texts per process.

    Returns:
        Waveforms (samples,) at 16 kHz, in float32, without silence at the ends.

    Raises:
        FileNotFoundError: festival is not installed (Debian: festival, festvox-us-slt-hts).
    """
    jobs = list(zip(texts, rates, strict=True))
    batches = [jobs[i : i + batch] for i in range(0, len(jobs), batch)]
    with ThreadPoolExecutor(workers) as pool:
        waves = [w for done in pool.map(_speak_batch, batches) for w in done]
    return [w.astype(np.float32) for w in waves]
