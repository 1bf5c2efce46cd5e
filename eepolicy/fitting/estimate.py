"""Size and time of fitting in rounds, estimated before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from eepolicy.fitting.config import FitConfig
from eepolicy.probing.documents import Document


@dataclass(frozen=True)
class Work:
    """What a depth takes.

    Attributes:
        replies: number of replies to generate and to label.
        positions: number of their positions, prompts included.
        tokens: number of their tokens, prompts apart.
        fitted: number of positions that pass the head, once for each epoch.
        bytes: size of the stored states.
    """

    replies: float
    positions: float
    tokens: float
    fitted: float
    bytes: float

    @classmethod
    def of(
        cls,
        config: FitConfig,
        number: int,
        replies: Sequence[Document],
        chosen: int,
        *,
        width: int,
        has_base: bool,
    ) -> Work:
        """Extrapolate from some replies.

        Args:
            config: options.
            number: number of questions to fit on.
            replies: held-out replies at full depth.
            chosen: number of positions to fit on in them.
            width: width of the model.
            has_base: whether a fit on full-depth replies comes before the first round.
        """
        epochs = config.epochs if has_base else 0
        positions = sum(len(r.tokens) for r in replies) / len(replies)
        tokens = sum(len(r.reply) for r in replies) / len(replies)
        ratio = config.mix / (1 - config.mix)
        own = number * config.part
        share = min(number, own * ratio)
        full = number if has_base else config.rounds * share
        fitted = epochs * number + config.round_epochs * sum(
            n * own + min(number, n * own * ratio) for n in range(1, config.rounds + 1)
        )
        evaluated = 0 if config.is_drafter else (config.rounds + 1) * len(replies)
        made = full + config.rounds * own + evaluated
        last = chosen / len(replies)
        if config.is_drafter:  # the last states are those that it reads
            kept, last = positions, 0
        else:
            kept = positions if config.kind == "branch" else last
        each = 2 * width * (kept + last)  # bfloat16
        return cls(made, made * positions, made * tokens, fitted * positions, made * each)


@dataclass
class Clock:
    """Measures the seconds of the items that a progress bar shows."""

    seconds: list[float] = field(default_factory=list)

    def around(
        self, progress: Callable[[Iterable[Any]], Iterable[Any]]
    ) -> Callable[[Iterable[Any]], Iterator[Any]]:
        """Measure the items of a progress bar."""

        def wrapped(items: Iterable[Any]) -> Iterator[Any]:
            for item in progress(items):
                began = time.perf_counter()
                yield item
                self.seconds.append(time.perf_counter() - began)

        return wrapped

    def rate(self, units: float) -> float | None:
        """Seconds of a unit where an item has so many; None without a measurement.

        The median leaves out the first item, which compiles.
        """
        return median(self.seconds) / units if self.seconds else None


def duration(seconds: float) -> str:
    """A duration in words.

    Examples:
        >>> duration(40), duration(600), duration(9000)
        ('less than a minute', '10 minutes', '2.5 hours')
    """
    if seconds < 60:
        return "less than a minute"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
