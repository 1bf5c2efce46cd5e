"""Evaluate statistics on rows of logits or hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from eepolicy.compile.kernel_cache import DynamicDims
from eepolicy.errors import EepolicyError
from eepolicy.probing.statistics.base import Statistic
from eepolicy.probing.statistics.buffers import BufferPool
from eepolicy.probing.statistics.builtin import STATISTICS
from eepolicy.probing.statistics.context import LogitContext, StateContext
from eepolicy.probing.statistics.last_layer import LastLayer, argmax

#: signature of `KernelCache.run`
Run = Callable[..., "tuple[Tensor, ...] | None"]


def measure(
    logits: Tensor,
    last: LastLayer | None,
    following: Tensor,
    statistics: Sequence[Statistic],
    run: Run | None = None,
    buffers: BufferPool | None = None,
) -> dict[str, Tensor]:
    """Evaluate statistics of logits.

    Args:
        logits: (rows, vocabulary).
        last: the last layer's distributions of the same rows; without it, statistics that compare
            with the last layer are left out.
        following: (rows,) ids that follow, -1 where none does.
        statistics: which to evaluate; those of hidden states are left out.
        run: compiles and runs the library's statistics, see `KernelCache.run`; None runs them in
            eager mode.  A user's statistics always run in eager mode.
        buffers: memory for intermediate values in eager mode; None allocates it.

    Returns:
        (rows,) each, by name.

    Raises:
        EepolicyError: a user's statistic returned another shape, or wrote into the context.
    """
    top1, following_ids = argmax(logits), following.clamp(min=0)
    known = [s for s in statistics if not s.of_states and (last or s.compares_with != "last")]
    builtin = [s for s in known if s is STATISTICS.get(s.name)]
    values = {"top1": top1} if STATISTICS["top1"] in builtin else {}
    computed = [s for s in builtin if s.name != "top1"]
    out = None
    if run is not None and computed:
        out = _compiled(run, computed, [logits, top1, following_ids], last)
    if out is None:
        lease = None if buffers is None else buffers.lease()
        context = LogitContext(logits, top1, following_ids, last, lease)
        out = tuple(s.compute(context) for s in computed)
    values |= {s.name: value for s, value in zip(computed, out, strict=True)}
    own = [s for s in known if s not in builtin]
    if own:  # without buffers, so that a tensor that a user's function keeps stays valid
        values |= checked_values(own, LogitContext(logits, top1, following_ids, last))
    for statistic in known:
        if statistic.compares_with == "next":
            value = values[statistic.name]
            values[statistic.name] = value.masked_fill(following < 0, statistic.missing)
    return values


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
    statistics: Sequence[Statistic], context: LogitContext | StateContext
) -> dict[str, Tensor]:
    """Evaluate statistics in eager mode, and check what they do.

    Raises:
        EepolicyError: one returned something else than (rows,), or wrote into the context.
    """
    rows = len(context.values()[0])
    values: dict[str, Tensor] = {}
    for statistic in statistics:
        versions = [(tensor, tensor._version) for tensor in context.values()]
        value: Any = statistic.compute(context)
        if not isinstance(value, Tensor) or value.shape != (rows,):
            got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
            raise EepolicyError(
                f"the statistic {statistic.name!r} returns one value a row, a tensor ({rows},); "
                f"got {got}"
            )
        if any(tensor._version != version for tensor, version in versions):
            raise EepolicyError(
                f"the statistic {statistic.name!r} wrote into a tensor that others read: clone it "
                "first"
            )
        values[statistic.name] = value
    return values


def _compiled(
    run: Run, statistics: Sequence[Statistic], inputs: list[Tensor], last: LastLayer | None
) -> tuple[Tensor, ...] | None:
    """Statistics by one compiled kernel, (rows,) each; None if it cannot be made."""
    tensors = inputs + ([] if last is None else last.tensors())

    def function(logits: Tensor, top1: Tensor, following: Tensor, *last: Tensor) -> Any:
        layer = LastLayer(*last) if last else None
        context = LogitContext(logits, top1, following, layer)
        return tuple(statistic.compute(context) for statistic in statistics)

    key = (measure, *(s.name for s in statistics), len(tensors), inputs[0].device)
    guard = (key, inputs[0].shape, *((tensor.stride(), tensor.dtype) for tensor in tensors))
    return run(
        key, guard, lambda: function, tensors, lambda: [DynamicDims(t, [0]) for t in tensors]
    )
