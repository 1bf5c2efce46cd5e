"""A comparison that is killed many times gives the results of an uninterrupted one."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import LAYOUT, tiny
from test_compare import QUESTIONS, Letters, OneWordPerSecond, stored

from eepolicy import HookedModel
from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.metrics import SpeechMetrics
from eepolicy.analysis.evaluation.records import FILES, RunFolder
from eepolicy.analysis.evaluation.run import run
from eepolicy.speech.units import Units

ROWS = ("static@3", "spark:triple@2", "static@3, accept=exact")
CONFIG = RunConfig(ROWS, max_new_tokens=24, batch=2, timed=2)


def compare(folder: Path, workers: int = 0) -> None:
    """Run or continue the comparison."""
    torch.set_num_threads(1)
    codebook = torch.randn(40, 320, generator=torch.Generator().manual_seed(0)) - 5
    spoken = HookedModel(tiny("llama"), LAYOUT, Letters(), vocoder=Units(codebook))
    metrics = SpeechMetrics(asr=OneWordPerSecond())
    run(spoken, QUESTIONS, RunFolder(folder), replace(CONFIG, workers=workers), metrics)


def lines_of(folder: Path) -> dict[str, int]:
    """Number of lines of each file."""
    return {
        name: len((folder / name).read_text().splitlines())
        for name in FILES.values()
        if (folder / name).exists()
    }


@pytest.mark.parametrize(
    "kills",
    [pytest.param(8, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.exhaustive)],
)
def test_killed_many_times(kills, tmp_path):
    compare(tmp_path / "whole")
    started = time.monotonic()
    compare(tmp_path / "warm")
    seconds = time.monotonic() - started
    rng, killed, folder = random.Random(0), 0, tmp_path / "run"
    while killed < kills:
        process = multiprocessing.get_context("fork").Process(target=compare, args=(folder,))
        process.start()
        process.join(rng.uniform(0, 1.2 * seconds))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
        if process.exitcode == 0:  # it finished before the kill: try another folder
            assert stored(RunFolder(folder)) == stored(RunFolder(tmp_path / "whole"))
            folder = tmp_path / f"run{killed}"
    compare(folder)
    assert stored(RunFolder(folder)) == stored(RunFolder(tmp_path / "whole"))
    assert lines_of(folder) == lines_of(tmp_path / "whole")


@pytest.mark.slow
def test_workers_give_the_same_and_end_with_a_killed_run(tmp_path):
    compare(tmp_path / "whole")
    folder = tmp_path / "run"
    code = f"import pathlib, test_killed; test_killed.compare(pathlib.Path({str(folder)!r}), 2)"
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2]), os.environ["PYTHONPATH"]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    # -c has no main module to import again
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    deadline = time.monotonic() + 120
    while not (folder / "records.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
    assert stored(RunFolder(folder)) == stored(RunFolder(tmp_path / "whole"))
    assert lines_of(folder) == lines_of(tmp_path / "whole")
    assert children
    while any(_is_worker(pid) for pid in children):
        assert time.monotonic() < deadline + 60, "a worker outlived its killed parent"
        time.sleep(0.1)


def _is_worker(pid: str) -> bool:
    try:
        return b"multiprocessing" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
