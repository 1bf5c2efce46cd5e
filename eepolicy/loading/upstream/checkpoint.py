"""Checkpoints in their authors' layout: read weight by weight into native transformers classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError

#: a key and tensor of a checkpoint to those of the native class; none where it has no place there
Convert = Callable[[str, Tensor], Iterable[tuple[str, Tensor]]]

INDEX = "model.safetensors.index.json"


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint.

    Raises:
        EepolicyError: it is missing or damaged.
    """
    try:
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    except (OSError, ValueError) as error:
        raise EepolicyError(f"{file} cannot be read: {error}") from error


def shards(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights.

    Raises:
        EepolicyError: there are none, or the index names some that are missing.
    """
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise EepolicyError(
                f"{folder} lacks {len(missing)} of the {len(names)} files that its index names, "
                f"{missing[0] if missing else 'all'} first: fetch it anew"
            )
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    raise EepolicyError(f"{folder} holds no safetensors; pickled weights are not read")


def tensors(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """Every weight of a checkpoint with its file and key, one in memory at a time.

    Raises:
        EepolicyError: a file is damaged.
    """
    return _each(folder, lambda held, key: held.get_tensor(key))


def headers(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """Every weight of a checkpoint with its file and key, without what is in it.

    Raises:
        EepolicyError: a file is damaged.
    """

    def empty(held: Any, key: str) -> Tensor:
        part = held.get_slice(key)
        kind = getattr(torch, _DTYPES.get(part.get_dtype(), "float32"))
        return torch.empty(part.get_shape(), dtype=kind, device="meta")

    return _each(folder, empty)


def _each(folder: Path, take: Callable[[Any, str], Tensor]) -> Iterator[tuple[Path, str, Tensor]]:
    """What is taken of each weight, with its file and key."""
    for file in shards(folder):
        try:
            with safe_open(file, "pt") as held:
                for key in held.keys():  # noqa: SIM118
                    yield file, key, take(held, key)
        except (SafetensorError, OSError) as error:
            raise EepolicyError(f"{file} is damaged or no safetensors file: {error}") from error


#: kinds of numbers, as safetensors calls them
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "I8": "int8"}

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Native(Generic[M]):
    """How a checkpoint in another layout becomes a native model.

    Attributes:
        make: the model, with weights to be filled.
        convert: a key and tensor of the checkpoint to the native ones.
        tied: weights that a checkpoint need not have.
    """

    make: Callable[[], M]
    convert: Convert
    tied: frozenset[str] = frozenset()


def load_native(
    native: Native[M],
    folder: Path,
    dtype: torch.dtype,
    read: Callable[[Path], Iterator[tuple[Path, str, Tensor]]] = tensors,
) -> M:
    """A native model with the weights of a checkpoint in another layout.

    The model is made without memory and filled weight by weight, each in the wanted precision, so
    that the weights are never held twice.  What is no weight is still missing: see `complete`.

    Args:
        native: the model.
        folder: of the checkpoint.
        dtype: of the weights.
        read: `tensors`, or `headers` to see whether all fits without reading the weights.

    Raises:
        EepolicyError: a file or key is missing, damaged, of another shape, or has no place.
    """
    with torch.device("meta"):
        model = native.make()
    wanted = dict(model.named_parameters())
    filled: set[str] = set()
    for file, key, tensor in read(folder):
        for name, part in native.convert(key, tensor):
            if name not in wanted:
                raise EepolicyError(
                    f"{file} holds {key}, which has no place in the model that config.json "
                    "describes: it is a checkpoint of another one"
                )
            if part.shape != wanted[name].shape:
                raise EepolicyError(
                    f"{key} in {file} gives {name} the shape {tuple(part.shape)}; by its "
                    f"config.json the model has {tuple(wanted[name].shape)}"
                )
            # a slice of a larger tensor would keep all of it
            whole = part.to(dtype).clone() if part.dtype == dtype else part.to(dtype)
            model.load_state_dict({name: whole}, strict=False, assign=True)
            filled.add(name)
    missing = sorted(set(wanted) - filled - native.tied)
    if missing:
        raise EepolicyError(
            f"{folder} lacks {len(missing)} of the model's weights, {missing[0]} first: it is not "
            "whole, or of another model"
        )
    return model.requires_grad_(False).eval()


def complete(model: PreTrainedModel) -> PreTrainedModel:
    """Ties weights and makes the frequencies of a model that was made without memory."""
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model
