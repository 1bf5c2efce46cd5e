"""Work items on processes of this machine."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    InvalidStateError,
    ProcessPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from multiprocessing import connection, get_context, parent_process
from types import TracebackType
from typing import Any

from eepolicy.errors import Caught, EepolicyError
from eepolicy.interrupts import interrupts_later
from eepolicy.workers.base import Item, Noted, Result, Workers

#: how often a process may be lost before an item is finished
MAX_LOSSES = 5
#: seconds after which a process that ended has broken its pool, and after which a process that
#: SIGTERM does not end is killed
GRACE = 5.0

#: makes the function of a worker process, pickled
_make: bytes = b""
#: that function, made at the first item: an error then ends the run with its own type, while an
#: error at the start of a process looks like a lost process
_work: Callable[[Any], Any] | None = None


class ProcessWorkers(Workers[Item, Result]):
    """Runs items in processes; the calling process helps while it waits for a result.

    Worker processes end with the calling process, even if it is killed.  If a worker process is
    lost, new ones start and the unfinished items run again.

    Items and results are pickled here.  The executor would pass each tensor as shared memory, which
    keeps a file open in this process, and a process may have a thousand open files.

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
        self._items: dict[Future[bytes], Item] = {}
        self._losses = 0  # since the last result
        self._ended_at: float | None = None  # when a process was seen to have ended
        self._pool = self._new_pool()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool is None:
            return
        self._end_pool(at_once=kind is not None)  # after an error, do not wait for a running item

    def __len__(self) -> int:
        return len(self._items)

    def submit(self, item: Item) -> None:
        """Hand in an item."""
        if self._pool is None:
            self._items[Future()] = item
            return
        with Noted(item):
            data = pickle.dumps(item)
        try:
            with interrupts_later():  # it may start a process
                future = self._pool.submit(_run, data)
        except BrokenProcessPool as error:
            self._replace_pool(error)
            self.submit(item)
            return
        # before Python 3.12, a pool that loses a process stops at a future that was cancelled
        setattr(future, "set_exception", partial(_set_exception, future.set_exception))  # noqa: B010
        self._items[future] = item

    def completed(self) -> Iterator[Result]:
        """Results that worker processes have finished since the last call."""
        while True:
            if self._items and self._is_broken():
                done = (f for f in self._items if f.done() and not f.cancelled())
                errors = (e for f in done if isinstance(e := f.exception(), BrokenProcessPool))
                self._replace_pool(next(errors, None))
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
            self.size,
            get_context("spawn"),
            initializer=_start,
            initargs=(pickle.dumps(self._make),),
        )

    def _is_broken(self) -> bool:
        """Whether a process was lost."""
        if self._pool is None:
            return False
        if self._pool._broken:
            return True
        # the pool waits for the rest of a result whose process died while it wrote
        sentinels = [process.sentinel for process in [*(self._pool._processes or {}).values()]]
        if not connection.wait(sentinels, timeout=0):
            self._ended_at = None
            return False
        self._ended_at = self._ended_at or time.monotonic()
        return time.monotonic() > self._ended_at + GRACE

    def _end_pool(self, at_once: bool) -> None:
        """Wait until the processes have ended.

        Args:
            at_once: end them with a signal, as those of a broken pool.
        """
        assert self._pool is not None
        if at_once:
            processes = [*(self._pool._processes or {}).values()]
            for process in processes:
                process.terminate()
            for process in processes:
                process.join(GRACE)
                process.kill()
            queues: Any = self._pool
            manager = queues._executor_manager_thread
            if manager is not None:
                # the pool waits for the rest of a result as long as this process holds this end
                queues._result_queue._writer.close()
                manager.join(GRACE)
                # before Python 3.11.5 the pool waits until all items are read, unless this end is
                # closed; later ones close it, and two threads must not close it at once
                if manager.is_alive():
                    queues._call_queue._reader.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    @staticmethod
    def _is_lost(future: Future[bytes]) -> bool:
        return future.cancelled() or isinstance(future.exception(), BrokenProcessPool)

    def _replace_pool(self, reason: BaseException | None) -> None:
        """Start new processes after one was lost, and hand in the unfinished items again.

        Args:
            reason: what the pool says, if anything.

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
            ) from reason
        self._end_pool(at_once=True)
        self._ended_at = None
        self._pool = self._new_pool()
        lost = [future for future in self._items if not future.done() or self._is_lost(future)]
        for item in [self._items.pop(future) for future in lost]:
            self.submit(item)


def _set_exception(stock: Callable[[BaseException], None], error: BaseException) -> None:
    """`Future.set_exception`, without effect on a future that was cancelled."""
    with suppress(InvalidStateError):
        stock(error)


def _result(future: Future[bytes], item: Item) -> Any:
    with Noted(item):
        return pickle.loads(future.result())


def _start(make: bytes) -> None:
    """Prepare a worker process."""
    global _make
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the calling process ends it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _make = make


def _run(item: bytes) -> bytes:
    global _work
    with Caught() as caught:
        _work = _work or pickle.loads(_make)()
        return pickle.dumps(_work(pickle.loads(item)))
    assert caught.error is not None
    raise _with_pickle(caught.error)


def _with_pickle(error: Exception) -> Exception:
    """An error that the calling process can read; one that it cannot would look like a loss."""
    with Caught() as caught:
        pickle.loads(pickle.dumps(error))
    return EepolicyError(f"{type(error).__name__}: {error}") if caught.error else error


def _end_with_parent() -> None:
    """Leave when the calling process is gone; a blocked queue would wait forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
