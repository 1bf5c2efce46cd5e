"""Hidden states of the layers that really ran while decoding, and what the heads say of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.trace import Trace

if TYPE_CHECKING:
    from eepolicy.probing import ProbeResult
    from eepolicy.probing.run import Plan


class Recorder:
    """Keeps what leaves each layer, by row and by token that is fed.

    Token `i` of a reply is read out of the `i`-th token that was fed, the prompt's last one first.

    Args:
        rows: of the batch.
    """

    def __init__(self, rows: int) -> None:
        self.states: list[list[dict[int, Tensor]]] = [[] for _ in range(rows)]

    def enter(self, rows: Sequence[int], hidden: Tensor) -> None:
        """One token more is fed to some rows, the newest of hidden (rows, columns, width)."""
        # copied, so that a prompt before it is not kept along
        for row, state in zip(rows, hidden[:, -1].clone(), strict=True):
            self.states[row].append({0: state})

    def ran(self, rows: Sequence[int], missing: Sequence[int], depth: int, hidden: Tensor) -> None:
        """A layer ran.

        Args:
            rows: that took part.
            missing: of each, how many of its newest tokens went through.
            depth: behind the layer.
            hidden: (rows, columns, width) that left it.
        """
        for row, own, states in zip(rows, missing, hidden, strict=True):
            fed = self.states[row]
            count = min(own, len(fed))  # the prompt is not recorded: its columns lie in front
            newest = states[len(states) - count :].clone()
            for entry, state in zip(fed[len(fed) - count :], newest, strict=True):
                entry[depth] = state

    def drop(self, counts: dict[int, int]) -> None:
        """The newest tokens of some rows are taken back: how many, by row."""
        for row, count in counts.items():
            del self.states[row][len(self.states[row]) - count :]

    def result(
        self,
        model: HookedModel,
        row: int,
        prompt: Tensor,
        tokens: Tensor,
        trace: Trace,
        plan: Plan,
    ) -> ProbeResult:
        """What the heads say of a row.

        Args:
            model: whose layers ran.
            row: of the batch.
            prompt: (tokens,) ids, none where embeddings were given.
            tokens: (tokens,) ids of the reply.
            trace: of the reply.
            plan: what to measure and keep.
        """
        from eepolicy.probing.documents import LABELS, Document
        from eepolicy.probing.run import read_states

        fed = self.states[row][: len(tokens)]
        following = tokens.to(model.model.device)
        patterns: dict[tuple[int, ...], list[int]] = {}
        for place, states in enumerate(fed):
            patterns.setdefault(tuple(sorted(states)), []).append(place)
        parts, places = [], []
        for ran, some in patterns.items():
            stacked = {d: torch.stack([fed[i][d] for i in some]) for d in ran}
            parts.append(read_states(model, stacked, following[torch.tensor(some)], plan))
            places += some
        order = np.argsort(places)
        columns = {
            name: torch.cat([part[name] for part in parts]).numpy()[order] for name in parts[0]
        }
        known = prompt if len(prompt) else tokens.new_tensor([-1])
        document = Document(torch.cat([known.cpu(), tokens]), len(known), trace.depth)
        labels = document.labels(model.layout, model.depth)
        columns |= dict(zip(LABELS, labels, strict=True))
        columns["document"] = np.full(len(tokens), row)
        return plan.result(model, columns)


def plan_of(model: HookedModel, options: dict[str, Any]) -> Plan:
    """What to measure and keep.

    Raises:
        EepolicyError: options that a record does not have, or that do not fit the model.
    """
    from eepolicy.probing.run import Plan

    try:
        return Plan.of(model, **options)
    except TypeError as error:
        raise EepolicyError(
            "a record takes depths, heads, statistics, top_k, hidden_states, distributions and "
            f"dtype; got {', '.join(options)}"
        ) from error
