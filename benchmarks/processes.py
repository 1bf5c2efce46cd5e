"""Measure the time and peak memory of functions, each in a separate process."""

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
    """Peak memory of this process since it started, or since `reset_peak`."""
    with suppress(OSError):
        # not getrusage: its peak starts at the memory of the parent, which may be larger
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak() -> None:
    """Set the peak to the current memory, if the system supports it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def serve(
    function: Callable[[], T], evaluate: Callable[[T], dict[str, Any]] = lambda _: {}
) -> None:
    """Run a function once for each line of stdin; print its seconds and extra memory as JSON.

    Args:
        function: function to measure.
        evaluate: computes further values from the result, not measured; they replace measured ones
            of the same name.
    """
    reset_peak()
    before = megabytes()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        reset_peak()
        began = time.perf_counter()
        result = function()
        measured = {"seconds": time.perf_counter() - began, "megabytes": megabytes() - before}
        print(json.dumps(measured | evaluate(result)), flush=True)


def start(module: str, *arguments: object, python: str = sys.executable) -> subprocess.Popen[str]:
    """Start a module that calls `serve`, and wait until it is ready.

    Args:
        module: name, such as `benchmarks.probe`.
        *arguments: command-line arguments.
        python: Python interpreter.

    Raises:
        RuntimeError: the process ended before it was ready.
    """
    command = [python, "-m", module, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if not process.stdout.readline().startswith("{"):
        raise RuntimeError(f"{' '.join(command)} did not start")
    return process


def run_trial(process: subprocess.Popen[str]) -> dict[str, float]:
    """Run the function of a process once."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    measured: dict[str, float] = json.loads(process.stdout.readline())
    return measured


def run_interleaved(
    processes: dict[str, subprocess.Popen[str]], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Measurements of each round by name; stops the processes after the last round."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in processes}
    for number in range(rounds):
        for name, process in processes.items():
            runs[name].append(run_trial(process))
            print(f"round {number + 1}, {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    for process in processes.values():
        stop(process)
    return runs


def stop(process: subprocess.Popen[str]) -> None:
    """End a process and wait for it."""
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
