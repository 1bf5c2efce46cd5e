"""Functions that worker processes run in the tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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


def mean(_: object) -> Callable[[Tensor], Tensor]:
    """Make the function from a tensor to its mean."""
    import torch  # the other functions need none, and it takes two seconds of a process

    return torch.mean


def bytes_after_a_loss(folder: Path) -> Callable[[int], bytes]:
    """Make a function that returns many bytes; the first time, its process dies on sending them.

    Args:
        folder: a file of it says that the first time was.
    """

    def send_a_part(self: Connection, data: bytes, *_: object) -> None:
        os.write(self.fileno(), data[:100])
        os.kill(os.getpid(), signal.SIGKILL)

    def run(number: int) -> bytes:
        if not (folder / "first").exists():
            (folder / "first").touch()
            Connection._send = send_a_part
        return bytes(number)

    return run


class TwoArguments(Exception):
    """An error that is pickled and not read again."""

    def __init__(self, name: str, value: int) -> None:
        super().__init__(f"{name} is {value}")


def fails(_: object) -> Callable[[int], int]:
    """Make a function that raises an error."""

    def run(number: int) -> int:
        raise TwoArguments("the number", number)

    return run


def only_in(process: int) -> OnlyIn:
    """Read an `OnlyIn`."""
    if os.getpid() != process:
        raise AttributeError("a function of a notebook")
    return OnlyIn()


class OnlyIn:
    """Makes a function, and can be read in this process alone, as what a notebook defines."""

    def __reduce__(self) -> tuple[Callable[[int], OnlyIn], tuple[int]]:
        return only_in, (os.getpid(),)

    def __call__(self) -> Callable[[int], int]:
        return abs


def no_model() -> Callable[[int], int]:
    """A function that cannot be made."""
    raise FileNotFoundError("no model")
