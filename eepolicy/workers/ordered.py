"""Results of workers in the order of their items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Generic

from eepolicy.workers.base import Item, Result, Workers
from eepolicy.workers.config import WorkerConfig

#: items of a worker that wait or run, or whose results wait for an earlier one
AHEAD = 4


class _Numbered(Generic[Item, Result]):
    """A function of items with numbers.

    Args:
        make: makes the function from item to result.
    """

    def __init__(self, make: Callable[[], Callable[[Item], Result]]) -> None:
        self._work = make()

    def __call__(self, numbered: tuple[int, Item]) -> tuple[int, Result]:
        number, item = numbered
        return number, self._work(item)


class OrderedWorkers(Generic[Item, Result]):
    """Workers whose results come in the order of their items; use it in a `with` block.

    Args:
        config: where the items run.
        make: makes the function from item to result, in each process at its first item.  It must
            be possible to pickle it.
        own: the function of the calling process; made by `make` if None.

    Raises:
        EepolicyError: see `WorkerConfig.start`.

    Examples:
        >>> from eepolicy.workers import OrderedWorkers, WorkerConfig
        >>> with OrderedWorkers(WorkerConfig(0), lambda: abs) as workers:
        ...     list(workers.run([-3, 2, -1]))
        [3, 2, 1]
    """

    def __init__(
        self,
        config: WorkerConfig,
        make: Callable[[], Callable[[Item], Result]],
        own: Callable[[Item], Result] | None = None,
    ) -> None:
        helper = None if own is None else _Numbered(lambda: own)
        self._workers: Workers[tuple[int, Item], tuple[int, Result]]
        self._workers = config.start(partial(_Numbered, make), helper)
        self._number = 0  # of items so far

    def __enter__(self) -> OrderedWorkers[Item, Result]:
        self._workers.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._workers.__exit__(kind, error, traceback)

    def run(self, items: Iterable[Item]) -> Iterator[Result]:
        """Yield the results of items.

        A few items for each worker are handed in ahead of the results, so that neither the items
        nor the results need to fit into memory.

        Args:
            items: the items.

        Raises:
            Exception: an item failed, see `Workers.next`.
        """
        rest = iter(items)
        done: dict[int, Result] = {}
        wanted = self._number
        while True:
            ahead = AHEAD * (self._workers.size + 1) - (self._number - wanted)
            for item in islice(rest, ahead):
                self._workers.submit((self._number, item))
                self._number += 1
            if wanted == self._number:
                return
            while wanted not in done:
                number, result = self._workers.next()
                done[number] = result
            yield done.pop(wanted)
            wanted += 1
