"""One policy for text, another for speech."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.policies.base import ExitPolicy, Readout, Step


@dataclass(frozen=True)
class ByModality(ExitPolicy):
    """Text positions go as `text` says, speech positions as `speech` says.

    Attributes:
        text: a policy whose `on` is `"text"` or `"both"`.
        speech: a policy whose `on` is `"speech"` or `"both"`.
    """

    text: ExitPolicy
    speech: ExitPolicy

    def depths(self, step: Step) -> Tensor:
        return torch.where(step.is_on("text"), self.text.depths(step), self.speech.depths(step))

    def candidate_depths(self, step: Step) -> tuple[int, ...]:
        found: set[int] = set()
        for on, policy in (("text", self.text), ("speech", self.speech)):
            if bool(step.is_on(on).any()):
                found |= set(policy.candidate_depths(step))
        return tuple(sorted(found))

    def should_exit(self, step: Step, depth: int, readout: Readout) -> Tensor:
        leaving = torch.zeros_like(step.phase, dtype=torch.bool)
        for on, policy in (("text", self.text), ("speech", self.speech)):
            here = step.is_on(on)
            if depth in policy.candidate_depths(step) and bool(here.any()):
                leaving |= here & policy.should_exit(step, depth, readout)
        return leaving

    def min_depth(self, full_depth: int) -> int:
        return min(policy.min_depth(full_depth) for policy in (self.text, self.speech))

    def check(self, full_depth: int) -> None:
        for on, policy in (("text", self.text), ("speech", self.speech)):
            if policy.on not in (on, "both"):
                raise EepolicyError(f"{policy!r} acts on {policy.on} but was given for {on}")
            if isinstance(policy, ByModality) or policy.needs_full_pass:
                raise EepolicyError(f"{policy!r} cannot be one of two policies; use it alone")
            policy.check(full_depth)

    @property
    def spec(self) -> str:
        bodies = [
            p.spec.removeprefix("text=").removeprefix("both=") for p in (self.text, self.speech)
        ]
        return f"text={bodies[0]},speech={bodies[1]}"
