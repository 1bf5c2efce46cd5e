"""Drafts of a fixed length, or for as long as the drafter is confident."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fields import CheckedFields, Count, Positive
from eepolicy.policies.adaptive import NUMBER
from eepolicy.policies.base import (
    POLICIES,
    ExitPolicy,
    On,
    Readout,
    Step,
    masked_depths,
    prefixed,
)
from eepolicy.registry import parse_rest

#: length of a chain of drafts that a confidence ends
DEFAULT_LENGTH = 8


@POLICIES.register
@dataclass(frozen=True)
class Draft(CheckedFields, ExitPolicy):
    """Drafts some tokens, then runs one at full depth, which verifies them.

    It needs an acceptance rule that verifies.  After a rejected draft a new chain starts.  At depth
    0 the drafter drafts (EAGLE, arXiv 2401.15077), and a draft runs no layer of the model.  At
    another depth the exit head there drafts (self-speculation; LayerSkip, arXiv 2404.16710).

    Attributes:
        length: largest number of drafts between two tokens at full depth.
        min_confidence: a draft is made only if its probability is larger than this; 0 makes all.
            A chain ends at the first token below it (as in arXiv 2401.15077's successors, such as
            EAGLE-2, arXiv 2406.16858, and in AdaEDL, arXiv 2410.18351).
        exit_depth: depth of the drafts; 0 for the drafter.
        on: `"speech"`, `"text"` or `"both"`.

    Examples:
        >>> Draft(5).spec
        'draft:5'
        >>> Draft(8, min_confidence=0.4, exit_depth=4, on="both").spec
        'both=draft:confidence>0.4@4'
    """

    length: Positive = DEFAULT_LENGTH
    min_confidence: Annotated[float, Field(ge=0, lt=1)] = 0.0
    exit_depth: Count = 0
    on: On = "speech"
    name: ClassVar[str] = "draft"
    usage: ClassVar[str] = (
        "draft:LENGTH[:confidence>SHARE][@DEPTH] or draft:confidence>SHARE[@DEPTH] (DEPTH is 0, "
        "the drafter, by default)"
    )
    example: ClassVar[str] = "draft:5"
    summary: ClassVar[str] = "five drafts, then full depth; with accept=exact or sampling"
    examples: ClassVar[tuple[tuple[str, str], ...]] = (
        ("draft:5", "five tokens of the drafter, then full depth; with accept=exact or sampling"),
        ("draft:confidence>0.4", "drafts while the drafter is confident, eight at most"),
        ("draft:5@4", "five drafts of the exit head at depth 4, then full depth"),
    )
    paper: ClassVar[str] = "EAGLE, arXiv 2401.15077"
    source: ClassVar[str] = "https://arxiv.org/abs/2401.15077"
    colour: ClassVar[str] = "#CC79A7"
    marker: ClassVar[str] = "h"
    needs_verification: ClassVar[bool] = True

    @property
    def max_drafts(self) -> int:
        """Largest number of drafts that are not verified yet."""
        return self.length

    def depths(self, step: Step) -> Tensor:
        if self.min_confidence:
            return torch.full_like(step.phase, step.full_depth)
        return self._draft_depths(step)

    def _draft_depths(self, step: Step) -> Tensor:
        """The exit depth where a draft may be made, else full depth: (rows,)."""
        depths = masked_depths(step, self.on, self.exit_depth)
        if step.num_drafts is None:
            return depths
        return torch.where(step.num_drafts < self.length, depths, step.full_depth)

    def candidate_depths(self, step: Step) -> tuple[int, ...]:
        if not self.min_confidence:
            return ()
        drafts = self._draft_depths(step) == self.exit_depth
        return (self.exit_depth,) if bool(drafts.any()) else ()

    def should_exit(self, step: Step, depth: int, readout: Readout) -> Tensor:
        drafts = self._draft_depths(step) == self.exit_depth
        return drafts & (readout.confidence > self.min_confidence)

    def min_depth(self, full_depth: int) -> int:
        return self.exit_depth

    def possible_depths(self, full_depth: int) -> tuple[int, ...]:
        return (self.exit_depth,)

    def check(self, full_depth: int) -> None:
        if not 0 <= self.exit_depth < full_depth:
            raise EepolicyError(
                f"{self!r} drafts at depth {self.exit_depth}; a model of {full_depth} layers "
                f"drafts at depth 0, with a drafter, or at 1 to {full_depth - 1}"
            )

    @classmethod
    def from_spec(cls, rest: str) -> Draft:
        pattern = rf"(?::(\d+))?(?::confidence>{NUMBER})?(?:@(\d+))?"
        length, confidence, depth = parse_rest(pattern, rest)
        if length is None and confidence is None:
            raise EepolicyError("")
        return cls(int(length or DEFAULT_LENGTH), float(confidence or 0), int(depth or 0))

    @property
    def spec(self) -> str:
        body = f"draft:{self.length}"
        if self.min_confidence:
            length = "" if self.length == DEFAULT_LENGTH else f"{self.length}:"
            body = f"draft:{length}confidence>{self.min_confidence!r}"
        return prefixed(self.on, body + (f"@{self.exit_depth}" if self.exit_depth else ""))
