"""Adaptive policies that compare a statistic of the readout with a threshold."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from eepolicy.fields import CheckedFields, Finite, Positive, RisingDepths
from eepolicy.policies.adaptive import DEPTHS, NUMBER, Adaptive, format_depths, parse_depths
from eepolicy.policies.base import POLICIES, On, Readout, Step, prefixed
from eepolicy.registry import parse_rest

ThresholdT = TypeVar("ThresholdT", bound="Threshold")


@dataclass(frozen=True)
class Threshold(CheckedFields, Adaptive):
    """Base of policies that exit at the first candidate depth whose statistic passes a threshold.

    Attributes:
        threshold: value that the statistic is compared with.
        exit_depths: a tuple of candidate depths, or one depth: all depths from it to full depth.
        on: `"speech"`, `"text"` or `"both"`.
        comparison: `"<"` or `">"`, as in the spec string.
    """

    threshold: Finite
    exit_depths: Positive | RisingDepths
    on: On = "speech"
    comparison: ClassVar[str]

    def should_exit(self, step: Step, depth: int, readout: Readout) -> Tensor:
        return step.is_on(self.on) & self.passes(readout)

    @abstractmethod
    def passes(self, readout: Readout) -> Tensor:
        """The rows whose statistic passes the threshold: (rows,) of bool."""

    @classmethod
    def from_spec(cls: type[ThresholdT], rest: str) -> ThresholdT:
        threshold, depths = parse_rest(f"{cls.comparison}{NUMBER}@{DEPTHS}", rest)
        return cls(float(threshold), parse_depths(depths))

    @property
    def spec(self) -> str:
        statistic = f"{self.name}{self.comparison}{float(self.threshold)!r}"
        return prefixed(self.on, f"{statistic}@{format_depths(self.exit_depths)}")


@POLICIES.register
@dataclass(frozen=True)
class Entropy(Threshold):
    """Exits where the entropy (nats) is below the threshold: Conf(l) of SPAR-K, table 2.

    Examples:
        >>> Entropy(0.5, 26).spec
        'entropy<0.5@26'
    """

    name: ClassVar[str] = "entropy"
    usage: ClassVar[str] = "entropy<NATS@DEPTHS"
    example: ClassVar[str] = "entropy<0.5@14"
    summary: ClassVar[str] = "entropy below 0.5 nats, at depth 14 or later"
    paper: ClassVar[str] = "Conf of SPAR-K, arXiv 2603.09215"
    source: ClassVar[str] = "https://arxiv.org/abs/2603.09215"
    colour: ClassVar[str] = "#CC79A7"
    marker: ClassVar[str] = "P"
    comparison: ClassVar[str] = "<"

    def passes(self, readout: Readout) -> Tensor:
        return readout.entropy < self.threshold


@POLICIES.register
@dataclass(frozen=True)
class Confidence(Threshold):
    """Exits where the largest probability is above the threshold.

    The measure of Schwartz et al. 2020 (arXiv 2004.07453), who calibrate it and exit classifiers.

    Examples:
        >>> Confidence(0.9, (14, 16, 18)).spec
        'confidence>0.9@[14,16,18]'
    """

    name: ClassVar[str] = "confidence"
    usage: ClassVar[str] = "confidence>PROBABILITY@DEPTHS"
    example: ClassVar[str] = "confidence>0.9@[14,16]"
    summary: ClassVar[str] = "largest probability above 0.9, at depth 14 or 16"
    paper: ClassVar[str] = "Schwartz et al., arXiv 2004.07453"
    source: ClassVar[str] = "https://arxiv.org/abs/2004.07453"
    colour: ClassVar[str] = "#E69F00"
    marker: ClassVar[str] = "X"
    comparison: ClassVar[str] = ">"

    def passes(self, readout: Readout) -> Tensor:
        return readout.confidence > self.threshold


@POLICIES.register
@dataclass(frozen=True)
class Margin(Threshold):
    """Exits where the two largest probabilities differ by more than the threshold.

    The softmax response of CALM (arXiv 2207.07061).

    Examples:
        >>> Margin(0.7, 14).spec
        'margin>0.7@14'
    """

    name: ClassVar[str] = "margin"
    usage: ClassVar[str] = "margin>PROBABILITY@DEPTHS"
    example: ClassVar[str] = "margin>0.7@14"
    summary: ClassVar[str] = "the two largest probabilities differ by more than 0.7"
    paper: ClassVar[str] = "softmax response of CALM, arXiv 2207.07061"
    source: ClassVar[str] = "https://arxiv.org/abs/2207.07061"
    colour: ClassVar[str] = "#E69F00"
    marker: ClassVar[str] = "d"
    comparison: ClassVar[str] = ">"

    def passes(self, readout: Readout) -> Tensor:
        return readout.margin > self.threshold


@POLICIES.register
@dataclass(frozen=True)
class Saturation(Threshold):
    """Exits where the hidden state has nearly the direction of the previous candidate depth.

    The hidden-state saturation of CALM (arXiv 2207.07061).  CALM compares neighbouring layers; a
    single exit depth does the same.  The policy needs no head evaluation to decide.  Nothing exits
    at the first candidate depth, because there is no previous one.

    Examples:
        >>> Saturation(0.98, 14).spec
        'saturation>0.98@14'
    """

    name: ClassVar[str] = "saturation"
    usage: ClassVar[str] = "saturation>COSINE@DEPTHS"
    example: ClassVar[str] = "saturation>0.98@14"
    summary: ClassVar[str] = (
        "cosine to the hidden state of the previous depth above 0.98; no head evaluation to decide"
    )
    paper: ClassVar[str] = "hidden-state saturation of CALM, arXiv 2207.07061"
    source: ClassVar[str] = "https://arxiv.org/abs/2207.07061"
    colour: ClassVar[str] = "#D55E00"
    marker: ClassVar[str] = "<"
    comparison: ClassVar[str] = ">"

    def passes(self, readout: Readout) -> Tensor:
        if readout.previous is None:
            return torch.zeros(len(readout.hidden), dtype=torch.bool, device=readout.hidden.device)
        return readout.cosine(readout.previous) > self.threshold
