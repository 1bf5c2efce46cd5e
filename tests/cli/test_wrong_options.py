"""Options that contradict each other, and output files that cannot be written."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from conftest import tiny

import eepolicy
from eepolicy import EepolicyError
from eepolicy.cli.shared import command_line
from eepolicy.folder_lock import LOCK, locked


def sentence(err: str) -> str:
    """The message without its line breaks."""
    return " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "static@10", "--fit-prompts", "q.txt"), "--fit-prompts is for --preset"),
        (("compare", "static@10", "--dry-run"), "--dry-run is for --preset"),
        (("compare", "static@10", "--vocoder", "v", "--voice-text", "a"), "give --voice"),
        (
            ("generate", "Hi", "--vocoder", "v", "--voice", "{file}", "--voice-text", "a"),
            "--voice-text is for models with a codec",
        ),
        (("generate", "a.wav", "--spoken", "--raw"), "spoken, so it does not take --chat or --raw"),
        (
            ("generate", "Hi", "--model", "{text}", "--out", "{folder}/a.wav"),
            "--out takes a model with a vocoder",
        ),
        (("leaderboard", "--out", "{folder}/board.html"), "as board.md"),
        (("leaderboard", "--out", "{folder}"), "is a folder"),
        (("bench", "static@10", "--out", "{folder}"), "is a folder"),
        (("fit", "pocket", "--out", "{folder}"), "is a folder"),
        (("probe", "pocket", "Hello.", "--csv", "{folder}/none/a.csv"), "there is no folder"),
        (("convert", "pocket", "{file}"), "is a file: give a new folder"),
        (("drift", "static@6", "--prompts", "2"), "the exit head at depth 6 is a branch"),
    ],
    ids=lambda value: " ".join(value[:1]) if isinstance(value, tuple) else "",
)
def test_wrong_options_are_refused_before_any_work(run, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    names = {"folder": tmp_path, "file": tmp_path / "file", "text": tmp_path / "text"}
    if "{text}" in arguments:
        tiny("llama").save_pretrained(names["text"])
    _, err = run(*(argument.format(**names) for argument in arguments), code=2)
    assert message in sentence(err)


def test_torch_dtype_is_refused_in_favour_of_dtype():
    with pytest.raises(EepolicyError, match="torch_dtype is called dtype here"):
        eepolicy.load("pocket", torch_dtype=torch.bfloat16)


def test_api_keys_are_not_written_to_files(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["eepolicy", "compare", "--judge-key", "sk-1", "static@10"])
    assert command_line() == "eepolicy compare --judge-key '***' static@10"
    with locked(tmp_path):
        assert "sk-1" not in (tmp_path / LOCK).read_text()
    monkeypatch.setattr(sys, "argv", ["eepolicy", "compare", "--judge-key=sk-1"])
    assert "sk-1" not in command_line()


@pytest.mark.slow
def test_a_benchmark_names_the_data_type_of_the_weights(run, tmp_path):
    page = tmp_path / "page.md"
    arguments = ("--prompts", "1", "--max-new-tokens", "4", "--rounds", "1", "--no-stock")
    shown, _ = run("bench", "static@10", *arguments, "--out", str(page), "--json")
    result = json.loads(shown)
    assert result["dtype"] == "float32"
    assert result["files"] == [str(page), str(tmp_path / "images/page.svg")]
    assert "20 layers, float32," in page.read_text()
