"""Functions that worker processes run in the tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch


def square(_: object) -> Callable[[int], int]:
    """Make the function from a number to its square."""
    return lambda number: number * number


def num_threads(chosen: int | None = None) -> Callable[[object], int]:
    """Make a function that gives the number of CPU threads of its process.

    Args:
        chosen: number to set before; None for none.
    """
    if chosen is not None:
        torch.set_num_threads(chosen)
    return lambda _: torch.get_num_threads()


def square_unless_first(folder: Path, times: int = 1) -> Callable[[int], int]:
    """Make a function that squares, but kills its process the first times it gets a number.

    Args:
        folder: a file of it counts the times of each number.
        times: how often a number kills its process.
    """

    def run(number: int) -> int:
        file = folder / str(number)
        count = len(file.read_text()) if file.exists() else 0
        if count < times:
            assert torch.get_num_threads() == 1  # otherwise the item fails
            file.write_text("x" * (count + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number

    return run
