"""Codebook policies decide how many codebooks of a frame are computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fields import CheckedFields, Finite, Positive, one_of
from eepolicy.policies import Readout
from eepolicy.policies.adaptive import NUMBER
from eepolicy.registry import Declared, Registry, parse_rest

StopT = TypeVar("StopT", bound="StopThreshold")


@dataclass(frozen=True)
class FrameStep:
    """What a codebook policy knows before the next code of some frames.

    Attributes:
        frame: (rows,) index of the frame in its reply, from 0; on the CPU.
        computed: number of codes of the frame so far, 1 or more.
        num_codebooks: number of codes of a whole frame.
    """

    frame: Tensor
    computed: int
    num_codebooks: int


class CodebookPolicy(Declared, ABC):
    """Decides after each code of a frame whether the next one is computed.

    The rule for missing codes gives the others; see `MissingCodes`.  The decoder calls
    `stops` after the first code, which the backbone gives, and after each code of the depth
    decoder but the last.

    To give a policy a spec string, declare `name`, `usage`, `example`, `summary`, `from_spec` and
    `spec`, and register it with `CODEBOOK_POLICIES.register`.

    Examples:
        >>> from eepolicy.codebooks import CodebookPolicy
        >>> class Alternate(CodebookPolicy):
        ...     def stops(self, step, readout):
        ...         return (step.frame % 2 == 1) & (step.computed >= 8)
        >>> step = FrameStep(torch.arange(4), computed=8, num_codebooks=32)
        >>> Alternate().stops(step, None)
        tensor([False,  True, False,  True])
    """

    @abstractmethod
    def stops(self, step: FrameStep, readout: Readout) -> Tensor:
        """The rows whose frame gets no further code: (rows,) of bool.

        Args:
            step: the frames and the number of their codes.
            readout: logits of the newest code, before any logits processor, and their statistics.
        """

    def check(self, num_codebooks: int) -> None:
        """Refuse numbers of codebooks that a model does not have.

        Raises:
            EepolicyError: with the number and the possible ones.
        """


#: all codebook policies with spec strings, by name
CODEBOOK_POLICIES: Registry[CodebookPolicy] = Registry(
    kind="codebook policy", group="eepolicy.codebook_policies"
)


def check_count(count: int, num_codebooks: int, what: object) -> None:
    """Refuse a number of codebooks outside 1..num_codebooks.

    Raises:
        EepolicyError: with the number and the possible ones.
    """
    if not 1 <= count <= num_codebooks:
        raise EepolicyError(
            f"{what!r} computes {count} codebooks, but the model has 1 to {num_codebooks}"
        )


@CODEBOOK_POLICIES.register
@dataclass(frozen=True)
class AllCodebooks(CodebookPolicy):
    """Computes all codes of each frame, as the stock model does."""

    name: ClassVar[str] = "all"
    usage: ClassVar[str] = "all"
    example: ClassVar[str] = "all"
    summary: ClassVar[str] = "all codebooks of each frame"

    def stops(self, step: FrameStep, readout: Readout) -> Tensor:
        return torch.zeros_like(step.frame, dtype=torch.bool)


@CODEBOOK_POLICIES.register
@dataclass(frozen=True)
class FirstCodebooks(CheckedFields, CodebookPolicy):
    """Computes the same number of codes for each frame.

    Attributes:
        count: number of codes, 1 or more; 1 never runs the depth decoder.

    Examples:
        >>> FirstCodebooks(8).spec
        'first:8'
    """

    count: Positive
    name: ClassVar[str] = "first"
    usage: ClassVar[str] = "first:COUNT"
    example: ClassVar[str] = "first:8"
    summary: ClassVar[str] = "the first 8 codebooks of each frame"

    def stops(self, step: FrameStep, readout: Readout) -> Tensor:
        return torch.full_like(step.frame, step.computed >= self.count, dtype=torch.bool)

    def check(self, num_codebooks: int) -> None:
        check_count(self.count, num_codebooks, self)

    @classmethod
    def from_spec(cls, rest: str) -> FirstCodebooks:
        (count,) = parse_rest(r":(\d+)", rest)
        return cls(int(count))

    @property
    def spec(self) -> str:
        return f"first:{self.count}"


@dataclass(frozen=True)
class StopThreshold(CheckedFields, CodebookPolicy):
    """Base of policies that stop at the first code whose statistic passes a threshold.

    Attributes:
        threshold: value that the statistic is compared with.
        min_codebooks: least number of codes of a frame.
        comparison: `"<"` or `">"`: whether the frame stops below or above the threshold.
    """

    threshold: Finite
    min_codebooks: Positive = 1
    comparison: Annotated[str, one_of("<", ">")] = ">"

    @abstractmethod
    def statistic(self, readout: Readout) -> Tensor:
        """The statistic of the newest code: (rows,)."""

    def stops(self, step: FrameStep, readout: Readout) -> Tensor:
        if step.computed < self.min_codebooks:
            return torch.zeros_like(step.frame, dtype=torch.bool)
        statistic = self.statistic(readout)
        is_below = self.comparison == "<"
        return statistic < self.threshold if is_below else statistic > self.threshold

    def check(self, num_codebooks: int) -> None:
        check_count(self.min_codebooks, num_codebooks, self)

    @classmethod
    def from_spec(cls: type[StopT], rest: str) -> StopT:
        comparison, threshold, count = parse_rest(rf"([<>]){NUMBER}(?:@(\d+))?", rest)
        return cls(float(threshold), int(count or 1), comparison)

    @property
    def spec(self) -> str:
        least = f"@{self.min_codebooks}" if self.min_codebooks > 1 else ""
        return f"{self.name}{self.comparison}{float(self.threshold)!r}{least}"


@CODEBOOK_POLICIES.register
@dataclass(frozen=True)
class CodeEntropy(StopThreshold):
    """Stops by the entropy (nats) of the newest code's distribution.

    Later codebooks refine earlier ones.  Where the distribution of a code is nearly flat, the model
    does not know the detail that this code and the ones after it add, so `>` stops there.

    Examples:
        >>> CodeEntropy(4.0, min_codebooks=4).spec
        'entropy>4.0@4'
    """

    name: ClassVar[str] = "entropy"
    usage: ClassVar[str] = "entropy>NATS[@MIN] or entropy<NATS[@MIN]"
    example: ClassVar[str] = "entropy>4.0@4"
    summary: ClassVar[str] = "stop at a code with an entropy above 4 nats, after 4 codes or more"

    def statistic(self, readout: Readout) -> Tensor:
        return readout.entropy


@CODEBOOK_POLICIES.register
@dataclass(frozen=True)
class CodeConfidence(StopThreshold):
    """Stops by the largest probability of the newest code.

    `<` stops where the model is unsure of the detail; `>` stops where it is sure of the frame.

    Examples:
        >>> CodeConfidence(0.05, 8, "<").spec
        'confidence<0.05@8'
    """

    name: ClassVar[str] = "confidence"
    usage: ClassVar[str] = "confidence<PROBABILITY[@MIN] or confidence>PROBABILITY[@MIN]"
    example: ClassVar[str] = "confidence<0.05@8"
    summary: ClassVar[str] = "stop at a code with no probability above 0.05, after 8 codes or more"

    def statistic(self, readout: Readout) -> Tensor:
        return readout.confidence


def parse_codebooks(spec: str) -> CodebookPolicy:
    """Build a codebook policy from its spec string.

    Raises:
        EepolicyError: no policy has this spec string; the message has the grammar.

    Examples:
        >>> parse_codebooks("first:8")
        FirstCodebooks(count=8)
    """
    return CODEBOOK_POLICIES.create("".join(spec.split()))
