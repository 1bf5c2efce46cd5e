"""Modules as functions of their tensors: one kernel serves all modules of the same structure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

#: module of transformers whose hooks record the outputs of layers
OUTPUT_CAPTURING = "transformers.utils.output_capturing"


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


def first_same_structure(modules: Sequence[nn.Module], index: int) -> int:
    """Index of the first module that has the same structure as the one at `index`."""
    own = structure_of(modules[index])
    return next(i for i in range(index + 1) if structure_of(modules[i]) == own)


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


def structure_of(module: nn.Module) -> tuple[object, ...]:
    """Types, plain settings and tensor layouts of a module; not its weights, not its index."""
    plain = (bool, int, float, str, type(None))
    tensors = tuple((name, t.shape, t.stride(), t.dtype) for name, t in tensors_of(module).items())
    settings = tuple(
        (
            name,
            type(part),
            tuple(
                sorted(
                    (k, v)
                    for k, v in vars(part).items()
                    if isinstance(v, plain) and k != "layer_idx"
                )
            ),
        )
        for name, part in module.named_modules()
    )
    return tensors, settings
