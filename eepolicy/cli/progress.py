"""Progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from eepolicy.cli.shared import err

T = TypeVar("T")

#: seconds of past steps that the remaining time is estimated from.  Rich's default of 30 drops the
#: samples of slower steps, and then shows no estimate
ESTIMATE_PERIOD = 3600.0


def progress(
    label: str, detail: Callable[[Any], str] = lambda _: ""
) -> Callable[[Iterable[T]], Iterator[T]]:
    """Make a function that wraps items with a progress bar on stderr.

    The bar shows the number of items, the elapsed and the remaining time.  It disappears at the
    end, and it is not shown if stderr is not a terminal.

    Args:
        label: what the items are.
        detail: text for the current item.
    """

    def wrapped(items: Iterable[T]) -> Iterator[T]:
        known = list(items)
        if not err.is_terminal:  # rich would print an empty line for each bar
            yield from known
            return
        bar = Progress(
            TextColumn(label),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[detail]}"),
            console=err,
            transient=True,
            speed_estimate_period=ESTIMATE_PERIOD,
        )
        with bar:
            task = bar.add_task(label, total=len(known), detail="")
            for item in known:
                bar.update(task, detail=detail(item))
                yield item
                bar.advance(task)

    return wrapped


def step_progress(label: str, items: Iterable[T], /) -> Iterator[T]:
    """Wrap the items of a step of a comparison: see `progress`."""
    return progress(label)(items)
