"""The logit lens, which has no weights of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eepolicy.heads.base import ExitHead
from eepolicy.heads.int8 import Int8Linear
from eepolicy.heads.weights import obstacle


class LogitLens(ExitHead):
    """The final norm and the output embedding of the model, applied at every depth.

    The lens refers to the modules of the model and does not register them: `parameters()`,
    `state_dict()`, `to()` and `half()` leave them alone.  A deep copy of the lens refers to the
    same modules.  If they are copied in the same call, before the lens, it refers to the copies.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".

    Args:
        norm: final norm of the model, (..., width) -> (..., width).
        head: output embedding of the model, (..., width) -> (..., vocabulary).
        logit_softcap: soft cap of the logits, shape kept; None for models without one.
        layers: decoder layers of the model, of which branches copy some.
    """

    norm: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]
    logit_softcap: Callable[[Tensor], Tensor] | None
    layers: Sequence[nn.Module]

    def __init__(
        self,
        norm: Callable[[Tensor], Tensor],
        head: Callable[[Tensor], Tensor],
        logit_softcap: Callable[[Tensor], Tensor] | None = None,
        layers: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.refer_to(norm, head, logit_softcap, layers)

    def refer_to(
        self,
        norm: Callable[[Tensor], Tensor],
        head: Callable[[Tensor], Tensor],
        logit_softcap: Callable[[Tensor], Tensor] | None,
        layers: Sequence[nn.Module],
    ) -> None:
        """Refer to other modules, which have replaced those of the model; arguments as above."""
        parts = {"norm": norm, "head": head, "logit_softcap": logit_softcap, "layers": layers}
        for name, part in parts.items():
            object.__setattr__(self, name, part)  # nn.Module.__setattr__ would register it

    def __deepcopy__(self, memo: dict[int, Any]) -> LogitLens:
        def copied(part: Any) -> Any:
            return memo.get(id(part), part)

        return type(self)(
            copied(self.norm), copied(self.head), copied(self.logit_softcap), copied(self.layers)
        )

    def __repr__(self) -> str:
        return "LogitLens"

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        return self.softcap(self.head(self.norm(hidden))).to(hidden.device)

    def logits_over(self, hidden: Tensor, depth: int, ids: slice) -> Tensor:
        return self.softcap(self.product(self.norm(hidden), ids)).to(hidden.device)

    def product(self, normed: Tensor, ids: slice) -> Tensor:
        """The output embedding of normed states for a range of ids, without the soft cap.

        The rows of other ids are skipped where the output embedding is a `torch.nn.Linear` or an
        `Int8Linear`.  One that is wrapped, quantised or offloaded in other ways, or has hooks, is
        called as a whole.

        Args:
            normed: (..., width).
            ids: range of ids, without a step.

        Returns:
            (..., ids).
        """
        head: Any = self.head
        if ids == slice(None):
            return self.head(normed)
        # before compiling it was examined what the head is
        known = type(head) in (nn.Linear, Int8Linear)
        if not known or not (torch.compiler.is_compiling() or obstacle(head) is None):
            return self.head(normed)[..., ids]
        if isinstance(head, Int8Linear):
            return head.product(normed, ids)
        bias = None if head.bias is None else head.bias[ids]
        return F.linear(normed, head.weight[ids], bias)

    def softcap(self, logits: Tensor) -> Tensor:
        """Apply the soft cap of the model to products with an output embedding; shape kept."""
        return logits if self.logit_softcap is None else self.logit_softcap(logits)
