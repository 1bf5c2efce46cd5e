"""Prompts: text or ids to rows of ids, padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from eepolicy.errors import EepolicyError
from eepolicy.fields import CheckedFields
from eepolicy.modality import TokenLayout, is_ids
from eepolicy.turns import Part, Sound, TurnTemplate

#: turns of a chat, as the chat templates of transformers take them: `role` and `content` each
Messages: TypeAlias = "list[dict[str, Any]]"
#: a question in text; turns of a chat; ids (tokens,); a sound file; a waveform (samples,) at
#: 16 kHz; or a waveform and its sampling rate
Prompt: TypeAlias = "str | Messages | Tensor | Path | tuple[Any, int]"


@dataclass(frozen=True)
class Affixes:
    """Text around a question, from a model card.

    Attributes:
        before: text before a written question.
        after: text between a question and the reply.
        before_spoken: text before a spoken question.
        audio_start: token that begins a spoken question in a text of speech tokens; None for a
            model whose prompts contain no speech tokens.
        voice_separator: text between the transcript of a `Voice` and a question; None for a model
            that imitates no voice.
    """

    before: str
    after: str
    before_spoken: str
    audio_start: str | None = None
    voice_separator: str | None = None
    turns: TurnTemplate | None = None

    def around(self, is_spoken: bool) -> tuple[str, str]:
        """Text before and after a question."""
        return self.before_spoken if is_spoken else self.before, self.after


@dataclass(frozen=True, eq=False)
class Voice(CheckedFields):
    """A recording whose voice a text-to-speech model imitates.

    The prompt has its transcript before the text to be read, and its speech units after it.  The
    reply then continues the recording.

    Attributes:
        text: transcript of the recording.
        units: (units,) speech units of the recording, counted from 0, as the `encode` of a codec
            returns them.
    """

    text: str
    units: Tensor

    def __repr__(self) -> str:
        return f"Voice({self.text!r}, {len(self.units)} units)"


@dataclass(frozen=True)
class PromptFormat:
    """Turns a question into the ids that the model expects.

    Attributes:
        vocab_size: size of the vocabulary.
        layout: layout of the model, whose ids surround a question of a speech model without card.
        tokenizer: tokenizer of the model, for prompts in text.
        affixes: text around a question, from a model card.
        voice: recording whose voice a text-to-speech model imitates; None for none.
        phonemize: turns text into the phonemes that the model reads; None for a model that reads
            text.
    """

    vocab_size: int
    layout: TokenLayout
    tokenizer: PreTrainedTokenizerBase | None = None
    affixes: Affixes | None = None
    voice: Voice | None = None
    phonemize: Callable[[str], str] | None = None

    def encode(self, prompt: str | Messages | Tensor) -> Tensor:
        """The ids of a prompt: (tokens,).

        Args:
            prompt: a question in text, turns of a chat, or ids (tokens,) or (1, tokens).

        Raises:
            EepolicyError: text without a tokenizer, turns without a chat template, several rows, or
                ids outside the vocabulary.
        """
        if is_messages(prompt) and self.affixes is not None:
            prompt = self._conversation(prompt)  # type: ignore[arg-type]
        elif is_messages(prompt):
            prompt = self._render(prompt)  # type: ignore[arg-type]
            if not self.layout.has_speech:  # the template writes all special tokens itself
                prompt = torch.tensor(self._encode_plain(prompt), dtype=torch.long)
        if isinstance(prompt, str):
            prompt = torch.tensor(self._encode_question(prompt), dtype=torch.long)
        if not isinstance(prompt, Tensor) or not is_ids(prompt):
            raise EepolicyError(
                f"a prompt is a question in text, or a row of ids; got {prompt!r:.60}"
            )
        prompt = prompt.long()  # types such as uint8 index nothing
        ids = prompt[0] if prompt.ndim == 2 and len(prompt) == 1 else prompt
        if ids.ndim != 1 or ids.numel() == 0:
            raise EepolicyError(f"a prompt is one row of ids, (tokens,); got {tuple(prompt.shape)}")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise EepolicyError(
                f"ids are 0 to {self.vocab_size - 1}; got {int(ids.min())} to {int(ids.max())}"
            )
        return ids

    def _conversation(self, messages: Messages) -> str | Tensor:
        """Turns of a speech model as ids, or its only question as text."""
        assert self.affixes is not None
        if self.affixes.turns is None:
            return _only_question(messages)
        parts = self.conversation_parts(messages)
        if any(isinstance(part, Sound) for part in parts):
            raise EepolicyError("turns with sound have no ids of their own: give them to generate")
        return torch.cat([self.part_ids(part) for part in parts if not isinstance(part, Sound)])

    def conversation_parts(self, messages: Messages) -> list[Part]:
        """The turns of a conversation as texts, ids and sound, in the template of the card.

        Raises:
            EepolicyError: the model has no template, or a turn does not fit it.
        """
        template = None if self.affixes is None else self.affixes.turns
        if template is None:
            raise EepolicyError(
                "this model takes no turns with sound: its card has no template of turns"
            )
        if self.tokenizer is None:
            raise EepolicyError("turns of a chat need a model with a tokenizer")
        return template.render(messages, self.layout.ends)

    def part_ids(self, part: str | Tensor) -> Tensor:
        """The ids of a text or of ids in a conversation: (tokens,)."""
        if isinstance(part, Tensor):
            return part.cpu().long()
        return torch.tensor(self._encode_plain(part), dtype=torch.long)

    def encode_affixes(self, is_spoken: bool = False) -> tuple[list[int], list[int]]:
        """Ids before and after a question.

        Args:
            is_spoken: whether the question is sound.
        """
        if self.affixes is None:
            return list(self.layout.before_prompt), list(self.layout.after_prompt)
        before, after = (self._encode_plain(text) for text in self.affixes.around(is_spoken))
        return before, after

    def _encode_question(self, question: str) -> list[int]:
        if self.tokenizer is None:
            raise EepolicyError("a prompt in text needs a model with a tokenizer")
        try:
            question.encode()
        except UnicodeEncodeError as error:
            raise EepolicyError(
                f"the prompt is no text: half of a character stands at {error.start}; got "
                f"{question!r:.60}"
            ) from error
        if self.affixes is not None:
            # tokenized as one text: tokens may span the borders
            start = self.affixes.audio_start
            before, after = self.affixes.around(start is not None and question.startswith(start))
            encoded = self._encode_plain(before + self._text_to_read(question) + after)
            return encoded + ([] if self.voice is None else self._voice_ids(self.voice))
        if self.layout.has_speech:
            first, last = self.encode_affixes()
            return [*first, *self._encode_plain(question), *last]
        # a text in a rendered chat template begins with the token that the tokenizer would add
        bos = self.tokenizer.bos_token
        is_rendered = bool(bos) and question.startswith(bos)
        ids: list[int] = self.tokenizer(question, add_special_tokens=not is_rendered).input_ids
        return ids

    def _text_to_read(self, question: str) -> str:
        """The question after the transcript of the voice, as phonemes if the model reads them."""
        texts = [question] if self.voice is None else [self.voice.text, question]
        if self.phonemize is not None:
            texts = [self.phonemize(text) for text in texts]
        assert self.affixes is not None
        if self.affixes.voice_separator is None and self.voice is not None:
            raise EepolicyError(
                "the model card has no voice_separator, so the model imitates no voice: set "
                "`model.voice` to None"
            )
        return (self.affixes.voice_separator or "").join(texts)

    def _voice_ids(self, voice: Voice) -> list[int]:
        """Ids of the units of the voice."""
        first, codes, units = self.layout.speech[0], self.layout.num_units, voice.units
        is_row = units.ndim == 1 and not units.is_floating_point() and units.numel()
        if not is_row or units.min() < 0 or units.max() >= codes:
            raise EepolicyError(
                f"the units of a voice are integers (units,) from 0 to {codes - 1}; got {units!r}"
            )
        return [first + unit for unit in units.tolist()]

    def _render(self, messages: Messages) -> str:
        """Turns of a chat as one text, which the model continues."""
        if self.layout.has_speech:
            return _only_question(messages)
        if self.tokenizer is None or not self.tokenizer.chat_template:
            raise EepolicyError(
                "turns of a chat need a tokenizer with a chat template, and this model has none: "
                "give the prompt as text"
            )
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(turn) for turn in messages], add_generation_prompt=True, tokenize=False
            )
        except (TypeError, ValueError, TemplateError) as error:
            raise EepolicyError(f"the chat template refuses these turns: {error}") from error
        return str(text)

    def _encode_plain(self, text: str) -> list[int]:
        """The ids of a text without special tokens."""
        assert self.tokenizer is not None
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids


@dataclass(frozen=True)
class PromptBatch:
    """Prompts side by side.

    Attributes:
        ids: (rows, tokens), padded on the left; None if only embeddings are given.
        mask: (rows, tokens), 0 at padding; None lets the stock `generate` find the padding.
        embeddings: (rows, tokens, width), in place of ids in the layers; None for ids.
        is_single: whether the caller gave one prompt, and gets one output.
        is_audio: of each row, whether its prompt is audio; empty if unknown.
    """

    ids: Tensor | None
    mask: Tensor | None = None
    embeddings: Tensor | None = None
    is_single: bool = False
    is_audio: tuple[bool, ...] = ()

    def text_prompts(self, rows: int) -> list[Tensor | None]:
        """The ids of each returned row without padding, on the host.

        Args:
            rows: number of returned rows, a multiple of the number of prompts.

        Returns:
            (tokens,) each; None for audio.
        """
        assert self.ids is not None
        assert self.mask is not None
        times = rows // len(self.is_audio)
        texts = [
            None if is_audio else ids[kept.bool()].cpu()
            for ids, kept, is_audio in zip(self.ids, self.mask, self.is_audio, strict=True)
        ]
        return [ids for ids in texts for _ in range(times)]


def is_audio(prompt: object) -> bool:
    """Whether a prompt is a sound file or a waveform."""
    is_wave = isinstance(prompt, Tensor) and prompt.ndim == 1 and prompt.is_floating_point()
    return is_wave or isinstance(prompt, Path)


def is_messages(prompt: object) -> bool:
    """Whether a prompt is turns of a chat."""
    return (
        isinstance(prompt, Sequence)
        and len(prompt) > 0
        and all(isinstance(turn, Mapping) and "role" in turn for turn in prompt)
    )


def _only_question(messages: Messages) -> str:
    """The question of a chat of one turn, for a speech model, which has no chat template."""
    content = messages[0].get("content")
    if len(messages) != 1 or messages[0]["role"] != "user" or not isinstance(content, str):
        turns = ", ".join(str(turn["role"]) for turn in messages)
        raise EepolicyError(
            "this speech model takes one turn of the role 'user' with a text as content, because "
            "its card has no template of turns; "
            f"got the turns {turns}"
        )
    return content


def pad_left(prompts: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Put prompts of different lengths side by side.

    Args:
        prompts: (tokens,) each.
        pad: id before the shorter prompts.

    Returns:
        Ids and attention mask, (rows, tokens) each.
    """
    width = max(map(len, prompts))
    ids = [F.pad(p, (width - len(p), 0), value=pad) for p in prompts]
    mask = [F.pad(torch.ones_like(p), (width - len(p), 0)) for p in prompts]
    return torch.stack(ids), torch.stack(mask)


def padding_of(mask: Tensor, prompt: Tensor) -> list[int]:
    """Number of padding columns before each row.

    Args:
        mask: (rows, tokens), 0 at padding.
        prompt: (rows, tokens) or (rows, tokens, width).

    Raises:
        EepolicyError: the mask has another shape, or rows are not padded on the left.
    """
    if mask.shape != prompt.shape[:2]:
        raise EepolicyError(
            f"an attention mask is (rows, tokens), here {tuple(prompt.shape[:2])}; "
            f"got {tuple(mask.shape)}"
        )
    valid = mask.bool()
    if not bool(valid[:, -1].all()) or bool((valid[:, :-1] & ~valid[:, 1:]).any()):
        raise EepolicyError(
            "rows are padded on the left: an attention mask is zeros, then ones; load the "
            "tokenizer with padding_side='left'"
        )
    return (~valid).sum(1).tolist()
