"""Files on the Hugging Face Hub: what is missing, and what cannot be reached; no network."""

from __future__ import annotations

import warnings

import pytest
from conftest import tiny
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

import eepolicy
from eepolicy import EepolicyError, HookedModel
from eepolicy.cli.probe import _documents
from eepolicy.loading import hub, huggingface

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class TransportError(Exception):
    """An error of the HTTP client, which is no `OSError`."""


def unreachable() -> LocalEntryNotFoundError:
    error = LocalEntryNotFoundError("An error happened while trying to locate the file")
    error.__cause__ = TransportError("connection refused")
    return error


def raising(error: Exception):
    def download(*_, **__):
        raise error

    return download


@pytest.fixture
def cache(tmp_path):
    """A cache of a model whose file `known.bin` does not exist, also in the folder `sub`."""
    root = tmp_path / "models--someone--model"
    for file in ("known.bin", "sub/known.bin"):
        (root / ".no_exist" / COMMIT / file).parent.mkdir(parents=True, exist_ok=True)
        (root / ".no_exist" / COMMIT / file).touch()
    (root / "snapshots" / COMMIT).mkdir(parents=True)
    (root / "snapshots" / COMMIT / "here.bin").touch()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    return tmp_path


def test_fetch_optional_gives_none_for_a_missing_file(monkeypatch):
    monkeypatch.setattr(hub, "hf_hub_download", raising(EntryNotFoundError("404")))
    assert hub.fetch_optional("someone/model", "heads.safetensors") is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (unreachable(), r"does not say .*\(connection refused\); try again, or set HF_HUB_OFFLINE"),
        (TransportError("read timed out"), "cannot be downloaded: read timed out"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (ValueError("Force download failed"), "Force download failed"),
    ],
)
def test_a_download_error_is_not_taken_for_a_missing_file(monkeypatch, cache, error, words):
    monkeypatch.setattr(hub, "hf_hub_download", raising(error))
    with pytest.raises(EepolicyError, match=words):
        hub.fetch_optional("someone/model", "heads.safetensors", cache_dir=cache)


@pytest.mark.parametrize("place", [{}, {"subfolder": "sub"}, {"revision": COMMIT}])
def test_a_file_cached_as_missing_gives_none_without_a_warning(monkeypatch, cache, place):
    """No warning, offline or with an unreachable network."""
    place |= {"cache_dir": cache}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        missing = hub.fetch_optional("someone/model", "known.bin", local_files_only=True, **place)
        assert missing is None
        monkeypatch.setattr(hub, "hf_hub_download", raising(unreachable()))
        assert hub.fetch_optional("someone/model", "known.bin", **place) is None


@pytest.mark.parametrize("how", ["option", "environment"])
def test_offline_an_unknown_file_is_left_out_with_a_warning(monkeypatch, cache, how):
    place = {"cache_dir": cache}
    if how == "option":
        place["local_files_only"] = True
    else:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.fetch_optional("someone/model", "here.bin", **place).name == "here.bin"
    with pytest.warns(UserWarning, match="does not say whether it has other.bin"):
        assert hub.fetch_optional("someone/model", "other.bin", **place) is None


def test_a_model_is_not_loaded_without_its_heads(monkeypatch, tmp_path):
    """A fault of the network after the weights were read ends `load`."""
    tiny("llama").config.save_pretrained(tmp_path)

    def download(name, file, **_):
        if file == "config.json":
            return str(tmp_path / file)
        raise unreachable()

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface, "read_model", lambda *_, **__: tiny("llama"))
    monkeypatch.setattr(huggingface, "read_tokenizer", lambda *_, **__: None)
    with pytest.raises(EepolicyError, match=r"someone/model has heads\.safetensors"):
        eepolicy.load("someone/model")


def test_heads_of_a_repository_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(hub, "hf_hub_download", raising(unreachable()))
    with pytest.raises(EepolicyError, match=r"'a/heads', which is no file.*connection refused"):
        huggingface.heads_named("a/heads", HookedModel(tiny("llama")), "model")


def test_downloads_and_uploads_say_what_failed(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "snapshot_download", raising(unreachable()))
    with pytest.raises(EepolicyError, match=r"cannot be downloaded: .*\(connection refused\)"):
        hub.fetch("someone/model")
    monkeypatch.setattr(hub.HfApi, "create_repo", raising(TransportError("connection refused")))
    with pytest.raises(EepolicyError, match="cannot be uploaded to: connection refused"):
        hub.push_folder(tmp_path, "someone/model")


def test_a_long_text_is_no_path_and_an_unreadable_file_raises(monkeypatch):
    assert _documents("word " * 200) == ["word " * 200]
    monkeypatch.setattr("pathlib.Path.is_file", raising(PermissionError(13, "Permission denied")))
    with pytest.raises(PermissionError):
        _documents("secret/texts.txt")
