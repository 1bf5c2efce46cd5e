"""Functions that worker processes run in the tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path


def square(_: object) -> Callable[[int], int]:
    """Make the function from a number to its square."""
    return lambda number: number * number


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
            file.write_text("x" * (count + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number

    return run


def square_after_a_loss(folder: Path) -> Callable[[int], int]:
    """Make a function that squares; the first time, 0 takes a minute and 1 kills its process.

    Args:
        folder: stores which number had its first time; 1 waits for its file `go`.
    """

    def run(number: int) -> int:
        file = folder / str(number)
        if number < 2 and not file.exists():
            file.touch()
            if number == 0:
                time.sleep(60)
            while not (folder / "go").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number

    return run


def no_model() -> Callable[[int], int]:
    """A function that cannot be made."""
    raise FileNotFoundError("no model")
