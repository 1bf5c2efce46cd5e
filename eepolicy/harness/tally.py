"""Depths and layer calls of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eepolicy.trace import Trace


@dataclass
class DepthTally:
    """Sums over all replies and all scored continuations.

    Attributes:
        num_replies: number of replies.
        num_tokens: number of their tokens.
        depths: sum of the depths of these tokens.
        layer_calls: layer calls of the replies, without those of the prompts.
        num_scored: number of scored tokens.
        scored_depths: sum of the depths at which they were read out.
    """

    num_replies: int = 0
    num_tokens: int = 0
    depths: int = 0
    layer_calls: int = 0
    num_scored: int = 0
    scored_depths: int = 0

    def add_reply(self, trace: Trace) -> None:
        """Count a reply."""
        self.num_replies += 1
        self.num_tokens += len(trace)
        self.depths += int((trace.depth + trace.branch_calls).sum())
        self.layer_calls += int(trace.layer_calls.sum())

    def add_scores(self, depths: Sequence[int]) -> None:
        """Count scored tokens by their depths."""
        self.num_scored += len(depths)
        self.scored_depths += sum(depths)

    def to_dict(self, full_depth: int) -> dict[str, float | int]:
        """Counts and means as JSON types; without what did not occur.

        Args:
            full_depth: number of layers of the model.
        """
        result: dict[str, float | int] = {"full_depth": full_depth}
        if self.num_tokens:
            result |= {
                "replies": self.num_replies,
                "reply_tokens": self.num_tokens,
                "mean_depth": self.depths / self.num_tokens,
                "layer_calls": self.layer_calls,
                "layer_calls_at_full_depth": self.num_tokens * full_depth,
            }
        if self.num_scored:
            result |= {
                "scored_tokens": self.num_scored,
                "mean_scored_depth": self.scored_depths / self.num_scored,
            }
        return result
