"""Modules as functions of their tensors: one kernel serves all modules of the same structure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from types import BuiltinFunctionType, FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from eepolicy.heads.weights import OUTPUT_CAPTURING
from eepolicy.model.changes import MODULE_ATTRIBUTES

#: types of settings that are part of a structure by value
PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
#: containers of settings
CONTAINERS = (dict, list, set, tuple)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def function_of(module: nn.Module) -> Callable[..., Any]:
    """A module as a function of its tensors, which the function does not keep in memory.

    Args:
        module: module to call; the tensors may be those of another one with the same structure.

    Returns:
        A function of the tensors, in the order of `tensors_of`, and of the arguments of the module.
    """
    empty, names = _to_meta(module), list(tensors_of(module))

    def call(tensors: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        return functional_call(empty, dict(zip(names, tensors, strict=True)), args, kwargs)

    return call


def _to_meta(module: nn.Module) -> nn.Module:
    """A copy of a module on the meta device, without the hooks of transformers.

    transformers adds hooks when a stock model returns hidden states for the first time.  They
    cannot be compiled, and the compiled layers do not need them.
    """
    parameters = {id(p) for p in module.parameters()}
    memo: dict[int, Any] = {}
    for tensor in tensors_of(module).values():
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, False) if id(tensor) in parameters else empty
    on_meta = copy.deepcopy(module, memo)
    for part in on_meta.modules():
        for key, hook in [*part._forward_hooks.items()]:
            if getattr(hook, "__module__", "") == OUTPUT_CAPTURING:
                del part._forward_hooks[key]
    return on_meta


def structure_of(module: nn.Module) -> tuple[Hashable, ...]:
    """Types, settings and tensor layouts of a module; not its weights, not its index.

    Settings are plain values, functions, and containers of them, such as the active adapters of a
    layer of PEFT.
    """
    tensors = tuple((name, t.shape, t.stride(), t.dtype) for name, t in tensors_of(module).items())
    settings = tuple(
        (
            name,
            type(part),
            tuple(
                (key, _setting(value))
                for key, value in sorted(vars(part).items())
                if key not in MODULE_ATTRIBUTES and key != "layer_idx"
            ),
            part.training,
        )
        for name, part in module.named_modules()
    )
    return tensors, settings


def _setting(value: object) -> Hashable:
    """A setting as a key; other objects by their type, since each layer may have its own."""
    if isinstance(value, PLAIN):
        return type(value), value  # True is not 1
    if isinstance(value, dict):
        return dict, tuple((repr(key), _setting(item)) for key, item in value.items())
    if isinstance(value, CONTAINERS):
        items = sorted(value, key=repr) if isinstance(value, set) else value
        return type(value), tuple(map(_setting, items))
    if isinstance(value, (FunctionType, BuiltinFunctionType)):
        return value
    return cast(Hashable, type(value))
