"""Devices that this machine lacks: tensors stay on the CPU, and say that they are elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: a device type that PyTorch knows and that no path of the package is made for
KIND = "hpu"
CPU = torch.device("cpu")
#: calls that take tensors of several devices
CROSSING = {Tensor.copy_, Tensor.to, Tensor.__setitem__, Tensor.__getitem__}


def place_of(tensor: Tensor) -> torch.device:
    """The device on which a tensor pretends to be."""
    return getattr(tensor, "pretended", CPU)


def put(module: nn.Module, device: str) -> None:
    """Move a module to a pretended device."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.pretended = torch.device(device)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


class PretendedDevices(TorchFunctionMode):
    """Runs all calls on the CPU, and refuses those that a machine with the devices would refuse.

    Attributes:
        moves: number of tensors that went from one device to another.
    """

    moves = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:  # each access makes another object
            return place_of(args[0])
        if func in (Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.item):
            return self._labelled(func(*args, **kwargs), CPU)
        if func == Tensor.to:
            return self._to(*args, **kwargs)
        place = self._place(func, args, kwargs)
        device = kwargs.get("device")
        if device is not None:
            place, kwargs["device"] = torch.device(device), "cpu"
        return self._labelled(func(*args, **kwargs), place)

    def _place(self, func: Callable[..., Any], args: Any, kwargs: Any) -> torch.device:
        """The device on which a call runs."""
        given = [*tensors_in(args), *tensors_in(kwargs)]
        # a number may come from the CPU
        places = [place_of(t) for t in given if t.ndim] or [place_of(t) for t in given] or [CPU]
        if func in (Tensor.__getitem__, Tensor.__setitem__):  # indices may come from the CPU
            index = {place_of(t) for t in tensors_in(args[1]) if t.ndim} - {CPU, places[0]}
            value = {place_of(t) for t in tensors_in(args[2:]) if t.ndim} - {places[0]}
            # a boolean or integer index writes with index_put_, which needs one device
            if index or (value and list(tensors_in(args[1]))):
                raise RuntimeError(f"index on {index}, value on {value}, tensor on {places[0]}")
        elif func not in CROSSING and len({*places}) > 1:
            raise RuntimeError(f"{func} got tensors on {sorted(map(str, {*places}))}")
        return places[0]

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        place, rest = place_of(tensor), []
        for each in (*args, *([kwargs.pop("device")] if "device" in kwargs else [])):
            if isinstance(each, (str, torch.device)):
                place = torch.device(each)
            elif isinstance(each, Tensor):
                place, rest = place_of(each), [*rest, each.dtype]
            else:
                rest.append(each)
        kwargs.pop("non_blocking", None)
        moved = Tensor.to(tensor, *[r for r in rest if isinstance(r, torch.dtype)], **kwargs)
        if place != place_of(tensor):
            self.moves += 1
            moved = moved.clone()
        return self._labelled(moved, place)

    def _labelled(self, result: Any, place: torch.device) -> Any:
        for tensor in tensors_in(result):
            tensor.pretended = place
        return result
