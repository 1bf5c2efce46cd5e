"""The notebooks of `examples/` run, and their stored outputs are what they give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("jupytext", reason="the extra docs is not installed")
pytest.importorskip("nbclient", reason="the extra docs is not installed")
pytest.importorskip("ipykernel", reason="the extra docs is not installed")
import nbformat

from tools.notebooks import SOURCES, executed, notebook_of

pytestmark = pytest.mark.slow
sources = pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)


def stored(source: Path):
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell) -> list[str]:
    """Paragraphs of the HTML outputs: texts of replies, depths, captions."""
    shown = [out.get("data", {}).get("text/html", "") for out in cell.outputs]
    return re.findall(r"<p[^>]*>([^<]*)</p>", "".join(shown))


def kinds(cell) -> list[list[str]]:
    """Kinds of the outputs."""
    return [sorted(out.get("data", {out.output_type: 0})) for out in cell.outputs]


@sources
def test_a_stored_notebook_is_that_of_its_source(source):
    notebook = stored(source)
    expected = notebook_of(source)
    assert [c.source for c in notebook.cells] == [c.source for c in expected.cells]
    assert source.with_suffix(".ipynb").stat().st_size < 1e6
    assert all(cell.execution_count for cell in code(notebook))


@sources
def test_a_notebook_gives_its_stored_outputs(source):
    for new, old in zip(code(executed(source)), code(stored(source)), strict=True):
        assert kinds(new) == kinds(old), new.source
        assert texts(new) == texts(old)


def test_outputs_are_rich():
    """Players, strips of depths, heatmaps, sortable tables and figures."""
    shown = "".join(
        out.data.get("text/html", "") + "PNG" * ("image/png" in out.data)
        for source in SOURCES
        for cell in code(stored(source))
        for out in cell.outputs
        if out.output_type == "execute_result"
    )
    for mark in ("<audio", "<svg", "data:image/png", "onclick", "PNG"):
        assert mark in shown, mark
