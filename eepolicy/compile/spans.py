"""Consecutive layers as one native call: the table of addresses that their plan reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eepolicy.compile.native import Integers
from eepolicy.compile.plan import KernelPlan
from eepolicy.model.kv_cache import KVCache


class Span(NamedTuple):
    """Consecutive layers of one structure, and the kernel arguments of the first of them.

    Attributes:
        first: index of the first layer.
        stop: index after the last layer.
        args: tensors of the first layer, inputs that all layers share, and its `KVCache.view`.
        num_tensors: number of tensors of a layer.
        num_views: number of tensors of a view; keys and values are the first of them.
        sample: keys and values of the shape that the layers make.
    """

    first: int
    stop: int
    args: Sequence[Tensor]
    num_tensors: int
    num_views: int
    sample: tuple[Tensor, Tensor]


def span_table(plan: KernelPlan, span: Span, cache: KVCache, tensors: Integers) -> Integers:
    """Addresses of the arguments of all layers of a span: (layers, entries of the plan).

    Args:
        plan: plan of the kernel.
        span: the layers.
        cache: cache of the view; it is opened for all layers of the span.
        tensors: addresses of the tensors of all layers, (layers, tensors).
    """
    layers, args, keys = slice(span.first, span.stop), span.args, len(span.args) - span.num_views
    known = id(plan), span.first, span.stop
    if known not in cache.tables:
        for index in range(span.first, span.stop):
            cache.open(index, *span.sample)
        stored = cache.addresses()
        shared = plan.table(span.stop - span.first)
        plan.set_each(shared, 0, tensors[layers, : span.num_tensors])
        plan.set_each(shared, keys, stored[layers])
        cache.tables[known] = shared
    table: Integers = cache.tables[known].copy()
    stored = cache.addresses()
    plan.set_all(table, args, range(span.num_tensors, keys))
    plan.set_all(table, args, range(keys + 2, len(args)))
    # rows of the view are at the same distance from the first one in all layers
    distance = [args[keys + i].data_ptr() - int(stored[span.first, i]) for i in range(2)]
    if any(distance):
        plan.set_each(table, keys, stored[layers] + distance)
    return table


def with_own_columns(view: tuple[Tensor, ...], hidden: Tensor) -> tuple[Tensor, ...]:
    """A `KVCache.view` with a mask of own columns: one kernel for ragged and other blocks."""
    if len(view) == 3 and min(hidden.shape[:2]) > 1:
        return (*view, torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device))
    return view
