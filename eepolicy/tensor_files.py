"""Read tensors from safetensors files, and refuse what is damaged."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from eepolicy.errors import EepolicyError


def read_tensors(path: str | Path, what: str, names: Iterable[str] = ()) -> dict[str, Any]:
    """Read all tensors of a safetensors file.

    Args:
        path: the file.
        what: what the file should be, such as "a vocoder", for the message.
        names: names of tensors that it must have.

    Raises:
        EepolicyError: the file is not readable, lacks a tensor, or has one that is nan, infinite,
            complex or empty.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise EepolicyError(f"{path} is not {what}: {error}") from error
    missing = sorted({*names} - tensors.keys())
    if missing:
        raise EepolicyError(f"{path} is not {what}: it has no tensor {missing[0]!r}")
    check_tensors(tensors, path)
    return tensors


def check_tensors(tensors: Mapping[str, Any], path: str | Path) -> None:
    """Refuse tensors of a file that are nan, infinite, complex or empty.

    Raises:
        EepolicyError: with the file and the name of the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_complex() or not tensor.numel():
            wrong = "is empty" if not tensor.numel() else "has complex numbers"
        elif not bool(tensor.isfinite().all()):
            wrong = "has a number that is nan or infinite"
        else:
            continue
        raise EepolicyError(f"{path}: the tensor {name!r} {wrong}: make the file again")


@contextlib.contextmanager
def open_tensors(
    path: str | Path, key: str, what: str, framework: str = "pt"
) -> Iterator[tuple[Any, Any]]:
    """Open a safetensors file with a JSON entry in its header.

    Args:
        path: the file.
        key: name of the entry.
        what: what the file should be, such as "a trace", for the message.
        framework: library of the tensors, as in `safe_open`.

    Yields:
        The entry, and the open file.

    Raises:
        EepolicyError: the file is not readable, or has no such entry.
    """
    try:
        with safe_open(path, framework) as file:
            yield json.loads((file.metadata() or {})[key]), file
    except (SafetensorError, KeyError, OSError, TypeError, ValueError) as error:
        raise EepolicyError(f"{path} is not {what}: {error}") from error
