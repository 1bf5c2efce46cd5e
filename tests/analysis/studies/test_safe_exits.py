"""Safe exits: one exit against a whole decode, outcomes, a simulated effect, and equal costs."""

from __future__ import annotations

from collections import UserList
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LAYOUT, tiny

from eepolicy import Document, ExitPolicy, HookedModel
from eepolicy.analysis.stats import bootstrap
from eepolicy.analysis.studies import SafeExits, Workspace, exits_compared
from eepolicy.analysis.studies.base import BatchOptions
from eepolicy.analysis.studies.exit_outcomes import with_outcomes
from eepolicy.analysis.studies.exit_predictors import PREDICTORS, with_predictors
from eepolicy.analysis.studies.exits_compared import (
    compare_costs,
    label_of,
    policies_of_equal_cost,
    score_policies,
)
from eepolicy.analysis.studies.safe_exits import codebook_resolution
from eepolicy.analysis.studies.single_exits import (
    continue_exits,
    hear,
    read_exits,
    what_follows,
)
from eepolicy.policies.formats import UnitClasses
from eepolicy.testing.acceptance import RandomCodebook

DEPTH, TOKENS = 2, 18


@dataclass(frozen=True)
class OneExit(ExitPolicy):
    """Exits at one position of the reply only."""

    position: int

    def depths(self, step):
        return torch.where(step.position == self.position, DEPTH, step.full_depth)


class Echo:
    """Recognizes the number of units of a wave of `RandomCodebook`."""

    def __init__(self):
        self.clips = 0

    def transcribe(self, wave):
        self.clips += 1
        return " ".join(["word"] * (len(wave) // 16))


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Fewer resamples, which suffice for intervals of simulations."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 400)


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return HookedModel(tiny("llama"), layout=LAYOUT, vocoder=RandomCodebook())


@pytest.fixture(scope="module")
def replies(model) -> list[Document]:
    prompts = [torch.tensor([1, 5, 9]), torch.tensor([1, 7, 8, 6])]
    return [Document.of(output) for output in model.generate(prompts, max_new_tokens=TOKENS)]


def test_one_exit_is_the_exit_token_and_a_continuation_at_full_depth(model, replies):
    """Keys and values of an exited position are those of full depth, so both are the same reply.

    An exit with the token of full depth leaves the whole reply as it is, and needs no continuation.
    """
    exits = read_exits(model, replies, DEPTH)
    is_unit = [model.layout.is_speech(reply.reply) for reply in replies]
    assert len(exits) == sum(int(each.sum()) for each in is_unit)
    exits = exits[::2]
    continued = continue_exits(model, replies, exits, TOKENS, compile=False)
    same = []
    for row, ids in zip(exits.itertuples(), continued, strict=True):
        reply = replies[row.document]
        decoded = model.generate(reply.tokens[: reply.prompt], OneExit(row.position), TOKENS)
        assert decoded.tokens.tolist() == ids.tolist()
        assert int(decoded.tokens[row.position]) == row.exit
        assert int(reply.reply[row.position]) == row.token
        same.append(row.exit == row.token)
        if same[-1]:
            assert decoded.tokens.tolist() == reply.reply.tolist()
    assert 0 < sum(same) < len(same)


def test_what_follows_compares_units_words_and_sound(model, replies):
    exits = read_exits(model, replies, DEPTH)
    differing = exits[exits.exit != exits.token][:8]
    spoken = [tuple(model.layout.units(reply.reply).tolist()) for reply in replies]
    heard = hear(model, spoken, Echo())
    options = {"max_new_tokens": TOKENS, "compile": False}
    rows = what_follows(model, replies, heard, differing, Echo(), **options)
    continued = continue_exits(model, replies, differing, **options)
    for row, ids in zip(rows.itertuples(), continued, strict=True):
        own, full = model.layout.units(ids), model.layout.units(replies[row.document].reply)
        assert row.words == abs(len(own) - len(full))
        assert row.tokens == " ".join(map(str, ids.tolist()))
        start = len(model.layout.units(replies[row.document].reply[: row.position]))
        assert own[:start].tolist() == full[:start].tolist()
        differ = sum(int(a != b) for a, b in zip(own, full, strict=False))
        assert row.units == differ + abs(len(own) - len(full))
        if len(own) > start:
            assert (row.distance > 0) == (own[start:].tolist() != full[start:].tolist())
    # equal speech is recognised once
    asr = Echo()
    assert hear(model, [spoken[0], spoken[1], spoken[0]], asr) == [heard[0], heard[1], heard[0]]
    assert asr.clips == len({*spoken[:2]})


def test_predictors_of_a_reply_by_hand():
    tokens = [20, 22, 22, 23, 25]  # units 0, 2, 2, 3, 5
    exits = pd.DataFrame({"document": 0, "token": tokens, "exit": [20, 20, 22, 23, 25]})
    exits = exits.assign(confidence=0.75, margin=0.5, entropy=1.0, phase=0)
    exits["full_entropy"] = np.arange(5.0)
    classes = UnitClasses(first=20, sounds=[0, 0, 0, 1, 1, 1], silent=[3], notes={})
    codebook = np.arange(6.0)[:, None]
    rows = with_predictors(exits, classes, codebook, 10 * np.arange(6.0))
    assert rows.context.tolist() == ["onset", "onset", "steady", "steady", "silence"]
    assert rows.jump.tolist()[2:] == [2, 0, 1]
    assert rows.repeated.tolist()[2:] == [0, 1, 0]
    assert rows.repeats.tolist()[1:] == [1, 1, 0, 0]
    assert rows.level.tolist()[1:] == [0, 20, 20, 30]
    assert rows.last_entropy.tolist()[1:] == [0, 1, 2, 3]
    assert rows[["doubt", "tie"]].to_numpy().tolist() == [[0.25, 0.5]] * 5
    assert rows[["jump", "level", "last_entropy"]].iloc[0].isna().all()


def simulated(seed: int, effect: float) -> pd.DataFrame:
    """Exits whose harm depends on entropy with a known effect, and on nothing else."""
    rng = np.random.default_rng(seed)
    replies, units = 60, 40
    document = np.repeat(np.arange(replies), units)
    exits = pd.DataFrame(
        {
            "document": document,
            "position": np.tile(np.arange(units), replies),
            "phase": np.tile(np.arange(units) % 16, replies),
            "token": rng.integers(0, 30, len(document)),
            "entropy": rng.normal(size=len(document)),
            "full_entropy": rng.random(len(document)),
            "confidence": rng.random(len(document)),
            "margin": rng.random(len(document)),
        }
    )
    differs = rng.random(len(exits)) < 0.3
    exits["exit"] = np.where(differs, exits.token + 1, exits.token)
    level = rng.normal(0, 0.4, replies)[document]
    harm = 1 / (1 + np.exp(-(effect * exits.entropy - 1 + level)))
    follows = exits[differs].assign(
        distance=rng.exponential(5, int(differs.sum())),
        words=(rng.random(len(exits)) < harm)[differs].astype(int),
    )
    sounds = rng.integers(0, 4, 31).tolist()
    classes = UnitClasses(first=0, sounds=sounds, silent=[1, 2, 3], notes={})
    rows = with_predictors(exits, classes, rng.normal(size=(31, 5)), rng.normal(size=31))
    return with_outcomes(rows, follows, 5.0)


def scores_of(wers: dict[str, float], calls: dict[str, float]) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    question = rng.uniform(-0.05, 0.05, 30)
    return pd.concat(
        [
            pd.DataFrame({"wer": wer + question, "right": 1.0, "calls": calls[p] * 50}).assign(
                tokens=50, policy=p, question=range(30)
            )
            for p, wer in wers.items()
        ]
    )


@pytest.fixture(scope="module")
def study() -> SafeExits:
    wers = {"full": 0.1, "steady:FILE@6": 0.2, "static@18": 0.12, "static@16": 0.16}
    calls = {"full": 20, "steady:FILE@6": 17, "static@18": 18, "static@16": 16}
    return SafeExits(simulated(0, 1.0), scores_of(wers, calls), 6, 5.0)


def test_the_effect_is_detected_and_the_others_are_chance(study):
    """One predictor of twelve has an effect; of the others, 5 % of the intervals miss chance."""
    cells = {name: row["if_other"] for name, row in study.aucs.items()}
    assert cells["entropy"].low > 0.6
    assert cells["entropy"].value == pytest.approx(0.75, abs=0.06)
    del cells["entropy"]
    missed = [name for name, c in cells.items() if c.low > 0.5 or c.high < 0.5]
    assert len(missed) <= 2
    # an exit with the same unit changes nothing
    assert not study.exits[study.exits.unit == 0][["sound", "word"]].to_numpy().any()


def test_without_an_effect_entropy_is_chance():
    exits = simulated(1, 0.0)
    none = SafeExits(exits, pd.DataFrame(), 6, 5.0)
    cell = none.aucs["entropy"]["if_other"]
    assert cell.low < 0.5 < cell.high


def test_rates_and_costs_against_plain_numbers(study):
    exits, rates = study.exits, study.rates()
    silence = exits[exits.context == "silence"]
    assert rates["silence"]["share"].value == pytest.approx(100 * len(silence) / len(exits))
    assert rates["silence"]["word"].value == pytest.approx(100 * silence.word.mean())
    assert rates["all"]["if_other"].value == pytest.approx(100 * exits[exits.unit == 1].word.mean())
    row = study.costs["steady:FILE@6"]
    assert row["calls"].value == pytest.approx(17)
    # halfway between static@16 and static@18: 14 %
    assert row["over_static"].value == pytest.approx(6)
    assert row["over_static"].bars.max() < 1e-9  # the same questions, so the noise cancels
    assert row["over_full"].value == pytest.approx(10)
    assert study.costs["full"]["over_static"].value == pytest.approx(0)


def test_the_tables_and_the_figure_show_it(study):
    text = study.table()
    assert "60 replies, one exit at depth 6 at each of 2400 units" in text
    assert all(p.label in text for p in PREDICTORS)
    assert "| `steady:FILE@6` | 17.00 [17.00, 17.00] |" in text
    frame = study.to_pandas().set_index("predictor")
    assert frame.loc["entropy", "if_other_low"] > 0.6
    assert len(study.figure().axes) == 3


def test_a_random_share_of_the_continuations_keeps_the_rates():
    exits = pd.DataFrame({"document": 0, "position": range(4000), "token": 1, "exit": 1})
    exits.loc[::4, "exit"] = 2
    follows = exits[::4].sample(frac=0.5, random_state=0).assign(distance=1.0, words=1)
    follows.iloc[0, follows.columns.get_loc("distance")] = np.nan  # the reply ends there
    some = with_outcomes(exits, follows, 2.0)
    assert some.unit.sum() == some.word.sum() == len(follows) == 500
    assert some.unit.mean() == pytest.approx(0.25, abs=0.02)
    assert some.sound.sum() == 1


def test_policies_of_equal_cost(model, tmp_path):
    dev = pd.DataFrame({"steady": [1, 0, 0, 0, np.nan], "silent": [0, 1, 0, 1, 0]})
    dev["entropy"] = [0.0, 1.0, 2.0, 3.0, 4.0]
    policies = policies_of_equal_cost(model, dev, DEPTH, tmp_path / "classes.json")
    assert policies[0] == "full"
    assert label_of(policies[1]) == "steady:FILE@2"
    # a fifth of the positions exit, four layers early
    assert "random:5.20@2" in policies
    assert "entropy<0.800@2" in policies
    assert "spark:FFFFE~@2" in policies


def test_the_resolution_of_a_codebook():
    codebook = torch.tensor([[0.0], [1.0], [3.0], [8.0], [12.0]])
    assert codebook_resolution(codebook) == 2.0


def test_policies_answer_the_same_questions_in_batches(tmp_path, monkeypatch):
    batches = []

    class Trace(UserList):
        layer_calls = np.array([6, 2])

    def generate(texts, policy, max_new_tokens, do_sample):
        batches.append((len(texts), policy))
        wave = torch.zeros(16 * (2 if policy == "full" else 3))  # a word too many
        return [
            SimpleNamespace(text="word word", trace=Trace("ab"), audio_at=lambda rate: wave)
            for _ in texts
        ]

    monkeypatch.setattr(exits_compared, "QUESTIONS", 3)
    monkeypatch.setattr(exits_compared, "OPTIONS", BatchOptions(size=2))
    questions = [{"question": q, "keys": ["word"]} for q in "abcd"]
    workspace = Workspace(SimpleNamespace(generate=generate), questions, tmp_path)
    policies = ["full", "steady:classes.json@2"]
    scores = score_policies(workspace, policies, Echo())
    assert batches == [(size, policy) for policy in policies for size in (2, 1)]
    assert scores.policy.tolist() == ["full"] * 3 + ["steady:FILE@2"] * 3
    assert scores.question.tolist() == [0, 1, 2] * 2
    assert scores.wer.tolist() == [0] * 3 + [0.5] * 3
    assert scores.calls.tolist() == [8] * 6
    assert score_policies(workspace, policies, Echo()).equals(scores)  # stored
    assert len(batches) == 4


def test_compare_costs_does_not_extrapolate():
    scores = scores_of(
        {"full": 0.1, "static@18": 0.2, "x": 0.3}, {"full": 20, "static@18": 18, "x": 9}
    )
    assert compare_costs(scores)["x"]["over_static"].value == pytest.approx(10)
