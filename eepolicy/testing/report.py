"""Sentences of the conformance checks, and checks that all plug-ins share."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import FrozenInstanceError, fields, is_dataclass
from functools import partial
from typing import Any, TypeVar

import eepolicy
from eepolicy.errors import Caught, WithLine
from eepolicy.registry import Plugin

T = TypeVar("T")


def require(condition: bool, plugin: object, check: str, message: str) -> None:
    """Fail with a sentence.

    Args:
        condition: what must be True.
        plugin: object or class that is checked.
        check: name of the check.
        message: what was expected and what was seen.

    Raises:
        AssertionError: the condition is False.
    """
    if not condition:
        raise AssertionError(f"{describe(plugin)} fails {check}: {message}")


def describe(plugin: object) -> str:
    """The class of a plug-in and its repr; a name as it is given."""
    if isinstance(plugin, str):
        return plugin
    if inspect.isclass(plugin):
        return plugin.__qualname__
    return f"{type(plugin).__qualname__} ({plugin!r})"


def run_checks(plugin: T, checks: Iterable[Callable[[T], None]]) -> None:
    """Run checks one after the other; an error within one gets a line that names it."""
    for check in checks:
        with WithLine(partial(_error_line, plugin, check), unless=AssertionError):
            check(plugin)


def _error_line(plugin: object, check: object) -> str:
    """The line of an error within a check."""
    name = getattr(check, "__name__", "check_decodes")
    return f"{describe(plugin)} fails {name} with this error."


def instances_of(plugin: Any, parse: Callable[[str], Any]) -> Iterator[Any]:
    """The plug-in itself, that of its spec string, or those of the examples of its class."""
    if isinstance(plugin, type):
        cls: type[Any] = plugin
        check_declared(cls, "check_declarations")
        for spec, _ in examples_of(cls):
            yield cls.from_spec(spec[len(cls.name) :])
    else:
        yield parse(plugin) if isinstance(plugin, str) else plugin


def check_declared(cls: type[Plugin], check: str) -> None:
    """The class declares its name and the lines of tables."""
    for field in ("name", "usage", "example", "summary"):
        value = getattr(cls, field, "")
        require(
            isinstance(value, str) and value != "",
            cls,
            check,
            f"a class with spec strings declares {field}; it has {value!r}",
        )
    require(
        re.fullmatch("[a-z_-]+", cls.name) is not None,
        cls,
        check,
        f"name has lower-case letters, '_' and '-' only; it is {cls.name!r}",
    )
    for spec, _ in examples_of(cls):
        require(
            spec.startswith(cls.name),
            cls,
            check,
            f"the example {spec!r} does not start with the name {cls.name!r}",
        )


def examples_of(cls: type[Plugin]) -> tuple[tuple[str, str], ...]:
    """Pairs of a spec string and a summary."""
    pairs: tuple[tuple[str, str], ...] = getattr(cls, "examples", ())
    return pairs or ((cls.example, cls.summary),)


def check_value_object(plugin: Any, check: str) -> None:
    """The plug-in is a frozen dataclass, with a hash and a repr that evaluates to an equal one."""
    require(is_dataclass(plugin), plugin, check, "it is no dataclass; use @dataclass(frozen=True)")
    field = next(iter(fields(plugin)), None)
    if field is not None:
        try:
            setattr(plugin, field.name, getattr(plugin, field.name))
        except FrozenInstanceError:
            pass
        else:
            require(False, plugin, check, f"field {field.name} can be set; use frozen=True")
    module = inspect.getmodule(type(plugin))
    names = {name: getattr(eepolicy, name) for name in eepolicy.__all__}
    names |= vars(module or eepolicy) | {type(plugin).__name__: type(plugin)}
    again = None
    with Caught() as caught:
        again = eval(repr(plugin), dict(names))
    error = caught.error
    require(
        error is None, plugin, check, f"its repr does not evaluate: {type(error).__name__}: {error}"
    )
    require(again == plugin, plugin, check, f"its repr evaluates to another object, {again!r}")
    require(hash(again) == hash(plugin), plugin, check, "equal objects have other hashes")


def check_constructor(plugin: Any) -> None:
    """The plug-in is a frozen dataclass with repr and spec that round-trip."""
    check_value_object(plugin, "check_constructor")
    if plugin.name:
        check_spec(plugin, "check_constructor")


def check_spec(plugin: Any, check: str) -> None:
    """`from_spec` reads what `spec` writes."""
    cls, spec = type(plugin), plugin.spec
    require(
        spec.startswith(cls.name), plugin, check, f"spec {spec!r} does not start with {cls.name!r}"
    )
    again = cls.from_spec(spec[len(cls.name) :])
    require(again == plugin, plugin, check, f"from_spec reads {spec!r} as {again!r}")
