"""A fixed loop of matrix-vector products, timed to compare the speed of machines."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

#: matrices of a layer of the pocket model, (outputs, inputs): query, key, value, output, MLP
LAYER = ((256, 256), (128, 256), (128, 256), (256, 256), (704, 256), (704, 256), (256, 704))
LAYERS = 20
OUTPUT_EMBEDDING = (5120, 256)
STEPS = 50  # products with all matrices, in a loop
PASSES = 5  # runs of the loop; the median counts
MAX_THREADS = 16  # with more, threads of Python would wait for each other

#: seconds of the loop on the machine of the docs: two shared x86-64 cores, torch 2.13.0+cpu; the
#: least of twelve runs, which other work on the machine slowed
ONE_THREAD_SECONDS = 0.39
ALL_THREADS_SECONDS = 0.77


@dataclass(frozen=True)
class ReferenceTime:
    """Seconds of the reference loop on a machine at one moment.

    Seconds in the docs divided by their ratio, times the ratio of another machine, estimate the
    seconds on that machine.  Other work on the machine makes the ratio larger.

    Attributes:
        one_thread: seconds of the loop on one thread.
        all_threads: seconds of as many loops as there are threads, one a thread, at the same time.
        threads: number of those threads.
    """

    one_thread: float
    all_threads: float
    threads: int

    @property
    def one_thread_ratio(self) -> float:
        """Time on one thread, over that of the machine of the docs."""
        return self.one_thread / ONE_THREAD_SECONDS

    @property
    def all_threads_ratio(self) -> float:
        """Time on all threads, over that of the machine of the docs."""
        return self.all_threads / ALL_THREADS_SECONDS

    def to_dict(self) -> dict[str, Any]:
        """The times and their ratios, for JSON."""
        return asdict(self) | {
            "one_thread_ratio": self.one_thread_ratio,
            "all_threads_ratio": self.all_threads_ratio,
        }

    def __str__(self) -> str:
        return (
            f"reference loop: {self.one_thread:.2f} s on one thread ({self.one_thread_ratio:.2f} "
            f"times the machine of the docs), {self.all_threads:.2f} s on {self.threads} thread(s) "
            f"({self.all_threads_ratio:.2f} times)"
        )


def reference_seconds(steps: int = STEPS, passes: int = PASSES) -> ReferenceTime:
    """Time the reference loop: matrix-vector products of the pocket model, in float32 on the CPU.

    The work does not depend on the code of this package, so the time tells how fast the machine is
    at this moment.  The median over passes counts.

    Args:
        steps: number of products with all matrices in a loop; other values than the default have no
            ratio.
        passes: number of passes.

    Returns:
        Seconds of the loop on one thread, and on all threads of torch (at most 16).

    Example:
        >>> from eepolicy.analysis.timing.reference import reference_seconds
        >>> reference_seconds(steps=1, passes=1).threads >= 1
        True
    """
    generator = torch.Generator().manual_seed(0)
    shapes = [*LAYER * LAYERS, OUTPUT_EMBEDDING]
    # each layer has matrices of its own, so that they do not fit into a small cache
    matrices = [torch.randn(shape, generator=generator) for shape in shapes]
    vectors = {size: torch.ones(size) for size in (256, 704)}  # (size,)

    def loop() -> None:
        torch.set_num_threads(1)
        for _ in range(steps):
            for matrix in matrices:
                matrix @ vectors[matrix.shape[1]]

    threads = torch.get_num_threads()
    workers = min(threads, MAX_THREADS)
    try:
        loop()  # warms up
        one_thread = _median_seconds(lambda: _run_together(loop, 1), passes)
        all_threads = _median_seconds(lambda: _run_together(loop, workers), passes)
    finally:
        torch.set_num_threads(threads)
    return ReferenceTime(one_thread, all_threads, workers)


def _run_together(loop: Callable[[], None], workers: int) -> None:
    """Run a loop in each of several threads; torch releases Python's lock in its products."""
    threads = [threading.Thread(target=loop) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _median_seconds(work: Callable[[], None], passes: int) -> float:
    seconds = []
    for _ in range(passes):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
