"""A whole comparison on a random model, with a stub for speech recognition."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from conftest import LAYERS, LAYOUT, tiny
from torch import Tensor

from eepolicy import EepolicyError, HookedModel, parse_policy
from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.default_policies import FULL, scheduled_policies
from eepolicy.analysis.evaluation.formats import TimingLine
from eepolicy.analysis.evaluation.metrics import SpeechMetrics
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.evaluation.report import write_report
from eepolicy.analysis.evaluation.run import run
from eepolicy.analysis.evaluation.table import Comparison
from eepolicy.analysis.evaluation.verdict import Verdict
from eepolicy.analysis.stats.sequential import UntilDecided
from eepolicy.cli.comparison import interleaved
from eepolicy.decode.config import EarlyExitConfig
from eepolicy.folder_lock import locked
from eepolicy.speech.units import Units

pytestmark = pytest.mark.usefixtures("quick_sound")


class Letters:
    """A tokenizer of letters: enough for questions in text."""

    def __call__(self, text, add_special_tokens):
        return type("Encoding", (), {"input_ids": [5 + ord(c) % 15 for c in text]})

    def decode(self, ids):
        return " ".join(f"w{int(i)}" for i in ids)


class OneWordPerSecond:
    """Transcribes a word for each second of speech."""

    def transcribe(self, wave: Tensor) -> str:
        return " ".join(["word"] * math.ceil(len(wave) / 16_000))


@pytest.fixture(params=["llama", pytest.param("gemma2", marks=pytest.mark.exhaustive)])
def family(request) -> str:
    return request.param


@pytest.fixture
def spoken(stock) -> HookedModel:
    codebook = torch.randn(40, 320, generator=torch.Generator().manual_seed(0)) - 5
    return HookedModel(stock, LAYOUT, Letters(), vocoder=Units(codebook))


QUESTIONS = [{"question": q, "keys": ["word"]} for q in ("cat", "a horse", "it", "dogs", "me")]
DEV = [{"question": q} for q in ("ox", "some bird")]


class Stop(Exception):
    """Stops a run as a signal would."""


def stopped_after(number: int, step: str):
    """Progress that stops a step after some items."""

    def progress(label, items):
        for i, item in enumerate(items):
            if label == step and i == number:
                raise Stop
            yield item

    return progress


def stored(folder: RunFolder) -> dict:
    """All of a run but its times, which differ from run to run."""
    return {
        key: [replace(record, seconds=None, ttft=None) for record in records]
        for key, records in folder.records().items()
    }


def test_default_rows_run_resume_and_report(spoken, tmp_path):
    folder, whole = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "whole")
    config = RunConfig(calibration=DEV, max_new_tokens=10, batch=2, timed=3)
    metrics = SpeechMetrics(asr=OneWordPerSecond())
    for number, step in ((3, "batches decoded"), (5, "replies timed"), (1, "batches of speech")):
        with pytest.raises(Stop):
            run(spoken, QUESTIONS, folder, config, metrics, stopped_after(number, step))
    seen: list[tuple[str, list]] = []

    def watched(label, items):
        items = list(items)
        seen.append((label, items))
        return items

    comparison = run(spoken, QUESTIONS, folder, config, metrics, watched)
    rows = list(comparison.policies)
    assert rows[0] == FULL
    kinds = [parse_policy(r).name for r in rows]
    assert sorted({"static", "spark", "entropy", "confidence", "full"} - set(kinds)) == []
    assert len(rows) == 8
    assert [label for label, _ in seen] == ["batches decoded", "replies timed", "batches of speech"]
    assert [len(items) for _, items in seen[:2]] == [8 * 3, 0]
    run(spoken, QUESTIONS, whole, config, metrics)
    assert stored(folder) == stored(whole)
    lines = {file.name: file.read_text().count("\n") for file in folder.path.glob("*.jsonl")}
    assert lines == {f.name: f.read_text().count("\n") for f in whole.path.glob("*.jsonl")}
    # policies alternate: another one is first on each timed question
    timed = [line.policy for line in whole.lines(TimingLine)]
    assert timed == [*rows, *rows[1:], *rows[:1], *rows[2:], *rows[:2]]
    for (question, policy), (record,) in folder.records().items():
        alone = spoken.generate(question, policy, 10)
        assert record.tokens == alone.tokens.tolist()
        assert record.speech_seconds == len(alone.audio) / 16_000
        assert (record.seconds is None) == (question not in ("cat", "a horse", "it"))
    results = write_report(spoken, comparison, "eepolicy compare")
    assert results == json.loads((folder.path / "results.json").read_text())
    assert all(r["prompts"] == 5 and r["mos"] is None and r["wer"] is not None for r in results)
    assert (folder.path / "results.csv").read_text().count("\n") == 9
    text = (folder.path / "results.md").read_text()
    assert all(row["verdict"] in text for row in results)
    page = (folder.path / "index.html").read_text()
    assert "not measured" in page
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page)[0])
    shown = [reply for question in data["questions"] for reply in question["replies"]]
    assert len(shown) == 8 * 5
    assert {reply["sound"] for reply in shown} == {*data["sounds"]}
    replies = [r for records in folder.records().values() for r in records]
    for number in (0, 1):
        tokens = sum(sum(reply["spans"][number::2]) for reply in shown)
        assert tokens == sum(r.modalities.count(number) for r in replies)
    depths = [int(d, 36) for reply in shown for d in re.findall("..", reply["depths"])]
    assert sorted(depths) == sorted(depth for r in replies for depth in r.depths)
    assert min(depths) < LAYERS
    assert not list(folder.path.rglob("*.part"))


def test_seeds_of_a_question_count_as_one(spoken, tmp_path):
    folder = RunFolder(tmp_path / "run")
    config = RunConfig(["static@3"], max_new_tokens=8, sampling={"temperature": 2.0})
    with pytest.raises(EepolicyError, match="a question occurs twice"):
        run(spoken, QUESTIONS[:1] * 2, folder, RunConfig(max_new_tokens=12))
    with pytest.raises(EepolicyError, match="got 2 seeds without sampling"):
        RunConfig(seeds=2, max_new_tokens=12)
    run(spoken, QUESTIONS[:2], folder, config)
    # the run continues with more seeds
    comparison = run(spoken, QUESTIONS[:2], folder, replace(config, seeds=3))
    with pytest.raises(EepolicyError, match=r"another sampling\.temperature"):
        run(spoken, QUESTIONS[:2], folder, replace(config, sampling={"temperature": 1.0}))
    done = folder.records()
    for (question, policy), replies in done.items():
        assert sorted(r.seed for r in replies) == [0, 1, 2]
        for reply in replies:
            again = spoken.generate(question, policy, 8, temperature=2.0, seed=reply.seed)
            assert again.tokens.tolist() == reply.tokens
    assert len({tuple(r.tokens) for replies in done.values() for r in replies}) > 6
    full, static = comparison.table()
    assert (full["prompts"], full["seeds"]) == (2, 3)
    own = [r for (_, policy), replies in done.items() if policy == "static@3" for r in replies]
    layers, tokens = sum(r.speech_layers for r in own), sum(r.speech_tokens for r in own)
    assert static["speech_depth"] == pytest.approx(layers / tokens)
    # more prompts with fewer seeds: all prompts count, with the seed that they share
    run(spoken, QUESTIONS[:3], folder, config)
    results = replace(comparison, questions=tuple(QUESTIONS)).table()
    assert [(r["prompts"], r["seeds"]) for r in results] == [(3, 1)] * 2
    results = write_report(spoken, comparison, "eepolicy compare")
    assert results[1]["layer_calls"] == pytest.approx(sum(r.layer_calls for r in own) / 6)


def test_without_speech_recognition_the_columns_are_empty(spoken, tmp_path):
    config = RunConfig(["static@3"], max_new_tokens=12)
    comparison = run(spoken, QUESTIONS[:2], RunFolder(tmp_path / "run"), config)
    results, page = write_report(spoken, comparison, "one"), tmp_path / "run" / "index.html"
    written = page.read_text()
    # the same measurements need no other report
    assert write_report(spoken, comparison, "two") == json.loads(json.dumps(results))
    assert page.read_text() == written
    write_report(spoken, comparison, "two", again=True)
    assert page.read_text() != written
    for row in comparison.table():
        assert row["accuracy_speech"] is row["wer"] is row["mos"] is None
        assert row["accuracy_text"] is not None
        assert row["seconds"] > 0


def test_a_run_refuses_another_model_or_max_new_tokens(spoken, family, tmp_path):
    folder = RunFolder(tmp_path / "run")
    config = RunConfig(["static@3"], max_new_tokens=8)
    run(spoken, QUESTIONS[:1], folder, config)
    with pytest.raises(EepolicyError, match="a run with another max_new_tokens"):
        run(spoken, QUESTIONS[:1], folder, replace(config, max_new_tokens=9))
    other = HookedModel(tiny(family, 5), LAYOUT, Letters(), vocoder=spoken.vocoder)
    with pytest.raises(EepolicyError, match="a run with another model"):
        run(other, QUESTIONS[:1], folder, config)


@pytest.mark.parametrize(("full", "mean"), [(20, 16), (28, 25), (40, 38), (6, 5)])
def test_scheduled_policies_have_the_mean_depth(full, mean):
    """Over whole groups; triple's exit depth is rounded down to a layer."""
    _, static, even, odd, triple, text = map(parse_policy, scheduled_policies(full, mean))
    assert static.exit_depth == mean
    assert (full + even.exit_depth) / 2 == (full + odd.exit_depth) / 2 == mean
    assert mean - 2 / 3 <= (full + 2 * triple.exit_depth) / 3 <= mean
    assert (text.on, text.exit_depth) == ("text", even.exit_depth)


def test_looks_that_do_not_rise_are_refused(spoken):
    class Backwards(type(parse_policy("entropy<0.5@2"))):
        def candidate_depths(self, step):
            return (4, 2)

        def should_exit(self, step, depth, readout):
            return torch.tensor([False])

    with pytest.raises(EepolicyError, match="depths that rise from 1"):
        spoken.generate("cat", Backwards(0.5, 2, "both"))
    assert LAYERS > 4


def test_exact_acceptance_gives_every_row_the_answers_of_full_depth(spoken, tmp_path):
    folder = RunFolder(tmp_path / "run")
    exact = EarlyExitConfig(accept="exact")
    config = RunConfig(["spark:triple@2", "static@3"], exact, max_new_tokens=12)
    run(spoken, QUESTIONS[:3], folder, config)
    done = folder.records()
    for (question, _), (record,) in done.items():
        assert record.tokens == done[question, FULL][0].tokens
    assert len(done) == 9
    with pytest.raises(EepolicyError, match=r"another decoding\.accept"):
        run(spoken, QUESTIONS[:3], folder, replace(config, decoding=EarlyExitConfig()))


@pytest.mark.parametrize(
    "option", ["restrict_vocab", pytest.param("compile", marks=pytest.mark.slow)]
)
def test_replies_are_decoded_with_the_given_options(spoken, tmp_path, option):
    folder, plain = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "plain")
    config = RunConfig(["static@3"], max_new_tokens=14)
    changed = replace(config, decoding=EarlyExitConfig(**{option: True}))
    run(spoken, QUESTIONS[:2], folder, changed)
    run(spoken, QUESTIONS[:2], plain, config)
    for (question, policy), (record,) in folder.records().items():
        again = spoken.generate(question, policy, 14, **{option: True})
        assert record.tokens == again.tokens.tolist()
    if option == "compile":
        for key, (record,) in plain.records().items():
            assert record.tokens == folder.records()[key][0].tokens
    with pytest.raises(EepolicyError, match=rf"another decoding\.{option}"):
        run(spoken, QUESTIONS[:2], plain, changed)


@pytest.mark.parametrize("family", ["llama"])
def test_until_decided_adds_questions_look_by_look(spoken, tmp_path, monkeypatch):
    rule = UntilDecided((2, 4, 5))
    config = RunConfig(["static@3"], max_new_tokens=8, timed=0, batch=2, looks=rule)
    folder = RunFolder(tmp_path / "run")
    comparison = run(spoken, QUESTIONS, folder, config)
    # five questions decide nothing, so every look was needed
    assert [row["status"] for row in comparison.table()] == ["baseline", "undecided"]
    assert len(comparison.questions) == 5
    assert folder.read()[1]["looks"] == [2, 4, 5]
    looks: list[int] = []

    def decided(self):
        looks.append(len(self.questions))
        return [Verdict("not worse", "", 0.01, 0.0, None, {})] * (len(looks) > 1)

    monkeypatch.setattr(Comparison, "verdicts", lambda self: decided(self) or UNDECIDED)
    again = run(spoken, QUESTIONS, RunFolder(tmp_path / "again"), config)
    assert looks == [2, 4]
    assert len(again.questions) == 4


UNDECIDED = [Verdict("undecided", "", None, None, None, {})]


@pytest.mark.parametrize("family", ["llama"])
@pytest.mark.parametrize("row", ["text={file}:Middle(2)", "{file}:Middle(2), accept=exact"])
def test_a_run_refuses_a_changed_policy_file(spoken, tmp_path, row):
    file = tmp_path / "mine.py"
    file.write_text(MIDDLE)
    config = RunConfig([row.format(file=file)], max_new_tokens=8, timed=0)
    run(spoken, QUESTIONS[:1], RunFolder(tmp_path / "run"), config)
    run(spoken, QUESTIONS[:2], RunFolder(tmp_path / "run"), config)
    file.write_text(MIDDLE.replace("self.depth)", "self.depth + 1)"))
    with pytest.raises(EepolicyError, match=r"replies from before .*mine\.py changed"):
        run(spoken, QUESTIONS[:2], RunFolder(tmp_path / "run"), config)


@pytest.mark.parametrize("family", ["llama"])
def test_a_run_refuses_changed_unit_classes(spoken, tmp_path):
    file = tmp_path / "classes.json"
    content = {"first": 2, "sounds": [0, 0, 1, 1, 0], "silent": [1, 3], "notes": {}}
    file.write_text(json.dumps(content))
    config = RunConfig([f"steady:{file}@2"], max_new_tokens=8, timed=0)
    run(spoken, QUESTIONS[:1], RunFolder(tmp_path / "run"), config)
    run(spoken, QUESTIONS[:2], RunFolder(tmp_path / "run"), config)
    file.write_text(json.dumps(content | {"silent": [2]}))
    with pytest.raises(EepolicyError, match=r"replies from before .*classes\.json changed"):
        run(spoken, QUESTIONS[:2], RunFolder(tmp_path / "run"), config)


@pytest.mark.parametrize("family", ["llama"])
def test_a_model_that_samples_by_its_own_config_is_compared_greedily(spoken, tmp_path):
    config = RunConfig(["static@3"], max_new_tokens=8, timed=0)
    greedy = run(spoken, QUESTIONS[:2], RunFolder(tmp_path / "greedy"), config)
    spoken.model.generation_config.do_sample = True
    again = run(spoken, QUESTIONS[:2], RunFolder(tmp_path / "again"), config)
    tokens = [
        {key: [record.tokens for record in records] for key, records in c.folder.records().items()}
        for c in (greedy, again)
    ]
    assert tokens[0] == tokens[1]


MIDDLE = """
from dataclasses import dataclass

import torch
from eepolicy import ExitPolicy


@dataclass(frozen=True)
class Middle(ExitPolicy):
    depth: int
    on: str = "both"

    def depths(self, step):
        return torch.full_like(step.phase, self.depth)
"""


def test_a_second_process_is_kept_out(spoken, tmp_path):
    folder, config = RunFolder(tmp_path / "run"), RunConfig(["static@3"], max_new_tokens=6, timed=0)
    run(spoken, QUESTIONS[:1], folder, config)
    with (
        locked(folder.path),
        pytest.raises(EepolicyError, match=r"another process works on .*; wait for it, or give"),
    ):
        run(spoken, QUESTIONS[:2], folder, config)
    run(spoken, QUESTIONS[:2], folder, config)


@pytest.mark.parametrize("family", ["llama"])
def test_sampled_times_are_those_of_the_recorded_replies(spoken, tmp_path):
    folder = RunFolder(tmp_path / "run")
    config = RunConfig(
        ["static@3"], max_new_tokens=20, sampling={"temperature": 2.0}, seeds=2, timed=2
    )
    run(spoken, QUESTIONS[:2], folder, config)
    records = folder.records()
    for line in folder.lines(TimingLine):
        first, second = records[line.question, line.policy]
        assert line.tokens == len(first.tokens)
        assert first.seconds == line.seconds
        assert second.seconds is None  # it was not timed


class Five:
    """Rates each speech with 5."""

    def rate(self, wave: Tensor) -> float:
        return 5.0


class Four(Five):
    """Another rater."""


@pytest.mark.parametrize("family", ["llama"])
def test_ratings_of_two_raters_are_not_mixed(spoken, tmp_path):
    folder, config = RunFolder(tmp_path / "run"), RunConfig(["static@3"], max_new_tokens=8, timed=0)
    run(spoken, QUESTIONS[:1], folder, config)
    run(spoken, QUESTIONS[:1], folder, config, SpeechMetrics(mos=Five()))
    run(spoken, QUESTIONS[:2], folder, config, SpeechMetrics(mos=Five()))
    with pytest.raises(EepolicyError, match="has ratings of Five, and this run has the rater Four"):
        run(spoken, QUESTIONS[:2], folder, config, SpeechMetrics(mos=Four()))


def test_tasks_take_turns():
    questions = [{"question": q, "task": t} for q, t in zip("abcde", "xxxyy", strict=True)]
    assert "".join(q["question"] for q in interleaved(questions)) == "adbec"
