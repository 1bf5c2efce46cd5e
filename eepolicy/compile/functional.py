"""Modules as functions of their tensors, so that one that is built alike can do their work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

#: where transformers' hooks that record outputs are made
CAPTURING = "transformers.utils.output_capturing"


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def function_of(module: nn.Module) -> Callable[..., Any]:
    """A module as a function of its tensors, in the order of `tensors_of`.

    It holds none of them itself.

    Args:
        module: to be called with the tensors of another one that is built alike.

    Returns:
        A function of the tensors, the module's arguments, and its arguments by name.
    """
    hollow, names = _to_meta(module), list(tensors_of(module))

    def call(tensors: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        return functional_call(hollow, dict(zip(names, tensors, strict=True)), args, kwargs)

    return call


def first_same_structure(modules: Sequence[nn.Module], index: int) -> int:
    """The first module that is built as this one."""
    return next(i for i in range(index + 1) if _build(modules[i]) == _build(modules[index]))


def _to_meta(module: nn.Module) -> nn.Module:
    """A module as this one, with nothing in its parameters: those are handed to it.

    Once a stock model was asked for its hidden states, hooks on its layers hand them to whoever
    asks again: they cannot be compiled, and nobody asks here.
    """
    empty = {id(t): torch.empty_like(t, device="meta") for t in tensors_of(module).values()}
    parameters = {id(p) for p in module.parameters()}
    hollow = copy.deepcopy(
        module, {i: nn.Parameter(t, False) if i in parameters else t for i, t in empty.items()}
    )
    for part in hollow.modules():
        for key, hook in [*part._forward_hooks.items()]:
            if getattr(hook, "__module__", "") == CAPTURING:
                del part._forward_hooks[key]
    return hollow


def _build(module: nn.Module) -> list[object]:
    """What a module is made of, but for its numbers and its place."""
    plain = (bool, int, float, str, type(None))
    tensors = [(name, t.shape, t.stride(), t.dtype) for name, t in tensors_of(module).items()]
    settings = [
        (
            name,
            type(part),
            sorted(
                (k, v) for k, v in vars(part).items() if isinstance(v, plain) and k != "layer_idx"
            ),
        )
        for name, part in module.named_modules()
    ]
    return [tensors, settings]
