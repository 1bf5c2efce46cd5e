"""One row while it is decoded: where its next token stands, and its trace so far."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from eepolicy.modality import ChunkClock, TokenLayout

#: where a trace row, in the order of `Trace`, has its depth, its distance to the last refresh, its
#: costs and its verdict
_SINCE, _COSTS, _VERDICT = 5, slice(6, 10), 10


class Reply:
    """The tokens of one row.

    Args:
        layout: of the model that speaks.
        full_depth: its layers.
        ends: ids that end the reply.

    Attributes:
        rows: of the trace, in the order of `Trace`.
        drafts: (vocabulary,) each, the scores of the newest tokens that are still to be judged.
        ended: the newest token ends the reply.
    """

    def __init__(self, layout: TokenLayout, full_depth: int, ends: frozenset[int]) -> None:
        self.layout, self.full_depth, self.ends = layout, full_depth, ends
        self.rows: list[list[int]] = []
        self.drafts: list[Tensor] = []
        self._clocks = [ChunkClock(layout)]  # before each token, and for the next one

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ended(self) -> bool:
        return bool(self.rows) and self.rows[-1][0] in self.ends

    @property
    def tokens(self) -> list[int]:
        """The ids so far."""
        return [row[0] for row in self.rows]

    def known(self) -> tuple[int, ...]:
        """What a policy may know of the next token, in the order of `Step`."""
        clock = self._clocks[-1]
        return clock.modality, clock.chunk, clock.phase, len(self.rows), clock.ordinal

    def take(self, token: int, depth: int, costs: tuple[int, ...], verdict: int = 0) -> None:
        """One more token, read out at a depth, and what was paid for it."""
        since = self.rows[-1][_SINCE] + 1 if self.rows else 1
        since = 0 if depth == self.full_depth else since
        self.rows.append([token, *self.known()[:3], depth, since, *costs, verdict])
        clock = self._clocks[-1]
        clock = replace(clock, produced=list(clock.produced))
        if token not in self.ends:
            clock.advance(token)
        self._clocks.append(clock)

    def pay(self, costs: tuple[int, ...]) -> None:
        """What the newest token cost on top."""
        row = self.rows[-1]
        row[_COSTS] = [a + b for a, b in zip(row[_COSTS], costs, strict=True)]

    def keep(self) -> None:
        """The drafts were judged and stay."""
        for row in self.rows[len(self.rows) - len(self.drafts) :]:
            row[_VERDICT] = 1
        self.drafts = []

    def reject(self, kept: int) -> list[int]:
        """All drafts but the first ones go; gives what was paid for them."""
        first = len(self.rows) - len(self.drafts) + kept
        gone, self.rows, self._clocks = (
            self.rows[first:],
            self.rows[:first],
            self._clocks[: first + 1],
        )
        self.drafts = self.drafts[:kept]
        self.keep()
        return [sum(column) for column in zip(*(row[_COSTS] for row in gone), strict=True)]
