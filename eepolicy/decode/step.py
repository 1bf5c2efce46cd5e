"""One token of each row through the layers, as deep as a policy says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from eepolicy.decode.batch import Batch, Block
from eepolicy.decode.readout import LazyReadout
from eepolicy.errors import EepolicyError
from eepolicy.modality import Modality
from eepolicy.policies import ExitPolicy, Step


@dataclass
class StepOutput:
    """What a step gave, one entry a row that took it.

    Attributes:
        logits: (rows, vocabulary) of the next tokens.
        depth: layers that ran before they were read out.
        readouts: head evaluations that were paid.
        caught_up: hidden states at full depth, (columns, width), of the rows that ran all layers on
            more than their newest position, a prompt that went along included, oldest first, by
            their place in the step.
    """

    logits: Tensor
    depth: list[int]
    readouts: list[int]
    caught_up: dict[int, Tensor]


def run_step(
    batch: Batch,
    tokens: Tensor,
    rows: list[int],
    policy: ExitPolicy,
    step: Step,
    started: Block | None = None,
) -> StepOutput:
    """Feed one token to each row, go as deep as the policy says, and read the next ones out.

    At the first step a prompt lies before that token.  It goes along in the same calls where the
    tokens of all rows go all the way, and none looks before; otherwise it is prefilled.

    Args:
        batch: of the rows.
        tokens: ids (rows, columns) or embeddings (rows, columns, width); the newest one is the
            step's, and those before it are the prompt's.
        rows: of the batch, rising.
        policy: which names the depths.
        step: what it may know.
        started: the block of the step, which is already on its way; the tokens are in it then.

    Raises:
        EepolicyError: the policy names a depth that the model does not have.
    """
    full = batch.model.depth
    limits = [int(d) for d in policy.depths(step).tolist()]
    for limit in limits:
        if not 1 <= limit <= full:
            raise EepolicyError(
                f"{policy!r} gave depth {limit}, but the model has depths 1 to {full}"
            )
    groups = _groups(policy, step, limits, batch.in_speech)
    stops = sorted({*limits, *(look for group in groups for look in group.looks)})
    if stops[0] < (least := policy.min_depth(full)):
        raise EepolicyError(
            f"{policy!r} stops at depth {stops[0]}, below its least depth {least}: let its "
            "min_depth() give the lowest depth at which it exits or looks"
        )
    whole = min(limits) == full and not any(group.looks for group in groups)
    if started is None and tokens.shape[1] > 1 and not whole:
        batch.prefill(tokens[:, :-1])
        tokens = tokens[:, -1:]
    block = started or batch.enter(tokens, rows)
    way = (
        FullThenSelect(batch, block, stops)
        if policy.needs_full_pass
        else LayerwisePass(batch, block)
    )
    taken = ExitCollector(batch, len(rows))
    for depth in stops:
        gone: list[int] = []
        for group in groups:
            if depth in group.looks:
                readout = way.look(depth, group)
                here = step.select(group.places).to(readout.hidden.device)
                exits = policy.should_exit(here, depth, readout).tolist()
                gone += taken.leave(group, [i for i, out in enumerate(exits) if out], readout)
            ended = [i for i, place in enumerate(group.places) if limits[place] == depth]
            if ended:
                readout = way.look(depth, group)
                if depth == full:
                    taken.caught_up |= way.caught_up([group.places[i] for i in ended])
                gone += taken.leave(group, ended, readout)
        if gone:
            groups = [group for group in groups if group.places]
            way.drop(gone)
        if not groups:
            break
    return taken.done()


@dataclass
class _Group:
    """Rows that look at the same depths.

    Attributes:
        looks: the depths below their limits.
        places: of the rows in the step.
        over: ranges of ids that they read out; all where there are none.
        seen: what they saw last.
    """

    looks: tuple[int, ...]
    places: list[int]
    over: Sequence[tuple[int, int]] = ()
    seen: LazyReadout | None = None


def _groups(
    policy: ExitPolicy, step: Step, limits: list[int], in_speech: Sequence[tuple[int, int]]
) -> list[_Group]:
    """Each row looks where it would look by itself, whatever its neighbours do."""
    found: dict[tuple[int, ...], _Group] = {}
    modality = step.modality.tolist()  # what is asked of a look may depend on it
    for place, limit in enumerate(limits):
        looks = policy.candidate_depths(step if len(limits) == 1 else step.select([place]))
        if list(looks) != sorted(set(looks)) or min(looks, default=1) < 1:
            raise EepolicyError(f"{policy!r} looks at depths {looks}: they must rise from 1")
        below = tuple(look for look in looks if look < limit)
        key = (modality[place], *below) if below or in_speech else ()
        over = in_speech if modality[place] == Modality.SPEECH else ()
        found.setdefault(key, _Group(below, [], over)).places.append(place)
    return list(found.values())


class ExitCollector:
    """Collects what the rows of a step leave with."""

    def __init__(self, batch: Batch, rows: int) -> None:
        self.batch, self.rows = batch, rows
        self.left: list[tuple[list[int], LazyReadout]] = []
        self.caught_up: dict[int, Tensor] = {}

    def leave(self, group: _Group, out: list[int], readout: LazyReadout) -> list[int]:
        """Some rows of a group leave with a readout of the whole group; gives their places."""
        if not out:
            return []
        if len(out) < len(group.places):
            stay = sorted({*range(len(group.places))} - {*out})
            group.seen = readout.select(stay)
            readout = readout.select(out)
        else:
            stay = []
        places = [group.places[i] for i in out]
        group.places = [group.places[i] for i in stay]
        self.left.append((places, readout))
        return places

    def done(self) -> StepOutput:
        self._read_at_once([readout for _, readout in self.left if not readout.paid])
        parts = [readout.logits for _, readout in self.left]
        logits = torch.cat(parts) if len(parts) > 1 else parts[0]
        order = [place for places, _ in self.left for place in places]
        if order != sorted(order):
            logits = logits[torch.tensor(order, device=logits.device).argsort()]
        depth, readouts = [0] * self.rows, [0] * self.rows
        for places, readout in self.left:
            for place in places:
                depth[place], readouts[place] = readout.depth, readout.cost
        return StepOutput(logits, depth, readouts, self.caught_up)

    def _read_at_once(self, unread: list[LazyReadout]) -> None:
        """Read out what nobody has looked at, where one head serves all depths."""
        model, read = self.batch.model, self.batch.read
        if len(unread) < 2 or model.heads is not model.lens or self.batch.in_speech:
            return
        logits = read(torch.cat([readout.hidden for readout in unread]), model.depth)
        parts = logits.split([len(readout.hidden) for readout in unread])
        for readout, part in zip(unread, parts, strict=True):
            readout.logits = part


class LayerwisePass:
    """Rows on their way up, and those that have left and come along."""

    def __init__(self, batch: Batch, block: Block) -> None:
        self.batch, self.block = batch, block
        self.here = list(range(len(block.rows)))
        self.along: set[int] = set()

    def look(self, depth: int, group: _Group) -> LazyReadout:
        """What a group sees at a depth."""
        self.batch.run(self.block, depth)
        hidden = self.block.hidden[:, -1]
        if len(group.places) < len(self.here):
            at = [self.here.index(place) for place in group.places]
            hidden = hidden[torch.tensor(at, device=hidden.device)]
        read = partial(self.batch.read, over=group.over) if group.over else self.batch.read
        group.seen = LazyReadout(depth, hidden, read, group.seen)
        return group.seen

    def caught_up(self, places: list[int]) -> dict[int, Tensor]:
        """Hidden states of rows that have run more than their newest position."""
        at = {place: self.here.index(place) for place in places}
        columns = {place: self.block.missing[i] for place, i in at.items()}
        return {p: self.block.hidden[at[p], -n:] for p, n in columns.items() if n > 1}

    def drop(self, places: list[int]) -> None:
        """Rows that have left."""
        self.along |= {*places}
        stay = [i for i, place in enumerate(self.here) if place not in self.along]
        if not stay:
            self.batch.leave(self.block)
            return
        left = [i for i in range(len(self.here)) if i not in stay]
        if self._come_along(stay, left):
            return
        self.batch.leave(self.block.select(left))
        self.block, self.here = self.block.select(stay), [self.here[i] for i in stay]

    def _come_along(self, stay: list[int], left: list[int]) -> bool:
        """Whether rows that have left run on with the others, by their places in the block."""
        along, missing = self.batch.fill.along, self.block.missing
        if along is None:
            return False
        if along == "measured":
            assert self.batch.costs is not None
            wide, waiting = (max(missing[i] for i in places) for places in (stay, left))
            rows = self.block.rows
            parts = [[rows[i] for i in places] for places in (stay, left)]
            gathered = sum(map(self.batch.needs_gather, parts)) - self.batch.needs_gather(rows)
            return self.batch.costs.favour_coming_along(
                len(stay), len(left), wide, waiting, gathered
            )
        return len(stay) >= along * len(self.here)


class FullThenSelect:
    """For a policy that asks the full model first: every layer has run before the first look."""

    def __init__(self, batch: Batch, block: Block, stops: list[int]) -> None:
        self.model, self.read = batch.model, batch.read
        self.states: dict[int, Tensor] = {}
        for depth in sorted({*stops, self.model.depth}):
            batch.run(block, depth)
            self.states[depth] = block.hidden[:, -1]
        self.full = LazyReadout(self.model.depth, block.hidden[:, -1], self.read)
        self.full.logits  # noqa: B018 - read once, for all rows

    def look(self, depth: int, group: _Group) -> LazyReadout:
        """What a group sees at a depth."""
        full = self.full.select(group.places)
        if depth == self.model.depth:
            full.previous = group.seen
            return full
        group.seen = LazyReadout(
            depth,
            self.states[depth][torch.tensor(group.places)],
            self.read,
            group.seen,
            full,
        )
        return group.seen

    def caught_up(self, places: list[int]) -> dict[int, Tensor]:
        """Nothing waits, since every layer has run."""
        return {}

    def drop(self, places: list[int]) -> None:
        """Rows that have left: nothing waits, since every layer has run."""
