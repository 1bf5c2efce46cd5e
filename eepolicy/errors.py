"""The error class of the library, and context managers for errors of other code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType


class EepolicyError(ValueError):
    """An input cannot be used.  The message says what was given, what is possible, what to do."""


def add_line(error: Exception, line: str) -> None:
    """Add a line to an error, whose type stays: a note, or in Python 3.10 a part of the message."""
    add_note: Callable[[str], None] | None = getattr(error, "add_note", None)
    if add_note is not None:
        add_note(line)
    else:  # Python 3.10
        error.args = (f"{error}\n{line}",)


def described(error: Exception) -> str:
    """An error as a line of a report: its message, after its type if that is another library's."""
    return f"{error}" if isinstance(error, EepolicyError) else f"{type(error).__name__}: {error}"


class ErrorLine(ABC):
    """Adds a line to an error that is raised in the block; a context manager.

    The line is made only for an error, since such blocks run for every token.
    """

    __slots__ = ()

    def __enter__(self) -> ErrorLine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and self.applies_to(error):
            add_line(error, self.line())

    def applies_to(self, error: Exception) -> bool:
        """Whether an error gets the line."""
        return True

    @abstractmethod
    def line(self) -> str:
        """The line."""


class WithLine(ErrorLine):
    """Adds a given line to an error that is raised in the block; a context manager.

    Args:
        make: makes the line.
        unless: errors that get no line.
    """

    __slots__ = ("make", "unless")

    def __init__(
        self, make: Callable[[], str], unless: type[Exception] | tuple[type[Exception], ...] = ()
    ) -> None:
        self.make, self.unless = make, unless

    def applies_to(self, error: Exception) -> bool:
        return not isinstance(error, self.unless)

    def line(self) -> str:
        return self.make()


class Caught:
    """Catches an error that code of others raises in the block; a context manager.

    Only for code whose errors have no common type: plug-ins, the compiler, the Hub's client, the
    authors' packages.  A test lists the modules that use it.  `KeyboardInterrupt` and `SystemExit`
    pass.

    Attributes:
        error: the error, or None.

    Examples:
        >>> with Caught() as caught:
        ...     {}["missing"]
        >>> caught.error
        KeyError('missing')
    """

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __enter__(self) -> Caught:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if isinstance(error, Exception):
            self.error = error
        return isinstance(error, Exception)


@contextmanager
def translated(translate: Callable[[Exception], Exception]) -> Iterator[None]:
    """Raise another error for each that code of others raises in the block; see `Caught`.

    Args:
        translate: makes the error that is raised.

    Examples:
        >>> with translated(lambda error: EepolicyError(f"the plug-in fails: {error!r}")):
        ...     {}["missing"]
        Traceback (most recent call last):
            ...
        eepolicy.errors.EepolicyError: the plug-in fails: KeyError('missing')
    """
    with Caught() as caught:
        yield
    if caught.error is not None:
        raise translate(caught.error) from caught.error
