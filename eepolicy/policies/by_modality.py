"""One policy for text and another for speech."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.policies.base import ExitPolicy, Readout, Step


@dataclass(frozen=True)
class ByModality(ExitPolicy):
    """Applies one policy to text positions and another to speech positions.

    Attributes:
        text: a policy whose `on` is `"text"` or `"both"`.
        speech: a policy whose `on` is `"speech"` or `"both"`.

    Examples:
        >>> from eepolicy import FullDepth, Static
        >>> ByModality(FullDepth(), Static(16)).spec
        'text=full,speech=static@16'
    """

    text: ExitPolicy
    speech: ExitPolicy
    # it has no name of its own: `parse_policy` joins the terms of a spec string
    examples: ClassVar[tuple[tuple[str, str], ...]] = (
        ("text=spark:even@12", "the policy on text; both= for text and speech"),
        ("text=static@18,speech=spark:even@12", "one policy for each modality"),
    )
    colour: ClassVar[str] = "#0072B2"
    marker: ClassVar[str] = "v"

    def depths(self, step: Step) -> Tensor:
        return torch.where(step.is_on("text"), self.text.depths(step), self.speech.depths(step))

    def candidate_depths(self, step: Step) -> tuple[int, ...]:
        depths: set[int] = set()
        for on, policy in (("text", self.text), ("speech", self.speech)):
            if bool(step.is_on(on).any()):
                depths |= set(policy.candidate_depths(step))
        return tuple(sorted(depths))

    def should_exit(self, step: Step, depth: int, readout: Readout) -> Tensor:
        exits = torch.zeros_like(step.phase, dtype=torch.bool)
        for on, policy in (("text", self.text), ("speech", self.speech)):
            rows = step.is_on(on)
            if depth in policy.candidate_depths(step) and bool(rows.any()):
                exits |= rows & policy.should_exit(step, depth, readout)
        return exits

    def min_depth(self, full_depth: int) -> int:
        return min(policy.min_depth(full_depth) for policy in (self.text, self.speech))

    def possible_depths(self, full_depth: int) -> frozenset[int] | None:
        depths = [policy.possible_depths(full_depth) for policy in (self.text, self.speech)]
        if depths[0] is None or depths[1] is None:
            return None
        return frozenset({*depths[0], *depths[1]})

    def check(self, full_depth: int) -> None:
        for on, policy in (("text", self.text), ("speech", self.speech)):
            if policy.on not in (on, "both"):
                raise EepolicyError(f"{policy!r} acts on {policy.on} but was given for {on}")
            if isinstance(policy, ByModality) or policy.needs_full_pass:
                raise EepolicyError(f"{policy!r} cannot be one of two policies; use it alone")
            policy.check(full_depth)

    @property
    def spec(self) -> str:
        text, speech = (
            re.sub("^(text|speech|both)=", "", policy.spec) for policy in (self.text, self.speech)
        )
        return f"text={text},speech={speech}"
