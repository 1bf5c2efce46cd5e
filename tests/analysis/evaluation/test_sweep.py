"""Sweeps: rows and comparisons of a file, and the command."""

from __future__ import annotations

import json

import pytest
from torch import nn
from typer.testing import CliRunner

from eepolicy import EepolicyError
from eepolicy.analysis.evaluation.sweep import read_sweep
from eepolicy.cli import app
from eepolicy.cli import sweep as command
from eepolicy.workers import WorkerConfig

TEXT = """
models = ["pocket", "my/models/pocket-2/"]
policies = ["full", "static@6", "spark:even@12, fill=mask"]
fills = ["catch_up", "propagate"]
accepts = ["all", "top:5"]
tasks = { trivia = "trivia.jsonl", "web q" = "web.jsonl" }
prompts = 2
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(TEXT)
    return path


def test_rows_are_all_combinations_once(file):
    assert read_sweep(file).rows() == [
        "full",
        "static@6",
        "static@6, accept=top:5",
        "static@6, fill=propagate",
        "static@6, fill=propagate, accept=top:5",
        "spark:even@12, fill=mask",
    ]


def test_each_model_and_task_has_a_folder(file):
    names = [cell.name for cell in read_sweep(file).cells()]
    assert names == ["pocket-trivia", "pocket-web_q", "pocket-2-trivia", "pocket-2-web_q"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("prompts = 2", "prompts = 0"), "prompts"),
        (("prompts = 2", "promts = 2"), "promts"),
        (("prompts = 2", "prompts = "), "TOML"),
        (('"pocket", ', '"other/pocket-2", '), "folder 'pocket-2-trivia'"),
        (('"static@6"', '"statik@6"'), "statik"),
    ],
)
def test_wrong_files_are_refused(file, change, message):
    file.write_text(TEXT.replace(*change))
    with pytest.raises(EepolicyError, match=message):
        [read_sweep(file).rows(), read_sweep(file).cells()]


class Model:
    """Stands for a model that was loaded."""

    device = type("Device", (), {"type": "cuda"})()  # its workers do not load it
    model = nn.Linear(1, 1)


@pytest.fixture
def calls(file, tmp_path, monkeypatch):
    """Runs a sweep without comparing; gives the result, and the calls of each function."""
    made: dict[str, list] = {"load": [], "compare": [], "leaderboard": []}

    def load(name, *_):
        made["load"].append(name)
        return Model()

    def compare(model, questions, folder, config, metrics, notes):
        made["compare"].append((model, len(questions), folder.path.name, config))
        if folder.path.name == "pocket-web_q":
            raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(command, "load_model", load)
    monkeypatch.setattr(command, "run_comparison", compare)
    monkeypatch.setattr(command, "print_comparison", lambda *_: None)
    monkeypatch.setattr(
        command, "leaderboard", lambda folders, out_file: made["leaderboard"].append(folders)
    )
    lines = [json.dumps({"question": text, "answer": "white"}) for text in ("What is snow?", "Q?")]
    for name in ("trivia", "web"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    file.write_text(TEXT.replace("trivia.jsonl", f"{tmp_path}/trivia.jsonl"))
    file.write_text(file.read_text().replace('"web.jsonl', f'"{tmp_path}/web.jsonl'))
    arguments = ["sweep", str(file), "--out", str(tmp_path / "out"), "--workers", "3"]
    return CliRunner().invoke(app, arguments), made


def test_a_comparison_that_fails_does_not_stop_the_others(calls, tmp_path):
    result, made = calls
    assert isinstance(result.exception, EepolicyError), result.output
    assert "1 of 4 comparisons failed: pocket-web_q" in str(result.exception)
    assert "pocket-web_q: RuntimeError: CUDA out of memory" in result.output
    others = ("pocket-trivia", "pocket-2-trivia", "pocket-2-web_q")
    assert made["leaderboard"] == [[tmp_path / "out" / name for name in others]]
    _, numbers, folders, configs = zip(*made["compare"], strict=True)
    assert numbers == (2, 2, 2, 2)
    assert folders == ("pocket-trivia", "pocket-web_q", "pocket-2-trivia", "pocket-2-web_q")
    assert all(c.workers == WorkerConfig(3) and len(c.policies) == 6 for c in configs)


def test_each_model_is_loaded_once(calls):
    _, made = calls
    assert made["load"] == ["pocket", "my/models/pocket-2/"]
    models = [model for model, *_ in made["compare"]]
    assert models[0] is models[1] is not models[2] is models[3]


@pytest.mark.slow
def test_a_sweep_runs_and_goes_on(tmp_path):
    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"question": "What color is snow?", "answer": "white"}) + "\n")
    file = tmp_path / "sweep.toml"
    file.write_text(
        f'models = ["pocket"]\npolicies = ["static@6"]\ntasks = {{ a = "{task}", b = "{task}" }}\n'
        "prompts = 1\ntimed = 0\nmax_new_tokens = 30\n"
    )
    arguments = ["sweep", str(file), "--out", str(tmp_path / "out"), "--workers", "0"]
    for _ in range(2):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        folders = sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir())
        assert folders == ["pocket-a", "pocket-b"]
        board = (tmp_path / "out" / "leaderboard.md").read_text()
        rows = [line for line in board.splitlines() if line.startswith("|")]
        assert sum("static@6" in row for row in rows) == 2
        records = (tmp_path / "out" / "pocket-a" / "records.jsonl").read_text()
        assert records.count("\n") == 2
