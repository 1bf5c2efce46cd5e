"""The commands that count what kills lose, and what the checks cost, on small numbers."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from benchmarks.reliability import cost, kills
from benchmarks.sections import filled
from eepolicy.errors import EepolicyError


def test_lines_and_tables_that_disappear_are_lost(tmp_path):
    (tmp_path / "a.jsonl").write_text("1\n2\n3")
    for folder in ("keep", "results"):  # tables of results are rewritten
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "b.csv").write_text("x\n")
    before = kills.stored(tmp_path)
    assert before == {"a.jsonl": ["1", "2"], "keep/b.csv": ["x\n"]}
    now = {"a.jsonl": ["2"], "keep/b.csv": ["y\n"]}
    assert kills.missing(before, now) == ["a.jsonl: 1", "keep/b.csv: x\n"]
    # a finished fit has no replies
    assert kills.missing(before, {"a.jsonl": ["1", "2", "3"]}) == []
    assert kills.counts(tmp_path) == {"a.jsonl": 2}


def fake(loses: bool) -> kills.Command:
    """A command that appends ten lines; it may forget those of an earlier run."""
    return kills.Command(lambda folder: [str(folder), str(int(loses))], kills.texts("a.jsonl"))


def append(arguments: list[str], log: Path) -> None:
    file = Path(arguments[0]) / "a.jsonl"
    done = len(file.read_text().splitlines()) if file.exists() else 0
    with open(file, "w" if int(arguments[1]) else "a") as lines:
        for number in range(0 if int(arguments[1]) else done, 10):
            lines.write(f"{number}\n")
            lines.flush()
            time.sleep(0.06)  # long compared with the start of a process on a busy machine


# seeds whose times are in turn late and early, or late and in the middle, so that a slow start of a
# process changes nothing
@pytest.mark.parametrize(("loses", "seed"), [(False, 19_055), (True, 6_053)])
def test_a_command_is_killed_the_given_number_of_times(loses, seed, monkeypatch, tmp_path):
    monkeypatch.setattr(kills, "COMMANDS", {"fake": fake(loses)})
    monkeypatch.setattr(kills, "_child", append)
    tally = kills.try_command("fake", 6, tmp_path, seed)
    assert (tally.kills, tally.terminated) == (6, 3)
    assert tally.row("fake")[:3] == ["`fake`", "6", "3"]
    assert bool(tally.lost) == loses
    assert tally.stored > 0


def test_rows_of_a_page_are_replaced_by_name():
    page = "a\n<!-- kills -->\nnot counted yet\n<!-- end of kills -->\nb"
    for rows in ([["`x`", "1", "0", "0", "0"], ["`y`", *"2345"]], [["`x`", *"6789"]]):
        page = filled(page, "kills", kills.merged(page, rows))
    assert [line for line in page.splitlines() if "`" in line] == [
        "| `x` | 6 | 7 | 8 | 9 |",
        "| `y` | 2 | 3 | 4 | 5 |",
    ]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", kills.COMMANDS)
def test_nothing_is_lost(name, tmp_path):
    assert kills.try_command(name, 1, tmp_path, seed=random.Random(name).randrange(99)).lost == []


class Replies(cost.Process):
    """Answers with the times and tokens of a list."""

    def __init__(self, times: list[float], tokens: list[int]) -> None:
        self.times, self.tokens, self.order = iter(times), tokens, []

    def reply(self, policy: int) -> tuple[float, list[int]]:
        return next(self.times), self.tokens


def test_pairs_have_the_ratio_of_their_times():
    before, after = Replies([2.0, 4.0] * 3, [1]), Replies([3.0, 4.0] * 3, [1])
    pairs = cost.measure(before, after, 0, 6)
    assert [pair.ratio for pair in pairs] == [1.5, 1.0] * 3
    assert cost.row("full", pairs) == ["`full`", "6", "3.000", "3.500", "1.250", "1.000 to 1.500"]
    with pytest.raises(EepolicyError, match="another reply"):
        cost.measure(Replies([1.0], [1]), Replies([1.0], [2]), 0, 1)
    with pytest.raises(EepolicyError, match="too few"):
        cost.row("full", pairs[:5])


def test_the_interval_covers_the_median_at_its_nominal_rate():
    generator = random.Random(0)
    draws = [[generator.expovariate(1) for _ in range(31)] for _ in range(1000)]
    inside = [low <= 0.6931 <= high for low, high in map(cost.median_interval, draws)]
    assert 0.94 < sum(inside) / len(inside) < 0.985


@pytest.mark.slow
def test_the_cost_against_the_same_commit():
    settings = cost.Settings(("full", "static@6"), tokens=4, compile=False)
    table = cost.compare("HEAD", settings, 6)
    assert "| `static@6` | 6 | " in table
    assert "not compiled, 1 thread(s), against commit HEAD" in table


def test_sigterm_that_is_not_obeyed_counts_as_a_fault(monkeypatch, tmp_path):
    def deaf(arguments: list[str], log: Path) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (tmp_path / "deaf").touch()
        time.sleep(60)

    monkeypatch.setattr(kills, "_child", deaf)
    monkeypatch.setattr(kills, "PATIENCE", 0.2)
    assert kills.run(fake(False), tmp_path, 0.5, signal.SIGTERM) == -signal.SIGTERM
