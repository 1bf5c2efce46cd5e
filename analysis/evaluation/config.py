"""Settings of a comparison, as its run folder stores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eepolicy.decode.config import EarlyExitConfig
from eepolicy.errors import EepolicyError


@dataclass(frozen=True)
class RunConfig:
    """Settings of a comparison.

    Attributes:
        policies: spec strings of the rows; None for the default rows.
        decoding: options of early exit that all rows share; each row has its own policy.
        sampling: sampling options such as `temperature` and `top_p`; greedy decoding if empty.
        seeds: number of replies per policy and question.  They count as one reply.
        max_new_tokens: maximum number of tokens per reply.
        calibration: questions on which the thresholds of the default rows are calibrated.

    Raises:
        EepolicyError: there is less than one seed or token, or several seeds without sampling.
    """

    policies: Sequence[str] | None = None
    decoding: EarlyExitConfig = field(default_factory=EarlyExitConfig)
    sampling: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 1
    max_new_tokens: int = 400
    calibration: Sequence[Mapping[str, Any]] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.max_new_tokens < 1:
            raise EepolicyError(
                "seeds and max_new_tokens are at least 1; got "
                f"{self.seeds} and {self.max_new_tokens}"
            )
        if self.seeds > 1 and not self.sampling:
            raise EepolicyError(
                "greedy decoding gives the same reply for every seed; "
                f"got {self.seeds} seeds without sampling: give a temperature, or one seed"
            )

    @property
    def generate_options(self) -> dict[str, Any]:
        """Options of `HookedModel.generate` for every reply."""
        return {"config": self.decoding, **self.sampling}

    def to_dict(self) -> dict[str, Any]:
        """The settings that all records of a run share, as JSON types."""
        return {
            "decoding": self.decoding.to_dict(),
            "sampling": dict(self.sampling),
            "max_new_tokens": self.max_new_tokens,
        }
