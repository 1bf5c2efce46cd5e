"""Wrong values by type, for the parameters of functions and the fields of dataclasses."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Wrong:
    """A value that is wrong for most types.

    Attributes:
        label: the value in words.
        value: the value.
        is_extreme: whether the type may be right and the value alone is unusual.
    """

    label: str
    value: Any
    is_extreme: bool = False


class Unknown:
    """An object of a class that no interface takes."""

    def __repr__(self) -> str:
        return "Unknown()"


#: what is tried at every parameter and field that does not take it
VALUES = (
    Wrong("None", None),
    Wrong("True", True),
    Wrong("2.7", 2.7),
    Wrong("'zz'", "zz", True),
    Wrong("''", "", True),
    Wrong("b'zz'", b"zz"),
    Wrong("[]", [], True),
    Wrong("{}", {}, True),
    Wrong("['a', None]", ["a", None]),
    Wrong("(2.5,)", (2.5,)),
    Wrong("an object", Unknown()),
    Wrong("a class", dict),
    Wrong("a tensor of nan", torch.tensor([math.nan]), True),
    Wrong("an empty tensor", torch.empty(0), True),
    Wrong("a tensor (2, 2, 2)", torch.zeros(2, 2, 2), True),
    Wrong("an array of text", np.array(["a"])),
    Wrong("-1", -1, True),
    Wrong("10**10", 10**10, True),
    Wrong("2**70", 2**70, True),
    Wrong("nan", math.nan, True),
    Wrong("inf", math.inf, True),
)


def fits(hint: Any, value: Any) -> bool:
    """Whether a value has the type of an annotation, whatever its range.

    An unknown annotation fits nothing, so its values are tried.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return True
    if origin is Annotated:
        return fits(arguments[0], value)
    if origin in (Union, types.UnionType):
        return any(fits(each, value) for each in arguments)
    if origin is Literal:
        return any(
            value is each or (type(value) is type(each) and value == each) for each in arguments
        )
    if hint is None or hint is type(None):
        return value is None
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is Callable or origin is Callable:
        return callable(value)
    if origin in (tuple, list, Sequence, Iterable, Mapping, dict):
        return _fits_container(origin, arguments, value)
    if isinstance(hint, type) and not getattr(hint, "_is_protocol", False):
        return isinstance(value, hint) and not (hint is str and isinstance(value, Path))
    return False


def _fits_container(origin: Any, arguments: tuple[Any, ...], value: Any) -> bool:
    """Whether a value is a container of this kind, and its items fit."""
    if origin in (Mapping, dict):
        return isinstance(value, dict)
    if isinstance(value, (str, bytes, Tensor, np.ndarray, dict)) or not isinstance(value, origin):
        return False
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return len(value) == len(arguments) and all(map(fits, arguments, value))
    return not arguments or all(fits(arguments[0], each) for each in value)


def wrong_for(hint: Any) -> list[Wrong]:
    """The values that are wrong for an annotation, and those that are right but unusual."""
    return [each for each in VALUES if each.is_extreme or not fits(hint, each.value)]
