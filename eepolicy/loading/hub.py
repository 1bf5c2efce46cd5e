"""Checkpoints on the Hugging Face Hub that need more than `from_pretrained`."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from eepolicy.errors import EepolicyError

#: files of a checkpoint that are read; its code is not
FILES = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.json")


def fetch_config(name: str) -> Path:
    """The `config.json` of a model on the Hub.

    Raises:
        EepolicyError: there is no such model, or no network and nothing fetched before.
    """
    try:
        return Path(hf_hub_download(name, "config.json"))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise EepolicyError(
            f"{name} is no checkpoint that can be read: no such folder, and not on the Hub: {why}"
        ) from error


def fetch(name: str) -> Path:
    """A folder with a whole checkpoint, fetched where it is not there yet.

    Raises:
        EepolicyError: it cannot be had.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise EepolicyError(f"{name} cannot be fetched: {error}") from error
