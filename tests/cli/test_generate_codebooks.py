"""`eepolicy generate` on a folder with several codebooks, and what the other commands say."""

from __future__ import annotations

import json

import pytest
import soundfile
from codebooks.small_processor import small_processor

from eepolicy.loading import load_codebooks
from eepolicy.testing.codebooks import random_csm

TEXT = "[0] hello you"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of a small CSM as transformers writes it, with its processor."""
    import torch

    path = tmp_path_factory.mktemp("csm")
    random_csm(dtype=torch.float32).save_pretrained(path)
    small_processor().save_pretrained(path)
    return path


def test_generate_writes_sound_and_counts_codebooks(folder, tmp_path, run):
    wave = tmp_path / "a.wav"
    options = ["--policy", "static@2", "--depth-policy", "static@1", "--codebooks", "first:3"]
    options += ["--missing", "previous", "--max-new-tokens", "4"]
    out, err = run("generate", TEXT, "--model", str(folder), *options, "--out", str(wave))
    assert "4 frames, 3.00 of 5 codebooks" in out
    assert "s of speech in" in out
    assert "Loading weights" not in out + err
    model = load_codebooks(folder)
    expected = model.generate(
        TEXT, "static@2", "static@1", 3, missing="previous", max_new_tokens=4, seed=0
    )
    sound, rate = soundfile.read(wave)
    assert (len(sound), rate) == (len(expected.audio), expected.sampling_rate)
    out, _ = run("generate", TEXT, "--model", str(folder), *options, "--json")
    document = json.loads(out)
    assert document["codes"] == expected.codes.tolist()
    assert document["trace"]["num_codebooks"] == [3] * 4
    assert document["files"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--accept", "exact"], "has several codebooks, so it does not take --accept"),
        (["--restrict-vocab", "--spoken"], "does not take --spoken, --restrict-vocab"),
        (["--policy", "static@9"], "depth"),
        (["--codebooks", "first:9"], "codebooks"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder, run, arguments, message):
    _, err = run("generate", TEXT, "--model", str(folder), *arguments, code=2)
    assert message in err


@pytest.mark.parametrize("device", ["auto", "balanced_low_0"])
def test_a_device_map_spreads_the_model(folder, run, monkeypatch, device):
    maps = []

    def load(*args, device_map, **options):
        maps.append(device_map)  # the stock loader needs the package accelerate for it
        return load_codebooks(*args, **options)

    monkeypatch.setattr("eepolicy.loading.load_codebooks", load)
    run("generate", TEXT, "--model", str(folder), "--device", device, "--max-new-tokens", "1")
    assert maps == [device]


def test_a_model_with_one_stream_refuses_codebook_options(run):
    _, err = run("generate", "Hi?", "--codebooks", "first:2", "--missing", "previous", code=2)
    assert "has one stream of tokens, not several codebooks, so it does not take --codebooks" in err


@pytest.mark.parametrize(
    "command",
    [
        ("probe", "{}", "hello"),
        ("fit", "{}", "--out", "heads.safetensors", "--prompts", "prompts.txt"),
        ("compare", "static@2", "--model", "{}"),
        ("bench", "--model", "{}"),
        ("tune", "--model", "{}"),
    ],
    ids=lambda command: command[0],
)
def test_other_commands_refer_to_generate(folder, run, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("hello\nyou\n")
    _, err = run(*(word.format(folder) for word in command), code=2)
    assert "'eepolicy generate' decodes it" in err
