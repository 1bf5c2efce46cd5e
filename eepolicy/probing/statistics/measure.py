"""Evaluate statistics on rows of logits or hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eepolicy.compile.kernel_cache import DynamicDims
from eepolicy.errors import EepolicyError
from eepolicy.guard import Guard
from eepolicy.probing.statistics.attention_mass import AttentionContext
from eepolicy.probing.statistics.base import Statistic
from eepolicy.probing.statistics.buffers import BufferPool
from eepolicy.probing.statistics.builtin import STATISTICS
from eepolicy.probing.statistics.context import LogitContext, StateContext
from eepolicy.probing.statistics.extras import Extras
from eepolicy.probing.statistics.last_layer import LastLayer, argmax

#: signature of `KernelCache.run`
Run = Callable[..., "tuple[Tensor, ...] | None"]


class LogitStatistics:
    """Evaluates statistics of logits.

    Args:
        statistics: which to evaluate; those of hidden states and of attention are left out.
        run: compiles and runs the library's default statistics, see `KernelCache.run`; None runs
            them in eager mode.  The others always run in eager mode.
        buffers: memory for intermediate values in eager mode; None allocates it.
    """

    def __init__(
        self,
        statistics: Sequence[Statistic],
        run: Run | None = None,
        buffers: BufferPool | None = None,
    ) -> None:
        self.statistics = [s for s in statistics if s.of_logits]
        self.run = run
        self.buffers = buffers
        # sorted once, and not for each of many slices
        self._selections = {
            (last, deeper): _Selection.of(
                [
                    s
                    for s in self.statistics
                    if (last or s.compares_with != "last")
                    and (deeper or s.compares_with != "deeper")
                ]
            )
            for last in (False, True)
            for deeper in (False, True)
        }

    def measure(
        self,
        logits: Tensor,
        last: LastLayer | None,
        following: Tensor,
        extras: Extras | None = None,
    ) -> dict[str, Tensor]:
        """Evaluate the statistics of some rows.

        Args:
            logits: (rows, vocabulary).
            last: the last layer's distributions of the same rows; without it, statistics that
                compare with the last layer are left out.
            following: (rows,) ids that follow, -1 where none does.
            extras: what some statistics read besides; without a deeper depth, those that compare
                with it are left out too.

        Returns:
            (rows,) each, by name.

        Raises:
            EepolicyError: a user's statistic returned another shape, or wrote into the context.
        """
        has_deeper = extras is not None and extras.deeper is not None
        selection = self._selections[last is not None, has_deeper]
        inputs = logits, argmax(logits), following.clamp(min=0)
        out = None
        if self.run is not None and selection.builtin:
            out = _compiled(self.run, selection, inputs, last)
        lease = None if self.buffers is None else self.buffers.lease()
        context = LogitContext(*inputs, last, lease, extras)
        if out is None:
            out = tuple(s.compute(context) for s in selection.builtin)
        values = dict(zip(selection.names, out, strict=True))
        values |= {s.name: s.compute(context) for s in selection.optional}
        if selection.top1:
            values["top1"] = inputs[1]
        if selection.users:  # without buffers, so that a tensor that a function keeps stays valid
            context = LogitContext(*inputs, last, extras=extras)
            values |= checked_values(selection.users, context)
        if selection.of_next:
            nothing = following < 0
            for name, missing in selection.of_next:
                own = values[name]
                if not own.is_floating_point():  # a truth value has no nan
                    own = own.to(torch.int64 if isinstance(missing, int) else torch.float32)
                values[name] = own.masked_fill(nothing, missing)
        return values


@dataclass(frozen=True)
class _Selection:
    """Statistics of logits, sorted by how they run.

    Attributes:
        builtin: the library's default ones, but for `top1`, which is an input of the others.
        names: their names.
        optional: the library's others.
        top1: whether `top1` is wanted.
        users: the user's.
        of_next: names of those that compare with the next token, with the value if there is none.
    """

    builtin: tuple[Statistic, ...]
    names: tuple[str, ...]
    optional: tuple[Statistic, ...]
    top1: bool
    users: tuple[Statistic, ...]
    of_next: tuple[tuple[str, float | int], ...]

    @classmethod
    def of(cls, statistics: Sequence[Statistic]) -> _Selection:
        library = [s for s in statistics if s is STATISTICS.get(s.name)]
        default = [s for s in library if s.by_default]
        # those of integers, ranks, read the logits themselves: first, while these are in the cache
        ordered = sorted(default, key=lambda s: not s.integer)
        builtin = tuple(s for s in ordered if s.name != "top1")
        return cls(
            builtin,
            tuple(s.name for s in builtin),
            tuple(s for s in library if not s.by_default),
            len(builtin) < len(default),
            tuple(s for s in statistics if s not in library),
            tuple((s.name, s.missing) for s in statistics if s.compares_with == "next"),
        )


def measure_states(context: StateContext, statistics: Sequence[Statistic]) -> dict[str, Tensor]:
    """Evaluate statistics of hidden states: (rows,) each, by name.

    Those that compare with a layer that did not run are left out.

    Raises:
        EepolicyError: a user's statistic returned another shape, or wrote into the context.
    """
    missing = {
        name
        for name, states in (("last", context.last_layer), ("previous", context.previous_layer))
        if states is None
    }
    known = [s for s in statistics if s.of_states and s.compares_with not in missing]
    return checked_values(known, context)


def checked_values(
    statistics: Sequence[Statistic], context: LogitContext | StateContext | AttentionContext
) -> dict[str, Tensor]:
    """Evaluate statistics in eager mode, and check what they do.

    Raises:
        EepolicyError: one returned something else than (rows,), or wrote into the context.
    """
    rows = len(context.inputs()[0])
    versions = [(tensor, tensor._version) for tensor in context.inputs()]
    values: dict[str, Tensor] = {}
    for statistic in statistics:
        with Guard(statistic.compute, statistic.name):
            value: Any = statistic.compute(context)
        is_column = isinstance(value, Tensor) and value.shape == (rows,)
        if not is_column or value.is_complex():
            got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
            raise EepolicyError(
                f"the statistic {statistic.name!r} returns one value a row, a tensor ({rows},); "
                f"got {got}"
            )
        if context.overwritten() or any(t._version != version for t, version in versions):
            raise EepolicyError(
                f"the statistic {statistic.name!r} wrote into a tensor that others read: clone it "
                "first"
            )
        values[statistic.name] = value
    return values


def _compiled(
    run: Run, selection: _Selection, inputs: tuple[Tensor, Tensor, Tensor], last: LastLayer | None
) -> tuple[Tensor, ...] | None:
    """Statistics by one compiled kernel, (rows,) each; None if it cannot be made."""
    tensors = [*inputs, *([] if last is None else last.tensors())]

    def function(logits: Tensor, top1: Tensor, following: Tensor, *last: Tensor) -> Any:
        layer = LastLayer(*last) if last else None
        context = LogitContext(logits, top1, following, layer)
        return tuple(s.compute(context) for s in selection.builtin)

    key = (LogitStatistics, *selection.names, len(tensors), inputs[0].device)
    guard = (key, inputs[0].shape, *((tensor.stride(), tensor.dtype) for tensor in tensors))
    return run(
        key, guard, lambda: function, tensors, lambda: [DynamicDims(t, [0]) for t in tensors]
    )
