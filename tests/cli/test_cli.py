"""The commands, on the pocket model; comparison and its preset have separate test files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pickled_workers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import eepolicy
from eepolicy import (
    Confidence,
    EepolicyError,
    Entropy,
    FullDepth,
    HookedModel,
    Margin,
    Oracle,
    Patience,
    Random,
    Saturation,
    SparK,
    parse_policy,
)
from eepolicy.analysis.evaluation import results_files
from eepolicy.analysis.studies.policy_search import PolicyEvaluator
from eepolicy.analysis.timing import reference
from eepolicy.analysis.timing.reference import ReferenceTime
from eepolicy.cli import main
from eepolicy.cli.fit_prompts import read_questions
from eepolicy.heads import load_heads, read_notes
from eepolicy.speech import asr, mos
from eepolicy.workers import WorkerConfig

#: a short comparison in this process alone, without compiling
QUICK = ("--no-compile", "--workers", "0", "--timed", "1", "--max-new-tokens", "20")


def parse(stdout):
    """The one document on stdout, in strict JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(stdout, parse_constant=refuse)


def test_probe_command(run, pocket, tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text("What color is snow?\n\nWhat is two plus three?\n")
    table, pictures = tmp_path / "table.csv", tmp_path / "pictures"
    arguments = ["--depths", "4,12", "--csv", str(table), "--plot", str(pictures)]
    out, _ = run("probe", "pocket", str(file), "--reply", *arguments)
    assert "ProbeResult(3 of 20 depths" in out
    assert "of 2 documents" in out
    rows = table.read_text().splitlines()
    reply = len(pocket.generate("What color is snow?").tokens)
    assert sum(row.split(",")[0] == "position" for row in rows) == 1
    assert (len(rows) - 1) % 3 == 0
    assert len(rows) > 3 * reply
    assert {p.name for p in pictures.iterdir()} == {"layers.png", "heatmap.png"}
    saved = str(tmp_path / "arrays")
    arguments = ["--lens", "--save", saved, "--csv", str(table), "--plot", str(pictures)]
    out, err = run("probe", "pocket", "What color is snow?", *arguments, "--json")
    result, probed = parse(out), eepolicy.ProbeResult.load(saved)
    assert len(probed) == len(pocket.encode("What color is snow?"))
    assert (result["model"], result["lens"], result["reply"]) == ("pocket", True, False)
    assert (result["documents"], result["tokens"], result["full_depth"]) == (1, len(probed), 20)
    assert [r["depth"] for r in result["results"]] == list(range(1, 21))
    for row in result["results"]:
        assert row["modality"] == "text"
        assert row["entropy"] == pytest.approx(probed.entropy[row["depth"] - 1].mean(), abs=1e-6)
        assert row["rank_last"] == np.median(probed.rank_last[row["depth"] - 1])
    drawn = [str(pictures / name) for name in ("layers.png", "heatmap.png")]
    assert result["files"] == [saved, str(table), *drawn]
    assert all(Path(file).exists() for file in result["files"])
    assert "The arrays are in" in err
    _, err = run("probe", "pocket", "snow", "--depths", "four", code=2)
    assert "depths are numbers" in err


def test_fit_command(run, tmp_path):
    questions = tmp_path / "questions.txt"
    texts = [q["question"] for q in eepolicy.held_out("dev")[:8]]
    questions.write_text("\n".join(texts))
    file = tmp_path / "heads.safetensors"
    arguments = [
        "--prompts",
        str(questions),
        "--depths",
        "10",
        "--epochs",
        "2",
        "--held-out",
        "0.3",
        "--max-new-tokens",
        "24",
    ]
    out, _ = run("fit", "pocket", "--out", str(file), *arguments)
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".txt"] == [file.name]
    model = eepolicy.load("pocket")
    heads = load_heads(file, model.lens, model.model)
    assert heads.depths == (10,)
    notes = read_notes(file)["notes"]
    assert notes["after"]["kl"][0] < notes["before"]["kl"][0]
    assert f"{notes['after']['kl'][0]:.3f}" in out
    model.heads = heads
    reply = model.generate("What color is snow?", "both=static@10", 20)
    arguments_of_reply = ["--policy", "both=static@10", "--max-new-tokens", "20", "--json"]
    out, _ = run("generate", "What color is snow?", "--heads", str(file), *arguments_of_reply)
    assert parse(out)["tokens"] == reply.tokens.tolist()
    out, _ = run("generate", "What color is snow?", *arguments_of_reply)
    assert parse(out)["tokens"] != reply.tokens.tolist()
    arguments[3] = "6,10"
    arguments[-1] = "20"
    out, err = run("fit", "pocket", "--out", str(file), *arguments, "--json")
    result, notes = parse(out), read_notes(file)["notes"]
    assert "epoch 2" in err
    assert (result["model"], result["files"]) == ("pocket", [str(file)])
    assert (result["fitting"]["kind"], result["fitting"]["depths"]) == ("tuned", [6, 10])
    assert (result["replies"], result["held_out_replies"]) == (6, 2)
    assert result["results"] == [
        {
            "depth": depth,
            "kl_before": notes["before"]["kl"][i],
            "kl_after": notes["after"]["kl"][i],
            "agreement_before": notes["before"]["agreement"][i],
            "agreement_after": notes["after"]["agreement"][i],
        }
        for i, depth in enumerate((6, 10))
    ]
    _, err = run("fit", "pocket", "--out", str(tmp_path / "none" / "heads.safetensors"), code=2)
    assert "there is no folder" in err


@pytest.mark.slow
def test_stats_command(run, tmp_path, monkeypatch):
    monkeypatch.setattr(WorkerConfig, "start", pickled_workers.start)  # starts no process
    folder = tmp_path / "stats"
    out, _ = run("stats", "--prompts", "2", "--out", str(folder))
    assert "| entropy, nats | 20 |" in out
    names = ("statistics", "reliability", "sequences")
    for name in names:
        assert {f"{name}.md", f"{name}.svg", f"{name}.png"} <= {p.name for p in folder.iterdir()}
    # two depths have a branch, which is no readout of a single state
    assert len((folder / "reliability.md").read_text().splitlines()) == 2 + 18
    shown = out.splitlines()
    # the same command again finds nothing left to do
    out, _ = run("stats", "--prompts", "2", "--out", str(folder), "--json")
    result, probed = parse(out), eepolicy.ProbeResult.load(folder / "probe")
    assert (result["model"], result["prompts"], result["lens"]) == ("pocket", 2, False)
    assert result["tokens"] == {
        m.name.lower(): (probed.modality == m).sum() for m in eepolicy.Modality
    }
    for row in result["statistics"]:
        if row["measure"] == "entropy":
            for modality in eepolicy.Modality:
                index = probed.depths.tolist().index(row["depth"])
                own = probed.entropy[index, probed.modality == modality]
                assert row[modality.name.lower()] == pytest.approx(own.mean(dtype=float))
    [last] = [r for r in result["statistics"] if (r["measure"], r["depth"]) == ("entropy", 20)]
    [line] = [x for x in shown if x.startswith("| entropy, nats | 20 |")]
    for name in ("text", "speech"):
        assert f"| {last[name]:.2f} [{last[name + '_low']:.2f}, {last[name + '_high']:.2f}]" in line
    assert f"| {last['effect']:+.1f} | {100 * last['superiority']:.0f} |" in line
    lines = (folder / "reliability.md").read_text().splitlines()[2:]
    for row in result["reliability"]:
        line = lines[probed.depths.tolist().index(row["depth"])]
        assert f" {row['ece']:.3f} [{row['ece_low']:.3f}, {row['ece_high']:.3f}] " in line
        # the table has a dash where all agree, or none
        assert (" – |" in line) if row["auc"] is None else (f" {row['auc']:.3f} [" in line)
        assert f" {row['ideal']:.3f} " in lines[-1]
    assert len(result["reliability"]) == 2 * 17
    assert not {4, 6} & {row["depth"] for row in result["reliability"]}
    lines = (folder / "sequences.md").read_text().splitlines()[2:]
    for row, line in zip(result["sequences"], lines, strict=True):
        if row["statistic"] == "unigram":
            assert f"| {row['text']:.2f} [{row['text_low']:.2f}, {row['text_high']:.2f}] |" in line
        if row["statistic"] == "repeats":
            assert f"| {100 * row['speech']:.1f} [" in line
    assert [Path(file).exists() for file in result["files"]] == [True] * (2 + 3 * 3)
    _, err = run("stats", "--prompts", "3", "--out", str(folder), code=2)
    assert "give another file" in err


@pytest.mark.slow
def test_drift_command_with_two_fills(run, tmp_path):
    folder = tmp_path / "drift"
    arguments = ["--fill", "catch_up", "--fill", "mask", "--prompts", "2", "--out", str(folder)]
    out, _ = run("drift", "spark:even@12", *arguments, "--workers", "0")
    assert out.count("`spark:even@12`") == 2
    tokens = pd.read_csv(folder / "tokens.csv")
    whole = tokens[(tokens.modality == "speech") & (tokens.since_refresh == 0)]
    # measured 3e-10 nats in float32
    assert whole[whole.fill == "catch_up"].kl.max() < 1e-7
    assert whole[whole.fill == "mask"].kl.mean() > 1e-2
    assert (folder / "drift.svg").exists()


@pytest.mark.slow
def test_drift_command(run, tmp_path, monkeypatch):
    monkeypatch.setattr(WorkerConfig, "start", pickled_workers.start)  # starts no process
    folder = tmp_path / "drift"
    arguments = ["--fill", "mask", "--prompts", "2", "--out", str(folder)]
    out, _ = run("drift", "static@12", *arguments, "--json")
    result, tokens = parse(out), pd.read_csv(folder / "tokens.csv")
    assert (result["model"], result["prompts"]) == ("pocket", 2)
    [row] = result["results"]
    assert (row["policy"], row["fill"]) == ("static@12", "mask")
    assert row["refresh_kl"] is row["refresh_kl_low"] is None  # it never refreshes
    assert row["text_kl"] == pytest.approx(tokens[tokens.modality == "text"].kl.mean())
    spoken = tokens[tokens.modality == "speech"]
    assert row["exit_top1"] == pytest.approx(spoken.top1.mean())
    assert row["exit_kl_low"] <= row["exit_kl"] <= row["exit_kl_high"]
    assert {str(folder / f"{name}.csv") for name in ("tokens", "replies")} < {*result["files"]}
    assert all(Path(file).exists() for file in result["files"])
    _, err = run("drift", "static@30", "--out", str(folder), code=2)
    assert "30" in err


class NoRecognizer:
    """Stands for Whisper; the search itself is tested in `test_policy_search.py`."""

    def __init__(self, *_, **__):
        pass


def test_tune_command(run, tmp_path, monkeypatch):
    def evaluate(evaluator, policy, questions):
        depth = 20 if policy == "full" else parse_policy(policy).exit_depth
        wrong = np.arange(len(questions)) < len(questions) * (20 - depth) / 20
        return pd.DataFrame({"wer": wrong / 2, "right": 1.0 - wrong, "calls": depth, "tokens": 1})

    monkeypatch.setattr(asr, "missing_asr", lambda *_: None)
    monkeypatch.setattr(asr, "Whisper", NoRecognizer)
    monkeypatch.setattr(PolicyEvaluator, "_measure", evaluate)
    file = tmp_path / "tuned.md"
    arguments = ["--prompts", "100", "--check", "20", "--wer-loss", "30", "--accuracy-loss", "40"]
    arguments += ["--depths", "18,16,10"]
    shown, _ = run("tune", *arguments, "--out", str(file))
    assert file.read_text().split() == shown.split("chain ends\n")[-1].split()
    out, err = run("tune", *arguments, "--out", str(file), "--json")
    result = parse(out)
    assert "static@18: p" in err
    assert (result["model"], result["prompts"], result["check"]) == ("pocket", 100, 20)
    assert result["budget"] == {"wer": 0.3, "accuracy": 0.4, "confidence": 0.95}
    assert result["files"] == [str(file)]
    assert result["best"] == "static@16"
    assert result["checked"]["calls"] == 16
    assert result["checked"]["accuracy_loss"] == pytest.approx(0.2)
    assert result["checked"]["wer_loss_low"] < 0.1 < result["checked"]["wer_loss_high"]
    rows = {row["policy"]: row for row in result["results"]}
    assert len(rows) == len(result["results"]) == 9
    for policy, row in rows.items():
        depth = parse_policy(policy).exit_depth
        assert (row["calls"], row["passed"]) == (depth, depth > 10)
        assert row["accuracy_loss"] == pytest.approx((20 - depth) / 20)
        assert f"| `{policy}` | {depth}.00 |" in shown


def test_doctor_reports_versions_and_missing_parts(run, monkeypatch):
    report = json.loads(run("doctor", "--json")[0])
    # a wheel may leave the build it is for out of its metadata
    assert report["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert report["versions"]["transformers"] == transformers.__version__
    monkeypatch.setattr(asr, "missing_asr", lambda: "pip install asr")
    report = json.loads(run("doctor", "--json")[0])
    assert report["parts"]["speech recognition"] == "pip install asr"
    monkeypatch.setattr("eepolicy.cli.doctor.find_spec", lambda module: None)
    out, _ = run("doctor", "--strict", code=1)
    assert "pip install 'eepolicy[inspect]'" in out  # brackets are no markup
    assert "pip install asr" in out


def test_doctor_times_the_machine(run, monkeypatch):
    monkeypatch.setattr(reference, "reference_seconds", lambda: ReferenceTime(1.0, 2.0, threads=3))
    speed = json.loads(run("doctor", "--speed", "--json")[0])["speed"]
    assert (speed["one_thread"], speed["all_threads"], speed["threads"]) == (1.0, 2.0, 3)
    assert speed["one_thread_ratio"] == 1 / reference.ONE_THREAD_SECONDS
    assert "reference loop: 1.00 s on one thread" in run("doctor", "--speed")[0]
    assert "speed" not in json.loads(run("doctor", "--json")[0])


def test_every_listed_policy_spec_parses(run):
    listed = json.loads(run("policies", "--json")[0])
    for entry in listed:
        assert parse_policy(entry["spec"]).spec == entry["spec"]
    names = {parse_policy(entry["spec"]).name for entry in listed}
    kinds = {Confidence, Entropy, FullDepth, Margin, Oracle, Patience, Random, Saturation, SparK}
    assert {kind.name for kind in kinds} <= names
    shown, _ = run("policies")
    assert all(entry["spec"] in shown for entry in listed)


def test_generate_samples(run, pocket):
    options = ["--policy", "static@16", "--max-new-tokens", "12", "--temperature", "1.5"]
    options += ["--top-p", "0.9", "--json"]
    tokens = [
        parse(run("generate", "What color is snow?", *options, "--seed", seed)[0])["tokens"]
        for seed in ("3", "3", "4")
    ]
    sampled = pocket.generate(
        "What color is snow?", "static@16", 12, temperature=1.5, top_p=0.9, seed=3
    )
    assert tokens[0] == tokens[1] == sampled.tokens.tolist()
    assert tokens[2] != tokens[0]


def test_questions_go_through_the_chat_template(run, tmp_path):
    """By default if the tokenizer has one; `--raw` and speech models use the text itself."""
    pocket = eepolicy.load("pocket")
    pocket.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}?{% endfor %}"
    text = HookedModel(pocket.model, tokenizer=pocket.tokenizer)
    text.save_pretrained(tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--max-new-tokens", "4", "--json"]
    replies = {}
    for flags in ([], ["--chat"], ["--raw"]):
        replies[tuple(flags)] = json.loads(run("generate", "Hi", *flags, *options)[0])["tokens"]
    expected = {flags: "Hi" if flags == ("--raw",) else "Hi?" for flags in replies}
    for flags, prompt in expected.items():
        assert replies[flags] == text.generate(prompt, max_new_tokens=4).tokens.tolist()
    assert replies[()] != replies[("--raw",)]


def test_prompts_to_fit_on_may_be_chats(tmp_path):
    file = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "Hi"}]
    lines = ["Hello", turns, {"messages": turns}, {"prompt": "Hello"}]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert read_questions("pocket", file) == ["Hello", turns]  # each once
    file.write_text('"Hello"\n7\n"Hi"\n', encoding="utf-8")
    with pytest.raises(EepolicyError, match=r"chats.jsonl, line 2: a prompt is a text"):
        read_questions("pocket", file)


def test_small_models_run_on_one_thread(run):
    torch.set_num_threads(2)  # the fixture restores the number
    run("generate", "Hi?", "--max-new-tokens", "1")
    assert torch.get_num_threads() == 1
    run("generate", "Hi?", "--max-new-tokens", "1", "--threads", "2")
    assert torch.get_num_threads() == 2


def test_generate_as_json(run, pocket, tmp_path):
    arguments = ("generate", "What color is snow?", "--policy", "spark:triple@14")
    wave = tmp_path / "snow.wav"
    result = json.loads(run(*arguments, "--out", str(wave), "--json")[0])
    assert result["files"] == [str(wave)]
    assert wave.is_file()
    out = pocket.generate("What color is snow?", "spark:triple@14")
    assert result["text"] == out.text
    assert result["tokens"] == out.tokens.tolist()
    assert result["depths"] == out.trace.depth.tolist()
    assert result["layer_calls"] == out.trace.layer_calls.sum()


def test_debug_raises_errors_instead_of_printing_them(run, monkeypatch):
    _, err = run("generate", "x", "--policy", "nope", code=2)
    assert "Traceback" not in err
    monkeypatch.setattr(sys, "argv", ["eepolicy", "--debug", "generate", "x", "--policy", "nope"])
    with pytest.raises(eepolicy.EepolicyError, match="'nope' is no policy"):
        main()


@pytest.mark.slow
def test_report_writes_the_page_again(run, tmp_path, monkeypatch):
    for module, missing in ((asr, "missing_asr"), (mos, "missing_mos")):
        monkeypatch.setattr(module, missing, lambda *_: "not here")
    folder = str(tmp_path / "run")
    arguments = ("compare", "static@14", "--prompts", "2", "--out", folder, *QUICK)
    results = json.loads(run(*arguments, "--json")[0])
    assert [r["policy"] for r in results] == ["full", "static@14"]
    page = tmp_path / "run" / "index.html"
    page.unlink()
    out, _ = run("report", folder)
    assert "2 questions, 2 policies" in out
    assert "static@14" in page.read_text()
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    out, _ = run("report", folder, "--json")
    result = parse(out)
    assert (result["model"], result["folder"], result["results"]) == ("pocket", folder, results)
    assert {str(page), str(tmp_path / "run" / "results.csv")} < {*result["files"]}
    assert all(Path(file).is_file() for file in result["files"])
    eepolicy.load("pocket").model.save_pretrained(tmp_path / "other")
    other = load_file(tmp_path / "other" / "model.safetensors")
    other["model.norm.weight"] += 1
    save_file(other, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    del config["speech_layout"]
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    _, err = run("report", folder, "--model", str(tmp_path / "other"), code=2)
    assert "contains a run of another model" in err
    _, err = run("report", folder, "--heads", "lens", code=2)
    assert "contains a run with other exit heads" in err
    _, err = run("report", str(tmp_path), code=2)
    assert "contains no records" in err


@pytest.mark.slow  # the file itself is tested in `test_results_files.py`
def test_results_in_parquet_are_those_in_csv(run, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow", reason="Parquet takes pyarrow: pip install pyarrow")
    for module, missing in ((asr, "missing_asr"), (mos, "missing_mos")):
        monkeypatch.setattr(module, missing, lambda *_: "not here")
    folder = tmp_path / "run"
    run("compare", "static@14", "--prompts", "2", "--out", str(folder), *QUICK)
    table = pd.read_parquet(folder / "results.parquet")
    pd.testing.assert_frame_equal(table, pd.read_csv(folder / "results.csv"), rtol=1e-15)
    assert table.wer.isna().all()  # without speech recognition
    (folder / "results.parquet").unlink()
    monkeypatch.setattr(results_files, "find_spec", lambda name: None)
    _, err = run("report", str(folder))
    assert not (folder / "results.parquet").exists()
    assert "arrow" not in err
