"""The data type in which a checkpoint stores its weights."""

from __future__ import annotations

from pathlib import Path

import torch

from eepolicy.errors import EepolicyError
from eepolicy.loading.hub import fetch_config
from eepolicy.loading.huggingface import read_config
from eepolicy.loading.upstream.checkpoint import read_shapes

#: fields of `config.json` with the data type: of transformers 5, and of earlier releases
FIELDS = ("dtype", "torch_dtype")
#: names of the data types that are used
NAMES = ("bfloat16", "float16")


def stored_dtype(name: str) -> torch.dtype:
    """Find the data type of the weights without reading them.

    Args:
        name: see `eepolicy.load`.

    Returns:
        bfloat16 or float16 where the weights are stored so, otherwise float32.

    Examples:
        >>> stored_dtype("pocket")
        torch.float32
    """
    folder = Path(name)
    if name == "pocket":  # its figures are in float32
        return torch.float32
    if folder.exists():
        config = read_config(folder / "config.json")
    else:
        try:
            config = read_config(fetch_config(name))
        except EepolicyError:  # `load` says why
            return torch.float32
    config = config | config.get("text_config", {})
    stored = next((config[field] for field in FIELDS if config.get(field)), None)
    if stored is None and folder.is_dir():
        stored = _first_weight(folder)
    return getattr(torch, str(stored)) if stored in NAMES else torch.float32


def _first_weight(folder: Path) -> str | None:
    """Data type of the first weight of a folder; None without a weight that can be read."""
    try:
        _, _, weight = next(read_shapes(folder))
    except (EepolicyError, StopIteration):
        return None
    return str(weight.dtype).removeprefix("torch.")
