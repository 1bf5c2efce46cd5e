"""One malformed input, and how the library answers it."""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from eepolicy.errors import EepolicyError

#: longest message that counts as one clear sentence
MAX_MESSAGE = 1200
#: words of the warning that a damaged last line was left out
DROPPED = "is damaged and was dropped"
#: seconds of the CPU that a refusal takes at most
MAX_SECONDS = 8


class _Accepted(BaseException):
    """The library works on an input for longer than a refusal takes."""


class Answer(Enum):
    """How the library answers an input."""

    CLEAR = "clear"
    LEGAL = "legal"
    RAW = "raw"
    SILENT = "silent"


@dataclass(frozen=True)
class Case:
    """A malformed input.

    Attributes:
        kind: kind of input, a row of the table.
        name: what gets which value, such as `"Static.exit_depth = True"`.
        run: passes the input to the library.
        legal: why the input is right, if it is.
        own_error: class of the error that a plug-in raises itself and that must keep its type.
        max_seconds: seconds of the CPU after which an input counts as accepted: the work has begun.
    """

    kind: str
    name: str
    run: Callable[[], object]
    legal: str = ""
    own_error: type[Exception] | None = None
    max_seconds: int = MAX_SECONDS


@dataclass(frozen=True)
class Outcome:
    """The answer to a case.

    Attributes:
        case: the case.
        answer: how the library answers it.
        detail: the message, or where an exception of other code was raised.
    """

    case: Case
    answer: Answer
    detail: str

    def __str__(self) -> str:
        return f"{self.answer.value:6} {self.case.kind}: {self.case.name} -> {self.detail}"


def answer(case: Case) -> Outcome:
    """Run a case in an empty folder and sort its answer."""
    try:
        with (
            _limited(case.max_seconds),
            _own_folder(),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            case.run()
    except EepolicyError as error:
        text = str(error)
        is_sentence = bool(text.strip()) and len(text) <= MAX_MESSAGE
        return Outcome(case, Answer.CLEAR if is_sentence else Answer.RAW, text)
    except _Accepted:
        return _accepted(case, f"not done in {case.max_seconds} seconds")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit
        if case.own_error is not None and type(error) is case.own_error and _has_note(error):
            return Outcome(case, Answer.CLEAR, f"{type(error).__name__} with a note")
        where = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {error!s:.150} ({where.filename}:{where.lineno})"
        return Outcome(case, Answer.RAW, detail)
    dropped = [str(w.message) for w in caught if DROPPED in str(w.message)]
    if dropped:
        return Outcome(case, Answer.LEGAL, dropped[0])
    return _accepted(case, "accepted")


def _accepted(case: Case, detail: str) -> Outcome:
    """The answer to an input that is not refused."""
    if case.legal:
        return Outcome(case, Answer.LEGAL, case.legal)
    return Outcome(case, Answer.SILENT, detail)


@contextlib.contextmanager
def _own_folder() -> Iterator[None]:
    """Run in an empty folder, where a relative path names nothing."""
    before = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


@contextlib.contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """Stop a case that does not end."""

    def stop(*_: object) -> None:
        raise _Accepted

    # seconds of the CPU, since a busy machine makes a refusal slow too; and of the clock, for sleep
    timers = {signal.ITIMER_PROF: signal.SIGPROF, signal.ITIMER_REAL: signal.SIGALRM}
    before = {number: signal.signal(number, stop) for number in timers.values()}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 20 * seconds)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _has_note(error: BaseException) -> bool:
    """Whether a line names the plug-in: a note, or in Python 3.10 the message."""
    text = "\n".join([str(error), *getattr(error, "__notes__", ())])
    return "plug-in" in text


def legal_reason(name: str, reasons: Iterable[tuple[str, str]]) -> str:
    """Why an input is right, from patterns of names with reasons; empty if it is not."""
    return next((reason for pattern, reason in reasons if fnmatch(name, pattern)), "")


def count(outcomes: Iterable[Outcome]) -> Counter[tuple[str, Answer]]:
    """Number of outcomes by kind and answer."""
    return Counter((outcome.case.kind, outcome.answer) for outcome in outcomes)
