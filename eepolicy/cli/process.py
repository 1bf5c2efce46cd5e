"""The process of the command line: its streams and signals."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


@contextmanager
def prepared_process() -> Iterator[list[int]]:
    r"""Prepare streams and signals for a command.

    - A stream that is closed gets a null device, since Python has none then.
    - Characters that the locale lacks are written as escapes, such as `\xe4` in the C locale.
    - SIGTERM raises `KeyboardInterrupt` too, so that open files are closed and locks are released.

    Yields:
        A list of the signals SIGINT and SIGTERM that have arrived.  Libraries may turn the
        exception of a signal into another one.
    """
    received: list[int] = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (to the end)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, end)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored
        before[signal.SIGINT] = signal.signal(signal.SIGINT, end)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def flush_output() -> str | None:
    """Write what is left in the buffer of stdout.

    Returns:
        The reason if that fails; an empty one if the reader has left, as `head` does.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError, ValueError):  # the interpreter flushes again when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "" if error.errno == errno.EPIPE else f"the output cannot be written: {error}"
    return None


def as_text(argument: str) -> str:
    """An argument with text in UTF-8, which Python does not decode in the C locale."""
    with suppress(UnicodeError):
        return os.fsencode(argument).decode()
    return argument
