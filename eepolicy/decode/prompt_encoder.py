"""Encodes the prompts of one call (text, ids, embeddings or audio) as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eepolicy.decode.prompt_inputs import read_prompt
from eepolicy.errors import EepolicyError
from eepolicy.fields import check_value
from eepolicy.model.backbone import Backbone
from eepolicy.prompts import (
    Prompt,
    PromptBatch,
    PromptFormat,
    is_audio,
    is_messages,
    pad_left,
)
from eepolicy.speech.audio import read_wave
from eepolicy.speech.audio_prompt import AudioPrompt
from eepolicy.speech.waves import as_wave, check_wave
from eepolicy.turns import Part, Sound, has_sound


@dataclass(frozen=True)
class PromptEncoder:
    """Turns prompts into a padded batch of ids, and of embeddings where a prompt is audio.

    Attributes:
        backbone: the model, for its embeddings.
        format: how a question becomes ids.
        audio_encoder: turns audio into embeddings; None for a model without one.
        pad_id: id that pads shorter prompts on the left.  The layers mask it, but logits
            processors see it.
    """

    backbone: Backbone
    format: PromptFormat
    audio_encoder: AudioPrompt | None
    pad_id: int

    def batch(
        self,
        prompt: Prompt | Mapping[str, Any] | Sequence[Prompt] | None,
        mask: Tensor | None,
        options: dict[str, Any],
    ) -> PromptBatch:
        """Put prompts side by side.

        Args:
            prompt: see `HookedModel.generate`.
            mask: (rows, tokens), 0 at padding, for ids or embeddings.
            options: options of `generate`; `inputs_embeds` is taken out.

        Raises:
            EepolicyError: no prompt, two kinds of prompts, or one that does not fit the model.
        """
        prompt, mask = read_prompt(prompt, mask, options)
        embeddings: Tensor | None = options.pop("inputs_embeds", None)
        if (prompt is None) == (embeddings is None):
            raise EepolicyError("give a prompt, or inputs_embeds in its place")
        if embeddings is not None:
            return self._from_embeddings(embeddings, mask)
        if isinstance(prompt, Tensor) and prompt.ndim == 2 and len(prompt):
            rows = [self.format.encode(row) for row in prompt]
            ids = torch.stack(rows).to(self.backbone.device)
            return PromptBatch(ids, _on_device(mask, ids), is_single=len(ids) == 1)
        if mask is not None:
            raise EepolicyError(
                "an attention mask goes with ids (rows, tokens); other prompts are padded here"
            )
        is_single = isinstance(prompt, (str, Tensor, Path)) or is_messages(prompt)
        prompts: list[Any] = [prompt] if is_single else _prompts(prompt)
        if not prompts:
            raise EepolicyError("the list of prompts is empty")
        return self._pad(prompts, is_single, self._pad_id(options.get("pad_token_id")))

    def _pad_id(self, given: int | None) -> int:
        """An id of the vocabulary that pads prompts; the layers never see it."""
        pad: int = self.pad_id if given is None else check_value("pad_token_id", int, given)
        return pad if 0 <= pad < self.format.vocab_size else 0

    def _from_embeddings(self, embeddings: Tensor, mask: Tensor | None) -> PromptBatch:
        """Check embeddings and move them to the model."""
        width = self.backbone.width
        if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
            raise EepolicyError(f"inputs_embeds is a tensor of numbers; got {embeddings!r:.80}")
        if not bool(embeddings.isfinite().all()):
            raise EepolicyError("inputs_embeds has a value that is nan or infinite")
        if embeddings.ndim != 3 or embeddings.shape[2] != width or not embeddings.shape[1]:
            raise EepolicyError(
                f"inputs_embeds is (rows, tokens, {width}); got {tuple(embeddings.shape)}"
            )
        embeddings = embeddings.to(self.backbone.device, self.backbone.model.dtype)
        mask = _on_device(mask, embeddings)
        return PromptBatch(None, mask, embeddings, is_single=len(embeddings) == 1)

    def _pad(self, prompts: list[Prompt], is_single: bool, pad: int) -> PromptBatch:
        """Encode prompts and pad them on the left; audio needs embeddings for all rows."""
        audio = tuple(_has_sound(prompt) for prompt in prompts)
        if not any(audio):
            device = self.backbone.device
            rows = [self.format.encode(p).to(device) for p in prompts]  # type: ignore[arg-type]
            return PromptBatch(*pad_left(rows, pad), is_single=is_single, is_audio=audio)
        ids, states = zip(*(self.embed(p) for p in prompts), strict=True)
        padded, mask = pad_left(ids, pad)
        embeddings = [F.pad(s, (0, 0, padded.shape[1] - len(s), 0)) for s in states]
        return PromptBatch(padded, mask, torch.stack(embeddings), is_single, audio)

    @torch.no_grad()
    def embed(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """A prompt as ids (tokens,) and embeddings (tokens, width).

        Ids of audio are placeholders.

        Raises:
            EepolicyError: audio for a model without an audio encoder.
        """
        device = self.backbone.device
        if not _has_sound(prompt):
            assert not isinstance(prompt, (Path, tuple))
            ids = self.format.encode(prompt).to(device)
            return ids, self.backbone.parts.embed(ids[None])[0]
        if self.audio_encoder is None or self.format.affixes is None:
            hint = ""
            if self.format.affixes is not None and self.format.affixes.audio_start is not None:
                hint = (
                    ", or load its speech tokenizer: put the folder glm-4-voice-tokenizer beside "
                    "the folder of the model"
                )
            raise EepolicyError(
                "this model has no audio encoder: give the question in text instead of "
                f"{_describe(prompt)}{hint}"
            )
        if is_messages(prompt):
            return self._embed_parts(self.format.conversation_parts(prompt))  # type: ignore[arg-type]
        before, after = map(torch.tensor, self.format.encode_affixes(is_spoken=True))
        return self._embed_parts([before.long(), Sound(prompt), after.long()])

    def _embed_parts(self, parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
        """Texts, ids and sound one after the other, as ids (tokens,) and embeddings."""
        assert self.audio_encoder is not None
        ids: list[Tensor] = []
        sounds: list[Tensor] = []
        is_patch: list[Tensor] = []
        for part in parts:
            if isinstance(part, Sound):
                own, states = self.audio_encoder.encode(_wave_of(part))
                is_patch.append(own == self.audio_encoder.patch)
                sounds.append(states)
            else:
                own = self.format.part_ids(part)
                is_patch.append(torch.zeros(len(own), dtype=torch.bool))
            ids.append(own.cpu())
        joined = self.format.encode(torch.cat(ids)).to(self.backbone.device)
        embeddings = self.backbone.parts.embed(joined[None])[0].clone()
        patches = torch.cat(is_patch).to(embeddings.device)
        if bool(patches.any()):  # a speech tokenizer gives ids alone
            embeddings[patches] = torch.cat(sounds).to(embeddings)
        return joined, embeddings


def _has_sound(prompt: object) -> bool:
    """Whether a prompt is sound, or turns with sound."""
    return is_audio(prompt) or (is_messages(prompt) and has_sound(prompt))  # type: ignore[arg-type]


def _wave_of(sound: Sound) -> Tensor:
    """The waveform (samples,) at 16 kHz of a sound in a prompt."""
    value = Path(sound.value) if isinstance(sound.value, str) else sound.value
    wave = read_wave(value) if isinstance(value, Path) else as_wave(value)
    if not isinstance(wave, Tensor):
        raise EepolicyError(
            "sound is a file, a waveform, or a waveform with its sampling rate; got "
            f"{sound.value!r:.60}"
        )
    check_wave(wave)
    return wave


def _describe(prompt: Prompt) -> str:
    if is_messages(prompt):
        return "turns with sound"
    return f"{tuple(prompt.shape)} samples" if isinstance(prompt, Tensor) else repr(str(prompt))


def _on_device(mask: Tensor | None, prompt: Tensor) -> Tensor | None:
    """The mask on the device of the prompt: (rows, tokens); None stays None."""
    return None if mask is None else mask.to(prompt.device)


def _prompts(prompt: Any) -> list[Any]:
    """The prompts of a list.

    Raises:
        EepolicyError: it is no list of prompts.
    """
    try:
        return list(prompt)
    except TypeError as error:
        raise EepolicyError(
            "a prompt is text, turns of a chat, ids, the output of a tokenizer, or a list of "
            f"these; got {prompt!r}"
        ) from error
