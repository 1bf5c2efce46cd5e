"""Public functions take a path as a string too, as those of transformers do."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

import pytest
import torch

from eepolicy.analysis.evaluation.load import load_comparison
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.evaluation.sweep import read_sweep
from eepolicy.errors import EepolicyError
from eepolicy.speech.audio import read_wave, write_audio
from eepolicy.speech.units import Units

PAGES = sorted((Path(__file__).parents[1] / "docs" / "api").glob("*.md"))


def documented() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions, classes and methods of the packages whose API a page documents."""
    named = (re.findall(r"^::: ([\w.]+)", page.read_text(), re.M) for page in PAGES)
    for name in sorted({name for names in named for name in names}):
        member = resolve_name(name)
        if isinstance(member, ModuleType):
            members = [(f"{name}.{n}", getattr(member, n)) for n in getattr(member, "__all__", ())]
        else:
            members = [(name, member)]
        for label, value in members:
            if inspect.isclass(value):
                yield from methods(label, value)
            elif inspect.isfunction(value):
                yield label, value


def methods(label: str, owner: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public methods, and the constructor if the class writes it."""
    for name, value in vars(owner).items():
        function = getattr(value, "__func__", value)
        is_public = not name.startswith("_") or (name == "__init__" and not is_dataclass(owner))
        if is_public and inspect.isfunction(function):
            yield f"{label}.{name}", function


def test_a_path_may_be_a_string():
    functions = dict(documented())
    assert len(functions) > 300
    wrong = [
        f"{label}({p.name}: {p.annotation})"
        for label, function in functions.items()
        for p in inspect.signature(function).parameters.values()
        if re.search(r"\bPath\b", str(p.annotation))
        and not re.search(r"\bstr\b", str(p.annotation))
    ]
    assert wrong == []


def test_files_are_read_and_written_by_name(tmp_path):
    wave = torch.linspace(-0.5, 0.5, 160)
    write_audio(f"{tmp_path}/a.wav", wave)
    torch.testing.assert_close(read_wave(f"{tmp_path}/a.wav"), wave, rtol=0, atol=2**-15)
    units = Units(torch.ones(2, 320))
    units.save(f"{tmp_path}/units.safetensors")
    assert Units.load(f"{tmp_path}/units.safetensors").codebook.tolist() == units.codebook.tolist()


@pytest.mark.parametrize("read", [lambda f: RunFolder(f).read(), load_comparison, read_sweep])
def test_a_missing_folder_gets_a_sentence(tmp_path, read):
    with pytest.raises(EepolicyError, match="nothing-here"):
        read(f"{tmp_path}/nothing-here")
