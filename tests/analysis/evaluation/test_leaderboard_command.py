"""The command `eepolicy leaderboard`."""

from __future__ import annotations

import json
import shutil

import pytest
from board_example import ROWS, example

from eepolicy.analysis.evaluation import leaderboard_rows
from eepolicy.analysis.evaluation.leaderboard_time import SECONDS_PER_REPLY
from eepolicy.analysis.timing import reference
from eepolicy.analysis.timing.reference import ReferenceTime
from eepolicy.cli import leaderboard as command
from eepolicy.speech import asr

LIST = ("--run", "mine", "--prompts", "2", "--workers", "0")


@pytest.fixture
def slow_machine(monkeypatch):
    """A machine of a third of the speed of the docs, without compiler or speech recognition."""
    measured = ReferenceTime(3 * reference.ONE_THREAD_SECONDS, 3 * reference.ALL_THREADS_SECONDS, 2)
    monkeypatch.setattr(reference, "reference_seconds", lambda: measured)
    monkeypatch.setattr(command, "has_compiler", lambda: False)
    monkeypatch.setattr(asr, "missing_asr", lambda name: "install it")
    monkeypatch.setattr(leaderboard_rows, "ROWS", ("full", "spark:triple@14, fill=mask"))


def test_folders_are_rendered(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, err = run("leaderboard", code=2)
    assert "there is no folder results" in err
    example(tmp_path / "results" / "ours")
    out, _ = run("leaderboard")  # the folder `results` is the default
    assert "static@14" in out
    assert out.index("static@14") < out.index("static@4")
    assert "`static@14`" in (tmp_path / "leaderboard.md").read_text()
    assert "(leaderboard.html)" in (tmp_path / "leaderboard.md").read_text()
    assert "<h1>Leaderboard" in (tmp_path / "leaderboard.html").read_text()
    (tmp_path / "docs").mkdir()
    out, _ = run("leaderboard", "results/ours", "--out", "docs/board.md", "--json")
    result = json.loads(out)
    assert result["files"] == ["docs/board.md", "docs/board.html"]
    assert {row["policy"] for row in result["results"]} == set(ROWS)
    assert {row["folder"] for row in result["results"]} == {"ours"}
    _, err = run("leaderboard", "--out", "missing/board.md", code=2)
    assert "there is no folder missing" in err


@pytest.mark.slow
def test_the_list_runs_and_goes_on(run, tmp_path, monkeypatch, slow_machine):
    monkeypatch.chdir(tmp_path)
    out, err = run("leaderboard", *LIST)
    assert "4 replies to decode; estimate: less than a minute" in out
    assert "Speech recognition is not installed" in err
    assert out.index("estimate") < out.index("spark:triple@14")
    records = (tmp_path / "mine" / "records.jsonl").read_text()
    assert len(records.splitlines()) == 4
    assert "idle" in json.loads((tmp_path / "mine" / "run.json").read_text())["notes"]
    # a second run decodes nothing, and joins another folder
    shutil.copytree("mine", "results/theirs")
    out, _ = run("leaderboard", *LIST, "--json")
    assert (tmp_path / "mine" / "records.jsonl").read_text() == records
    rows = json.loads(out)["results"]
    assert sorted({row["folder"] for row in rows}) == ["mine", "theirs"]
    assert len(rows) == 4


def test_the_estimate_follows_the_machine(slow_machine):
    minutes = round(7200 * 3 * SECONDS_PER_REPLY / 60)
    assert command.estimate(7200) == f"7,200 replies to decode; estimate: {minutes} minutes"
