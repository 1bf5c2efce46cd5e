"""Write and execute the notebooks of `examples/`: `python -m tools.notebooks`.

The source of a notebook is a Python file with cells in the percent format, so that changes are
readable.  The notebook is committed with its outputs, without progress bars and times.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
SOURCES = tuple(sorted((ROOT / "examples").glob("*.py")))
#: seconds that a cell may take
PATIENCE = 300


def notebook_of(source: Path) -> Any:
    """The notebook of a source, without outputs."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"] = {}
    nbformat.validate(notebook)
    return notebook


def executed(source: Path) -> Any:
    """The notebook of a source with outputs.

    Raises:
        CellExecutionError: a cell fails.
    """
    notebook = notebook_of(source)
    resources = {"metadata": {"path": str(ROOT)}}  # so that this tree is imported
    client = NotebookClient(notebook, timeout=PATIENCE, resources=resources, record_timing=False)
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main() -> None:
    """Write the notebooks that are named, or all."""
    names = sys.argv[1:]
    for source in SOURCES:
        if not names or source.stem in names:
            target = source.with_suffix(".ipynb")
            nbformat.write(executed(source), target)
            print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
