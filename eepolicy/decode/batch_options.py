"""Options of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from eepolicy.decode.fills import CatchUp, KVFill
from eepolicy.decode.rebatch import NeverRebatch, RebatchRule


@dataclass(frozen=True)
class BatchOptions:
    """How a batch treats exits.

    Attributes:
        fill: what becomes of the keys and values above an exit.
        max_pending: largest number of pending positions of a row; None for no limit.
        rebatch: when rows that have exited run on with the others.
        vocab_ranges: half-open ranges of ids that speech is read out over; empty for all ids.
        branch_depths: depths at which exit heads with layers of their own may be read.
    """

    fill: KVFill = field(default_factory=CatchUp)
    max_pending: int | None = None
    rebatch: RebatchRule = field(default_factory=NeverRebatch)
    vocab_ranges: Sequence[tuple[int, int]] = ()
    branch_depths: Sequence[int] = ()
