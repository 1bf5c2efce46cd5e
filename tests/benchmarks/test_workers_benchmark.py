"""The benchmark of the workers."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import workers
from benchmarks.workers import Measurements, driver_rate, page
from eepolicy import EepolicyError
from eepolicy.analysis.evaluation.formats import RecordLine
from eepolicy.workers import WorkerConfig

ARGUMENTS = argparse.Namespace(questions=100, pairs=3, ray=False, only=("comparison",))


def test_the_estimate_is_bounded_by_the_driver():
    measured = Measurements(
        100,
        [("processes", 1, 300.0), ("processes", 10, 1000.0)],
        ratios=[0.99, 1.01, 1.05],
        worker_rates=[9.0, 10.0, 30.0],
        gains=[1.7, 1.9, 1.8],
    )
    text = page(ARGUMENTS, measured)
    assert "| 1.010 [0.990, 1.050] |" in text
    assert "| 1.80 [1.70, 1.90] |" in text
    assert "| 8 | 80 | 8% |" in text
    assert "| 512 | 1000 | 100% |" in text


def test_a_stopped_measurement_continues(tmp_path, monkeypatch):
    """Each pair is stored, and the same command measures the missing ones."""
    times = iter([10.0, 5.0, 12.0, KeyboardInterrupt, 20.0, 10.0, 30.0, 20.0])

    def seconds(*_, **options):
        value = next(times)
        if value is KeyboardInterrupt:
            raise KeyboardInterrupt
        return value

    monkeypatch.setattr(workers, "comparison_seconds", seconds)
    monkeypatch.setattr(workers, "blocks", lambda *_: None)
    arguments = argparse.Namespace(**vars(ARGUMENTS), keep=tmp_path / "kept.json")
    with pytest.raises(KeyboardInterrupt):
        Measurements.read(arguments.keep, 100).run(arguments)
    assert Measurements.read(arguments.keep, 100).gains == [2.0]
    measured = Measurements.read(arguments.keep, 100)
    measured.run(arguments)
    assert measured.gains == Measurements.read(arguments.keep, 100).gains == [2.0, 2.0, 1.5]
    assert not measured.is_whole
    with pytest.raises(EepolicyError, match="comparisons of 100 questions, not 30"):
        Measurements.read(arguments.keep, 30)


@pytest.mark.slow
def test_a_stub_worker_is_timed():
    line = RecordLine(
        question="q",
        policy="full",
        text="",
        ended=True,
        layer_calls=20,
        readouts=1,
        tokens=[1],
        depths=[20],
        modalities=[0],
        speech="",
    )
    assert driver_rate(WorkerConfig(1), [line] * 10) > 200


@pytest.mark.slow
def test_a_comparison_runs_in_a_process_of_its_own():
    assert workers.comparison_seconds(1, 0, one_core=True) > 0
