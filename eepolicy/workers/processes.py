"""Work items on processes of this machine."""

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
from typing import Any

from eepolicy.errors import EepolicyError
from eepolicy.workers.base import Item, Noted, Result, Workers

#: how often a process may be lost before an item is finished
MAX_LOSSES = 5

#: makes the function of a worker process
_make: Callable[[], Callable[[Any], Any]] | None = None
#: that function, made at the first item: an error then ends the run with its own type, while an
#: error at the start of a process looks like a lost process
_work: Callable[[Any], Any] | None = None


class ProcessWorkers(Workers[Item, Result]):
    """Runs items in processes; the calling process helps while it waits for a result.

    Worker processes end with the calling process, even if it is killed.  If a worker process is
    lost, new ones start and the unfinished items run again.

    Args:
        make: makes the function from item to result, in each process at its first item.  It is
            sent to the processes, so it must be possible to pickle it.
        size: number of worker processes; with 0 the calling process runs all items.
        own: the function of the calling process; made by `make` if None.

    Examples:
        >>> from eepolicy.workers import ProcessWorkers
        >>> with ProcessWorkers(lambda: abs, size=0) as workers:
        ...     workers.submit(-2)
        ...     list(workers.finish())
        [2]
    """

    def __init__(
        self,
        make: Callable[[], Callable[[Item], Result]],
        size: int,
        own: Callable[[Item], Result] | None = None,
    ) -> None:
        self.size = size
        self._make, self._own = make, own
        self._items: dict[Future[Result], Item] = {}
        self._losses = 0  # since the last result
        self._pool = self._new_pool()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool is None:
            return
        if kind is None:
            self._end_pool()
            return
        for process in (self._pool._processes or {}).values():  # do not wait for a running item
            process.terminate()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __len__(self) -> int:
        return len(self._items)

    def submit(self, item: Item) -> None:
        """Hand in an item."""
        if self._pool is None:
            self._items[Future()] = item
            return
        try:
            with _interrupts_later():  # it may start a process
                future = self._pool.submit(_run, item)
        except BrokenProcessPool:
            self._replace_pool()
            self.submit(item)
            return
        self._items[future] = item

    def completed(self) -> Iterator[Result]:
        """Results that worker processes have finished since the last call."""
        while True:
            if self._items and self._pool is not None and self._pool._broken:
                self._replace_pool()
            future = next(filter(Future.done, self._items), None)
            if future is None:
                return
            if self._is_lost(future):
                continue  # the pool is marked as broken next
            item = self._items.pop(future)
            self._losses = 0
            yield _result(future, item)

    def next(self) -> Result:
        """Wait for a result; run an item that no process has begun meanwhile."""
        while True:
            for result in self.completed():
                return result
            own = next((future for future in self._items if future.cancel()), None)
            if own is not None:
                # before Python 3.12, a pool that loses a process stops at a cancelled future
                setattr(own, "set_exception", _ignore)  # noqa: B010  # mypy refuses an assignment
                item = self._items.pop(own)
                with Noted(item):
                    self._own = self._own or self._make()
                    return self._own(item)
            # an item that was submitted just as the pool broke is never done: check the pool again
            wait(self._items, timeout=1, return_when=FIRST_COMPLETED)

    def _new_pool(self) -> ProcessPoolExecutor | None:
        if not self.size:
            return None
        return ProcessPoolExecutor(
            self.size, get_context("spawn"), initializer=_start, initargs=(self._make,)
        )

    def _end_pool(self) -> None:
        """Wait until the processes have ended; those of a broken pool may need a signal."""
        assert self._pool is not None
        processes = [*(self._pool._processes or {}).values()]  # the pool forgets them
        self._pool.shutdown(wait=True, cancel_futures=True)
        for process in processes:
            process.terminate()
            process.join()

    @staticmethod
    def _is_lost(future: Future[Result]) -> bool:
        return future.cancelled() or isinstance(future.exception(), BrokenProcessPool)

    def _replace_pool(self) -> None:
        """Start new processes after one was lost, and hand in the unfinished items again.

        Raises:
            EepolicyError: processes are lost again and again.
        """
        assert self._pool is not None
        self._losses += 1
        if self._losses > MAX_LOSSES:
            raise EepolicyError(
                f"{MAX_LOSSES + 1} worker processes ended unexpectedly, one after the other, "
                "perhaps for want of memory; run the command again to continue, with fewer "
                "workers if that repeats"
            )
        self._end_pool()
        self._pool = self._new_pool()
        lost = [future for future in self._items if not future.done() or self._is_lost(future)]
        for item in [self._items.pop(future) for future in lost]:
            self.submit(item)


def _ignore(error: BaseException) -> None:
    """Takes the place of `Future.set_exception` in a cancelled future."""


def _result(future: Future[Result], item: Item) -> Result:
    with Noted(item):
        return future.result()


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Delay an interrupt, or SIGTERM with a handler, to the end of the block, where the system can.

    A process whose start is interrupted prints a traceback.  Processes that start in the block
    never see an interrupt: the calling process ends them, with SIGTERM.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if handlers[signal.SIGTERM] is signal.SIG_DFL:  # it ends this process at once
        del handlers[signal.SIGTERM]
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or None in handlers.values() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    received: list[int] = []
    # the mask is for the new processes; another thread of this one can still take the signal, and
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


def _start(make: Callable[[], Callable[[Any], Any]]) -> None:
    """Prepare a worker process."""
    global _make
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the calling process ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _make = make


def _run(item: Any) -> Any:
    global _work
    assert _make is not None
    _work = _work or _make()
    return _work(item)


def _end_with_parent() -> None:
    """Leave when the calling process is gone; a blocked queue would wait forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
