"""One policy for text and another for speech."""

from __future__ import annotations

import re
from dataclasses import dataclass, is_dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fields import CheckedFields
from eepolicy.policies.base import ExitPolicy, Readout, Step
from eepolicy.policies.state import PolicyState


@dataclass(frozen=True)
class _StateOfEach(PolicyState):
    """The states of the two policies.

    Attributes:
        text: state of the policy on text; None if it keeps none.
        speech: state of the policy on speech; None if it keeps none.
    """

    text: PolicyState | None
    speech: PolicyState | None


@dataclass(frozen=True)
class ByModality(CheckedFields, ExitPolicy):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        for on, policy in (("text", self.text), ("speech", self.speech)):
            # the spec string has no place for the difference, and there is none in depths
            if policy.on == "both" and is_dataclass(policy) and "on" in vars(policy):
                object.__setattr__(self, on, replace(policy, on=on))

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.text.files, *self.speech.files)

    @property
    def needs_history(self) -> bool:  # type: ignore[override]
        """Whether one of the two policies reads the history."""
        return self.text.needs_history or self.speech.needs_history

    @property
    def needs_costs(self) -> bool:  # type: ignore[override]
        """Whether one of the two policies reads measured costs."""
        return self.text.needs_costs or self.speech.needs_costs

    @property
    def max_drafts(self) -> int | None:
        limits = [policy.max_drafts for policy in (self.text, self.speech)]
        return max((limit for limit in limits if limit), default=None)

    @property
    def needs_verification(self) -> bool:  # type: ignore[override]
        """Whether one of the two policies needs drafts to be verified."""
        return self.text.needs_verification or self.speech.needs_verification

    def begin(self, rows: int) -> PolicyState | None:
        text, speech = self.text.begin(rows), self.speech.begin(rows)
        return None if text is None and speech is None else _StateOfEach(text, speech)

    def update(self, step: Step) -> PolicyState | None:
        if step.state is None:
            return None
        text, speech = (policy.update(own) for _, policy, own in self._each(step))
        return _StateOfEach(text, speech)

    def _each(self, step: Step) -> list[tuple[str, ExitPolicy, Step]]:
        """Modality, policy and step with its own state, of each of the two."""
        steps = [step, step]
        if isinstance(step.state, _StateOfEach):
            steps = [replace(step, state=step.state.text), replace(step, state=step.state.speech)]
        return [("text", self.text, steps[0]), ("speech", self.speech, steps[1])]

    def depths(self, step: Step) -> Tensor:
        text, speech = (policy.depths(own) for _, policy, own in self._each(step))
        return torch.where(step.is_on("text"), text, speech)

    def candidate_depths(self, step: Step) -> tuple[int, ...]:
        depths: set[int] = set()
        for on, policy, own in self._each(step):
            if bool(step.is_on(on).any()):
                depths |= set(policy.candidate_depths(own))
        return tuple(sorted(depths))

    def should_exit(self, step: Step, depth: int, readout: Readout) -> Tensor:
        exits = torch.zeros_like(step.phase, dtype=torch.bool)
        for on, policy, own in self._each(step):
            rows = step.is_on(on)
            if depth in policy.candidate_depths(own) and bool(rows.any()):
                exits |= rows & policy.should_exit(own, depth, readout)
        return exits

    def predicted_depths(self, full_depth: int) -> tuple[int, ...]:
        both = (self.text, self.speech)
        return tuple(sorted({d for policy in both for d in policy.predicted_depths(full_depth)}))

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
