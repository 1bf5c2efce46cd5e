"""Spread work items over processes of this machine."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from types import TracebackType
from typing import Any, Generic, TypeVar

from eepolicy.errors import EepolicyError

Item = TypeVar("Item")
Result = TypeVar("Result")

#: function of a worker process, made when the process starts
_work: Callable[[Any], Any] | None = None


class Workers(Generic[Item, Result]):
    """Runs items in worker processes; the calling process helps when it has nothing else to do.

    A result must depend on its item alone.  Then neither the number of workers nor the order of
    the results matters.  Worker processes end with the calling process, even if it is killed.

    Args:
        make: makes the function from item to result, once in each process that runs items.  It is
            sent to the processes, so it must be possible to pickle it.
        processes: number of worker processes; with 0 the calling process runs all items.

    Examples:
        >>> from eepolicy.workers import Workers
        >>> with Workers(lambda: abs, processes=0) as workers:
        ...     workers.submit(-2)
        ...     list(workers.finish())
        [2]
    """

    def __init__(self, make: Callable[[], Callable[[Item], Result]], processes: int) -> None:
        self._make = make
        self._own: Callable[[Item], Result] | None = None
        self._items: dict[Future[Result], Item] = {}
        self._pool: ProcessPoolExecutor | None = None
        if processes:
            self._pool = ProcessPoolExecutor(
                processes, get_context("spawn"), initializer=_start, initargs=(make,)
            )

    def __enter__(self) -> Workers[Item, Result]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool is None:
            return
        if kind is not None:  # do not wait for a running item
            for process in (self._pool._processes or {}).values():
                process.terminate()
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def __len__(self) -> int:
        """Number of items without a result."""
        return len(self._items)

    def submit(self, item: Item) -> None:
        """Hand in an item."""
        if self._pool is None:
            future: Future[Result] = Future()
        else:
            with _interrupts_later():  # it may start a process
                future = self._pool.submit(_run, item)
        self._items[future] = item

    def completed(self) -> Iterator[Result]:
        """Results that worker processes have finished since the last call."""
        for future in [future for future in self._items if future.done()]:
            yield self._result(future)

    def finish(self) -> Iterator[Result]:
        """All other results; the calling process runs items that no worker has begun."""
        while self._items:
            yield from self.completed()
            # workers begin with the first items, so the calling process takes the last one
            order = reversed(self._items) if self._pool else iter(self._items)
            own = next((future for future in order if future.cancel()), None)
            if own is not None:
                self._own = self._own or self._make()
                yield self._own(self._items.pop(own))
            elif self._items:
                wait(self._items, return_when=FIRST_COMPLETED)

    def _result(self, future: Future[Result]) -> Result:
        del self._items[future]
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise EepolicyError(
                "a worker process ended unexpectedly, perhaps for want of memory; "
                "run the command again to continue, with fewer --workers if that repeats"
            ) from error


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Delay an interrupt to the end of the block, where the system can.

    A process whose start is interrupted prints a traceback.  Processes that start in the block
    never see an interrupt: the calling process ends them.
    """
    handler = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or handler is None or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    received: list[int] = []
    # the mask is for the new processes; another thread of this one can still take the signal, and
    # Python then calls the handler here
    signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)


def _start(make: Callable[[], Callable[[Any], Any]]) -> None:
    """Prepare a worker process."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the calling process ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _work = make()


def _run(item: Any) -> Any:
    assert _work is not None
    return _work(item)


def _end_with_parent() -> None:
    """Leave when the calling process is gone; a blocked queue would wait forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
