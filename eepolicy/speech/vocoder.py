"""What turns speech units into sound: the protocol, and the voices of the paper's two models.

The authors' packages are called where they are installed; none of their code lies here.
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
from eepolicy.speech.wav import resampled


class Vocoder(Protocol):
    """Makes sound of units.

    One that has a `codebook` as well, (units, features), the sound of each, serves the acoustic
    acceptance and distances too.
    """

    def decode(self, units: Tensor) -> Tensor:
        """Speech (samples,) at 16 kHz of units (units,), counted from 0; empty for no units."""
        ...


def codebook_of(vocoder: Vocoder | None) -> Tensor | None:
    """The sounds of a vocoder's units, (units, features), where it has them."""
    return getattr(vocoder, "codebook", None)


def _authors(module: str, source: str, packages: str) -> Any:
    """A module of a model's authors.

    Raises:
        EepolicyError: it is not there; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EepolicyError(
            f"no module {error.name!r}: clone {source}, put its folder on PYTHONPATH, and install "
            f"what it needs: {packages}"
        ) from error


@dataclass(frozen=True)
class StepVoice:
    """The voice of Step-Audio-2-mini: its authors' `Token2wav`.

    Attributes:
        folder: `token2wav` in the model's checkpoint.
        voice: sound file of the voice to speak with.
    """

    folder: Path
    voice: Path
    _held: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def decode(self, units: Tensor) -> Tensor:
        """Speech (samples,) at 16 kHz.

        Raises:
            EepolicyError: the authors' package is not installed.
        """
        if not len(units):
            return torch.zeros(0)
        if not self._held:
            module = _authors(
                "token2wav",
                "https://github.com/stepfun-ai/Step-Audio2",
                "torchaudio s3tokenizer onnxruntime hyperpyyaml diffusers",
            )
            self._held["speak"] = module.Token2wav(str(self.folder))
        sound = self._held["speak"](units.tolist(), prompt_wav=str(self.voice))
        wave, rate = soundfile.read(io.BytesIO(sound), dtype="float32", always_2d=True)
        return resampled(wave.mean(1), rate)


@dataclass(frozen=True)
class GlmVoice:
    """The voice of GLM-4-Voice: its authors' `AudioDecoder`.

    Attributes:
        folder: the checkpoint `glm-4-voice-decoder`, with `config.yaml`, `flow.pt` and `hift.pt`.
        device: that it runs on.
    """

    folder: Path
    device: str = "cuda"
    _held: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    #: samples a second, by the authors' demo
    RATE = 22_050

    def decode(self, units: Tensor) -> Tensor:
        """Speech (samples,) at 16 kHz.

        Raises:
            EepolicyError: the authors' package is not installed.
        """
        if not len(units):
            return torch.zeros(0)
        if not self._held:
            module = _authors(
                "flow_inference",
                "https://github.com/zai-org/GLM-4-Voice with its submodules",
                "torchaudio hyperpyyaml matcha-tts",
            )
            files = [str(self.folder / name) for name in ("config.yaml", "flow.pt", "hift.pt")]
            self._held["speak"] = module.AudioDecoder(*files, device=self.device)
        speech, _ = self._held["speak"].token2wav(
            units[None].to(self.device),
            uuid=str(uuid.uuid4()),
            prompt_token=torch.zeros(1, 0, dtype=torch.int64, device=self.device),
            prompt_feat=torch.zeros(1, 0, 80, device=self.device),
            finalize=True,
        )
        return resampled(speech.float().cpu().flatten().numpy(), self.RATE)
