"""A new folder for a model: it is written whole, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from eepolicy.errors import EepolicyError


def check_new_folder(folder: Path) -> None:
    """Check that a folder is new or empty.

    Raises:
        EepolicyError: the folder contains files, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise EepolicyError(f"{folder} is a file: give a new folder")
    if folder.exists() and any(folder.iterdir()):
        raise EepolicyError(f"the folder {folder} is not empty: give a new folder")


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Fill a new folder inside a `with` block.

    Args:
        path: the folder, which is new or empty.

    Yields:
        A temporary folder beside it, which takes its place at the end of the block.  After an error
        or an interrupt it is removed.

    Raises:
        EepolicyError: the folder contains files, or cannot be written.
    """
    target = Path(os.path.realpath(path))
    check_new_folder(target)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
        yield part
        if target.exists():
            target.rmdir()
        os.replace(part, target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EepolicyError(f"the folder {path} cannot be written: {reason}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
