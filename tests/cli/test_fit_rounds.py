"""`eepolicy fit` for branches and in rounds."""

from __future__ import annotations

import json

import pytest
import torch

import eepolicy
from eepolicy import EepolicyError, fitting
from eepolicy.analysis.evaluation.scoring import word_errors
from eepolicy.cli.fit_rounds import reply_word_errors
from eepolicy.fitting import generate_replies
from eepolicy.heads import load_heads, read_notes
from eepolicy.speech.asr import Whisper


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text("\n".join(q["question"] for q in eepolicy.held_out("dev")[:8]))
    return file


COMMON = (
    *("--heads", "branch", "--layers", "1", "--depths", "16", "--on", "speech"),
    *("--held-out", "0.3", "--max-new-tokens", "20", "--threads", "1"),
)


@pytest.mark.slow
def test_a_branch_is_fitted_and_used(run, tmp_path, questions):
    file, work = tmp_path / "heads.safetensors", tmp_path / "work"
    arguments = ("--prompts", str(questions), "--out", str(file), "--workdir", str(work))
    out, _ = run("fit", "pocket", *arguments, *COMMON, "--rounds", "1", "--round-epochs", "2")
    assert "estimate" in out
    assert "own replies: agreement" in out
    notes = read_notes(file)["notes"]
    assert notes["policy"] == ["speech=static@16"]
    assert [row["round"] for row in notes["rounds"]] == [0, 1]
    assert f"{notes['rounds'][1]['kl_own']:.3f}" in out
    model = eepolicy.load("pocket")
    heads = load_heads(file, model.lens, model.model)
    assert heads.branch_depths == (16,)
    model.heads = heads
    reply = model.generate("What color is snow?", "static@16", 20)
    arguments_of_reply = ("--heads", str(file), "--policy", "static@16", "--max-new-tokens", "20")
    shown, _ = run("generate", "What color is snow?", *arguments_of_reply, "--json")
    assert json.loads(shown)["tokens"] == reply.tokens.tolist()
    # the same command again changes nothing; other heads to start from are another fit
    before = file.read_bytes()
    run("fit", "pocket", *arguments, *COMMON, "--rounds", "1", "--round-epochs", "2")
    assert file.read_bytes() == before
    _, err = run(
        *("fit", "pocket", *arguments, *COMMON),
        *("--rounds", "1", "--round-epochs", "2", "--init", str(file)),
        code=2,
    )
    assert "belongs to a fit with another start" in err
    again = tmp_path / "again.safetensors"
    arguments = ("--prompts", str(questions), "--out", str(again), "--init", str(file))
    shown, _ = run("fit", "pocket", *arguments, *COMMON, "--rounds", "1", "--json")
    assert [row["epochs"] for row in json.loads(shown)["results"]] == [0, 6]
    assert read_notes(again)["notes"]["started_from"]["file"] == file.name
    assert (tmp_path / "again.fit").is_dir()


def test_a_drafter_is_fitted_and_used(run, tmp_path, questions):
    file = tmp_path / "drafter.safetensors"
    arguments = (
        *("--prompts", str(questions), "--out", str(file), "--heads", "drafter", "--layers", "1"),
        *("--on", "speech", "--unroll", "2", "--epochs", "1", "--max-new-tokens", "20"),
        *("--held-out", "0.3", "--threads", "1"),
    )
    out, _ = run("fit", "pocket", *arguments)
    assert "accepted drafts in a chain" in out
    assert "own replies" not in out
    fitting = read_notes(file)["notes"]["fitting"]
    assert (fitting["unroll"], fitting["depths"]) == (2, [0])
    model = eepolicy.load("pocket")
    full = model.generate("What color is snow?", max_new_tokens=20)
    arguments_of_reply = ("--heads", str(file), "--policy", "both=draft:3", "--accept", "exact")
    shown, _ = run(
        *("generate", "What color is snow?", *arguments_of_reply),
        *("--max-new-tokens", "20", "--json"),
    )
    assert json.loads(shown)["tokens"] == full.tokens.tolist()
    _, err = run("fit", "pocket", *arguments, "--rounds", "1", code=2)
    assert "leave rounds and policy out" in err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--questions", "9"), "--questions is from 2 to 8"),
        (("--held-out", "test"), "--held-out is a share from 0.01 to 0.9, or dev"),
        (("--policy", "statc@16", "--rounds", "1"), "statc"),
        (("--heads", "branch", "--depths", "8", "--at-once"), "--by-depth or --at-once"),
        (("--heads", "branch", "--depths", "8", "--by-depth"), "--by-depth or --at-once"),
    ],
)
def test_wrong_options_are_refused(run, tmp_path, questions, wrong, message):
    arguments = ("--prompts", str(questions), "--out", str(tmp_path / "h.safetensors"))
    _, err = run("fit", "pocket", *arguments, *COMMON, *wrong, code=2)
    assert message in err


@pytest.mark.parametrize(
    "wrong",
    [
        *(("--compile",), ("--precision", "bfloat16"), ("--batch-replies", "4"), ("--wer",)),
        *(("--unroll", "5"), ("--layers", "4")),
    ],
    ids=lambda wrong: wrong[0],
)
def test_options_of_rounds_need_rounds(run, tmp_path, questions, wrong):
    arguments = ("--prompts", str(questions), "--out", str(tmp_path / "h.safetensors"))
    _, err = run("fit", "pocket", *arguments, *wrong, code=2)
    assert f"has no stages, so it does not take {wrong[0]}" in " ".join(err.split())


def test_options_of_rounds_need_a_round(run, tmp_path, questions):
    arguments = ("--prompts", str(questions), "--out", str(tmp_path / "h.safetensors"))
    _, err = run("fit", "pocket", *arguments, *COMMON, "--mix", "0.2", "--part", "1", code=2)
    assert "without --rounds there are no rounds, so it does not take --mix, --part" in " ".join(
        err.split()
    )


def test_no_question_is_fitted_on_and_evaluated_on(run, tmp_path, monkeypatch):
    dev = [q["question"] for q in eepolicy.held_out("dev")]
    file = tmp_path / "questions.txt"
    file.write_text("\n".join([dev[3], "Where does it rain?", "Is it late?", dev[7]]))
    given = []

    def stopped(model, questions, *args, **options):
        given.append(questions)
        raise EepolicyError("stop")

    monkeypatch.setattr(fitting, "fit_rounds", stopped)
    arguments = ("--prompts", str(file), "--out", str(tmp_path / "h.safetensors"))
    run("fit", "pocket", *arguments, *COMMON, "--held-out", "dev", code=2)
    assert (len(given[0].train), len(given[0].held_out)) == (2, len(dev))


def test_the_dev_questions_need_other_prompts(run, tmp_path):
    arguments = ("--out", str(tmp_path / "h.safetensors"), "--held-out", "dev")
    _, err = run("fit", "pocket", *arguments, code=2)
    assert "give --prompts" in err


@pytest.mark.slow
def test_word_errors_are_those_of_single_clips(pocket):
    replies = generate_replies(pocket, [q["question"] for q in eepolicy.held_out("dev")[:5]])
    asr = Whisper()
    errors, words = [], []
    for reply in replies:
        text = pocket.tokenizer.decode(pocket.layout.text_ids(reply.reply)).strip()
        transcript = asr.transcribe(pocket.vocoder.decode(pocket.layout.units(reply.reply)))
        wrong, total = word_errors(text, transcript)
        errors.append(wrong)
        words.append(total)
    assert reply_word_errors(pocket, replies) == {
        "wer": sum(errors) / sum(words),
        "reply_errors": errors,
        "reply_words": words,
    }
    assert torch.get_num_threads() == 1


@pytest.mark.slow
def test_two_processes_give_the_replies_of_one(run, tmp_path, questions):
    files = {}
    for threads in ("1", "2"):
        folder = tmp_path / threads
        arguments = ("--prompts", str(questions), "--out", str(tmp_path / "h.safetensors"))
        # the replies are there before the first step
        common = [*COMMON[:-1], threads, "--epochs", "1", "--round-epochs", "1"]
        run("fit", "pocket", *arguments, *common, "--rounds", "1", "--workdir", str(folder))
        files[threads] = sorted((folder / "held_out.jsonl").read_text().splitlines())
    assert files["1"] == files["2"]
