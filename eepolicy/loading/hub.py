"""Checkpoints on the Hugging Face Hub that need more than `from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from eepolicy.errors import EepolicyError

#: files that are downloaded; the code of a checkpoint is not
FILES = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.json")
#: options of `from_pretrained` that say where a file is, and hold for every file of a model
HUB_OPTIONS = ("revision", "token", "subfolder", "cache_dir", "local_files_only", "force_download")


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `from_pretrained` that say where a file is."""
    return {name: options[name] for name in HUB_OPTIONS if name in options}


def fetch_config(name: str, **hub: Any) -> Path:
    """Download the `config.json` of a model, or take it from the cache.

    Args:
        name: id on the Hugging Face Hub.
        **hub: options of `HUB_OPTIONS`.

    Raises:
        EepolicyError: the model does not exist, or there is no network and no cached file.
    """
    try:
        return Path(hf_hub_download(name, "config.json", **hub))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise EepolicyError(
            f"{name} cannot be loaded: it is neither a folder nor an id on the Hugging Face Hub "
            f"that can be reached: {first_line(error)}"
        ) from error


def fetch(name: str, **hub: Any) -> Path:
    """Download a checkpoint, or take it from the cache, and return its folder.

    Args:
        name: id on the Hugging Face Hub.
        **hub: options of `HUB_OPTIONS`.

    Raises:
        EepolicyError: the download fails.
    """
    subfolder: str = hub.pop("subfolder", "")
    files = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in FILES]
    try:
        folder: str = snapshot_download(name, allow_patterns=files, **hub)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise EepolicyError(f"{name} cannot be downloaded: {error}") from error
    return Path(folder) / subfolder


def fetch_optional(name: str, file: str, **hub: Any) -> Path | None:
    """Download one file of a model, or take it from the cache; None if the model has none.

    Args:
        name: id on the Hugging Face Hub.
        file: name of the file.
        **hub: options of `HUB_OPTIONS`.
    """
    try:
        return Path(hf_hub_download(name, file, **hub))
    except (EntryNotFoundError, OSError, ValueError, HfHubHTTPError):
        return None


def push_folder(folder: Path, repo_id: str, **options: Any) -> str:
    """Upload the files of a folder to the Hugging Face Hub.

    Args:
        folder: folder with the files.
        repo_id: repository, which is created if it does not exist.
        **options: `private` and `token`.

    Returns:
        Address of the commit.

    Raises:
        EepolicyError: the upload fails.
    """
    try:
        api = HfApi(token=options.pop("token", None))
        repo = api.create_repo(repo_id, exist_ok=True, **options).repo_id
        return str(api.upload_folder(repo_id=repo, folder_path=folder).commit_url)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise EepolicyError(f"{repo_id} cannot be uploaded to: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if it has none."""
    return next(iter(str(error).strip().split("\n")), "").strip() or type(error).__name__
