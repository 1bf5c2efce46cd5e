"""Checkpoints on the Hugging Face Hub that need more than `from_pretrained`."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from eepolicy.errors import EepolicyError

#: files that are downloaded; the code of a checkpoint is not
FILES = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.json")


def fetch_config(name: str) -> Path:
    """Download the `config.json` of a model, or take it from the cache.

    Raises:
        EepolicyError: the model does not exist, or there is no network and no cached file.
    """
    try:
        return Path(hf_hub_download(name, "config.json"))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise EepolicyError(
            f"{name} cannot be loaded: it is neither a folder nor an id on the Hugging Face Hub "
            f"that can be reached: {first_line(error)}"
        ) from error


def fetch(name: str) -> Path:
    """Download a checkpoint, or take it from the cache, and return its folder.

    Raises:
        EepolicyError: the download fails.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise EepolicyError(f"{name} cannot be downloaded: {error}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if it has none."""
    return next(iter(str(error).strip().split("\n")), "").strip() or type(error).__name__
