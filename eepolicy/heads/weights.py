"""What the weights of a module say about its output, and when the module must be called instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError
from eepolicy.heads.int8 import has_int8

#: module of transformers whose hooks record the outputs of layers and change nothing
OUTPUT_CAPTURING = "transformers.utils.output_capturing"
#: types of tensors that contain their numbers; quantised weights have types of their own
PLAIN_TENSORS = (Tensor, nn.Parameter)
#: class in which `torch.compile` wraps a module; torch imports it late
COMPILED_MODULE = "OptimizedModule"
#: words in the names of Python modules that define quantised layers
QUANTISED_MODULES = ("quant", "fp8", "fp4", "bitnet", "bitsandbytes", "awq", "gptq", "torchao")


def obstacle(*modules: object) -> str | None:
    """What makes a module compute something else than its type and its tensors say.

    Code that reads the tensors of a module instead of calling it, such as a compiled kernel, leaves
    such things out.

    Args:
        *modules: modules to examine, with all modules in them; other objects are skipped.

    Returns:
        The first such thing in words, such as `"a forward hook"`; None where there is none.
    """
    if _has_any_global_hook():
        return "a global hook of torch.nn.Module"
    parts = chain.from_iterable(m.modules() for m in modules if isinstance(m, nn.Module))
    for part in parts:
        reason = _weights_obstacle(part) or _call_obstacle(part)
        if reason is not None:
            return reason
    return None


def weights_obstacle(module: nn.Module) -> str | None:
    """Why the weights of a module cannot be copied: they are quantised or offloaded.

    Args:
        module: module to examine, with all modules in it.

    Returns:
        The first reason in words; None where all weights are plain tensors with values.
    """
    if has_int8(module):
        return "weights in int8"
    return next(filter(None, map(_weights_obstacle, module.modules())), None)


def _weights_obstacle(module: nn.Module) -> str | None:
    """As `weights_obstacle`, without the modules in the module."""
    own = vars(module)
    tensors = [
        t for t in (*own["_parameters"].values(), *own["_buffers"].values()) if t is not None
    ]
    for tensor in tensors:
        if type(tensor) not in PLAIN_TENSORS:
            return f"quantised weights ({type(tensor).__name__})"
    if any(tensor.is_meta for tensor in tensors):
        return "weights on the meta device, as offloaded ones are"
    return "a hook of accelerate" if "_hf_hook" in own else None


def _call_obstacle(module: nn.Module) -> str | None:
    """What changes the output of a module, without the modules in the module."""
    own = vars(module)
    for hooks in (own["_forward_pre_hooks"], own["_forward_hooks"]):
        for hook in hooks.values():
            if getattr(hook, "__module__", "") != OUTPUT_CAPTURING:
                return "a forward hook"
    if "forward" in own:
        return "a method forward that replaces that of its class"
    if type(module).__name__ == COMPILED_MODULE or module._compiled_call_impl is not None:
        return "code of torch.compile"
    if any(isinstance(value, Tensor) for value in own.values()):
        return "a tensor that is neither a parameter nor a buffer"
    return None


def quantised_types(model: nn.Module) -> list[str]:
    """Names of the types of modules and weights in a model that are quantised, sorted."""
    types = {type(t).__name__ for t in model.parameters() if type(t) not in PLAIN_TENSORS}
    for module in model.modules():
        # a layer that keeps packed weights may have no parameter of a special type
        source = type(module).__module__.lower()
        if any(word in source for word in QUANTISED_MODULES):
            types.add(f"{type(module).__module__}.{type(module).__name__}")
    return sorted(types)


def is_readable(module: object) -> bool:
    """Whether a module is a `torch.nn.Linear` whose output is the product with its weight."""
    return type(module) is nn.Linear and obstacle(module) is None


def output_weight(head: Any, norm: Any, width: int) -> Tensor:
    """The weight W of an output embedding, also where it cannot be read.

    An embedding that is wrapped, quantised or offloaded is called on the unit vectors.  The weight
    then includes an adapter.

    Args:
        head: output embedding, (..., width) -> (..., vocabulary).
        norm: final norm, which has the precision of the states that the head reads.
        width: width of the model; where the head has `in_features`, they are used.

    Returns:
        (vocabulary, width).

    Raises:
        EepolicyError: the output embedding is no linear map.
    """
    if is_readable(head):
        weight: Tensor = head.weight
        return weight
    width = getattr(head, "in_features", width)
    if not isinstance(head, nn.Module) or not width:
        raise EepolicyError(
            "a linear head starts from an output embedding that is a linear module, such as "
            f"torch.nn.Linear; the output embedding of this model is {head!r}: fit a tuned lens"
        )
    tensors = [*_tensors(norm), *_tensors(head)]
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    dtype = floats[0].dtype if floats else torch.get_default_dtype()
    device = execution_device([head], tensors)
    units = torch.eye(width, dtype=dtype, device=device)
    with torch.no_grad():
        zero, rows = head(units[:1] * 0), head(units)
        doubled = head(2 * units) - zero
    weight = (rows - zero).T
    if not torch.allclose(doubled.T, 2 * weight, rtol=0.05, atol=0.05 * float(weight.abs().max())):
        raise EepolicyError(
            f"a linear head starts from an output embedding that is a linear map; {head!r} of this "
            "model is not: fit a tuned lens"
        )
    return weight


def output_bias(head: Any) -> Tensor | None:
    """The bias (vocabulary,) of an output embedding; None where it has none.

    Raises:
        EepolicyError: the bias is offloaded.
    """
    bias = getattr(head, "bias", None)
    if not isinstance(bias, Tensor):
        return None
    if bias.is_meta:
        raise EepolicyError(
            "a linear head reads the bias of the output embedding, which is offloaded; give the "
            "output embedding a device in device_map, or use a tuned lens"
        )
    return bias


def execution_device(modules: Iterable[nn.Module], tensors: Iterable[Tensor] = ()) -> torch.device:
    """The device on which a model runs, also where its weights are offloaded.

    Args:
        modules: the modules of the model; hooks of accelerate name the device.
        tensors: weights of the model; the first that is not on the meta device is on it.

    Returns:
        The meta device if all weights are on it, and nothing names another.
    """
    for module in modules:
        hook = vars(module).get("_hf_hook")
        for part in getattr(hook, "hooks", (hook,)):
            device = getattr(part, "execution_device", None)
            if isinstance(device, int):
                return torch.device("cuda", device)
            if device is not None:
                return torch.device(device)
    for tensor in tensors:
        if not tensor.is_meta:
            return tensor.device
    return torch.device("meta")


def offloaded_weights(model: nn.Module) -> Callable[[str], Tensor]:
    """Reads weights that accelerate has offloaded.

    Args:
        model: model with hooks of accelerate.

    Returns:
        A function from the name of a weight to its values.  It raises `EepolicyError` for a weight
        without values.
    """
    modules = dict(model.named_modules())

    def read(name: str) -> Tensor:
        owner = name.rpartition(".")[0]
        while True:
            local = name[len(owner) :].removeprefix(".")
            values = getattr(vars(modules[owner]).get("_hf_hook"), "weights_map", None)
            with suppress(KeyError):
                if values is not None:
                    value: Tensor = values[local]
                    return value
            if not owner:
                raise EepolicyError(
                    f"the weight {name} is on the meta device, without values; load the model "
                    "without device_map='meta'"
                )
            owner = owner.rpartition(".")[0]

    return read


def checked_device(device: str | torch.device) -> torch.device:
    """A device that this machine has.

    Raises:
        EepolicyError: the name is none of a device, or the machine lacks the device.
    """
    try:
        if not isinstance(device, (str, torch.device)):
            raise TypeError(f"a device is a name or a torch.device; got {device!r:.80}")
        found = torch.device(device)
        torch.empty(0, device=found)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        raise EepolicyError(
            f"the device {device!r:.80} cannot be used: {str(error).splitlines()[0]:.120}; give "
            "cpu, or cuda on a machine with a GPU"
        ) from error
    return found


def device_of(model: PreTrainedModel) -> torch.device:
    """The device on which a model runs: that of its first weight, unless this is offloaded."""
    device: torch.device = model.device
    return (
        device if device.type != "meta" else execution_device(model.modules(), model.parameters())
    )


def _tensors(module: object) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()] if isinstance(module, nn.Module) else []
