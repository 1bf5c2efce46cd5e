"""Checkpoints on the Hugging Face Hub that need more than `from_pretrained`."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from huggingface_hub import (
    _CACHED_NO_EXIST,
    HfApi,
    hf_hub_download,
    is_offline_mode,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from eepolicy.errors import EepolicyError, translated

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
    message = "cannot be loaded: it is neither a folder nor an id on the Hugging Face Hub that can"
    with _explained(f"{name} {message} be reached"):
        return Path(hf_hub_download(name, "config.json", **hub))


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
    with _explained(f"{name} cannot be downloaded"):
        folder: str = snapshot_download(name, allow_patterns=files, **hub)
    return Path(folder) / subfolder


def fetch_optional(name: str, file: str, **hub: Any) -> Path | None:
    """Download one file of a model, or take it from the cache; None if the model has none.

    The cache knows that a file does not exist if an earlier call has requested it.  Offline,
    a file of which the cache knows nothing counts as missing, with a warning: the model may come
    from another program, which did not request it.

    Args:
        name: id on the Hugging Face Hub.
        file: name of the file.
        **hub: options of `HUB_OPTIONS`.

    Raises:
        EepolicyError: the Hub cannot say whether the file exists, or the download fails.
    """
    with _explained(f"{file} of {name} cannot be downloaded"):
        try:
            return Path(hf_hub_download(name, file, **hub))
        except EntryNotFoundError as error:
            missing = error
    # a `LocalEntryNotFoundError` means that the Hub was not reached; otherwise it has no such file
    if not isinstance(missing, LocalEntryNotFoundError) or _is_known_missing(name, file, hub):
        return None
    if not (is_offline_mode() or hub.get("local_files_only")):
        raise EepolicyError(
            f"the Hugging Face Hub does not say whether {name} has {file}: {reason(missing)}; "
            "try again, or set HF_HUB_OFFLINE=1 to load what the cache contains"
        ) from missing
    warnings.warn(
        f"{name} is loaded offline, and the cache does not say whether it has {file}: it is "
        "loaded without this file; load it once with network to be sure",
        stacklevel=2,
    )
    return None


def _is_known_missing(name: str, file: str, hub: dict[str, Any]) -> bool:
    """Whether the cache stores that a file does not exist."""
    path = f"{hub['subfolder']}/{file}" if hub.get("subfolder") else file
    source = {key: hub[key] for key in ("cache_dir", "revision") if key in hub}
    return try_to_load_from_cache(name, path, **source) is _CACHED_NO_EXIST


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
    with _explained(f"{repo_id} cannot be uploaded to"):
        api = HfApi(token=options.pop("token", None))
        repo = api.create_repo(repo_id, exist_ok=True, **options).repo_id
        return str(api.upload_folder(repo_id=repo, folder_path=folder).commit_url)


def _explained(message: str) -> AbstractContextManager[None]:
    """Explain errors of the Hub's client: its releases differ in the errors of the transport."""
    return translated(lambda error: EepolicyError(f"{message}: {reason(error)}"))


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if it has none."""
    return next(iter(str(error).strip().split("\n")), "").strip() or type(error).__name__


def reason(error: Exception) -> str:
    """The first line of an error of the Hub's client, and of the error that caused it."""
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
    more = f" ({first_line(cause)})" if isinstance(cause, Exception) else ""
    return first_line(error) + more
