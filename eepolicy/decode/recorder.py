"""Records the hidden states of the layers that run while decoding."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class Recorder:
    """Stores the output of each layer, by row and by input token.

    Token *i* of a reply is read out of the *i*-th input token; the first is the prompt's last one.

    Args:
        rows: number of rows.

    Attributes:
        states: `states[row][i][depth]`, hidden state (width,) of input token *i*; depth 0 is the
            embedding.
        branch_states: `branch_states[row][i][depth]`, (width,), after the branch at a depth.
    """

    def __init__(self, rows: int) -> None:
        self.states: list[list[dict[int, Tensor]]] = [[] for _ in range(rows)]
        self.branch_states: list[list[dict[int, Tensor]]] = [[] for _ in range(rows)]

    def begin_token(self, rows: Sequence[int], hidden: Tensor) -> None:
        """Some rows get a new token, the newest column of `hidden` (rows, columns, width)."""
        # a copy, because a view would keep the states of the prompt
        for row, state in zip(rows, hidden[:, -1].clone(), strict=True):
            self.states[row].append({0: state})
            self.branch_states[row].append({})

    def record_layer(
        self, rows: Sequence[int], num_new: Sequence[int], depth: int, hidden: Tensor
    ) -> None:
        """Store the output of a layer.

        Args:
            rows: rows that went through the layer.
            num_new: of each row, how many of its newest columns went through it.
            depth: depth after the layer.
            hidden: (rows, columns, width), output of the layer.
        """
        self._record(self.states, rows, num_new, depth, hidden)

    def record_branch(
        self, rows: Sequence[int], num_new: Sequence[int], depth: int, hidden: Sequence[Tensor]
    ) -> None:
        """Store the output of the branch at a depth.

        Args:
            rows: rows that went through the branch.
            num_new: of each row, how many of its newest positions went through it.
            depth: depth of the branch.
            hidden: of each row, (positions, width), output of the branch.
        """
        self._record(self.branch_states, rows, num_new, depth, hidden)

    def _record(
        self,
        stored: list[list[dict[int, Tensor]]],
        rows: Sequence[int],
        num_new: Sequence[int],
        depth: int,
        hidden: Tensor | Sequence[Tensor],
    ) -> None:
        for row, own, states in zip(rows, num_new, hidden, strict=True):
            tokens = stored[row]
            count = min(own, len(tokens))  # columns of the prompt are not recorded
            newest = states[len(states) - count :].clone()
            for entry, state in zip(tokens[len(tokens) - count :], newest, strict=True):
                entry[depth] = state

    def drop(self, counts: dict[int, int]) -> None:
        """Drop the newest tokens of some rows; `counts` has their number by row."""
        for row, count in counts.items():
            for stored in (self.states[row], self.branch_states[row]):
                del stored[len(stored) - count :]
