"""The commands, on the pocket model; comparison and its preset have files of their own."""

from __future__ import annotations

import json
import sys

import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import eepolicy
from eepolicy import (
    Confidence,
    Entropy,
    FullDepth,
    Margin,
    Oracle,
    Patience,
    Random,
    Saturation,
    SparK,
    parse_policy,
)
from eepolicy.cli import main
from eepolicy.heads import load_heads, read_notes
from eepolicy.speech import asr, mos


def test_probe_command(run, tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text("What color is snow?\n\nWhat is two plus three?\n")
    table, pictures = tmp_path / "table.csv", tmp_path / "pictures"
    arguments = ["--depths", "4,12", "--csv", str(table), "--plot", str(pictures)]
    out, _ = run("probe", "pocket", str(file), "--reply", *arguments)
    assert "ProbeResult(3 of 20 depths" in out
    assert "of 2 documents" in out
    rows = table.read_text().splitlines()
    reply = len(eepolicy.load("pocket").generate("What color is snow?").tokens)
    assert sum(row.split(",")[0] == "position" for row in rows) == 1
    assert (len(rows) - 1) % 3 == 0
    assert len(rows) > 3 * reply
    assert {p.name for p in pictures.iterdir()} == {"layers.png", "heatmap.png"}
    saved = str(tmp_path / "arrays")
    run("probe", "pocket", "What color is snow?", "--lens", "--save", saved)
    assert len(eepolicy.ProbeResult.load(saved)) == len(
        eepolicy.load("pocket").encode("What color is snow?")
    )
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
    ]
    out, _ = run("fit", "pocket", "--out", str(file), *arguments)
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".txt"] == [file.name]
    model = eepolicy.load("pocket")
    heads = load_heads(file, model.lens, model.model)
    assert heads.depths == (10,)
    notes = read_notes(file)["notes"]
    assert notes["after"]["kl"][0] < notes["before"]["kl"][0]
    assert f"{notes['after']['kl'][0]:.3f}" in out
    _, err = run("fit", "pocket", "--out", str(tmp_path / "none" / "heads.safetensors"), code=2)
    assert "there is no folder" in err


def test_stats_command(run, tmp_path):
    folder = tmp_path / "stats"
    out, _ = run("stats", "--prompts", "4", "--out", str(folder))
    assert "| entropy, nats | 20 |" in out
    names = ("statistics", "reliability", "sequences")
    for name in names:
        assert {f"{name}.md", f"{name}.svg", f"{name}.png"} <= {p.name for p in folder.iterdir()}
    assert len((folder / "reliability.md").read_text().splitlines()) == 2 + 20
    run("stats", "--prompts", "4", "--out", str(folder))  # goes on, with nothing left to do
    _, err = run("stats", "--prompts", "5", "--out", str(folder), code=2)
    assert "take another file" in err


def test_drift_command(run, tmp_path):
    folder = tmp_path / "drift"
    arguments = ["--fill", "catch_up", "--fill", "mask", "--prompts", "2", "--out", str(folder)]
    out, _ = run("drift", "spark:even@12", *arguments)
    assert out.count("`spark:even@12`") == 2
    tokens = pd.read_csv(folder / "tokens.csv")
    whole = tokens[(tokens.modality == "speech") & (tokens.since_refresh == 0)]
    # measured 3e-10 nats in float32
    assert whole[whole.fill == "catch_up"].kl.max() < 1e-7
    assert whole[whole.fill == "mask"].kl.mean() > 1e-2
    assert (folder / "drift.svg").exists()
    _, err = run("drift", "static@30", "--out", str(folder), code=2)
    assert "30" in err


def test_doctor_says_what_is_there(run, monkeypatch):
    found = json.loads(run("doctor", "--json")[0])
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["transformers"] == transformers.__version__
    monkeypatch.setattr(asr, "missing_asr", lambda: "pip install ears")
    found = json.loads(run("doctor", "--json")[0])
    assert found["parts"]["speech recognition"] == "pip install ears"
    out, _ = run("doctor", "--strict", code=1)
    assert "pip install ears" in out


def test_every_listed_policy_is_one(run):
    listed = json.loads(run("policies", "--json")[0])
    for entry in listed:
        assert parse_policy(entry["spec"]).spec == entry["spec"]
    names = {parse_policy(entry["spec"]).name for entry in listed}
    kinds = {Confidence, Entropy, FullDepth, Margin, Oracle, Patience, Random, Saturation, SparK}
    assert {kind.name for kind in kinds} <= names
    shown, _ = run("policies")
    assert all(entry["spec"] in shown for entry in listed)


def test_generate_for_machines(run):
    arguments = ("generate", "What color is snow?", "--policy", "spark:triple@14")
    told = json.loads(run(*arguments, "--json")[0])
    out = eepolicy.load("pocket").generate("What color is snow?", "spark:triple@14")
    assert told["text"] == out.text
    assert told["tokens"] == out.tokens.tolist()
    assert told["depths"] == out.trace.depth.tolist()
    assert told["layer_calls"] == out.trace.layer_calls.sum()


def test_debug_shows_where_an_error_is_from(run, monkeypatch):
    _, err = run("generate", "x", "--policy", "nope", code=2)
    assert "Traceback" not in err
    monkeypatch.setattr(sys, "argv", ["eepolicy", "--debug", "generate", "x", "--policy", "nope"])
    with pytest.raises(eepolicy.EepolicyError, match="'nope' is no policy"):
        main()


def test_report_writes_the_page_anew(run, tmp_path, monkeypatch):
    for module, missing in ((asr, "missing_asr"), (mos, "missing_mos")):
        monkeypatch.setattr(module, missing, lambda *_: "not here")
    folder = str(tmp_path / "run")
    arguments = ("compare", "static@14", "--prompts", "2", "--out", folder)
    results = json.loads(run(*arguments, "--max-new-tokens", "30", "--json")[0])
    assert [r["policy"] for r in results] == ["full", "static@14"]
    page = tmp_path / "run" / "index.html"
    page.unlink()
    out, _ = run("report", folder)
    assert "2 questions, 2 policies" in out
    assert "static@14" in page.read_text()
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    eepolicy.load("pocket").model.save_pretrained(tmp_path / "other")
    other = load_file(tmp_path / "other" / "model.safetensors")
    other["model.norm.weight"] += 1
    save_file(other, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    del config["speech_layout"]
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    _, err = run("report", folder, "--model", str(tmp_path / "other"), code=2)
    assert "holds a run of another model" in err
    _, err = run("report", str(tmp_path), code=2)
    assert "holds no records" in err
