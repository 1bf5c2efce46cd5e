"""What a probe reads out and keeps: the options of the caller, and the checked plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.heads.base import ExitHead
from eepolicy.heads.fingerprint import digest, fingerprint
from eepolicy.heads.fitted import FittedHead
from eepolicy.modality import TokenLayout
from eepolicy.model.backbone import Backbone
from eepolicy.probing.statistics import STATISTICS, Statistic

#: depths as options give them
Depths = Sequence[int] | Literal["all"] | None
#: types in which hidden states and distributions can be kept
DTYPES = (torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class ProbeConfig:
    """Options of a probe, as the caller gives them.

    Attributes:
        depths: depths to read out.  None stands for all, or for those at which the heads were
            fitted.  Full depth is always added.
        heads: exit heads; None stands for the model's own.
        statistics: names from `STATISTICS`, or `Statistic` objects; None stands for the
            names of the default ones.
        top_k: number of most probable tokens to keep.
        hidden_states: depths whose hidden states are kept.
        distributions: depths whose log-probabilities over the vocabulary are kept.
        dtype: type of the hidden states and distributions that are kept.
    """

    depths: Depths = None
    heads: ExitHead | None = None
    statistics: Iterable[str | Statistic] | None = None
    top_k: int = 0
    hidden_states: Depths = None
    distributions: Depths = None
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class ProbePlan:
    """Checked options of a probe of one model.

    Attributes:
        heads: exit heads for depths below full.
        depths: depths to read out, rising, full depth last.
        statistics: statistics to evaluate.
        top_k: number of most probable tokens to keep.
        hidden_states: depths whose hidden states are kept, rising.
        distributions: depths whose log-probabilities are kept, rising.
        dtype: type of the hidden states and distributions that are kept.
    """

    heads: ExitHead
    depths: tuple[int, ...]
    statistics: tuple[Statistic, ...]
    top_k: int
    hidden_states: tuple[int, ...]
    distributions: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, backbone: Backbone, config: ProbeConfig) -> ProbePlan:
        """Check options against a model.

        Raises:
            EepolicyError: a value that does not exist, or that does not fit the model.
        """
        if config.dtype not in DTYPES:
            raise EepolicyError(f"dtype is float16, float32 or float64; got {config.dtype}")
        vocabulary = backbone.vocab_size
        if not 0 <= config.top_k <= vocabulary:
            raise EepolicyError(
                f"top_k is 0 to {vocabulary}, the size of the vocabulary; got {config.top_k}"
            )
        heads = config.heads or backbone.heads
        depths = config.depths
        if depths is None:
            depths = heads.depths if isinstance(heads, FittedHead) else "all"
        distributions = _checked_depths(config.distributions, backbone.depth)
        read = {*_checked_depths(depths, backbone.depth), *distributions, backbone.depth}
        if isinstance(heads, FittedHead):
            for depth in sorted(read - {backbone.depth}):
                heads.at(depth)
        return cls(
            heads,
            tuple(sorted(read)),
            _checked_statistics(config.statistics),
            config.top_k,
            _checked_depths(config.hidden_states, backbone.depth),
            distributions,
            config.dtype,
        )

    @property
    def of_states(self) -> tuple[Statistic, ...]:
        """The statistics of hidden states."""
        return tuple(s for s in self.statistics if s.of_states)

    @property
    def of_logits(self) -> tuple[Statistic, ...]:
        """The statistics of logits."""
        return tuple(s for s in self.statistics if s.of_logits)

    @property
    def of_attention(self) -> tuple[Statistic, ...]:
        """The statistics of attention."""
        return tuple(s for s in self.statistics if s.of_attention)

    @property
    def compares_with_deeper(self) -> bool:
        """Whether a statistic compares with the next deeper depth."""
        return any(s.compares_with == "deeper" for s in self.statistics)

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the given tokens that statistics read, each once."""
        return tuple(dict.fromkeys(s.given for s in self.statistics if s.given))

    @property
    def needs_logits(self) -> bool:
        """Whether anything is computed from logits."""
        return bool(self.of_logits or self.top_k or self.distributions)

    def state_depths(self, full_depth: int) -> set[int]:
        """Depths whose hidden states are used; 0 is the embedding."""
        used = {*self.depths, *self.hidden_states, full_depth}
        if any(s.compares_with == "previous" for s in self.statistics):
            used |= {depth - 1 for depth in self.depths}
        return used

    def identity(self, backbone: Backbone, layout: TokenLayout) -> dict[str, Any]:
        """Everything that numbers and labels depend on, as JSON types.

        A user's statistic stands there with its name alone.

        Args:
            backbone: the model.
            layout: its vocabulary and chunks.
        """
        return {
            "model": fingerprint(backbone.model) | {"dtype": str(backbone.model.dtype)},
            "layout": layout.to_dict(),
            "heads": digest(self.heads),
            "depths": self.depths,
            "statistics": sorted(s.name for s in self.statistics),
            "top_k": self.top_k,
            "hidden_states": self.hidden_states,
            "distributions": self.distributions,
            "dtype": str(self.dtype),
        }


def _checked_statistics(requested: Iterable[str | Statistic] | None) -> tuple[Statistic, ...]:
    """Statistics by name or as objects, each once.

    Raises:
        EepolicyError: an unknown name, another object, or two statistics with one name.
    """
    if requested is None:
        return tuple(s for s in STATISTICS.values() if s.by_default)
    if not isinstance(requested, Iterable):
        raise EepolicyError(
            f"statistics is a list of names and Statistic objects; got {requested!r:.80}"
        )
    wanted = requested if isinstance(requested, str) else tuple(requested)
    named = [s for s in wanted if not isinstance(s, Statistic)]
    unknown = [s for s in named if not isinstance(s, str) or s not in STATISTICS]
    if isinstance(wanted, str) or unknown:
        raise EepolicyError(
            f"statistics is a list of names ({', '.join(STATISTICS)}) and Statistic objects; "
            f"got {wanted if isinstance(wanted, str) else unknown[0]!r}"
        )
    statistics: dict[str, Statistic] = {}
    for each in wanted:
        statistic = each if isinstance(each, Statistic) else STATISTICS[each]
        known = STATISTICS.get(statistic.name, statistic)
        if statistics.setdefault(statistic.name, known) is not statistic:
            raise EepolicyError(
                f"two statistics have the name {statistic.name!r}: give yours another name"
            )
    return tuple(statistics.values())


def _checked_depths(requested: Depths, full_depth: int) -> tuple[int, ...]:
    """Depths, rising, each once.

    Raises:
        EepolicyError: the model does not have them.
    """
    if requested is None:
        return ()
    if requested == "all":
        return tuple(range(1, full_depth + 1))
    if isinstance(requested, str):
        raise EepolicyError(f"depths are a list of numbers, or 'all'; got {requested!r}")
    plain = requested.tolist() if isinstance(requested, (np.ndarray, Tensor)) else requested
    is_list = isinstance(plain, Iterable) and not isinstance(plain, (bytes, Mapping))
    listed = list(plain) if is_list else []
    if not is_list or not all(isinstance(d, Integral) and not isinstance(d, bool) for d in listed):
        raise EepolicyError(f"depths are a list of integers, or 'all'; got {requested!r:.80}")
    depths = tuple(sorted({int(d) for d in listed}))
    if any(not 1 <= d <= full_depth for d in depths):
        raise EepolicyError(f"the model has depths 1 to {full_depth}; got {list(requested)}")
    return depths
