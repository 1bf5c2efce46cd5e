"""A block: the columns that some rows of a batch compute together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Block:
    """The newest columns of the rows that go through the layers together.

    Attributes:
        rows: rows of the batch, in ascending order.
        hidden: (rows, columns, width) after `depth` layers; the newest column is the last one.
        num_new: for each row, the number of newest columns that it computes.  The columns
            before them are padding, because another row computes more.
        depth: layers that have run on the newest column.
    """

    rows: list[int]
    hidden: Tensor
    num_new: list[int]
    depth: int = 0

    def select(self, keep: Sequence[int]) -> Block:
        """Select rows by their indices in the block."""
        num_new = [self.num_new[i] for i in keep]
        hidden = self.hidden[torch.tensor(keep, device=self.hidden.device)]
        # drop columns that only padded to a wider row
        hidden = hidden[:, hidden.shape[1] - max(num_new, default=0) :]
        return Block([self.rows[i] for i in keep], hidden, num_new, self.depth)
