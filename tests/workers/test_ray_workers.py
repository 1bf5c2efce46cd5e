"""Workers of a Ray cluster that a command connects to once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from functools import partial

import pytest
from worker_jobs import square, square_unless_first

from eepolicy.cli import workers as command
from eepolicy.errors import EepolicyError
from eepolicy.workers import OrderedWorkers, WorkerConfig, ray_actors
from eepolicy.workers.ray_actors import RayWorkers, number_of_actors


def test_the_dashboard_of_a_cluster_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(WorkerConfig, "connect", lambda _: "http://127.0.0.1:8265")
    config = WorkerConfig(1, ray="local")
    assert command.connected(config) is config
    assert "dashboard of the Ray cluster is at http://127.0.0.1:8265" in capsys.readouterr().out
    monkeypatch.setattr(WorkerConfig, "connect", lambda _: None)
    command.connected(config)
    assert capsys.readouterr().out == ""


def test_without_ray_nothing_is_connected():
    assert WorkerConfig(2).connect() is None


@pytest.mark.parametrize(
    ("nodes", "gpus", "fit"),
    [
        ([{"CPU": 4}, {"CPU": 2}], 0, 6),
        ([{"CPU": 8, "GPU": 2}], 0.4, 4),  # two on each GPU, since a worker uses one GPU
        ([{"CPU": 4, "GPU": 8}], 0.25, 4),
        ([{"CPU": 8, "GPU": 3}, {"CPU": 8, "GPU": 3}], 2, 2),  # and one node
        ([{"CPU": 8, "GPU": 1}, {"CPU": 8}], 0.1, 8),
    ],
)
def test_the_number_of_workers_fits_the_cluster(nodes, gpus, fit):
    assert number_of_actors(nodes, None, gpus) == fit
    assert number_of_actors(nodes, fit, gpus) == fit
    with pytest.raises(EepolicyError, match=rf"room for {fit} workers .* got {fit + 1}"):
        number_of_actors(nodes, fit + 1, gpus)


def test_a_cluster_without_gpus():
    with pytest.raises(EepolicyError, match=r"room for 0 workers with 1 GPUs and a CPU each: give"):
        number_of_actors([{"CPU": 4}], None, 1)


@pytest.mark.slow
def test_more_workers_than_cores_are_refused(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with pytest.raises(EepolicyError, match="got 1000"):
        RayWorkers(partial(square, "text"), 1000)
    assert not ray.is_initialized()


@pytest.mark.slow
def test_an_item_that_kills_its_actor_ends_the_run(tmp_path, monkeypatch):
    """And a function that cannot be sent leaves no cluster behind."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the modules of the tests
    monkeypatch.setattr(ray_actors, "MAX_RETRIES", 1)
    with RayWorkers(partial(square_unless_first, tmp_path, times=100), 1) as workers:
        workers.submit(3)
        with pytest.raises(EepolicyError, match="was lost"):
            workers.next()
    assert len((tmp_path / "3").read_text()) == 2
    with pytest.raises(TypeError, match="pickle"):
        RayWorkers(partial(square, threading.Lock()), 1)
    assert not ray.is_initialized()


@pytest.mark.slow
def test_two_pools_use_one_cluster(monkeypatch):
    """The workers of the first pool free their cores for those of the second."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the modules of the tests
    config = WorkerConfig(None, ray="local")  # as many workers as the cluster has cores
    handler = signal.getsignal(signal.SIGTERM)
    try:
        address = config.connect()
        assert signal.getsignal(signal.SIGTERM) is handler  # Ray would install its own
        assert address is None or address.startswith("http://")
        for _ in range(2):
            with OrderedWorkers(config, partial(square, "text")) as workers:
                assert list(workers.run(range(9))) == [number**2 for number in range(9)]
            assert ray.is_initialized()
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_a_busy_cluster_gives_a_warning(monkeypatch):
    """The workers start when those that occupy the cluster have ended."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the modules of the tests
    monkeypatch.setattr(ray_actors, "WAIT", 1.0)
    try:
        ray.init(num_cpus=1, log_to_driver=False)
        others = RayWorkers(partial(square, "text"), 1)
        others.submit(2)
        assert others.next() == 4
        with RayWorkers(partial(square, "text"), 1) as workers:
            workers.submit(3)
            timer = threading.Timer(4, others.__exit__, (None, None, None))
            timer.start()
            with pytest.warns(UserWarning, match=r"1 of 1 Ray workers wait .* 0 CPUs and 0 GPUs"):
                assert workers.next() == 9
            timer.join()
    finally:
        ray.shutdown()
