"""Plug-ins in Python files: `mine.py:Settled(1.0)`."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import LAYOUT, tiny

import eepolicy
from eepolicy import EepolicyError, HookedModel, Step, parse_acceptance, parse_fill, parse_policy
from eepolicy.analysis.style import family
from eepolicy.plugin_files import file_digest, is_file_spec
from eepolicy.policies.spec import policy_label

MINE = """
from __future__ import annotations

from dataclasses import dataclass

import eepolicy
from beside import DEPTH
from eepolicy.decode.acceptance import Acceptance
from eepolicy.decode.fills import CatchUp


@dataclass(frozen=True)
class Settled(eepolicy.ExitPolicy):
    share: float
    depths_of: tuple | list = ()
    on: str = "speech"

    def depths(self, step):
        if self.share < 0:
            raise ZeroDivisionError
        return eepolicy.policies.base.masked_depths(step, self.on, DEPTH)

    def __post_init__(self):
        if self.share > 1:
            raise eepolicy.EepolicyError(f"the share is at most 1; got {self.share}")


class Plain(eepolicy.ExitPolicy):
    def depths(self, step):
        return step.phase * 0 + DEPTH


class Unfinished(eepolicy.ExitPolicy):
    pass


class Fill(CatchUp):
    pass


class Rule(Acceptance):
    verifies = True

    def accepts(self, drafts):
        return drafts.tokens == drafts.target_scores.argmax(-1)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "beside.py").write_text("DEPTH = 2\n")
    yield tmp_path
    sys.modules.pop("beside", None)


def step(modality: int = 1) -> Step:
    zero = torch.zeros(3, dtype=torch.long)
    return Step(zero + modality, zero, zero, zero, zero, full_depth=4)


@pytest.mark.parametrize(
    "spec",
    [
        "mine.py:Settled(1.0)",
        "mine.py:Settled(share=0.5, depths_of=[1, (2, 3)], on='both')",
        "mine.py:Settled(0.5, {'text=full,speech=full': 1})",
        "mine.py:Plain",
        "mine.py:Plain()",
        "both=mine.py:Settled(1.0)",
        "text=full,speech=mine.py:Settled(1.0)",
        "text=mine.py:Settled(0.2, [3,4]),speech=mine.py:Settled(1.0)",
    ],
)
def test_a_spec_round_trips_to_an_equal_policy(folder, spec):
    policy = parse_policy(f" {spec} ")
    assert policy.spec == policy_label(policy) == policy_label(spec) == spec
    assert parse_policy(policy.spec) == policy
    assert hash(parse_policy(spec)) == hash(policy)
    assert policy != parse_policy("mine.py:Settled(0.25)")
    assert policy.depths(step()).tolist() == [2, 2, 2]


def test_arguments_reach_the_constructor(folder):
    policy = parse_policy("mine.py:Settled(0.5, depths_of=[1, (2, 3)])")
    assert (policy.share, policy.depths_of, policy.on) == (0.5, [1, (2, 3)], "speech")
    assert repr(policy) == "Settled(share=0.5, depths_of=[1, (2, 3)], on='speech')"
    assert parse_policy("text=mine.py:Settled(0.5)").depths(step(0)).tolist() == [2, 2, 2]
    assert parse_policy("text=mine.py:Settled(0.5)").depths(step(1)).tolist() == [4, 4, 4]
    absolute = f"{folder}/mine.py:Settled(1.0)"
    assert parse_policy(absolute).spec == absolute


def test_generate_takes_policy_fill_and_rule_of_a_file(folder):
    model = HookedModel(tiny("llama"), LAYOUT)
    prompt = torch.arange(5, 15)
    options = {"fill": "mine.py:Fill()", "accept": "mine.py:Rule"}
    out = model.generate(prompt, "mine.py:Settled(1.0)", max_new_tokens=30)
    same = model.generate(prompt, "static@2", max_new_tokens=30)
    assert out.tokens.tolist() == same.tokens.tolist()
    assert out.trace.depth.tolist() == same.trace.depth.tolist()
    lossless = model.generate(prompt, "mine.py:Settled(1.0)", max_new_tokens=30, **options)
    assert lossless.tokens.tolist() == model.generate(prompt, max_new_tokens=30).tokens.tolist()
    config = eepolicy.EarlyExitConfig("mine.py:Settled(1.0)", **options)
    assert config.to_dict() | options == config.to_dict()
    assert eepolicy.EarlyExitConfig.from_dict(config.to_dict()) == config
    assert parse_fill("mine.py:Fill()").spec == "mine.py:Fill()"
    assert parse_acceptance("mine.py:Rule").spec == "mine.py:Rule"


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("gone.py:Settled(1.0)", "there is no file gone.py, which a policy is to be read from"),
        ("mine.py:Sett(1.0)", "mine.py has no policy Sett; it has Settled, Plain, Unfinished"),
        ("mine.py:Fill()", "mine.py has a Fill that is no ExitPolicy"),
        ("mine.py:DEPTH", "mine.py has a DEPTH that is no ExitPolicy"),
        ("mine.py:Settled(", r"after the file comes a class or a call .*'Settled\(' is not Python"),
        ("mine.py:Settled(1.0).on", r"a call such as Settled\(1.0\); got"),
        ("mine.py:1", "a call such as"),
        ("mine.py:Settled(abs(1))", r"arguments are literals .* got abs\(1\)"),
        ("mine.py:Settled(__import__('os').getcwd())", "arguments are literals"),
        ("mine.py:Settled(*[1.0])", r"arguments are literals .* got \*\[1.0\]"),
        ("mine.py:Settled(**{'share': 1.0})", r"\*\* is not supported"),
        (
            "mine.py:Settled()",
            "Settled in mine.py does not take these arguments: TypeError: .*share",
        ),
        (
            "mine.py:Settled(2)",
            "does not take these .* EepolicyError: the share is at most 1; got 2",
        ),
        ("mine.py:Unfinished()", "does not take these arguments: TypeError: .*abstract"),
        ("broken.py:A", "broken.py fails: line 2: SyntaxError"),
        ("failing.py:A", "failing.py fails: line 2: ZeroDivisionError"),
        ("empty.py:A", "empty.py has no policy A; it has no class of ExitPolicy"),
        ("text=mine.py:Plain()", "acts on both; only a dataclass with a field 'on'"),
    ],
)
def test_faulty_plugin_files_and_specs_give_clear_errors(folder, spec, match):
    (folder / "broken.py").write_text("x = 1\nclass\n")
    (folder / "failing.py").write_text("def f():\n    return 1 // 0\n\nf()\n")
    (folder / "empty.py").write_text("")
    with pytest.raises(EepolicyError, match=match):
        parse_policy(spec)


def test_a_plugin_file_does_not_run_with_files_false(folder):
    (folder / "mine.py").write_text("raise SystemExit(3)")
    with pytest.raises(EepolicyError, match="which is not run here"):
        parse_policy("text=full,speech=mine.py:Settled(1.0)", files=False)
    assert (
        parse_policy("text=full,speech=static@2", files=False).spec == "text=full,speech=static@2"
    )


def test_a_changed_file_is_reloaded_and_changes_its_digest(folder):
    spec = "mine.py:Plain"
    before = file_digest(spec)
    assert is_file_spec(spec)
    (folder / "mine.py").write_text(MINE.replace("* 0 + DEPTH", "* 0 + 3"))
    assert parse_policy(spec).depths(step()).tolist() == [3, 3, 3]
    assert file_digest(spec) != before
    assert str(folder) not in sys.path


def test_the_label_of_an_object_without_spec_is_its_repr(folder):
    settled = type(parse_policy("mine.py:Settled(1.0)")).__mro__[1]
    assert policy_label(settled(0.5)) == "Settled(share=0.5, depths_of=(), on='speech')"
    plain = type(parse_policy("mine.py:Plain")).__mro__[1]
    with pytest.raises(EepolicyError, match="neither a spec string nor a __repr__"):
        policy_label(plain())


def test_a_figure_runs_no_file(folder):
    (folder / "mine.py").write_text("raise SystemExit(3)")
    assert all(family("mine.py:Settled(1.0)"))
