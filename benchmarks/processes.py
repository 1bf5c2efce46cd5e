"""Ways that run in a process of their own, so that the memory of each is seen."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def megabytes() -> float:
    """The most memory that this process has held since it started, or since `forget`."""
    with suppress(OSError):
        # not what getrusage says: that starts at what the parent held, which may be more
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget() -> None:
    """Let the most be what is held now, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def serve(way: Callable[[], T], after: Callable[[T], dict[str, Any]] = lambda _: {}) -> None:
    """Run a way whenever a line comes in; say seconds and memory beside what is held now.

    Args:
        way: that is measured.
        after: takes what it gave, unmeasured; its figures are said too, in place of those named
            alike.
    """
    forget()
    before = megabytes()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        forget()
        began = time.perf_counter()
        given = way()
        measured = {"seconds": time.perf_counter() - began, "megabytes": megabytes() - before}
        print(json.dumps(measured | after(given)), flush=True)


def start(module: str, *arguments: object, python: str = sys.executable) -> subprocess.Popen[str]:
    """A process of a module that comes to `serve`, once it is ready.

    Args:
        module: to run, as `benchmarks.probe`.
        *arguments: of its command line.
        python: that runs it.

    Raises:
        RuntimeError: it ended before.
    """
    command = [python, "-m", module, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if not process.stdout.readline().startswith("{"):
        raise RuntimeError(f"{' '.join(command)} did not start")
    return process


def turn(process: subprocess.Popen[str]) -> dict[str, float]:
    """Run the way of a process once."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    measured: dict[str, float] = json.loads(process.stdout.readline())
    return measured


def take_turns(
    started: dict[str, subprocess.Popen[str]], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """The figures of each round, by way; the processes are stopped after the last."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in started}
    for number in range(rounds):
        for way, process in started.items():
            runs[way].append(turn(process))
            print(f"round {number + 1}, {way}: {runs[way][-1]}", file=sys.stderr, flush=True)
    for process in started.values():
        stop(process)
    return runs


def stop(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
