"""A guard around plug-ins: an error of theirs names them, and so does one about their results."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from eepolicy.errors import EepolicyError, ErrorLine


class Guard(ErrorLine):
    """Names a plug-in in an error that one of its methods raises; a context manager.

    The type of the error stays.  An `EepolicyError` explains itself.

    Args:
        plugin: the plug-in.
        method: name of the method.

    Examples:
        >>> with Guard(eepolicy.FullDepth(), "depths"):
        ...     pass
    """

    __slots__ = ("method", "plugin")

    def __init__(self, plugin: object, method: str) -> None:
        self.plugin, self.method = plugin, method

    def applies_to(self, error: Exception) -> bool:
        return not isinstance(error, EepolicyError)

    def line(self) -> str:
        return f"This was raised in the plug-in {name_of(self.plugin, self.method)}."


def name_of(plugin: object, method: str) -> str:
    """Class and method of a plug-in, with its module where it is no part of this package."""
    cls = plugin if isinstance(plugin, type) else type(plugin)
    prefix = "" if cls.__module__.startswith("eepolicy.") else f"{cls.__module__}."
    return f"{prefix}{cls.__qualname__}.{method}()"


def wrong_result(plugin: object, method: str, result: Any, expected: str) -> EepolicyError:
    """The error for a wrong result: class, method, what it returned, what is expected."""
    shown = f"{result!r:.100}"
    if isinstance(result, Tensor):
        shown = f"a tensor {tuple(result.shape)} of {str(result.dtype).removeprefix('torch.')}"
    return EepolicyError(f"{name_of(plugin, method)} returns {expected}; it returned {shown}")
