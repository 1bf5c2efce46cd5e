"""Attention by modality, read while a layer runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from eepolicy.errors import EepolicyError
from eepolicy.modality import Modality


class AttentionReader(TorchFunctionMode):
    """Sums the attention weights of each position over the positions of each modality.

    Attention is linear in its values.  With values that are 1 at the positions of one modality and
    0 elsewhere, its output is the sum of the weights on them.  The reader therefore calls the
    attention of the layer a second time with such values: the weights themselves, (positions,
    positions), are never kept.  Where a layer computes weights itself (`eager` attention), the
    reader sums them.

    A reader is active only within its `with` block, and only in the thread that entered it.

    Args:
        is_speech: (columns,) whether the id of a position is a speech id.
    """

    def __init__(self, is_speech: Tensor) -> None:
        super().__init__()
        self._members = torch.stack([~is_speech, is_speech], -1)  # (columns, modalities)
        assert (Modality.TEXT, Modality.SPEECH) == (0, 1)
        self._masses: Tensor | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function, and read the attention if it is one."""
        kwargs = dict(kwargs or {})
        out = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            names = ("query", "key", "value")
            named = dict(zip(names, args, strict=False)) | kwargs
            others = (args[len(names) :], {k: v for k, v in kwargs.items() if k not in names})
            self._read_product(named, *others)
        elif func is F.softmax and out.ndim == 4 and out.shape[-2] > 0:
            self._read_weights(out)
        return out

    def take(self, depth: int) -> Tensor:
        """The masses of the layer that ran last: (rows, columns, heads, modalities).

        Raises:
            EepolicyError: the layer has no attention that the reader knows.
        """
        masses, self._masses = self._masses, None
        if masses is None:
            raise EepolicyError(
                f"the attention of layer {depth} cannot be read: only attention by PyTorch's "
                "scaled_dot_product_attention, or with weights of its own, is known"
            )
        return masses

    def _read_product(
        self, named: Mapping[str, Any], rest: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        """Masses of a product of queries and keys, (rows, heads, columns, d) each."""
        value = named["value"]
        members = self._members[: value.shape[-2]].to(value)
        indicator = torch.zeros_like(value)
        indicator[..., : members.shape[-1]] = members
        out = F.scaled_dot_product_attention(
            named["query"], named["key"], indicator, *rest, **options
        )
        self._masses = out[..., : members.shape[-1]].transpose(1, 2)

    def _read_weights(self, weights: Tensor) -> None:
        """Masses of attention weights, (rows, heads, columns, columns up to the newest).

        A family with attention sinks has one column more, which is no position.
        """
        columns = min(weights.shape[-1], len(self._members))
        members = self._members[:columns].to(weights)
        self._masses = (weights[..., :columns] @ members).transpose(1, 2)
