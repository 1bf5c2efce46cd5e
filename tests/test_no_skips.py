"""The plugin that fails a run in which a test was skipped for want of a package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FINE = """
import pytest

def test_passes(): pass

@pytest.mark.xfail
def test_is_expected_to_fail(): assert False

@pytest.mark.skipif(True, reason="there is no CUDA device")
def test_needs_a_device(): pass
"""
NEEDS = "import pytest\ndef test_it(): pytest.importorskip('no_such_package')\n"
NEEDS_ALL = "import pytest\npytest.importorskip('no_such_package')\n"


@pytest.mark.parametrize(
    ("text", "options", "code"),
    [("", [], 0), (NEEDS, [], 1), (NEEDS_ALL, [], 1), (NEEDS, ["-n", "1"], 1)],
    ids=["allowed", "test", "module", "xdist"],
)
def test_a_skip_for_a_missing_package_fails_the_run(tmp_path, text, options, code):
    (tmp_path / "test_fine.py").write_text(FINE)
    (tmp_path / "test_more.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "no_skips", "-c", "/dev/null"]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path), *options],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert ("no_such_package" in done.stdout) == (code == 1)
