"""The README, the docs and the docstrings say what is true: their code is run."""

from __future__ import annotations

import copy
import doctest
import importlib
import pkgutil
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import eepolicy

ROOT = Path(__file__).parents[2]
#: pages whose blocks take longest
SLOW_PAGES = ("recipes.md", "tutorial.md")
#: `tests/analysis/evaluation/test_gallery.py` runs it with small data: its studies take hours
GALLERY = ROOT / "docs" / "gallery.md"
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").rglob("*.md")} - {GALLERY})]
#: modules that import an optional package at the top, and the package
OPTIONAL = {
    "eepolicy.harness.inspect_provider": "inspect_ai",
    "eepolicy.harness.lm_eval": "lm_eval",
}
MODULES = [
    m.name
    for m in pkgutil.walk_packages(eepolicy.__path__, "eepolicy.")
    if m.name not in OPTIONAL or find_spec(OPTIONAL[m.name])
]


@pytest.fixture
def one_pocket_model(pocket, monkeypatch):
    """`load("pocket")` copies a loaded model; `tests/pocket` and `tests/loading` read the files."""
    load = eepolicy.load

    def copied(name, *dtype, **options):
        if name == "pocket" and not dtype and not options:
            return copy.deepcopy(pocket)
        return load(name, *dtype, **options)

    monkeypatch.setattr(eepolicy, "load", copied)


@pytest.mark.usefixtures("one_pocket_model")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.name in SLOW_PAGES else (), id=page.name)
        for page in PAGES
    ],
)
def test_python_blocks_run(page, capsys, tmp_path, monkeypatch):
    """All blocks of a page, in order; a comment after a print states what it prints."""
    monkeypatch.chdir(tmp_path)  # some write files
    space: dict = {}
    expected = []
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(block, space)
        expected += re.findall(r"^print\(out\.text\) +# (.*)$", block, re.MULTILINE)
    printed = capsys.readouterr().out
    for line in expected:
        assert line in printed


@pytest.mark.usefixtures("one_pocket_model")
@pytest.mark.parametrize(
    "name",
    [
        # `tests/testing` calls the conformance checks with every class
        pytest.param(m, marks=pytest.mark.exhaustive if m.startswith("eepolicy.testing.") else ())
        for m in MODULES
        if not m.endswith("cli")
    ],
)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={"eepolicy": eepolicy})
    assert failed == 0


def test_examples_are_found():
    examples = [
        test.examples
        for name in MODULES
        for test in doctest.DocTestFinder().find(importlib.import_module(name))
    ]
    assert sum(map(len, examples)) > 8


def test_the_api_pages_have_every_public_name():
    pages = "\n".join(p.read_text() for p in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    for name in shown:
        module = name if name in MODULES else "eepolicy"
        importlib.import_module(module)
    for name in eepolicy.__all__:
        thing = getattr(eepolicy, name)
        homes = {
            f"eepolicy.{thing.__name__}",
            thing.__module__,
            thing.__module__.rpartition(".")[0],
        }
        assert homes & shown, name


def test_the_two_commands_of_the_readme_are_the_makefiles():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for command in ("compare", "test"):
        assert f"    make {command} " in readme
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text()
