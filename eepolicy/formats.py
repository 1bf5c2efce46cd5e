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
)

from eepolicy.errors import EepolicyError

#: integers of 31 bits, from 0 and from 1
Count = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
#: value of a sampling option: a number, or numbers by name as in `repetition_aware`
SamplingOption = bool | int | float | dict[str, int | float]

#: maximum number of characters of a wrong value in a message
_SHOWN = 60
#: beginnings of pydantic's messages
_PHRASE = re.compile(r"^(Input should be|(String|List|Tuple|Value) should have|Value error,) ")
#: bounds of a number in its messages
_BOUND = re.compile(r"^(greater|less) than or equal to (.+)$")


class FileFormat(BaseModel):
    """A schema: strict types, no unknown keys, immutable.

    Attributes:
        version: version of the format.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, protected_namespaces=(), defer_build=True
    )

    version: Literal[1] = 1

    @field_validator("version", mode="before")
    @classmethod
    def _no_bool(cls, version: Any) -> Any:
        return None if isinstance(version, bool) else version  # True equals 1


M = TypeVar("M", bound=BaseModel)


def parse(schema: type[M], data: Any, where: str) -> M:
    """Check data that was read from a file.

    Args:
        schema: the format, such as `RunFile`.
        data: values of JSON or TOML types.
        where: the file, and the line if it has several, such as `"records.jsonl, line 3"`; empty
            for data without a source.

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
        prefix = f"{where}: " if where else ""
        raise EepolicyError(prefix + _sentence(schema, data, error)) from error


def _sentence(schema: type[BaseModel], data: Any, error: ValidationError) -> str:
    """What is wrong first: a version, a missing or unknown key, or a value."""
    errors = error.errors(include_url=False)
    version = next((e for e in errors if e["loc"] == ("version",)), None)
    if version is not None:
        return (
            f"its format has version {shown(version['input'])}; this release reads version 1: "
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
    expected = dict.fromkeys(_expected(e["msg"]) for e in errors if _key(data, e["loc"]) == key)
    prefix = f"{key}: " if key else ""
    if first["type"] in ("model_type", "dict_type"):
        return f"{prefix}expected keys with values; got {shown(first['input'])}"
    if first["type"] == "value_error":
        return prefix + next(iter(expected))
    return f"{prefix}expected {' or '.join(expected)}; got {shown(first['input'])}"


def _expected(message: str) -> str:
    """What a message of pydantic says is right, such as `1 or more`."""
    phrase = _PHRASE.sub("", message).replace("String should match", "text that matches")
    bound = _BOUND.match(phrase)
    if bound is None:
        return phrase
    return f"{bound[2]} or {'more' if bound[1] == 'greater' else 'less'}"


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


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def rising_depths(depths: list[int]) -> list[int]:
    """Refuse depths that do not rise."""
    if any(a >= b for a, b in pairwise(depths)):
        raise ValueError(f"expected rising depths; got {shown(depths)}")
    return depths


class Fingerprint(BaseModel):
    """Which model a file belongs to: see `eepolicy.heads.fingerprint`.

    Attributes:
        model_type: its family.
        num_hidden_layers: number of layers.
        hidden_size: width of the hidden states.
        vocab_size: number of tokens of the vocabulary.
        weights: hash of a part of its weights.
    """

    model_config = FileFormat.model_config

    model_type: str
    num_hidden_layers: Positive
    hidden_size: Positive
    vocab_size: Positive
    weights: str


class TraceHeader(FileFormat):
    """The numbers in the header of a trace file; its columns are tensors.

    Attributes:
        full_depth: number of layers of the model.
        prefill_layer_calls: number of layer calls of the prompt.
    """

    full_depth: Positive
    prefill_layer_calls: Count
