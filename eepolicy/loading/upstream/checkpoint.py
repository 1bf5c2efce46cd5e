"""Read checkpoints in another layout, weight by weight, into native transformers classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError
from eepolicy.loading.huggingface import HEADS, PREDICTOR, read_config

#: turns a key and tensor of the checkpoint into those of the native class; none to drop it
Convert = Callable[[str, Tensor], Iterable[tuple[str, Tensor]]]
#: the weights of a checkpoint: file, key and tensor
Weights = Iterator[tuple[Path, str, Tensor]]

INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint.

    They are those in its index, or its single file, or else all but files of exit heads.  A config
    may name the index or the file, beside files in another layout.

    Raises:
        EepolicyError: there are none, or a file that the index names is missing.
    """
    config = folder / "config.json"
    named = read_config(config).get("transformers_weights") if config.is_file() else None
    index, single = INDEX, "model.safetensors"
    if isinstance(named, str):
        index, single = (named, single) if named.endswith(".json") else ("", named)
    if index and (folder / index).is_file():
        weight_map = read_config(folder / index).get("weight_map", {})
        names = sorted(map(str, {*weight_map.values()})) if isinstance(weight_map, dict) else []
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise EepolicyError(
                f"{folder / index} names {outside[0]}, which is no file of this folder; the "
                "weights of a model lie beside its index"
            )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise EepolicyError(
                f"{folder} lacks {len(missing)} of the {len(names)} files in its index, such as "
                f"{missing[0] if missing else 'any'}: download it again"
            )
        return [folder / name for name in names]
    if (folder / single).is_file():
        return [folder / single]
    files = sorted(f for f in folder.glob("*.safetensors") if f.name not in (HEADS, PREDICTOR))
    if files:
        return files
    raise EepolicyError(
        f"{folder} contains no safetensors files; weights in pickle format are not read"
    )


def read_weights(folder: Path) -> Weights:
    """Yield the weights of a checkpoint, with one tensor in memory at a time.

    Raises:
        EepolicyError: a file is damaged.
    """
    return _read(folder, lambda file, key: file.get_tensor(key))


def read_shapes(folder: Path) -> Weights:
    """Yield the weights of a checkpoint as tensors on the meta device, without reading values.

    Raises:
        EepolicyError: a file is damaged.
    """

    def empty(file: Any, key: str) -> Tensor:
        part = file.get_slice(key)
        dtype = getattr(torch, _DTYPES.get(part.get_dtype(), "float32"))
        return torch.empty(part.get_shape(), dtype=dtype, device="meta")

    return _read(folder, empty)


def _read(folder: Path, get: Callable[[Any, str], Tensor]) -> Weights:
    """The weights of a checkpoint, each as `get(file, key)` returns it."""
    for path in weight_files(folder):
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    yield path, key, get(file, key)
        except (SafetensorError, OSError) as error:
            raise EepolicyError(f"{path} is damaged or not a safetensors file: {error}") from error


#: torch names of dtypes, by their safetensors names
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "I8": "int8"}

M = TypeVar("M", bound=nn.Module)


def keep_name(key: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
    """The conversion for a checkpoint whose weights have native names."""
    yield key, tensor


@dataclass(frozen=True)
class NativeModel(Generic[M]):
    """How to turn a checkpoint in another layout into a native model.

    Attributes:
        make: makes the model, without weights.
        convert: turns a key and tensor of the checkpoint into native ones.
        tied: weights that a checkpoint may lack, because they are tied to others.
    """

    make: Callable[[], M]
    convert: Convert
    tied: frozenset[str] = frozenset()


def load_native(
    native: NativeModel[M],
    folder: Path,
    dtype: torch.dtype,
    read: Callable[[Path], Weights] = read_weights,
) -> M:
    """Load a checkpoint in another layout into a native model.

    The model is made on the meta device and filled weight by weight, each converted to `dtype`.
    Memory therefore never contains the weights twice.  Buffers stay on the meta device: see
    `finish`.

    Args:
        native: the model, and the conversion of its weights.
        folder: folder of the checkpoint.
        dtype: dtype of the weights.
        read: `read_weights`, or `read_shapes` to check the checkpoint without reading values.

    Raises:
        EepolicyError: a file or key is missing, a file is damaged, a weight has another shape, or
            a key does not belong to the model.
    """
    with torch.device("meta"):
        model = native.make()
    parameters = dict(model.named_parameters())
    filled: set[str] = set()
    for file, key, tensor in read(folder):
        for name, part in native.convert(key, tensor):
            if name not in parameters:
                raise EepolicyError(
                    f"{file} contains {key}, which the model in config.json does not have: the "
                    "checkpoint belongs to another model"
                )
            if part.shape != parameters[name].shape:
                raise EepolicyError(
                    f"{key} in {file} gives {name} the shape {tuple(part.shape)}; config.json "
                    f"gives {tuple(parameters[name].shape)}"
                )
            # `to` returns a view of the same dtype, which would keep the whole tensor in memory
            value = part.to(dtype).clone() if part.dtype == dtype else part.to(dtype)
            model.load_state_dict({name: value}, strict=False, assign=True)
            filled.add(name)
    missing = sorted(set(parameters) - filled - native.tied)
    if missing:
        raise EepolicyError(
            f"{folder} lacks {len(missing)} of the model's weights, such as {missing[0]}: it is "
            "incomplete, or belongs to another model"
        )
    return model.requires_grad_(False).eval()


def section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a part of a `config.json`, such as the config of the decoder.

    Raises:
        EepolicyError: the part is missing, or has no keys.
    """
    part = config.get(name)
    if not isinstance(part, dict):
        raise EepolicyError(f"the config.json has {name} = {part!r:.60}; expected keys with values")
    return part


def finish(model: PreTrainedModel) -> PreTrainedModel:
    """Tie the weights of a model from `load_native`, and compute its rotary frequencies."""
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model
