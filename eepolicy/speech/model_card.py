"""Model cards: what the library must know about a spoken language model besides its weights."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

from transformers import PreTrainedTokenizerBase

from eepolicy.errors import EepolicyError
from eepolicy.fields import check_fields
from eepolicy.formats import parse
from eepolicy.modality import TokenLayout
from eepolicy.prompts import Affixes
from eepolicy.speech.formats import CardFile
from eepolicy.turns import TurnTemplate

#: fields that are lists in files
_LISTS = ("non_text_tokens", "other_ends")
#: a range of numbers in a token, such as `{6565..6760}`
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class ModelCard:
    """How a model writes one stream of text and speech over one vocabulary.

    A card names tokens as the tokenizer does, so that nobody has to look up their ids.

    Attributes:
        name: name of the model, as `eepolicy.load(folder, card=name)` takes it.
        source: id of the model on the Hugging Face Hub.
        model_type: `model_type` in its `config.json`.
        unit: its speech tokens, with `{i}` for their number from 0, such as `"<|audio_{i}|>"`; or
            the id of the first one.
        text_chunk: number of text tokens in a chunk; 0 for a model that answers in speech only.
        speech_chunk: number of speech tokens in a chunk.
        end: token, or id of the token, that ends a reply.
        other_ends: further tokens that end a reply, such as the end of a document.  A token with
            `{a..b}` stands for all numbers from a to b.
        prompt_prefix: text before a question.
        prompt_suffix: text between a question and the reply.
        spoken_prompt_prefix: text before a spoken question; by default `prompt_prefix`.
        audio_start: token that begins a spoken question, for a model whose prompts contain speech
            tokens.  A prompt in text that begins with it gets `spoken_prompt_prefix`.
        num_codes: number of speech tokens that the vocoder can decode; by default all that the
            tokenizer has.
        rate: number of speech tokens per second.
        end_of_text: token after which only speech follows.
        end_of_speech: token after which only text follows.
        non_text_tokens: tokens of the text part that are not text, such as padding.
        sampling: options of `generate` for the sampling that the model's authors use.
        vocoder: the vocoder that decodes its units, in words.
        codec: `model_type` of the codec of transformers that decodes its units: see
            `eepolicy.speech.codecs`.
        codec_source: id of that codec on the Hugging Face Hub.
        voice_separator: text between the transcript of a `Voice` and the question; None for a model
            that imitates no voice.
        phonemes: language of the phonemes that the model reads in place of text, in the names of
            espeak; None for a model that reads text.
        reads_aloud: whether the speech of a reply should say the text of the prompt.
        marks_before_units: number of ids before the first speech token that are marks, and not
            part of the text.
        turns: texts of a conversation, see `eepolicy.turns.TurnTemplate`; empty for a model of
            single questions.
    """

    name: str
    source: str
    model_type: str
    unit: str | int
    text_chunk: int
    speech_chunk: int
    end: str | int
    prompt_prefix: str = ""
    prompt_suffix: str = ""
    spoken_prompt_prefix: str | None = None
    audio_start: str | None = None
    num_codes: int | None = None
    rate: float | None = None
    end_of_text: str | None = None
    end_of_speech: str | None = None
    non_text_tokens: tuple[str, ...] = ()
    sampling: dict[str, Any] = field(default_factory=dict)
    vocoder: str = ""
    other_ends: tuple[str | int, ...] = ()
    codec: str | None = None
    codec_source: str | None = None
    voice_separator: str | None = None
    phonemes: str | None = None
    reads_aloud: bool = False
    marks_before_units: int = 0
    turns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        self.to_dict()  # checks ranges
        if self.turns:
            TurnTemplate.of(self.turns)

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "a model card") -> ModelCard:
        """Make a card from values of TOML or JSON types.

        Args:
            data: the fields of the card.
            where: the file that they come from, for messages.

        Raises:
            EepolicyError: a field is missing or unknown, or has a wrong type or range.
        """
        fields = parse(CardFile, data, where).model_dump(exclude={"version"})
        return cls(**fields | {name: tuple(fields[name]) for name in _LISTS})

    def to_dict(self) -> dict[str, Any]:
        """Return the card in JSON types, with the version of the format."""
        data = asdict(self) | {name: list(getattr(self, name)) for name in _LISTS}
        return parse(CardFile, data, f"the card {self.name}").model_dump()

    @property
    def affixes(self) -> Affixes:
        """The text around a question."""
        spoken = self.spoken_prompt_prefix
        return Affixes(
            self.prompt_prefix,
            self.prompt_suffix,
            self.prompt_prefix if spoken is None else spoken,
            self.audio_start,
            self.voice_separator,
            TurnTemplate.of(self.turns) if self.turns else None,
        )

    def layout(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> TokenLayout:
        """Return the chunks and token ids of the model.

        The vocabulary can be larger than the last speech token.  The ids after it count as speech
        without sound, such as padding.  If an end token is there, the ids from the first one on
        count as text.

        Args:
            tokenizer: the tokenizer of the model.
            vocabulary: size of the vocabulary in `config.json`.

        Raises:
            EepolicyError: the tokenizer lacks a token, or the speech tokens are not contiguous.
        """
        vocab: dict[str, int] = tokenizer.get_vocab()
        first, last, num_codes = self._speech_ids(vocab, vocabulary)
        if last - first != num_codes - 1 or last >= vocabulary:
            raise EepolicyError(
                f"the {num_codes} speech tokens of {self.name} have ids {first} to {last}, and the "
                f"vocabulary has {vocabulary}: they must be contiguous and lie within it"
            )
        ends = [self._id(vocab, t) for end in (self.end, *self.other_ends) for t in _numbered(end)]
        marks = {self._id(vocab, token) for token in self.non_text_tokens}
        marks |= {*range(max(0, first - self.marks_before_units), first)}
        stop = min((i for i in ends if i > last), default=vocabulary)
        return TokenLayout(
            text=(0, first),
            speech=(first, stop),
            text_chunk=self.text_chunk,
            speech_chunk=self.speech_chunk,
            end_of_text=-1 if self.end_of_text is None else self._id(vocab, self.end_of_text),
            end=ends[0],
            end_of_speech=-1 if self.end_of_speech is None else self._id(vocab, self.end_of_speech),
            non_text_ids=tuple(sorted(marks)),
            num_codes=num_codes,
            other_ends=tuple(ends[1:]),
            text_after=(stop, vocabulary) if stop < vocabulary else (0, 0),
        )

    def _speech_ids(self, vocab: dict[str, int], vocabulary: int) -> tuple[int, int, int]:
        """Ids of the first and last speech token, and their number."""
        if isinstance(self.unit, int):
            num_codes = self.num_codes or vocabulary - self.unit
            return self.unit, self.unit + num_codes - 1, num_codes
        num_codes = self.num_codes or next(i for i in count() if self._unit(i) not in vocab)
        last = self._unit(max(num_codes, 1) - 1)
        return self._id(vocab, self._unit(0)), self._id(vocab, last), num_codes

    def _unit(self, number: int) -> str:
        """The name of a speech token."""
        return str(self.unit).replace("{i}", str(number))

    def _id(self, vocab: dict[str, int], token: str | int) -> int:
        if isinstance(token, int):
            return token
        if token not in vocab:
            raise EepolicyError(
                f"the tokenizer has no {token}: it is not the tokenizer of {self.name}"
            )
        return vocab[token]


def _numbered(token: str | int) -> list[str | int]:
    """The tokens that a token with a range of numbers stands for."""
    match = _RANGE.search(str(token))
    if match is None:
        return [token]
    first, last = map(int, match.groups())
    return [str(token).replace(match.group(), str(n)) for n in range(first, last + 1)]
