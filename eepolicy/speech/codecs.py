"""Neural codecs of transformers as vocoders: speech units to sound without other packages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, SeamlessM4TFeatureExtractor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from eepolicy.errors import EepolicyError
from eepolicy.speech.mel import SAMPLE_RATE
from eepolicy.speech.vocoders import check_units

#: first release of transformers with each codec; both were run with 5.23
RELEASES = {"xcodec2": "5.13", "neucodec": "5.17"}
#: samples that the authors add on each side before the features of the semantic encoder
_MARGIN = 160


@dataclass(frozen=True)
class CodecVocoder:
    """A codec of transformers with one codebook: X-codec2 or NeuCodec.

    `load_codec` makes one.  The decoder attends to all units of a reply and normalises over its
    length.  A part of the units therefore gives another sound, and there is no `stream`.

    Attributes:
        source: folder, or id on the Hugging Face Hub.
        codec: `model_type` of the codec.
        sampling_rate: samples per second of the decoded sound.
        unit_samples: samples of a unit.
        num_codes: number of units in the codebook.
        device: device that it runs on.
    """

    source: str
    codec: str
    sampling_rate: int
    unit_samples: int
    num_codes: int
    #: not in the repr: a stopped run may continue on another GPU
    device: str = field(default="cpu", repr=False)
    _loaded: dict[str, PreTrainedModel] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    #: the end of an error message of `stream_audio`
    why_no_stream = "which attends to all units of a reply and cannot decode a part of them"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_loaded": {}}  # another process loads the codec itself

    @property
    def model(self) -> PreTrainedModel:
        """The codec, which the first access loads."""
        if not self._loaded:
            self._loaded["codec"] = _read_codec(self.source).to(self.device)
        return self._loaded["codec"]

    def decode(self, units: Tensor) -> Tensor:
        """Decode units into speech.

        Args:
            units: (units,) of integers, counted from 0.

        Returns:
            (units * unit_samples,) at `sampling_rate`, on the CPU; empty for no units.

        Raises:
            EepolicyError: a unit is not in the codebook, or the codec cannot be loaded.
        """
        return self.decode_batch([units])[0]

    @torch.no_grad()
    def decode_batch(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Decode several rows.

        Rows of equal length are decoded together.  Padding would change the sound of a row, because
        the decoder attends to it.

        Args:
            rows: (units,) each.

        Returns:
            (units * unit_samples,) each, at `sampling_rate`, on the CPU.

        Raises:
            EepolicyError: a unit is not in the codebook, or the codec cannot be loaded.
        """
        for units in rows:
            self._check(units)
        waves = [torch.zeros(0)] * len(rows)
        for length in sorted({len(units) for units in rows} - {0}):
            numbers = [i for i, units in enumerate(rows) if len(units) == length]
            codes = torch.stack([rows[i] for i in numbers])[:, None].to(self.device)
            audio = self.model.decode(audio_codes=codes).audio_values
            for number, wave in zip(numbers, audio.float().cpu(), strict=True):
                waves[number] = wave.flatten()
        return waves

    @torch.no_grad()
    def encode(self, wave: Tensor) -> Tensor:
        """Encode a recording, such as that of a `Voice`.

        Args:
            wave: (samples,) at 16 kHz, in -1..1; `eepolicy.speech.audio.read_wave` reads one.

        Returns:
            (units,) of int64.

        Raises:
            EepolicyError: the waveform is empty or has several channels.
        """
        if wave.ndim != 1 or not wave.is_floating_point() or not len(wave):
            raise EepolicyError(
                f"encode() takes one channel of floats, (samples,); got {tuple(wave.shape)}"
            )
        wave, hop = wave.detach().float().cpu(), self._encoder_hop
        # the authors always add samples at the end, a whole unit if the length is a multiple
        padded = F.pad(wave, (0, hop - len(wave) % hop))
        features = SeamlessM4TFeatureExtractor()(
            F.pad(padded, (_MARGIN, _MARGIN)).numpy(),
            sampling_rate=SAMPLE_RATE,
            padding=False,
            return_tensors="pt",
        )["input_features"]
        values, features = padded[None, None].to(self.device), features.to(self.device)
        codes: Tensor = self.model.encode(values, features).audio_codes
        return codes.flatten().cpu().long()

    @property
    def _encoder_hop(self) -> int:
        """Samples of a unit at the 16 kHz that the encoder takes."""
        return self.unit_samples * SAMPLE_RATE // self.sampling_rate

    def _check(self, units: Tensor) -> None:
        """Refuse units that are not in the codebook."""
        if units.ndim != 1 or units.is_floating_point():
            raise EepolicyError(f"units are integers (units,); got {tuple(units.shape)}")
        check_units(units, self.num_codes)


def load_codec(source: str | Path, device: str = "cpu", codec: str | None = None) -> CodecVocoder:
    """Load a codec of transformers as a vocoder.

    Args:
        source: folder, or id on the Hugging Face Hub, such as `"HKUSTAudio/xcodec2-hf"`.
        device: device that it runs on.
        codec: the `model_type` that it must have; None for any of `RELEASES`.

    Raises:
        EepolicyError: there is no such codec, it is damaged or in another layout, or the installed
            transformers is too old for it.
    """
    try:
        values, _ = PreTrainedConfig.get_config_dict(str(source))
    except (OSError, ValueError) as error:
        raise EepolicyError(f"{source} has no config of a codec: {error}") from error
    kind = values.get("model_type")
    expected = [codec] if codec else [*RELEASES]
    if kind not in expected:
        raise EepolicyError(
            f"{source} has the model type {kind!r}; the codec of this model is "
            f"{' or '.join(expected)}"
        )
    if kind not in CONFIG_MAPPING:
        raise EepolicyError(
            f"the codec {kind} needs transformers {RELEASES.get(kind, '')} or newer, and "
            f"{transformers.__version__} is installed: pip install -U transformers"
        )
    model = _read_codec(str(source)).to(device)
    config = model.config
    vocoder = CodecVocoder(
        source=str(source),
        codec=kind,
        sampling_rate=getattr(config, "output_sampling_rate", None) or config.sampling_rate,
        unit_samples=config.hop_length,
        num_codes=math.prod(config.quantization_levels),
        device=device,
    )
    vocoder._loaded["codec"] = model
    return vocoder


def _read_codec(source: str) -> PreTrainedModel:
    """Read a codec with its weights.

    Raises:
        EepolicyError: a file is missing or damaged, or the weights are of another model.
    """
    try:
        model, loading = AutoModel.from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        text = str(error).strip().split("\n")[0]
        raise EepolicyError(f"the codec {source} cannot be loaded: {text}") from error
    missing = sorted({*loading["missing_keys"], *(k for k, *_ in loading["mismatched_keys"])})
    if missing:
        raise EepolicyError(
            f"the codec {source} lacks {len(missing)} weights, such as {missing[0]}: it is "
            "incomplete, or in its authors' layout; give a checkpoint in the format of transformers"
        )
    return model.eval().requires_grad_(False)
