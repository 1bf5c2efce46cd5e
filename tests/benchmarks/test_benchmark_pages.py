"""`python -m benchmarks`: the list of pages, its resume, and the growth of costs in small."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import growth, pages
from benchmarks.__main__ import State, arguments, run
from benchmarks.pages import PAGES, Page
from eepolicy import EepolicyError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "benchmarks"

#: a module that writes a page with a figure, and counts its calls
FAKE = """
import sys
from pathlib import Path
name, page = sys.argv[1], Path(sys.argv[-1])
with open("calls", "a") as file:
    file.write(name + "\\n")
if Path("broken").exists() and name == "two":
    sys.exit("broken")
(page.parent / "images" / f"{name}.svg").write_text("<svg/>")
(page.parent / "images" / "other.svg").write_text("<svg/>")
page.write_text(f"# {name}\\n\\n![x](images/{name}.svg)\\n")
"""


def test_every_page_is_in_the_list():
    named = {page.name for page in PAGES}
    assert len(named) == len(PAGES)
    assert {file.stem for file in DOCS.glob("*.md")} - {"index"} == named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_shows_its_commands(page):
    """Up to the option that writes the page, and the folder of the records."""
    text = (ROOT / page.file).read_text()
    shown = " ".join(re.findall(r"^    (?:eepolicy|python) .*$", text, re.MULTILINE))
    for command in page.commands:
        plain = re.sub(r" --write \S+$", "", command)
        plain = plain.replace("full_size gpu", "full_size RECORDS")
        assert plain in shown


def test_commands_run_with_this_python():
    assert arguments("eepolicy bench --batch 1", "") == [
        *(sys.executable, "-m", "eepolicy.cli"),
        *("bench", "--batch", "1"),
    ]
    fitting = next(page for page in PAGES if page.name == "fitting").commands[0]
    assert arguments(fitting, "other/python")[-2:] == ["--peer-python", "other/python"]
    assert "--peer-python" not in arguments(fitting, "")


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A repository without pages, and a folder of a run beside it."""
    root = tmp_path / "repository"
    (root / "docs/benchmarks/images").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "fake_page.py").write_text(FAKE)
    return State(tmp_path / "run", root, root / "times.json")


def page(name: str, *needs: str, options: str = "") -> Page:
    command = f"python -m fake_page {name} {options} --write docs/benchmarks/{name}.md"
    return Page(name, (command,), needs)


def calls(state: State) -> list[str]:
    return (state.folder / "calls").read_text().split()


def test_a_run_goes_on_where_it_stopped(state, capsys):
    three = [page("one"), page("two"), page("three")]
    (state.folder / "broken").touch()
    assert run(three, state) == ["two"]
    assert calls(state) == ["one", "two", "three"]
    docs = state.root / "docs/benchmarks"
    assert {file.name for file in docs.glob("*.md")} == {"one.md", "three.md"}
    # only the figures of finished pages that these show
    assert {file.name for file in (docs / "images").iterdir()} == {"one.svg", "three.svg"}
    out = capsys.readouterr().out
    assert "[1/3] docs/benchmarks/one.md: expected time: not measured" in out
    assert "[2/3] docs/benchmarks/two.md: failed" in out

    (state.folder / "broken").unlink()
    (docs / "one.md").write_text("unchanged")
    assert run(three, state) == []
    assert calls(state) == ["one", "two", "three", "two"]
    assert (docs / "one.md").read_text() == "unchanged"
    assert "[1/3] docs/benchmarks/one.md: finished before" in capsys.readouterr().out

    # another command makes the page again, with a known time
    times = json.loads(state.times.read_text())
    assert {*times} == {"one", "two", "three"}
    state.times.write_text(json.dumps(times | {"one": {"seconds": 300, "machine": "2 CPUs"}}))
    assert run([page("one", options="--rounds 2")], state) == []
    assert "one.md: expected time: 5 minutes on 2 CPUs" in capsys.readouterr().out
    assert calls(state)[-1] == "one"


def test_a_page_whose_needs_are_missing_is_left_out(state, capsys, monkeypatch):
    monkeypatch.setattr(pages, "find_spec", lambda name: None)
    assert run([page("one", "tuned-lens"), page("two")], state) == []
    out = capsys.readouterr().out
    assert "one.md: left out, needs tuned-lens in an environment of its own" in out
    assert calls(state) == ["two"]


def test_the_folder_must_lie_outside_of_the_repository(tmp_path):
    with pytest.raises(EepolicyError, match="is inside the repository: give a folder outside"):
        State(tmp_path / "docs", tmp_path)


def test_growth_of_a_small_model(tmp_path, monkeypatch, capsys):
    """Every curve has its points; slopes are those of numpy; the figure has points and lines."""
    sizes = growth.Sizes(
        layers=3,
        vocabulary=64,
        small_vocabulary=32,
        context=4,
        shape=dict(
            hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1
        ),
        contexts=(4, 8),
        rows=(1, 2),
        by_layers=(1, 2),
        depths=(1, 2),
        vocabularies=(32, 64),
    )
    monkeypatch.setattr(growth, "STEPS", 2)
    monkeypatch.setattr(growth, "Sizes", lambda: sizes)
    page = tmp_path / "docs" / "growth.md"
    page.parent.mkdir()
    monkeypatch.setattr(sys, "argv", ["growth", "--write", str(page)])
    growth.main()
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ", page.read_text(), re.MULTILINE)[1:]
    shown = {name: [int(p.split(":")[0]) for p in points.split(", ")] for name, _, points in rows}
    assert shown == {
        "context, tokens": [4, 8],
        "rows in the batch": [1, 2],
        "layers of the model": [1, 2],
        "exit depth, layers": [1, 2],
        "size of the vocabulary, ids": [32, 64],
    }
    drawn = (page.parent / "images" / "growth.svg").read_text()
    assert all(f">{name}<" in drawn for name in shown)


def test_slopes_are_those_of_least_squares():
    curve = growth.Curve("rows", "a step", (1, 2, 4), lambda n: 0.0, 0.5)
    seconds = np.array([[1.0, 1.2], [2.1, 1.9], [4.0, 4.2]])
    slope, half_width, intercept = growth.fitted(curve, seconds)
    x = np.repeat([1, 2, 4], 2)
    assert (slope, intercept) == pytest.approx(tuple(np.polyfit(x, seconds.ravel(), 1)))
    residuals = seconds.ravel() - intercept - slope * x
    error = np.sqrt((residuals**2).sum() / 4 / ((x - x.mean()) ** 2).sum())
    assert half_width == pytest.approx(1.96 * error)
