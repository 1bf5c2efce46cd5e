"""SPAR-K's schedules (arXiv 2603.09215, section on the schedule)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fields import Positive, check_fields
from eepolicy.policies.base import (
    POLICIES,
    ExitPolicy,
    On,
    Step,
    check_depth,
    masked_depths,
    prefixed,
)
from eepolicy.registry import parse_rest

#: the paper's patterns: F is a position at full depth, E an exit
PATTERNS = {"even": "FE", "odd": "EF", "triple": "FEE"}
#: markers of the paper's patterns in figures
MARKERS = {"even": "o", "odd": "D", "triple": "^"}


@POLICIES.register
@dataclass(frozen=True)
class SparK(ExitPolicy):
    """Alternates early exits with positions at full depth, in a fixed pattern.

    Attributes:
        pattern: `"even"` (full, exit), `"odd"` (exit, full) or `"triple"` (full, exit, exit) as in
            the paper, or letters such as `"FEEE"`: F for full depth, E for an exit.
        exit_depth: depth of the positions that exit.
        on: `"speech"` as in the paper, `"text"` (its ablation G9) or `"both"`.
        restart: whether the pattern restarts in each chunk, as in the paper.  Otherwise it
            continues from one chunk of a modality to the next.

    Examples:
        >>> SparK("triple", exit_depth=16).spec
        'spark:triple@16'
        >>> SparK("FEEE", exit_depth=16, restart=False).spec
        'spark:FEEE~@16'
    """

    pattern: str
    exit_depth: Positive
    on: On = "speech"
    restart: bool = True
    name: ClassVar[str] = "spark"
    usage: ClassVar[str] = (
        "spark:PATTERN[~]@DEPTH (PATTERN is even, odd, triple or letters such as FEEE; ~ continues "
        "it across chunks)"
    )
    example: ClassVar[str] = "spark:triple@14"
    summary: ClassVar[str] = "full depth and two exits in turn"
    examples: ClassVar[tuple[tuple[str, str], ...]] = (
        ("spark:even@12", "full depth and an exit in turn; the pattern restarts in each chunk"),
        ("spark:odd@12", "an exit and full depth in turn"),
        ("spark:triple@14", "full depth and two exits in turn"),
        ("spark:FEEE@14", "another pattern: F is full depth, E an exit"),
        ("spark:FEEE~@14", "the same pattern, continued from chunk to chunk"),
    )
    paper: ClassVar[str] = "SPAR-K, arXiv 2603.09215"
    source: ClassVar[str] = "https://arxiv.org/abs/2603.09215"
    colour: ClassVar[str] = "#009E73"
    marker: ClassVar[str] = "p"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.pattern not in PATTERNS and not re.fullmatch("[FE]+", self.pattern):
            raise EepolicyError(
                f"SparK's patterns are {', '.join(PATTERNS)}, or letters F (full) and E (exit) "
                f"such as FEEE; got {self.pattern!r}"
            )

    def depths(self, step: Step) -> Tensor:
        letters = PATTERNS.get(self.pattern, self.pattern)
        index = (step.phase if self.restart else step.ordinal) % len(letters)  # (rows,)
        depths = [step.full_depth if letter == "F" else self.exit_depth for letter in letters]
        return masked_depths(step, self.on, torch.tensor(depths, device=index.device)[index])

    def min_depth(self, full_depth: int) -> int:
        return self.exit_depth

    def possible_depths(self, full_depth: int) -> tuple[int, ...]:
        return (self.exit_depth,)

    def check(self, full_depth: int) -> None:
        check_depth(self.exit_depth, full_depth, f"{self!r}")

    @classmethod
    def from_spec(cls, rest: str) -> SparK:
        pattern, tilde, depth = parse_rest(rf":({'|'.join(PATTERNS)}|[FE]+)(~?)@(\d+)", rest)
        return cls(pattern, int(depth), restart=not tilde)

    @property
    def spec(self) -> str:
        tilde = "" if self.restart else "~"
        return prefixed(self.on, f"spark:{self.pattern}{tilde}@{self.exit_depth}")

    def plot_style(self) -> tuple[str, str]:
        return self.colour, MARKERS.get(self.pattern, self.marker)
