"""What is installed from a wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_is_whole(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*command, str(ROOT)], check=True, timeout=300)
    [wheel] = tmp_path.glob("eepolicy-*.whl")
    with zipfile.ZipFile(wheel) as held:
        names = set(held.namelist())
    source = {
        # eepolicy/analysis links to analysis/
        f"{parent}{p.relative_to(ROOT)}"
        for parent, package in (("", "eepolicy"), ("eepolicy/", "analysis"))
        for p in (ROOT / package).rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert source <= names
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"eepolicy"}


def test_nothing_heavy_is_imported_that_is_not_needed():
    """Nothing that only some commands need."""
    # transformers before 5.21 imports scikit-learn where it is there, and that imports pandas
    code = "import sys; sys.modules['sklearn'] = None; import eepolicy; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"matplotlib", "pandas", "seaborn", "faster_whisper", "distillmos", "typer"}
    assert heavy & set(loaded) == set()
