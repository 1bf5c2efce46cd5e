"""Plug-ins in a Python file of one's own: `mine.py:Settled(1.0)` stands for an instance.

The spec string names the file and the constructor call.  Arguments are literals, so reading a spec
string evaluates no expression; it does run the file.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from eepolicy.errors import EepolicyError, translated

#: a file in a text with several spec strings, at its start or after an equals sign or a comma
_FILE = re.compile(r"(?:^|[=,])\s*(?P<file>[^=,]+?\.py):")
_SPEC = re.compile(r"\s*(?P<file>.+?\.py):(?P<call>.+)", re.DOTALL)

T = TypeVar("T")


def is_file_spec(spec: str) -> bool:
    """Whether a spec string names a Python file.

    Examples:
        >>> is_file_spec("mine.py:Settled(1.0)"), is_file_spec("static@16")
        (True, False)
    """
    return _SPEC.match(spec) is not None


def load_plugin(spec: str, base: type[T], kind: str, label: str | None = None) -> T:
    """Run a Python file and build one of its plug-ins.

    Args:
        spec: the file and the call, such as `"mine.py:Settled(1.0, depths=[14, 16])"`.  Without
            parentheses the class is called without arguments.
        base: class that the plug-in inherits from.
        kind: noun for messages, such as `"policy"`.
        label: `spec` of the instance; by default the given string.

    Returns:
        An instance of the class.  Two such instances are equal if their `spec` is.

    Raises:
        EepolicyError: the file or the class does not exist, the file fails, an argument is no
            literal, or the class does not take the arguments.
    """
    match = _SPEC.match(spec)
    if match is None:
        raise EepolicyError(f"{spec!r} names no Python file; write FILE.py:CLASS(ARGUMENTS)")
    name, positional, named = _read_call(match["call"].strip(), spec)
    file = Path(match["file"])
    cls = _find_class(_run(file, kind), file, name, base, kind)
    refused = f"{spec!r}: {name} in {file} does not take these arguments"
    with translated(lambda error: EepolicyError(f"{refused}: {type(error).__name__}: {error}")):
        plugin: T = _with_spec(cls, label or spec.strip())(*positional, **named)
    return plugin


def files_in(text: str) -> list[str]:
    """The Python files that a text with one or more spec strings names.

    Examples:
        >>> files_in("text=mine.py:Settled(1.0), fill=other.py:Copy()")
        ['mine.py', 'other.py']
        >>> files_in("static@16")
        []
    """
    return list(dict.fromkeys(match["file"] for match in _FILE.finditer(text)))


def file_digest(spec: str) -> str:
    """The SHA-256 of the file that a spec string names, to notice that it changed.

    Raises:
        EepolicyError: the file cannot be read.
    """
    match = _SPEC.match(spec)
    file = Path(match["file"] if match else spec)
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise EepolicyError(f"{file} cannot be read: {error.strerror}") from error


def _with_spec(cls: type[T], spec: str) -> type[T]:
    """A subclass whose instances have a given spec string."""
    members = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "_file_spec": spec,
        "__eq__": lambda self, other: getattr(other, "_file_spec", None) == spec,
        "__hash__": lambda self: hash(spec),
        "spec": property(lambda self: spec),
    }
    return type(cls.__name__, (cls,), members)


def _read_call(call: str, spec: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Name, positional and named arguments of a call with literals."""
    grammar = f"{spec!r}: after the file comes a class or a call such as Settled(1.0)"
    try:
        node = ast.parse(call, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise EepolicyError(f"{grammar}; {call!r} is not Python: {error}") from error
    if isinstance(node, ast.Name):
        return node.id, [], {}
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise EepolicyError(f"{grammar}; got {call!r}")
    named = {k.arg: _literal(k.value, spec) for k in node.keywords if k.arg is not None}
    if len(named) < len(node.keywords):
        raise EepolicyError(f"{grammar}; ** is not supported")
    return node.func.id, [_literal(argument, spec) for argument in node.args], named


def _literal(node: ast.expr, spec: str) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise EepolicyError(
            f"{spec!r}: arguments are literals such as 1.0, 'text' or [14, 16]; "
            f"got {ast.unparse(node)}"
        ) from error


def _run(file: Path, kind: str) -> ModuleType:
    """Run a file as a module; it may import files of its folder."""
    if not file.is_file():
        raise EepolicyError(f"there is no file {file}, which a {kind} is to be read from")
    file = file.resolve()
    # dataclasses look their module up; the same file has the same name, and may be read again
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    module_spec = importlib.util.spec_from_file_location(name, file)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    with (
        translated(lambda error: EepolicyError(f"{file} fails: {_describe(error, file)}")),
        _importable(file.parent),
    ):
        module_spec.loader.exec_module(module)
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Python finds modules in a folder."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _describe(error: Exception, file: Path) -> str:
    """The error with the line of the file that raised it."""
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f"line {line}: " if line is not None else ""
    return f"{where}{type(error).__name__}: {error}"


def _find_class(module: ModuleType, file: Path, name: str, base: type[T], kind: str) -> type[T]:
    cls = getattr(module, name, None)
    if isinstance(cls, type) and issubclass(cls, base) and cls is not base:
        return cls
    own = [
        other.__name__
        for other in vars(module).values()
        if isinstance(other, type)
        and issubclass(other, base)
        and other.__module__ == module.__name__
    ]
    listed = f"it has {', '.join(own)}" if own else f"it has no class of {base.__name__}"
    what = "has no" if cls is None else f"has a {name} that is no {base.__name__}, and so no"
    raise EepolicyError(f"{file} {what} {kind} {name}; {listed}")
