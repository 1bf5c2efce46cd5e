"""What a policy is, what it may know, and what it is shown where it looks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.modality import Modality

#: the modalities that a policy can act on
ON = ("speech", "text", "both")


@dataclass(frozen=True)
class Step:
    """What is known of a position before it runs; one entry a row of the batch.

    A schedule is asked on the host, so that nothing waits for the model's device; `should_exit` is asked
    on the device of what it is shown.

    Attributes:
        modality: (rows,) of the token to be produced, see `Modality`.
        chunk: (rows,) number of its chunk in the reply, from 0.
        phase: (rows,) its place in the chunk, from 0.
        position: (rows,) its place in the reply, from 0.
        ordinal: (rows,) tokens of its modality before it in the reply.
        full_depth: layers of the model.
    """

    modality: Tensor
    chunk: Tensor
    phase: Tensor
    position: Tensor
    ordinal: Tensor
    full_depth: int

    def select(self, rows: Sequence[int]) -> Step:
        """What is known of some of the rows."""
        index = torch.tensor(rows, device=self.phase.device)
        return self._each(lambda all_rows: all_rows[index])

    def to(self, device: torch.device) -> Step:
        """The same on another device."""
        return self._each(lambda rows: rows.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Step:
        return Step(
            change(self.modality),
            change(self.chunk),
            change(self.phase),
            change(self.position),
            change(self.ordinal),
            self.full_depth,
        )

    def is_on(self, on: str) -> Tensor:
        """Which rows a policy that acts on `on` acts on: (rows,) of bool."""
        if on == "both":
            return torch.ones_like(self.modality, dtype=torch.bool)
        return self.modality == (Modality.SPEECH if on == "speech" else Modality.TEXT)


class Readout(Protocol):
    """What an adaptive policy sees at a depth; computed only when touched."""

    @property
    def depth(self) -> int:
        """Layers that have run."""

    @property
    def previous(self) -> Readout | None:
        """What was seen at the look before at this step; None at the first."""

    @property
    def full(self) -> Readout | None:
        """What is seen at full depth; None but for policies that are not realisable."""

    @property
    def hidden(self) -> Tensor:
        """(rows, width), the hidden state after the layer."""

    @property
    def logits(self) -> Tensor:
        """(rows, vocabulary), by the exit head; touching it pays one head evaluation."""

    @property
    def log_probabilities(self) -> Tensor:
        """(rows, vocabulary), in float32."""

    @property
    def top1(self) -> Tensor:
        """(rows,), the likeliest token."""

    @property
    def entropy(self) -> Tensor:
        """(rows,) in nats."""

    @property
    def confidence(self) -> Tensor:
        """(rows,), the probability of the likeliest token."""

    @property
    def margin(self) -> Tensor:
        """(rows,), by how much that is more than the second likeliest's."""

    def cosine(self, other: Readout) -> Tensor:
        """(rows,), between the hidden states here and there; needs no head."""


class ExitPolicy(ABC):
    """Says how deep each position goes.

    A *scheduled* policy names the depth in `depths`.  An *adaptive* one names in `candidate_depths` the depths
    at which it wants to look, and decides in `should_exit`; `depths` is then its last resort, as a rule
    full depth.  Policies know neither the model nor the decoding: they are tested without both.

    Examples:
        >>> class EveryOther(ExitPolicy):
        ...     def depths(self, step):
        ...         return torch.where(step.phase % 2 == 0, step.full_depth, 12)
        >>> phase = torch.arange(4)
        >>> EveryOther().depths(Step(phase, phase, phase, phase, phase, full_depth=20))
        tensor([20, 12, 20, 12])
    """

    #: the modality a policy acts on; everything else runs at full depth
    on: str = "both"
    #: the name in spec strings
    name: ClassVar[str] = ""
    #: a policy that is not asks the full model first, so that nothing is saved
    needs_full_pass: ClassVar[bool] = False

    @abstractmethod
    def depths(self, step: Step) -> Tensor:
        """How deep each row goes at most: (rows,) of integers in 1..`step.full_depth`."""

    def candidate_depths(self, step: Step) -> tuple[int, ...]:
        """The depths, rising, at which `should_exit` is asked at this step."""
        return ()

    def should_exit(self, step: Step, depth: int, readout: Readout) -> Tensor:
        """Which rows exit at a depth that `candidate_depths` named: (rows,) of bool."""
        raise NotImplementedError(f"{type(self).__name__} looks at depths but has no should_exit()")

    def min_depth(self, full_depth: int) -> int:
        """Layers that every position runs before it may exit or is looked at: 1 or more.

        A device may be told to run them before the token is known.  A policy made of another one
        says it anew where it goes less deep.
        """
        return 1

    def check(self, full_depth: int) -> None:  # noqa: B027 - a policy need not check anything
        """Refuse depths that a model of `full_depth` layers does not have.

        Raises:
            EepolicyError: naming the depth and what is possible.
        """

    @property
    def spec(self) -> str:
        """The policy as a spec string, which `parse_policy` reads back."""
        raise EepolicyError(f"{type(self).__name__} has no spec string; pass the policy itself")


def check_depth(depth: int, full_depth: int, what: str) -> None:
    """Refuse a depth outside 1..full_depth.

    Raises:
        EepolicyError: naming the depth and what is possible.
    """
    if not 1 <= depth <= full_depth:
        raise EepolicyError(
            f"{what} is at depth {depth}, but the model has depths 1 to {full_depth}"
        )


def check_on(on: str) -> None:
    """Refuse a modality that is none.

    Raises:
        EepolicyError: naming what is possible.
    """
    if on not in ON:
        raise EepolicyError(f"a policy acts on {', '.join(ON)}; got {on!r}")


def masked_depths(step: Step, on: str, depth: Tensor | int) -> Tensor:
    """`depth` where the policy acts, full depth elsewhere: (rows,)."""
    # one operation in place of four, each of which takes a thousandth of a small model's step
    return torch.where(step.is_on(on), depth, step.full_depth)


def prefixed(on: str, body: str) -> str:
    """A spec body with its modality in front, where that is not speech."""
    return body if on == "speech" else f"{on}={body}"
