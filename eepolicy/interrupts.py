"""Delay an interrupt while something runs that an interrupt would damage."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Delay an interrupt, or SIGTERM with a handler, to the end of the block, where the system can.

    Two things need it:

    - A process that starts: one whose start is interrupted prints a traceback.  Processes that
      start in the block never see an interrupt, so the calling process has to end them.
    - The import of a library in C++: an interrupt there raises `ImportError`, or ends the process
      with a segmentation fault.

    Examples:
        >>> with interrupts_later():
        ...     import zlib
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if handlers[signal.SIGTERM] is signal.SIG_DFL:  # it ends this process at once
        del handlers[signal.SIGTERM]
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or None in handlers.values() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    received: list[int] = []
    # the mask is for new processes; another thread of this one can still take the signal, and
    # Python then calls the handler here
    for number in handlers:
        signal.signal(number, lambda number, _: received.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
