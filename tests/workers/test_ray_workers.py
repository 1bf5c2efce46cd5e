"""Workers of a Ray cluster that a command connects to once."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial

import pytest
from worker_jobs import square

from eepolicy.cli import workers as command
from eepolicy.workers import WorkerConfig, in_order


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


@pytest.mark.slow
def test_two_pools_use_one_cluster(monkeypatch):
    """The workers of the first pool make room for those of the second."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the modules of the tests
    config = WorkerConfig(None, ray="local")  # as many workers as the cluster has cores
    handler = signal.getsignal(signal.SIGTERM)
    try:
        address = config.connect()
        assert signal.getsignal(signal.SIGTERM) is handler  # Ray has one of its own
        assert address is None or address.startswith("http://")
        for _ in range(2):
            results = in_order(config, partial(square, "text"), range(9))
            assert list(results) == [number**2 for number in range(9)]
            assert ray.is_initialized()
    finally:
        ray.shutdown()
