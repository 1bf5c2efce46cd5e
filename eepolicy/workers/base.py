"""Interface of workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from eepolicy.errors import ErrorLine

Item = TypeVar("Item")
Result = TypeVar("Result")

#: characters of an item in the note of an error
SHOWN = 200


class Workers(ABC, Generic[Item, Result]):
    """Runs items somewhere else, and gives their results in any order.

    A result must depend on its item alone.  Then neither the number of workers nor the order of
    the results matters, and an item whose worker was lost can run again.

    Use it in a `with` block: at its end the workers end.

    Attributes:
        size: number of workers, the calling process not counted.
    """

    size: int

    def __enter__(self) -> Workers[Item, Result]:
        return self

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    @abstractmethod
    def __len__(self) -> int:
        """Number of items without a result."""

    @abstractmethod
    def submit(self, item: Item) -> None:
        """Hand in an item."""

    @abstractmethod
    def completed(self) -> Iterator[Result]:
        """Results that are there, without waiting for others.

        Raises:
            Exception: an item failed; a note of the exception names the item, or its message before
                Python 3.11.
        """

    @abstractmethod
    def next(self) -> Result:
        """Wait for a result.  There must be an item without one.

        Raises:
            Exception: an item failed, as in `completed`.
        """

    def finish(self) -> Iterator[Result]:
        """Yield all results; more items may be handed in meanwhile."""
        while len(self):
            yield self.next()


class Noted(ErrorLine):
    """Names an item in an error that is raised in the block; a context manager.

    The type of the error stays.

    Args:
        item: the item.
    """

    def __init__(self, item: Any) -> None:
        self.item = item

    def line(self) -> str:
        text = repr(self.item)
        shown = f"{text[:SHOWN]}{'…' if len(text) > SHOWN else ''}"
        return f"This was raised while working on {shown}."
