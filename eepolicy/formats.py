"""One schema per file format: types, ranges and a version.

A file without a version has version 1: the files from before the first release have none.
`parse` checks data against a schema and turns what is wrong into one sentence.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from eepolicy.errors import EepolicyError

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]

#: maximum number of characters of a wrong value in a message
_SHOWN = 60
#: beginnings of pydantic's messages
_PHRASE = re.compile(r"^(Input should be|(String|List) should have|Value error,) ")


class FileFormat(BaseModel):
    """A schema: strict types, no unknown keys, immutable.

    Attributes:
        version: version of the format.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, protected_namespaces=(), defer_build=True
    )

    version: Literal[1] = 1


M = TypeVar("M", bound=BaseModel)


def parse(schema: type[M], data: Any, where: str) -> M:
    """Check data that was read from a file.

    Args:
        schema: the format, such as `RunFile`.
        data: values of JSON or TOML types.
        where: the file, and the line if it has several, such as `"records.jsonl, line 3"`.

    Returns:
        The data as an object.

    Raises:
        EepolicyError: a key is missing or unknown, or a value has the wrong type or range.  The
            message names the file, the key, what was expected and what was given.

    Examples:
        >>> from eepolicy.formats import TraceHeader, parse
        >>> parse(TraceHeader, {"full_depth": 20, "prefill_layer_calls": 0}, "a trace").full_depth
        20
        >>> parse(TraceHeader, {"full_depth": "20", "prefill_layer_calls": 0}, "a trace")
        Traceback (most recent call last):
        eepolicy.errors.EepolicyError: a trace: full_depth: expected a valid integer; got '20'
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise EepolicyError(f"{where}: {_sentence(schema, data, error)}") from error


def _sentence(schema: type[BaseModel], data: Any, error: ValidationError) -> str:
    """What is wrong first: a version, a missing or unknown key, or a value."""
    errors = error.errors(include_url=False)
    version = next((e for e in errors if e["loc"] == ("version",)), None)
    if version is not None:
        return (
            f"its format has version {_shown(version['input'])}; this release reads version 1: "
            "install a newer eepolicy"
        )
    first = errors[0]
    key = _key(data, first["loc"])
    if first["type"] == "missing":
        return f"the key {key!r} is missing"
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(schema.model_fields))
        return f"the key {key!r} is unknown; possible keys are {known}"
    # a value of a union has one error per type
    expected = dict.fromkeys(
        _PHRASE.sub("", e["msg"]).replace("String should match", "text that matches")
        for e in errors
        if _key(data, e["loc"]) == key
    )
    prefix = f"{key}: " if key else ""
    if first["type"] in ("model_type", "dict_type"):
        return f"{prefix}expected keys with values; got {_shown(first['input'])}"
    if first["type"] == "value_error":
        return prefix + next(iter(expected))
    return f"{prefix}expected {' or '.join(expected)}; got {_shown(first['input'])}"


def _key(data: Any, location: tuple[int | str, ...]) -> str:
    """The path of a value, such as `notes.rows[2]`, without the type names of unions."""
    path = ""
    for step in location:
        if not isinstance(data, dict | list):
            break  # the name of a type
        value: Any = data
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
        try:
            data = value[step]
        except (LookupError, TypeError):
            data = None  # a missing key
    return path


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _rising_depths(depths: list[int]) -> list[int]:
    """Refuse depths that do not rise."""
    if any(a >= b for a, b in pairwise(depths)):
        raise ValueError(f"expected rising depths; got {_shown(depths)}")
    return depths


class Fingerprint(BaseModel):
    """Which model a file belongs to: see `eepolicy.heads.fingerprint`."""

    model_config = FileFormat.model_config

    model_type: str
    num_hidden_layers: Positive
    hidden_size: Positive
    vocab_size: Positive
    weights: str


class TraceHeader(FileFormat):
    """The numbers in the header of a trace file; its columns are tensors."""

    full_depth: Positive
    prefill_layer_calls: Count


class HeadsHeader(FileFormat):
    """The header of a file of exit heads; their weights are tensors.

    Attributes:
        kinds: name of the class of each head.
        depths: depth of each head, ascending.  Heads of several kinds may share a depth; the first
            of them is preferred.
        model: the model that the heads were fitted on.
        notes: data, losses and options of the fit.
    """

    kinds: list[str] = Field(min_length=1)
    depths: list[Count] = Field(min_length=1)
    model: Fingerprint
    notes: dict[str, Any]

    @model_validator(mode="after")
    def _one_kind_a_depth(self) -> HeadsHeader:
        if any(a > b for a, b in pairwise(self.depths)):
            raise ValueError(f"expected ascending depths; got {_shown(self.depths)}")
        heads = [*zip(self.depths, self.kinds, strict=False)]
        if len(self.kinds) != len(self.depths) or len({*heads}) < len(heads):
            raise ValueError("expected one kind for each depth, and each pair of both once")
        return self


class PredictorHeader(FileFormat):
    """The header of a file of an exit predictor; its weights are tensors.

    Attributes:
        depths: depths with a network, rising.
        width: width of the model.
        hidden: width of the layer in between; 0 for none.
        heads: `repr` of the exit heads whose agreement it predicts.
        model: the model that it was fitted on.
        notes: data and options of the fit.
    """

    depths: list[Positive] = Field(min_length=1)
    width: Positive
    hidden: Count
    heads: str
    model: Fingerprint
    notes: dict[str, Any]

    @field_validator("depths")
    @classmethod
    def _rising(cls, depths: list[int]) -> list[int]:
        return _rising_depths(depths)


class CheckpointHeader(FileFormat):
    """The header of a fit's checkpoint; weights and optimizer states are tensors.

    Attributes:
        identity: model, options and replies of the fit.
        epoch: number of finished epochs.
        epochs_without_gain: number of epochs since a depth last improved.
        metrics: best value of each metric so far, per depth.
        step: number of finished steps of the epoch that is not finished.
    """

    identity: dict[str, Any]
    epoch: Count
    epochs_without_gain: Count
    metrics: dict[str, list[float]]
    step: Count = 0


class RepliesHeader(FileFormat):
    """The first line of a file of replies.

    Attributes:
        model: the model that gives the replies.
        questions: number of questions.
        max_new_tokens: maximum number of tokens per reply.
        policy: spec string of the exit policy; empty for full depth.
        heads: hash of the weights of the exit heads; empty for full depth.
    """

    model: Fingerprint
    questions: Count
    max_new_tokens: Positive
    policy: str = ""
    heads: str = ""


class ReplyLine(BaseModel):
    """A further line of a file of replies; the file has it as `[prompt, tokens]`.

    Attributes:
        prompt: number of tokens in the prompt.
        tokens: ids of prompt and reply.
    """

    model_config = FileFormat.model_config

    prompt: Count
    tokens: list[Count]

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, data: Any) -> Any:
        if isinstance(data, list) and len(data) == 2:
            return {"prompt": data[0], "tokens": data[1]}
        return data

    @model_validator(mode="after")
    def _prompt_within_tokens(self) -> ReplyLine:
        if self.prompt > len(self.tokens):
            raise ValueError(
                f"expected a prompt of at most {len(self.tokens)} tokens; got {self.prompt}"
            )
        return self

    @model_serializer
    def _to_list(self) -> list[Any]:
        return [self.prompt, self.tokens]


class ProbeProgress(FileFormat):
    """`probe.json` of a probe's folder.

    Attributes:
        identity: settings that the readouts depend on.
        documents: number of whole documents.
        readouts: number of whole readouts.
        seen: hash of the documents so far; empty before the first one.
    """

    identity: dict[str, Any]
    documents: Count
    readouts: Count
    seen: str = Field(pattern=r"^([0-9a-f]{64})?$")


class CardFile(FileFormat):
    """A model card: see `eepolicy.speech.model_card.ModelCard`."""

    name: str = Field(min_length=1)
    source: str
    model_type: str = Field(min_length=1)
    unit: str | Count
    text_chunk: Count
    speech_chunk: Positive
    end: str | Count
    prompt_prefix: str = ""
    prompt_suffix: str = ""
    spoken_prompt_prefix: str | None = None
    audio_start: str | None = Field(default=None, min_length=1)
    num_codes: Positive | None = None
    rate: Annotated[float, Field(gt=0)] | None = None
    end_of_text: str | None = None
    end_of_speech: str | None = None
    non_text_tokens: list[str] = []
    sampling: dict[str, bool | int | float] = {}
    vocoder: str = ""
    other_ends: list[str | Count] = []

    @field_validator("unit")
    @classmethod
    def _numbered(cls, unit: str | int) -> str | int:
        if isinstance(unit, str) and "{i}" not in unit:
            raise ValueError(f"expected a token with {{i}} for its number, or an id; got {unit!r}")
        return unit


class AudioEncoderEntry(FileFormat):
    """The audio encoder in the `config.json` of a converted folder.

    Attributes:
        start: id of the token before a segment.
        patch: id of the token that an embedding of the segment replaces.
        end: id of the token after a segment.
        sizes: sizes of the encoder: see `eepolicy.speech.step_audio2_encoder`.
    """

    start: Count
    patch: Count
    end: Count
    sizes: dict[str, int]
