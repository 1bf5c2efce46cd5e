"""Comparisons on several workers give what one process gives, also when workers are killed."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from conftest import LAYOUT, tiny
from test_compare import QUESTIONS, Letters, OneWordPerSecond, stored
from test_killed import lines_of

from eepolicy import HookedModel
from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.measure import Blocks, DecodeItem
from eepolicy.analysis.evaluation.metrics import SpeechMetrics
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.evaluation.rows import parse_row
from eepolicy.analysis.evaluation.run import run
from eepolicy.analysis.evaluation.stage import DecoderSource
from eepolicy.speech.units import Units
from eepolicy.workers import WorkerConfig

ROWS = ("static@3", "spark:triple@2", "static@3, accept=exact")
SOME = QUESTIONS[:3]  # in two batches
KILLS = 20
#: kills in one comparison: after six losses without a result in between it would end
KILLS_EACH = 4


def make_model() -> HookedModel:
    """The model of the comparisons."""
    codebook = torch.randn(40, 320, generator=torch.Generator().manual_seed(0)) - 5
    return HookedModel(tiny("llama"), LAYOUT, Letters(), vocoder=Units(codebook))


CONFIG = RunConfig(ROWS, max_new_tokens=24, batch=2, timed=1, load=make_model)


Content = tuple[dict, dict[str, int], dict[str, bytes]]


def content(folder: Path) -> Content:
    """Records without times, the number of lines of each file, and the sound files."""
    sounds = {file.name: file.read_bytes() for file in (folder / "audio").iterdir()}
    return stored(RunFolder(folder)), lines_of(folder), sounds


def compare(folder: Path, workers: WorkerConfig) -> Content:
    """Run a comparison, and return what it stored."""
    torch.set_num_threads(1)
    metrics = SpeechMetrics(asr=OneWordPerSecond())
    run(make_model(), SOME, RunFolder(folder), replace(CONFIG, workers=workers), metrics)
    return content(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Content:
    """What one process stores."""
    result = compare(tmp_path_factory.mktemp("whole") / "run", WorkerConfig(0))
    assert result[2]
    return result


@pytest.mark.slow
def test_one_process_decodes_in_order_without_a_loader(whole, tmp_path):
    config, metrics = replace(CONFIG, load=None), SpeechMetrics(asr=OneWordPerSecond())
    run(make_model(), SOME, RunFolder(tmp_path), config, metrics)
    assert content(tmp_path) == whole


def test_a_worker_decodes_with_the_vocoder_of_the_command():
    """It may differ from that of the model that the worker loads, which may have none."""
    model, vocoder = make_model(), make_model().vocoder
    model.vocoder = vocoder
    config = replace(CONFIG, load=lambda: HookedModel(tiny("llama"), LAYOUT, Letters()))
    blocks = Blocks(QUESTIONS[:1], [parse_row("static@3")], config)
    decoder = DecoderSource.of(blocks, model)()
    assert decoder.model.vocoder is vocoder
    assert all(line.speech for line in decoder(DecodeItem(0, "static@3", 0)).lines)


@pytest.mark.slow
def test_two_processes(whole, tmp_path):
    assert compare(tmp_path / "run", WorkerConfig(2)) == whole


@pytest.mark.exhaustive
def test_processes_that_are_killed(whole, tmp_path):
    def is_worker(process: psutil.Process) -> bool:
        try:
            return "spawn_main" in " ".join(process.cmdline())
        except psutil.NoSuchProcess:  # it was killed
            return False

    def own_processes() -> list[int]:
        return [p.pid for p in psutil.Process().children() if is_worker(p)]

    check_killed(whole, tmp_path, WorkerConfig(2), own_processes)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a Ray cluster of two nodes on this machine."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the modules of the tests
        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 10**8}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        nodes.add_node(num_cpus=1, object_store_memory=10**8)
        yield nodes.address
        nodes.shutdown()


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes(whole, tmp_path, cluster):
    assert compare(tmp_path / "run", WorkerConfig(None, ray=cluster)) == whole


@pytest.mark.exhaustive
def test_ray_workers_that_are_killed(whole, tmp_path, cluster):
    def actors() -> list[int]:
        processes = psutil.process_iter(["pid", "cmdline"])
        return [p.pid for p in processes if "ray::_Actor" in " ".join(p.info["cmdline"] or ())]

    check_killed(whole, tmp_path, WorkerConfig(None, ray=cluster), actors)


def check_killed(
    whole: Content,
    tmp_path: Path,
    workers: WorkerConfig,
    victims: Callable[[], list[int]],
) -> None:
    """Comparisons whose workers are killed, 20 in all, store what one process stores."""
    killed, rng = 0, random.Random(0)
    for number in range(3 * KILLS):
        with killer(victims, rng) as kills:
            result = compare(tmp_path / f"run{number}", workers)
        assert result == whole
        killed += len(kills)
        if killed >= KILLS:
            break
    assert killed >= KILLS


@contextmanager
def killer(victims: Callable[[], list[int]], rng: random.Random) -> Iterator[list[int]]:
    """Kill a process of the list at random times; yields the processes that were killed."""
    done, kills = threading.Event(), list[int]()

    def work() -> None:
        while len(kills) < KILLS_EACH and not done.wait(rng.uniform(1, 4)):
            alive = [pid for pid in victims() if pid not in kills]
            if alive:
                kills.append(rng.choice(alive))
                os.kill(kills[-1], signal.SIGKILL)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield kills
    finally:
        done.set()
        thread.join()
