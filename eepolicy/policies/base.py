"""Base class of exit policies, with the inputs of their decisions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fields import one_of
from eepolicy.modality import Modality
from eepolicy.policies.history import CallCosts, History
from eepolicy.policies.state import PolicyState
from eepolicy.registry import Declared, Registry

#: what a policy can act on
MODALITIES = ("speech", "text", "both")
#: the type of the field `on`
On = Annotated[str, one_of(*MODALITIES)]


@dataclass(frozen=True)
class Step:
    """What a policy knows of each row of the batch before its next position runs.

    The tensors of `ExitPolicy.depths` are on the CPU, so a schedule never waits for the model's
    device.  Those of `ExitPolicy.should_exit` are on the device of the readout.

    Attributes:
        modality: (rows,) modality of the next token, see `Modality`.
        chunk: (rows,) index of its chunk in the reply, from 0.
        phase: (rows,) index of the token in its chunk, from 0.
        position: (rows,) index of the token in the reply, from 0.
        ordinal: (rows,) number of earlier tokens of its modality in the reply.
        full_depth: number of layers of the model.
        history: the last token and the last verification of each row; None unless the policy sets
            `needs_history`.
        state: what the policy keeps of each row; None unless `ExitPolicy.begin` returns a state.
        costs: measured costs of this machine; None unless the policy sets `needs_costs`.
        num_drafts: (rows,) number of drafts that are not verified yet; None outside decoding.
    """

    modality: Tensor
    chunk: Tensor
    phase: Tensor
    position: Tensor
    ordinal: Tensor
    full_depth: int
    history: History | None = None
    state: PolicyState | None = None
    costs: CallCosts | None = None
    num_drafts: Tensor | None = None

    def select(self, rows: Sequence[int]) -> Step:
        """The step of some rows."""
        if len(rows) == len(self.phase) and [*rows] == [*range(len(rows))]:
            return self
        index = torch.tensor(rows, device=self.phase.device)
        history = None if self.history is None else self.history.select(rows)
        state = None if self.state is None else self.state.select(rows)
        return self._map(lambda column: column[index], history, state)

    def single_rows(self) -> list[Step]:
        """The step of each row alone."""
        number = len(self.phase)
        if number == 1:
            return [self]
        if self.history is not None or self.state is not None:
            return [self.select([row]) for row in range(number)]
        # two operations for each field, where `select` takes one for each field of each row
        drafts: Sequence[Tensor | None] = [None] * number
        if self.num_drafts is not None:
            drafts = self.num_drafts[:, None].unbind()
        columns = self.modality, self.chunk, self.phase, self.position, self.ordinal
        rows = zip(*(column[:, None].unbind() for column in columns), drafts, strict=True)
        costs = self.costs
        return [
            Step(modality, chunk, phase, position, ordinal, self.full_depth, None, None, costs, own)
            for modality, chunk, phase, position, ordinal, own in rows
        ]

    def to(self, device: torch.device) -> Step:
        """The step on another device."""
        if device == self.phase.device and self.history is None and self.state is None:
            return self
        history = None if self.history is None else self.history.to(device)
        state = None if self.state is None else self.state.to(device)
        return self._map(lambda column: column.to(device), history, state)

    def _map(
        self,
        function: Callable[[Tensor], Tensor],
        history: History | None,
        state: PolicyState | None,
    ) -> Step:
        return Step(
            function(self.modality),
            function(self.chunk),
            function(self.phase),
            function(self.position),
            function(self.ordinal),
            self.full_depth,
            history,
            state,
            self.costs,
            None if self.num_drafts is None else function(self.num_drafts),
        )

    def is_on(self, on: str) -> Tensor:
        """The rows whose modality is `on`: (rows,) of bool."""
        if on == "both":
            return torch.ones_like(self.modality, dtype=torch.bool)
        return self.modality == (Modality.SPEECH if on == "speech" else Modality.TEXT)


class Readout(Protocol):
    """The state of a step at one depth, for adaptive policies.

    Each property is computed on first use, so unused ones cost nothing.
    """

    @property
    def depth(self) -> int:
        """Number of layers that have run."""

    @property
    def previous(self) -> Readout | None:
        """The readout at the previous candidate depth of this step; None at the first."""

    @property
    def full(self) -> Readout | None:
        """The readout at full depth; None unless the policy sets `needs_full_pass`."""

    @property
    def hidden(self) -> Tensor:
        """(rows, width), hidden states after the last layer that ran, before any norm."""

    @property
    def logits(self) -> Tensor:
        """(rows, vocab), logits of the exit head; the first use costs one head evaluation."""

    @property
    def log_probabilities(self) -> Tensor:
        """(rows, vocab), log-softmax of the logits in float32."""

    @property
    def top1(self) -> Tensor:
        """(rows,), argmax of the logits."""

    @property
    def entropy(self) -> Tensor:
        """(rows,), entropy of the distribution in nats."""

    @property
    def confidence(self) -> Tensor:
        """(rows,), largest probability."""

    @property
    def margin(self) -> Tensor:
        """(rows,), difference of the two largest probabilities."""

    @property
    def exit_probability(self) -> Tensor:
        """(rows,), the exit predictor's probability that the head has the full model's token.

        It needs no head evaluation, but a model with an exit predictor at this depth.
        """

    def cosine(self, other: Readout) -> Tensor:
        """(rows,), cosine of the hidden states of two readouts; needs no head evaluation."""


class ExitPolicy(Declared, ABC):
    """Decides after how many layers each position exits.

    A *scheduled* policy returns the depth of each position in `depths`.  An *adaptive* policy names
    candidate depths in `candidate_depths` and decides in `should_exit`.  Its `depths` are those of
    positions that exit at no candidate depth, usually full depth.  A policy knows neither the model
    nor the decoder, so it can be tested without them.

    To give a policy a spec string, declare `name`, `usage`, `example`, `summary`, `from_spec` and
    `spec`.  Then register it with `POLICIES.register` or an entry point in the group
    `eepolicy.policies`.  `eepolicy.testing.check_policy` tests a policy.

    Attributes:
        on: modality that the policy acts on; positions of the other modality run at full depth.
        name: first part of the spec string, `[a-z_-]+`.
        usage: grammar of the spec string.
        example: a spec string for tables.
        summary: one line for tables.
        paper: short reference, or `""`.
        source: link to the paper or code, or `""`.
        examples: pairs of a spec string and a summary, for a policy with several lines in tables.
        colour: colour in figures; with `""`, the figure chooses it by the policy's name.
        marker: marker in figures; with `""`, the figure chooses it by the policy's name.
        needs_full_pass: True for a policy that reads the full model's output before it decides.
            Such a policy saves no computation.
        needs_history: True for a policy that reads `Step.history`.  Without it the history is not
            made.  With it the decoder does not overlap the layers of a step with the previous one.
        needs_costs: True for a policy that reads `Step.costs`, which are measured on this machine
            once.
        needs_verification: True for a policy that makes sense only with an acceptance rule that
            verifies drafts, such as `accept="exact"`.

    Examples:
        >>> class EveryOther(ExitPolicy):
        ...     def depths(self, step):
        ...         return torch.where(step.phase % 2 == 0, step.full_depth, 12)
        >>> phase = torch.arange(4)
        >>> EveryOther().depths(Step(phase, phase, phase, phase, phase, full_depth=20))
        tensor([20, 12, 20, 12])
    """

    on: str = "both"
    examples: ClassVar[tuple[tuple[str, str], ...]] = ()
    colour: ClassVar[str] = ""
    marker: ClassVar[str] = ""
    needs_full_pass: ClassVar[bool] = False
    needs_history: ClassVar[bool] = False
    needs_costs: ClassVar[bool] = False
    needs_verification: ClassVar[bool] = False

    @abstractmethod
    def depths(self, step: Step) -> Tensor:
        """The largest depth of each row: (rows,) of integers in 1..`step.full_depth`."""

    def candidate_depths(self, step: Step) -> tuple[int, ...]:
        """The depths, ascending, at which the decoder calls `should_exit` in this step."""
        return ()

    def should_exit(self, step: Step, depth: int, readout: Readout) -> Tensor:
        """The rows that exit at a candidate depth: (rows,) of bool."""
        raise NotImplementedError(
            f"{type(self).__name__} has candidate depths but no should_exit()"
        )

    def begin(self, rows: int) -> PolicyState | None:
        """What the policy keeps of each row before its first step; None if it keeps nothing.

        Args:
            rows: number of rows that start.
        """
        return None

    def update(self, step: Step) -> PolicyState | None:
        """What the policy keeps of each row in this step, from `step.state` and `step.history`.

        The decoder calls it once before each step, then hands the result to the other methods as
        `step.state`.  If drafts are rejected, the state goes back to that of the first rejected
        draft, and the next call tells of the verification.  A row of the result depends only on
        the same row of `step`.

        Args:
            step: the step, with the state that the row had in its previous step.
        """
        return step.state

    def predicted_depths(self, full_depth: int) -> tuple[int, ...]:
        """The depths at which the policy reads `Readout.exit_probability`, ascending.

        The model must have an exit predictor at each of them.
        """
        return ()

    def min_depth(self, full_depth: int) -> int:
        """Number of layers, 1 or more, that every position runs before its first readout or exit.

        On a GPU the decoder launches these layers before the token is known.  A policy that wraps
        other policies must return their minimum.
        """
        return 1

    @property
    def max_drafts(self) -> int | None:
        """Largest number of drafts that may be unverified; None for the default."""
        return None

    def possible_depths(self, full_depth: int) -> Collection[int] | None:
        """Depths below full depth at which the policy may read out or exit.

        The decoder keeps the hidden states that a branch at one of these depths reads.  None, the
        default, stands for all depths.  A policy that wraps other policies must return their union.
        """
        return None

    def check(self, full_depth: int) -> None:
        """Refuse depths that a model of `full_depth` layers does not have.

        Raises:
            EepolicyError: with the depth and the possible ones.
        """

    @classmethod
    def from_spec(cls, rest: str) -> ExitPolicy:
        """Build the policy from the text of its spec string after the name.

        Raises:
            EepolicyError: the text does not follow `usage`, or the class has no spec strings.
        """
        raise EepolicyError(f"{cls.__name__} has no spec string; pass the policy itself")

    @property
    def files(self) -> tuple[str, ...]:
        """Files that the policy reads, so that results know when one has changed."""
        return ()

    @property
    def spec(self) -> str:
        """The policy as a spec string, which `parse_policy` reads.

        Raises:
            EepolicyError: the class has no spec strings.
        """
        raise EepolicyError(f"{type(self).__name__} has no spec string; pass the policy itself")

    def plot_style(self) -> tuple[str, str]:
        """Colour and marker in figures, each `""` if the figure is to choose it."""
        return self.colour, self.marker


#: all policies with spec strings, by name
POLICIES: Registry[ExitPolicy] = Registry(
    kind="policy",
    group="eepolicy.policies",
    note="DEPTHS is one depth such as 14 (all depths from there on) or a list such as [14,16,18]; "
    "a policy acts on speech unless text= or both= precedes it; text=...,speech=... joins two; "
    "FILE.py:CLASS(ARGUMENTS) is a policy in a Python file of yours",
)


def check_depth(depth: int, full_depth: int, what: str) -> None:
    """Refuse a depth outside 1..full_depth.

    Raises:
        EepolicyError: with the depth and the possible ones.
    """
    if not 1 <= depth <= full_depth:
        raise EepolicyError(
            f"{what} is at depth {depth}, but the model has depths 1 to {full_depth}"
        )


def masked_depths(step: Step, on: str, depth: Tensor | int) -> Tensor:
    """`depth` on rows of the modality, full depth on the others: (rows,)."""
    # one operation instead of four; each takes a thousandth of a small model's step
    return torch.where(step.is_on(on), depth, step.full_depth)


def prefixed(on: str, body: str) -> str:
    """A spec string with its modality as prefix; speech, the default, has none."""
    return body if on == "speech" else f"{on}={body}"
