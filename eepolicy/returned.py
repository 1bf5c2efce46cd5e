"""Check what plug-ins return.

A check of a decoding step looks at types and shapes.  It reads no value of a tensor, so it makes no
device wait.  An exception are truth values that are given as integers: they must be 0 or 1.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from eepolicy.guard import wrong_result
from eepolicy.modality import is_ids


def check_ids(
    plugin: object, method: str, result: Any, shape: tuple[int, ...] | torch.Size
) -> Tensor:
    """Refuse what is not a tensor of integers of a shape, rows first."""
    if isinstance(result, Tensor) and result.shape == shape and is_ids(result):
        return result
    each = "one" if len(shape) == 1 else shape[1]
    raise wrong_result(
        plugin, method, result, f"a tensor {tuple(shape)} of integers, {each} for each row"
    )


def check_flags(plugin: object, method: str, result: Any, rows: int) -> Tensor:
    """Refuse what is not (rows,) of truth values, or of the integers 0 and 1."""
    if isinstance(result, Tensor) and result.shape == (rows,):
        if result.dtype == torch.bool:
            return result
        if is_ids(result) and bool(((result == 0) | (result == 1)).all()):
            return result
    raise wrong_result(plugin, method, result, f"a tensor ({rows},) of bool")


def check_numbers(
    plugin: object, method: str, result: Any, shape: tuple[int, ...] | torch.Size
) -> Tensor:
    """Refuse what is not a tensor of real numbers of a shape."""
    if isinstance(result, Tensor) and result.shape == shape and result.is_floating_point():
        return result
    raise wrong_result(plugin, method, result, f"a tensor {tuple(shape)} of real numbers")


def check_wave(vocoder: object, result: Any, method: str = "decode") -> Tensor:
    """Refuse what is not a waveform (samples,) of finite numbers."""
    samples = len(result) if isinstance(result, Tensor) and result.ndim else 0
    wave = check_numbers(vocoder, method, result, (samples,))
    if not bool(wave.isfinite().all()):
        raise wrong_result(vocoder, method, "nan or infinite samples", "finite samples")
    return wave


def check_depths(
    plugin: object, method: str, result: Any, first: int, last: int
) -> tuple[int, ...]:
    """Refuse what is not rising depths from `first` to `last`."""
    if isinstance(result, (tuple, list, range, set, frozenset)):
        depths = tuple(result)
        if all(type(depth) is int for depth in depths):
            if isinstance(result, (set, frozenset)):
                depths = tuple(sorted(depths))
            rising = all(a < b for a, b in pairwise(depths))
            if not depths or (rising and first <= depths[0] and depths[-1] <= last):
                return depths
    raise wrong_result(
        plugin, method, result, f"a tuple of depths that rise from {first} to {last} at most"
    )
