"""Check the fields of public dataclasses when an object is made.

A dataclass declares types and ranges in its annotations and inherits `CheckedFields`; one with
further checks calls `check_fields` in its own `__post_init__`.  Ranges that depend on a model are
checked by methods such as `check`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import pairwise
from numbers import Real
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    create_model,
)

from eepolicy.errors import EepolicyError
from eepolicy.formats import Count, Positive, parse

__all__ = [
    "CheckedFields",
    "Count",
    "Finite",
    "NonNegative",
    "Positive",
    "PositiveNumber",
    "RisingDepths",
    "Seed",
    "SeedCount",
    "Share",
    "Tuple",
    "build",
    "check_fields",
    "check_value",
    "one_of",
    "single_field",
    "with_method",
]

T = TypeVar("T")

#: a number that is neither nan nor infinite
Finite = Annotated[float, Field(allow_inf_nan=False)]
#: a finite number of 0 or more
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
#: a number from 0 to 1
Share = Annotated[float, Field(ge=0, le=1)]
#: a finite number above 0
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]
#: a seed of PyTorch's generators, and one of 0 or more
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
SeedCount = Annotated[int, Field(ge=0, lt=2**63)]
#: a list becomes a tuple, so that an object stays hashable
Tuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)

_CONFIG = ConfigDict(
    strict=True, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=()
)


def _rising(values: tuple[int, ...]) -> tuple[int, ...]:
    if not values or any(a >= b for a, b in pairwise(values)):
        raise ValueError(f"expected one or more rising depths; got {values!r}")
    return values


#: depths of exits, each once
RisingDepths = Annotated[tuple[Positive, ...], AfterValidator(_rising), Tuple]


def one_of(*names: str) -> AfterValidator:
    """A check that a text is one of some names."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"expected {', '.join(map(repr, names))}; got {value!r}")
        return value

    return AfterValidator(check)


def check_fields(instance: Any) -> None:
    """Check the fields of a dataclass against its annotations.

    A number of numpy becomes a number of Python, and a list becomes a tuple where the annotation
    says so with `Tuple`.

    Args:
        instance: an object whose fields are set.

    Raises:
        EepolicyError: a field has another type or is out of range.  The message names class and
            field.

    Examples:
        >>> from eepolicy import Static
        >>> Static(2.7)
        Traceback (most recent call last):
        eepolicy.errors.EepolicyError: Static: exit_depth: expected a valid integer; got 2.7
    """
    cls = type(instance)
    schema = _schema(cls)  # type: ignore[arg-type]
    values = {name: getattr(instance, name) for name in schema.model_fields}
    plain = {name: _plain(value) for name, value in values.items()}
    checked = parse(schema, plain, cls.__name__)
    for name, value in plain.items():
        new = getattr(checked, name) if isinstance(value, list) else value
        if new is not values[name]:
            object.__setattr__(instance, name, new)


class CheckedFields:
    """Base of dataclasses that call `check_fields` on each new object."""

    def __post_init__(self) -> None:
        check_fields(self)


def with_method(value: T, name: str, method: str) -> T:
    """Refuse an object without a method; None is right.

    Args:
        value: the object.
        name: name of the argument, for the message.
        method: name of the method.

    Raises:
        EepolicyError: the object has no such method.
    """
    if value is not None and (isinstance(value, bytes) or not hasattr(value, method)):
        raise EepolicyError(f"{name} has a method {method}, or is None; got {value!r:.80}")
    return value


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Make an object of a dataclass from its fields by name.

    Raises:
        EepolicyError: a field is missing, or no field has the name.
    """
    signature = inspect.signature(cls)
    try:
        signature.bind(**values)
    except TypeError as error:
        raise EepolicyError(f"{cls.__name__}: {error}") from error
    return cls(**values)


def check_value(name: str, hint: Any, value: Any) -> Any:
    """Check one argument of a function.

    Args:
        name: name of the argument, for the message.
        hint: its type, possibly with a range.
        value: the argument.

    Returns:
        The argument; a number of numpy as a number of Python.

    Raises:
        EepolicyError: the argument has another type or is out of range.

    Examples:
        >>> from eepolicy.fields import Positive, check_value
        >>> check_value("chunk", Positive, 0)
        Traceback (most recent call last):
        eepolicy.errors.EepolicyError: chunk: expected 1 or more; got 0
    """
    value = _plain(value)
    parse(single_field(name, hint), {name: value}, "")
    return value


def _plain(value: Any) -> Any:
    """A number of numpy as a number of Python; all else as it is."""
    # numpy registers its numbers as Real; importing it would slow down the help of the commands
    return value.item() if isinstance(value, Real) and hasattr(value, "item") else value


def _by_instance(hint: Any) -> Any:
    """A type in which a dataclass is checked by its class alone: its objects check themselves."""
    if is_dataclass(hint):
        cls: Any = hint

        def check(value: Any) -> Any:
            if not isinstance(value, cls):
                raise ValueError(f"expected an object of {cls.__name__}; got {value!r:.60}")
            return value

        return Annotated[Any, AfterValidator(check)]
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(map(_by_instance, get_args(hint)))]  # noqa: UP007 (a tuple of types)
    return hint


@cache
def single_field(name: str, hint: Any) -> type[BaseModel]:
    """A schema with one field.

    Raises:
        PydanticUserError: pydantic cannot check the type.
    """
    model: Any = create_model
    described = {name: (_by_instance(hint), ...)}
    return cast("type[BaseModel]", model("Argument", __config__=_CONFIG, **described))


@cache
def _schema(cls: type) -> type[BaseModel]:
    """A schema with the fields of a dataclass."""
    hints = _hints(cls)
    names = [f.name for f in fields(cls) if f.init and f.name in hints]
    described = {name: (_by_instance(hints[name]), ...) for name in names}
    model: Any = create_model
    return cast("type[BaseModel]", model(cls.__name__, __config__=_CONFIG, **described))


def _hints(cls: type) -> dict[str, Any]:
    """The annotations of a class, or of the first base class whose annotations can be resolved."""
    for each in cls.__mro__:
        try:
            return get_type_hints(each, include_extras=True)
        except NameError:  # a name of the function that defines the class
            continue
    return {}
