"""Vocoders turn speech units into waveforms: the protocol, and those of the paper's two models.

The latter call the authors' packages, which must be installed.  This package contains none of
their code.
"""

from __future__ import annotations

import importlib
import io
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import soundfile
import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.speech.audio import resampled


class Vocoder(Protocol):
    """Decodes units into a waveform.

    A vocoder can also have a `codebook`, (units, features), with acoustic features of each unit.
    The acceptance rule `acoustic` and acoustic distances need it.
    """

    def decode(self, units: Tensor) -> Tensor:
        """Decode units (units,), counted from 0, into (samples,) at 16 kHz; empty for none."""
        ...


def codebook_of(vocoder: Vocoder | None) -> Tensor | None:
    """Return the codebook of a vocoder, (units, features), or None if it has none."""
    return getattr(vocoder, "codebook", None)


def _authors(module: str, source: str, packages: str) -> Any:
    """Import a module from a model's authors.

    Raises:
        EepolicyError: the module or one of its packages is missing; the message says what to
            install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EepolicyError(
            f"no module {error.name!r}: clone {source}, add its folder to PYTHONPATH, and install "
            f"the packages {packages}"
        ) from error


@dataclass(frozen=True)
class StepVoice:
    """The vocoder of Step-Audio-2-mini: its authors' `Token2wav`.

    Attributes:
        folder: the folder `token2wav` of the model's checkpoint.
        voice: audio file with the voice to imitate.
    """

    folder: Path
    voice: Path
    _loaded: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_loaded": {}}  # another process loads the authors' model itself

    def decode(self, units: Tensor) -> Tensor:
        """Decode units (units,) into (samples,) at 16 kHz.

        Raises:
            EepolicyError: the authors' package is missing.
        """
        if not len(units):
            return torch.zeros(0)
        if not self._loaded:
            module = _authors(
                "token2wav",
                "https://github.com/stepfun-ai/Step-Audio2",
                "torchaudio s3tokenizer onnxruntime hyperpyyaml diffusers",
            )
            self._loaded["vocoder"] = module.Token2wav(str(self.folder))
        audio = self._loaded["vocoder"](units.tolist(), prompt_wav=str(self.voice))
        wave, rate = soundfile.read(io.BytesIO(audio), dtype="float32", always_2d=True)
        return resampled(wave.mean(1), rate)


@dataclass(frozen=True)
class GlmVoice:
    """The vocoder of GLM-4-Voice: its authors' `AudioDecoder`.

    Attributes:
        folder: folder of the checkpoint `glm-4-voice-decoder`, with `config.yaml`,
            `flow.pt` and `hift.pt`.
        device: device that it runs on.
    """

    folder: Path
    device: str = "cuda"
    _loaded: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_loaded": {}}  # another process loads the authors' model itself

    #: samples per second, as in the authors' demo
    RATE = 22_050

    def decode(self, units: Tensor) -> Tensor:
        """Decode units (units,) into (samples,) at 16 kHz.

        Raises:
            EepolicyError: the authors' package is missing.
        """
        if not len(units):
            return torch.zeros(0)
        if not self._loaded:
            module = _authors(
                "flow_inference",
                "https://github.com/zai-org/GLM-4-Voice with its submodules",
                "torchaudio hyperpyyaml matcha-tts",
            )
            files = [str(self.folder / name) for name in ("config.yaml", "flow.pt", "hift.pt")]
            self._loaded["vocoder"] = module.AudioDecoder(*files, device=self.device)
        speech, _ = self._loaded["vocoder"].token2wav(
            units[None].to(self.device),
            uuid=str(uuid.uuid4()),
            prompt_token=torch.zeros(1, 0, dtype=torch.int64, device=self.device),
            prompt_feat=torch.zeros(1, 0, 80, device=self.device),
            finalize=True,
        )
        return resampled(speech.float().cpu().flatten().numpy(), self.RATE)
