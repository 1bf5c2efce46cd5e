"""Without an internal of PyTorch that compiled layers use, replies are those of the stock layers.

The table in `docs/architecture.md` lists the internals and what replaces them.
"""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torch._dynamo.eval_frame
import torch._inductor.codecache
import torch._inductor.compile_fx
from conftest import LAYOUT, assert_same_replies, tiny

from eepolicy import HookedModel
from eepolicy.compile import kernel_cache, plan
from eepolicy.compile.native import native_library

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"
QUESTION = torch.tensor([5, 33, 21, 8])

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
    # warnings of the compiler about its own code
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def replies(model: HookedModel, compiled: bool) -> tuple[list, list[str]]:
    """Replies, and the warnings about compiling."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outs = model.generate([QUESTION], "spark:triple@2", 12, compile=compiled)
    said = [str(each.message) for each in caught if "compile=True" in str(each.message)]
    return outs, said


def gone(*args: object, **kwargs: object) -> None:
    raise AttributeError("this is not in this version")


def without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Take an internal away."""
    if name == "options":
        monkeypatch.setattr(kernel_cache, "OPTIONS", kernel_cache.OPTIONS | {"no_such_option": 1})
    elif name == "current_callable":
        monkeypatch.setattr(plan, "_compiled_graph", lambda kernel: object())
    elif name == "code of the compiler":
        monkeypatch.setattr(plan._Recorder, "plan", gone)
    elif name == "example_value":
        monkeypatch.setattr(kernel_cache, "_sources", lambda *given: None)
    else:
        module, _, attribute = name.rpartition(".")
        holder = torch
        for part in module.split(".")[1:]:
            holder = getattr(holder, part)
        monkeypatch.delattr(holder, attribute)


@pytest.fixture
def built_again():
    """The native library is looked for again, now and by the next test."""
    native_library.cache_clear()
    yield
    native_library.cache_clear()


@pytest.mark.parametrize(
    "name",
    [
        "torch._inductor.compile_fx.compile_fx",
        "torch._dynamo.eval_frame.innermost_fn",
        "torch._dynamo.maybe_mark_dynamic",
        "options",
    ],
)
def test_without_kernels_one_warning_and_the_stock_layers(name, monkeypatch):
    model = HookedModel(tiny("llama"), layout=LAYOUT)
    stock, _ = replies(model, compiled=False)
    without(monkeypatch, name)
    for said_once in (True, False):
        ours, said = replies(model, compiled=True)
        assert_same_replies(ours, stock)
        assert [text[:28] for text in said] == ["compile=True has no effect, "] * said_once


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "current_callable",
        "code of the compiler",
        "example_value",
        "torch._inductor.codecache.CppCodeCache",
        "torch._dynamo.exc.FailOnRecompileLimitHit",
    ],
)
def test_without_a_shortcut_compiled_layers_run(name, monkeypatch, built_again):
    model = HookedModel(tiny("llama"), layout=LAYOUT)
    stock, _ = replies(model, compiled=False)
    without(monkeypatch, name)
    for _ in range(2):
        ours, said = replies(model, compiled=True)
        assert_same_replies(ours, stock)
        assert said == []
    executor = model.compiled_executor()
    assert executor is not None
    assert executor.kernels > 0


def test_the_docs_list_the_internals():
    """All that `eepolicy/compile` names of dynamo and inductor."""
    table = ARCHITECTURE.read_text()
    used = set()
    for file in Path(kernel_cache.__file__).parent.glob("*.py"):
        text = file.read_text()
        used |= set(re.findall(r"torch\._dynamo\.[\w.]+", text))
        for module, names in re.findall(r"from (torch\._\w[\w.]*) import ([\w, ]+)", text):
            used |= {f"{module}.{name}" for name in names.split(", ")}
    used.discard("torch._dynamo.convert_frame")  # the name of a log
    assert len(used) >= 5
    assert [name for name in sorted(used) if f"`{name}" not in table] == []
