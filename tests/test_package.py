"""What is installed from a wheel, and what an import loads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
BUILT = shutil.ignore_patterns(
    ".*", "build", "dist", "report", "site", "work", "*.egg-info", "__pycache__"
)
SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


def shell(*command: object, cwd: Path) -> str:
    """What a command prints; it sees no `PYTHONPATH`, and so nothing of this folder."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Package(NamedTuple):
    """Both archives, and an environment with the wheel of the source archive in it."""

    folder: Path
    sdist: Path
    wheel: Path
    bin: Path


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Package:
    folder = tmp_path_factory.mktemp("package")
    source, env = folder / "source", folder / "env"
    shutil.copytree(ROOT, source, symlinks=True, ignore=BUILT)
    shell(sys.executable, "-m", "venv", env, cwd=folder)
    python = env / "bin" / "python"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    shell(*pip, "install", "setuptools>=77", cwd=folder)
    sdist = folder / shell(python, "-c", SDIST, folder, cwd=source).splitlines()[-1]
    shell(*pip, "wheel", "--no-deps", "-w", folder, sdist, cwd=folder)
    [wheel] = folder.glob("eepolicy-*.whl")
    shell(*pip, "install", "--no-deps", wheel, cwd=folder)
    # its dependencies are those of the tests; links of that folder to this one are not followed
    [site] = env.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Package(folder, sdist, wheel, env / "bin")


def source_files() -> set[str]:
    """Names under which the files are installed; `eepolicy/analysis` links to `analysis`."""
    return {
        f"{parent}{path.relative_to(ROOT)}"
        for parent, top in (("", "eepolicy"), ("eepolicy/", "analysis"))
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.slow
def test_the_wheel_has_each_file_once(package):
    with zipfile.ZipFile(package.wheel) as archive:
        names = archive.namelist()
        links = [i.filename for i in archive.infolist() if (i.external_attr >> 28) == 0o12]
    assert source_files() <= set(names)
    assert len(names) == len(set(names))
    assert not links
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"eepolicy"}
    for data in ("loading/pocket_model", "loading/model_cards", "analysis/evaluation/templates"):
        assert any(name.startswith(f"eepolicy/{data}/") for name in names), data


@pytest.mark.slow
def test_the_source_archive_has_each_file_once(package):
    with tarfile.open(package.sdist) as archive:
        members = archive.getmembers()
    names = [m.name.partition("/")[2] for m in members if not m.isdir()]
    assert source_files() | {"pyproject.toml", "README.md", "LICENSE"} <= set(names)
    assert len(names) == len(set(names))
    assert not [m.name for m in members if m.issym() or m.islnk()]
    assert not [name for name in names if name.startswith("analysis/")]


@pytest.mark.slow
def test_the_installed_package_runs_outside_the_repository(package):
    python = package.bin / "python"
    code = (
        "import eepolicy, eepolicy.analysis; print(eepolicy.__file__, eepolicy.analysis.__file__)"
    )
    for path in shell(python, "-c", code, cwd=package.folder).split():
        assert Path(path).is_relative_to(package.bin.parent)
    code = "from importlib.util import find_spec; print(find_spec('analysis'))"
    assert shell(python, "-c", code, cwd=package.folder) == "None\n"
    assert "compare" in shell(package.bin / "eepolicy", "--help", cwd=package.folder)
    command = [package.bin / "eepolicy", "generate", "What color is snow?"]
    assert shell(*command, cwd=package.folder).startswith("Snow is white.")


def test_importing_eepolicy_imports_no_unneeded_heavy_package():
    """Nothing that only some commands need."""
    # transformers before 5.21 imports scikit-learn where it is there, and that imports pandas
    code = "import sys; sys.modules['sklearn'] = None; import eepolicy; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"matplotlib", "pandas", "seaborn", "faster_whisper", "distillmos", "typer"}
    assert heavy & set(loaded) == set()
