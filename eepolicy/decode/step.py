"""One decoding step: runs one token of each row as deep as the policy says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eepolicy.decode.batch import Batch
from eepolicy.decode.block import Block
from eepolicy.decode.readout import LazyReadout
from eepolicy.decode.traversal import FullThenSelect, LayerwisePass, ReadoutGroup, Traversal
from eepolicy.errors import EepolicyError
from eepolicy.guard import Guard
from eepolicy.modality import Modality
from eepolicy.policies import ExitPolicy, Step
from eepolicy.returned import check_depths, check_flags, check_ids
from eepolicy.trace import TokenCost


@dataclass
class StepOutput:
    """Result of a step, with one entry for each row.

    Attributes:
        logits: (rows, vocab) of the next tokens.
        depth: depth at which each row was read out.
        costs: computation of each row.
        pending_states: hidden states at full depth, (columns, width) of each row, by the row's
            index in the step.  The columns are the pending positions that this step completed,
            oldest first, and then the newest position.  A prompt that ran in the same calls comes
            before it.  Rows that ran only their newest position are left out.
        hidden: (rows, width), hidden states that the logits were read out of, before any norm.
    """

    logits: Tensor
    depth: list[int]
    costs: list[TokenCost]
    pending_states: dict[int, Tensor]
    hidden: Tensor


def run_step(
    batch: Batch,
    inputs: Tensor | Block,
    rows: list[int],
    policy: ExitPolicy,
    step: Step,
) -> StepOutput:
    """Feed one token to each row, run layers as the policy says, and read the next tokens out.

    At the first step the rest of the prompt precedes that token.  It runs in the same calls if all
    rows go to full depth without a readout on the way; otherwise it is prefilled.

    Args:
        batch: batch that decodes.
        inputs: ids (rows, columns) or embeddings (rows, columns, width), where the newest column
            is the step's token and the columns before it are the prompt.  Or the block of a step
            that was launched before.
        rows: rows of the batch, ascending.
        policy: exit policy.
        step: what the policy knows of each row.

    Raises:
        EepolicyError: the policy returns a depth that the model does not have.
    """
    full = batch.full_depth
    limits = _limits(policy, step, batch)
    groups = _groups(policy, step, limits, batch)
    stops = sorted({*limits, *(depth for group in groups for depth in group.candidates)})
    if stops[0] < (lowest := policy.min_depth(full)):
        raise EepolicyError(
            f"{policy!r} stops at depth {stops[0]}, below its min_depth {lowest}: let min_depth() "
            "return the lowest depth at which it exits or reads out"
        )
    if not isinstance(inputs, Block):
        no_stop_before_full = min(limits) == full and not any(g.candidates for g in groups)
        if inputs.shape[1] > 1 and not no_stop_before_full:
            batch.prefill(inputs[:, :-1], rows)
            inputs = inputs[:, -1:]
        inputs = batch.begin_step(inputs, rows)
    traversal: Traversal = (
        FullThenSelect(batch, inputs, stops)
        if policy.needs_full_pass
        else LayerwisePass(batch, inputs)
    )
    collector = ExitCollector(batch, rows)
    exits = _Exits(policy, step, limits, traversal, collector)
    for depth in stops:
        exited = [row for group in groups for row in exits.of_group(group, depth)]
        if exited:
            groups = [group for group in groups if group.rows]
            traversal.exit(exited)
        if not groups:
            break
    return collector.output()


def _limits(policy: ExitPolicy, step: Step, batch: Batch) -> list[int]:
    """The depth at which each row stops at the latest.

    Raises:
        EepolicyError: the policy returns a depth that the model does not have.
    """
    with Guard(policy, "depths"):
        depths = policy.depths(step)
    limits: list[int] = check_ids(policy, "depths", depths, step.phase.shape).tolist()
    least, full_depth = _least_depth(batch), batch.full_depth
    for limit in limits:
        if not least <= limit <= full_depth:
            drafter = "" if least == 0 else "; depth 0 needs exit heads with a drafter"
            raise EepolicyError(
                f"{policy!r} gave depth {limit}, but the model has depths {least} to {full_depth}"
                f"{drafter if limit == 0 else ''}"
            )
    return limits


def _least_depth(batch: Batch) -> int:
    """The least depth that a position can exit at: 0 with a drafter."""
    return 0 if 0 in batch.backbone.branches else 1


def _groups(policy: ExitPolicy, step: Step, limits: list[int], batch: Batch) -> list[ReadoutGroup]:
    """Group rows by candidate depths.

    Each row has the same candidates as if it were decoded alone.
    """
    ranges = batch.options.vocab_ranges
    groups: dict[tuple[int, ...], ReadoutGroup] = {}
    modality = step.modality.tolist()  # a policy's candidates may depend on it
    for row, (limit, own) in enumerate(zip(limits, step.single_rows(), strict=True)):
        with Guard(policy, "candidate_depths"):
            candidates = policy.candidate_depths(own)
        candidates = check_depths(
            policy, "candidate_depths", candidates, _least_depth(batch), batch.full_depth
        )
        below = tuple(depth for depth in candidates if depth < limit)
        key = (modality[row], *below) if below or ranges else ()
        row_ranges = ranges if modality[row] == Modality.SPEECH else ()
        groups.setdefault(key, ReadoutGroup(below, [], row_ranges)).rows.append(row)
    return list(groups.values())


@dataclass(frozen=True)
class _Exits:
    """Decides which rows of a step exit at a depth.

    Attributes:
        policy: exit policy.
        step: what the policy knows of each row.
        limits: depth at which each row stops at the latest.
        traversal: gives the readouts.
        collector: collects the readouts of rows that exit.
    """

    policy: ExitPolicy
    step: Step
    limits: list[int]
    traversal: Traversal
    collector: ExitCollector

    def of_group(self, group: ReadoutGroup, depth: int) -> list[int]:
        """Rows of a group that exit at a depth, or reach their limit there."""
        exited: list[int] = []
        if depth in group.candidates:
            readout = self.traversal.readout(depth, group)
            here = self.step.select(group.rows).to(readout.hidden.device)
            with Guard(self.policy, "should_exit"):
                exits = self.policy.should_exit(here, depth, readout)
            flags = check_flags(self.policy, "should_exit", exits, len(group.rows)).tolist()
            out = [i for i, exits in enumerate(flags) if exits]
            exited += self.collector.exit(group, out, readout)
        at_limit = [i for i, row in enumerate(group.rows) if self.limits[row] == depth]
        if at_limit:
            readout = self.traversal.readout(depth, group)
            if depth == self.step.full_depth:
                rows = [group.rows[i] for i in at_limit]
                self.collector.pending_states |= self.traversal.pending_states(rows)
            exited += self.collector.exit(group, at_limit, readout)
        return exited


class ExitCollector:
    """Collects the readouts of rows that exit.

    Args:
        batch: batch that decodes.
        rows: rows of the step.
    """

    def __init__(self, batch: Batch, rows: list[int]) -> None:
        self.batch, self.rows = batch, rows
        self.exits: list[tuple[list[int], LazyReadout]] = []
        self.pending_states: dict[int, Tensor] = {}

    def exit(self, group: ReadoutGroup, out: list[int], readout: LazyReadout) -> list[int]:
        """Some rows of a group exit.

        Args:
            group: the group; keeps the other rows.
            out: indices in the group of the rows that exit.
            readout: readout of the whole group.

        Returns:
            Indices of the rows in the step.
        """
        if not out:
            return []
        staying: list[int] = []
        if len(out) < len(group.rows):
            staying = sorted({*range(len(group.rows))} - {*out})
            group.last = readout.select(staying)
            readout = readout.select(out)
        rows = [group.rows[i] for i in out]
        group.rows = [group.rows[i] for i in staying]
        self.exits.append((rows, readout))
        return rows

    def output(self) -> StepOutput:
        """The result of the step, rows in order."""
        self._read_together([readout for _, readout in self.exits if not readout.is_evaluated])
        logits = self._in_order([readout.logits for _, readout in self.exits])
        hidden = self._in_order([readout.hidden for _, readout in self.exits])
        depth, readouts = [0] * len(self.rows), [0] * len(self.rows)
        for rows, readout in self.exits:
            for row in rows:
                depth[row], readouts[row] = readout.depth, readout.num_readouts
        # copied: the next step resets the batch's counts
        costs = [
            self.batch.cost(row) + TokenCost(n) for row, n in zip(self.rows, readouts, strict=True)
        ]
        return StepOutput(logits, depth, costs, self.pending_states, hidden)

    def _in_order(self, parts: list[Tensor]) -> Tensor:
        """One tensor of what was read out at each exit, (rows, ...) with the rows in order."""
        joined = torch.cat(parts) if len(parts) > 1 else parts[0]
        order = [row for rows, _ in self.exits for row in rows]
        if order == sorted(order):
            return joined
        return joined[torch.tensor(order, device=joined.device).argsort()]

    def _read_together(self, unread: list[LazyReadout]) -> None:
        """Evaluate readouts in one call if one head serves all depths."""
        backbone = self.batch.backbone
        if len(unread) < 2 or backbone.heads is not backbone.lens:
            return
        if self.batch.options.vocab_ranges or not self.batch.executor.has_one_head:
            return
        hidden = torch.cat([readout.hidden for readout in unread])
        logits = self.batch.read(hidden, self.batch.full_depth)
        parts = logits.split([len(readout.hidden) for readout in unread])
        for readout, part in zip(unread, parts, strict=True):
            readout.logits = part
