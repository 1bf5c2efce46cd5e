"""Wrong inputs get one sentence: a sample here, and all of them under `exhaustive`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

import eepolicy
from benchmarks.reliability.__main__ import SOURCES
from benchmarks.reliability.cases import Answer, Case, answer
from eepolicy.errors import EepolicyError
from eepolicy.fields import Positive, check_value
from eepolicy.folder_lock import LOCK, locked
from eepolicy.testing.models import random_llama

#: the sample has one of so many inputs
STEPS = {"arguments": 11, "fields": 7, "files": 23, "folders": 41, "plugins": 1}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """A name that is no folder is looked for on the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def wrong_answers(cases: Iterator[Case]) -> str:
    outcomes = [answer(case) for case in cases]
    assert outcomes
    return "\n".join(str(o) for o in outcomes if o.answer in (Answer.RAW, Answer.SILENT))


@pytest.mark.parametrize("name", STEPS)
def test_a_sample_of_wrong_inputs(name):
    assert wrong_answers(islice(SOURCES[name](), 0, None, STEPS[name])) == ""


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SOURCES)
def test_all_wrong_inputs(name):
    assert wrong_answers(SOURCES[name]()) == ""


def test_answers_are_sorted():
    """A case that fails, one that is accepted, and one that gets a sentence."""

    def sentence() -> None:
        raise EepolicyError("a sentence")

    assert answer(Case("k", "raw", lambda: 1 / 0)).answer == Answer.RAW
    assert answer(Case("k", "silent", lambda: 1)).answer == Answer.SILENT
    assert answer(Case("k", "legal", lambda: 1, legal="why")).answer == Answer.LEGAL
    assert answer(Case("k", "clear", sentence)).answer == Answer.CLEAR


class Broken(eepolicy.ExitPolicy):
    def depths(self, step):
        return {}["zz"]


def test_an_error_of_a_plugin_keeps_its_type_and_names_it():
    with pytest.raises(KeyError) as caught:
        random_llama().generate(torch.tensor([1, 7]), Broken(), max_new_tokens=2)
    text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert "Broken.depths()" in text


def test_nan_is_refused_with_the_token():
    model = random_llama(dtype=torch.float32)
    processors = [lambda ids, scores: torch.full_like(scores, float("nan"))]
    for sampling in ({}, {"do_sample": True}):
        with pytest.raises(EepolicyError, match="nan"):
            model.generate(torch.tensor([1]), logits_processor=processors, **sampling)


def test_numbers_of_numpy_become_numbers_of_python():
    numpy = pytest.importorskip("numpy")
    policy = eepolicy.Static(numpy.int64(3))
    assert repr(policy) == "Static(exit_depth=3, on='speech')"
    assert eepolicy.Entropy(numpy.float64(0.5), [2, 3]).exit_depths == (2, 3)
    assert type(check_value("depth", Positive, numpy.int32(4))) is int


LOCKED = """
import sys
from eepolicy.folder_lock import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_learns_which_one_works_on_a_folder(tmp_path):
    command = [sys.executable, "-c", LOCKED, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(EepolicyError, match=f"process {holder.pid} on "), locked(tmp_path):
        pass
    holder.kill()  # the lock ends with the process, and the file that it leaves is no lock
    holder.wait()
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


#: modules that catch every error of code that is not the library's, with `Caught` or `translated`
OTHER_CODE = {
    "analysis/evaluation/preflight.py": "a judge, recogniser, vocoder or predictor of the user",
    "eepolicy/cli/sweep.py": "a comparison, whose error must not stop the others",
    "eepolicy/compile/kernel_cache.py": "the compiler of torch, at the first call of a kernel",
    "eepolicy/compile/native.py": "the compiler of torch, which is a private interface",
    "eepolicy/compile/parity.py": "functions of the compiler, on layers of any model",
    "eepolicy/compile/plan.py": "code that the compiler generates",
    "eepolicy/html.py": "all that a notebook shows: an error stands in place of its piece",
    "eepolicy/loading/hub.py": "the Hub's client, whose releases differ in transport errors",
    "eepolicy/loading/upstream/glm4_voice.py": "tokenizers, which raises plain exceptions",
    "eepolicy/plugin_files.py": "a Python file of the user",
    "eepolicy/speech/authors_vocoders.py": "the authors' packages",
    "eepolicy/testing/report.py": "the repr of a plug-in",
    "eepolicy/workers/processes.py": "a work item, whose error the calling process raises",
    "eepolicy/workers/ray_actors.py": "a work item, whose error the calling process raises",
}
#: names of exceptions that hide faults
BROAD = {"Exception", "BaseException"}


def broad_handlers(tree: ast.AST) -> int:
    """Number of handlers of every exception, `suppress(Exception)` included."""
    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = [node.type]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            caught = [*node.args]
        else:
            continue
        names = {n.id for each in caught if each for n in ast.walk(each) if isinstance(n, ast.Name)}
        count += None in caught or bool(names & BROAD)
    return count


def test_broad_handlers_are_counted():
    """Each way to catch every exception, and one that catches a named one."""
    counts = {
        "except:": 1,
        "except Exception:": 1,
        "except (OSError, BaseException) as error:": 1,
        "except OSError:": 0,
    }
    for handler, count in counts.items():
        assert broad_handlers(ast.parse(f"try:\n    f()\n{handler}\n    pass")) == count
    assert broad_handlers(ast.parse("with contextlib.suppress(Exception):\n    f()")) == 1


def test_nothing_catches_every_exception():
    """Only the top of the command line does, and listed modules around the code of others."""
    root = Path(eepolicy.__file__).parents[1]
    broad, other_code = set(), set()
    for path in (p for top in ("eepolicy", "analysis") for p in (root / top).rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()
        broad |= {name} if broad_handlers(ast.parse(text)) else set()
        other_code |= {name} if re.search(r"import .*\b(Caught|translated)\b", text) else set()
    assert broad == {"eepolicy/cli/__init__.py"}
    assert other_code == set(OTHER_CODE)
