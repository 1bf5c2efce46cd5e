"""Read hidden states out at each depth, a few rows at a time, and keep statistics of the logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eepolicy.compile.onednn import wide_products
from eepolicy.errors import EepolicyError
from eepolicy.modality import TokenLayout
from eepolicy.model.backbone import Backbone
from eepolicy.probing.plan import ProbePlan
from eepolicy.probing.statistics.attention_mass import AttentionContext
from eepolicy.probing.statistics.buffers import BufferPool
from eepolicy.probing.statistics.context import StateContext
from eepolicy.probing.statistics.extras import Extras
from eepolicy.probing.statistics.last_layer import LastLayer
from eepolicy.probing.statistics.measure import (
    LogitStatistics,
    Run,
    checked_values,
    measure_states,
)

#: largest array of logits, bytes; there are up to three of this size at once.  The allocator
#: returns larger arrays to the system, and their pages are faulted in again at each depth: the
#: product of 192 rows then takes 1.15 times as long per row as that of 128
MAX_LOGIT_BYTES = 2**25
#: logits whose statistics a CPU computes at once, bytes; small enough for its caches
CPU_SLICE_BYTES = 2**21

#: hidden states by depth, (readouts, width) each; 0 is the embedding
States = dict[int, Tensor]


@dataclass(frozen=True, eq=False)
class Readouts:
    """What a `StateReader` reads of some positions.

    Attributes:
        states: hidden states; without those of full depth, what compares with it is missing.
        following: (readouts,) ids that follow, -1 where none does.
        branch_states: states after the branches of the heads, by depth; the statistics of logits
            are missing at a depth with a branch and without such states.
        given: given ids, (readouts, ids) each, by name.
        attention: attention of the layers that ran, (readouts, heads, modalities) each, by depth.
    """

    states: States
    following: Tensor
    branch_states: States = field(default_factory=dict)
    given: Mapping[str, Tensor] = field(default_factory=dict)
    attention: States = field(default_factory=dict)


class StateReader:
    """Reads hidden states out as a plan says.

    Args:
        backbone: model whose heads read the states.
        plan: what to read out and keep.
        layout: which ids are text and which are speech.
        run: compiles and runs statistics, see `LogitStatistics`; None runs them in eager mode.
    """

    def __init__(
        self, backbone: Backbone, plan: ProbePlan, layout: TokenLayout, run: Run | None = None
    ) -> None:
        self.backbone = backbone
        self.plan = plan
        self.layout = layout
        # a GPU's allocator keeps its memory by itself
        buffers = BufferPool() if backbone.device.type == "cpu" else None
        self._statistics = LogitStatistics(plan.of_logits, run, buffers)

    def read(self, readouts: Readouts) -> dict[str, Tensor]:
        """Evaluate the statistics of a plan.

        Returns:
            (readouts, depths) or (readouts, kept depths, ...) each, by name, on the CPU.

        Raises:
            EepolicyError: the heads read out a part of the vocabulary only.
        """
        states, count = readouts.states, len(readouts.following)
        columns = self._empty(count)
        if self.plan.hidden_states:
            missing = torch.full_like(next(iter(states.values())), torch.nan)
            kept = [states.get(depth, missing) for depth in self.plan.hidden_states]
            columns["hidden_states"] = torch.stack(
                [each.to("cpu", self.plan.dtype) for each in kept], 1
            )
        if self.plan.of_states:
            self._read_states(columns, states)
        if self.plan.of_attention:
            self._read_attention(columns, readouts.attention)
        if self.plan.needs_logits:
            branches = self.plan.heads.branch_depths
            read = {depth: each for depth, each in states.items() if depth not in branches}
            read |= readouts.branch_states
            for rows in self._chunks(count):
                self._read_chunk(columns, read, rows, readouts)
        return columns

    def _read_chunk(
        self, columns: dict[str, Tensor], read: States, rows: slice, readouts: Readouts
    ) -> None:
        """Evaluate the statistics of logits of some readouts, at all depths.

        Args:
            columns: columns to write to.
            read: states that the heads read, by depth.
            rows: the readouts.
            readouts: all readouts.
        """
        last, deeper = None, None
        for depth in reversed(self.plan.depths):  # the others compare with the last layer
            if depth not in read:
                deeper = None
                continue
            logits = self._logits(read[depth][rows], depth)
            if depth == self.backbone.depth:
                last = self._last_layer(logits)
            self._keep_logits(columns, logits, depth, rows)
            for part in self._parts(logits):
                at = slice(rows.start + part.start, rows.start + part.stop)
                extras = Extras(
                    self.layout,
                    None if deeper is None else LastLayer.of(deeper[part], keep_logs=False),
                    {name: ids[at] for name, ids in readouts.given.items()},
                )
                values = self._statistics.measure(
                    logits[part],
                    None if last is None else last[part],
                    readouts.following[at],
                    extras,
                )
                index = self.plan.depths.index(depth)
                for name, value in values.items():
                    columns[name][at, index] = value.to("cpu", columns[name].dtype)
            # without a statistic that needs them, before those of the next depth are allocated
            deeper = logits if self.plan.compares_with_deeper else None
            del logits

    def _empty(self, rows: int) -> dict[str, Tensor]:
        """Columns on the CPU in which all values are missing."""
        plan, depths = self.plan, len(self.plan.depths)
        columns: dict[str, Tensor] = {}
        for statistic in plan.statistics:
            dtype = torch.int64 if statistic.integer else torch.float32
            columns[statistic.name] = torch.full((rows, depths), statistic.missing, dtype=dtype)
        if plan.top_k:
            shape = (rows, depths, plan.top_k)
            columns["top_tokens"] = torch.full(shape, -1)
            columns["top_probabilities"] = torch.full(shape, torch.nan)
        if plan.distributions:
            shape = (rows, len(plan.distributions), self.backbone.vocab_size)
            columns["distributions"] = torch.full(shape, torch.nan, dtype=plan.dtype)
        return columns

    def _read_states(self, columns: dict[str, Tensor], states: States) -> None:
        """Evaluate the statistics of hidden states."""
        wide = torch.promote_types(self.backbone.model.dtype, torch.float32)
        converted = {depth: each.to(wide) for depth, each in states.items()}
        for index, depth in enumerate(self.plan.depths):
            if depth in states:
                last, previous = converted.get(self.backbone.depth), converted.get(depth - 1)
                context = StateContext(converted[depth], last, previous)
                for name, values in measure_states(context, self.plan.of_states).items():
                    columns[name][:, index] = values.to("cpu", columns[name].dtype)

    def _logits(self, states: Tensor, depth: int) -> Tensor:
        """Logits of hidden states (rows, width), in float32 at least: (rows, vocabulary)."""
        head = self.backbone.lens if depth == self.backbone.depth else self.plan.heads
        vocabulary = self.backbone.vocab_size
        with wide_products(self.backbone.lens.head):
            logits = head.logits(states, depth)
        if logits.shape[-1] != vocabulary:
            raise EepolicyError(
                f"{head!r} reads out {logits.shape[-1]} of the model's {vocabulary} tokens; "
                "a probe needs heads that read out all of them"
            )
        return logits.to(torch.promote_types(self.backbone.model.dtype, torch.float32))

    def _last_layer(self, logits: Tensor) -> LastLayer | None:
        """The distributions of full depth, if a statistic compares with them."""
        compared = [s for s in self.plan.of_logits if s.compares_with == "last"]
        return LastLayer.of(logits, any(s.needs_last_logs for s in compared)) if compared else None

    def _keep_logits(
        self, columns: dict[str, Tensor], logits: Tensor, depth: int, rows: slice
    ) -> None:
        """Store the log-probabilities and most probable tokens that the plan keeps."""
        plan = self.plan
        if depth in plan.distributions:
            logs = logits.log_softmax(-1).to(plan.dtype)
            columns["distributions"][rows, plan.distributions.index(depth)] = logs.cpu()
        if plan.top_k:
            index = plan.depths.index(depth)
            best = logits.topk(plan.top_k, -1)
            probabilities = (best.values - logits.logsumexp(-1, keepdim=True)).exp()
            columns["top_tokens"][rows, index] = best.indices.cpu()
            columns["top_probabilities"][rows, index] = probabilities.to("cpu", torch.float32)

    def _read_attention(self, columns: dict[str, Tensor], attention: States) -> None:
        """Evaluate the statistics of attention."""
        for index, depth in enumerate(self.plan.depths):
            if depth in attention:
                context = AttentionContext(attention[depth])
                for name, values in checked_values(self.plan.of_attention, context).items():
                    columns[name][:, index] = values.to("cpu", columns[name].dtype)

    def _parts(self, logits: Tensor) -> Iterator[slice]:
        """Rows whose statistics are computed at once: few on a CPU, all elsewhere."""
        on_cpu = logits.device.type == "cpu"
        size = CPU_SLICE_BYTES // (4 * logits.shape[1]) if on_cpu else len(logits)
        return _slices(0, len(logits), max(1, size))

    def _chunks(self, readouts: int) -> Iterator[slice]:
        """Readouts whose logits are computed together.

        All are of about one size, since a small product uses a processor badly.
        """
        most = max(1, MAX_LOGIT_BYTES // (4 * self.backbone.vocab_size))
        count = -(-readouts // most)
        return _slices(0, readouts, -(-readouts // count))


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    """Consecutive slices of a range, of one size but for the last."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))
