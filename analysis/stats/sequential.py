"""Tests that are repeated while questions are added, corrected for the repetition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from eepolicy.errors import EepolicyError
from eepolicy.fields import check_fields

Floats = NDArray[np.float64]

#: points of the grid on which the distribution between two looks is computed
POINTS = 128
#: lower end of the grid in standard deviations; it is below all that matters
LOWEST = -9.0
#: shape of the boundaries by Wang and Tsiatis (1987): 0.5 is Pocock's, 0 is O'Brien and Fleming's.
#: `python -m benchmarks.verdicts` compares their power
SHAPE = 0.0


@dataclass(frozen=True)
class UntilDecided:
    """Rule for adding questions until every row is decided, with looks that are stated before.

    A look tests all rows on the first so many questions.  The p-value of a row is corrected for
    all looks of the rule, also for those that are not needed, by the joint normal distribution of
    the test statistics (Jennison and Turnbull 2000, chapters 2 and 9).

    Attributes:
        looks: numbers of questions at which all rows are tested, ascending.
        level: level of all looks together.
        shape: shape of the boundaries, 0 to 0.5; a higher one decides earlier.

    Raises:
        EepolicyError: the looks do not ascend, or a value is out of range.

    Examples:
        >>> rule = UntilDecided(looks=(100, 200, 300))
        >>> rule.next_look(0), rule.next_look(130), rule.next_look(300)
        (100, 200, None)
        >>> [round(rule.level_at(look), 3) for look in rule.looks]
        [0.002, 0.018, 0.044]
    """

    looks: tuple[int, ...] = (100, 150, 200, 250, 300)
    level: float = 0.05
    shape: float = SHAPE

    def __post_init__(self) -> None:
        check_fields(self)
        ascending = all(a < b for a, b in zip(self.looks, self.looks[1:], strict=False))
        if not self.looks or self.looks[0] < 2 or not ascending:
            raise EepolicyError(
                "looks are ascending numbers of questions, the first at least 2; got "
                f"{self.looks}: give for instance (100, 200, 300)"
            )
        if not 0 < self.level < 0.5 or not 0 <= self.shape <= 0.5:
            raise EepolicyError(
                f"the level is 0 to 0.5 and the shape 0 to 0.5; got {self.level} and {self.shape}"
            )

    def next_look(self, questions: int) -> int | None:
        """Number of questions of the next look; None if no look is left.

        Args:
            questions: number of questions that every policy has answered.
        """
        return next((look for look in self.looks if look > questions), None)

    def passed(self, questions: int) -> tuple[int, ...]:
        """Looks that a number of answered questions allows."""
        return tuple(look for look in self.looks if look <= questions)

    def level_at(self, look: int) -> float:
        """Level of one look: a p-value up to it has a corrected p-value up to `level`.

        Args:
            look: one of the looks.

        Raises:
            EepolicyError: it is none of them.
        """
        if look not in self.looks:
            raise EepolicyError(f"a look is one of {self.looks}; got {look}")
        constant = brentq(lambda c: self._crossing(c) - self.level, 0.0, 8.0)
        return float(norm.sf(constant * self._factors()[self.looks.index(look)]))

    def corrected(self, p: ArrayLike) -> Floats:
        """Correct p-values for the looks.

        Args:
            p: (..., looks so far) one-sided p-values at the first looks, in their order.

        Returns:
            (...) p-values of all looks so far together.  A value up to `level` stays there at
            later looks.

        Raises:
            EepolicyError: there is no p-value, or there are more than looks.
        """
        array = np.asarray(p, float)
        so_far = array.shape[-1] if array.ndim else 0
        if not 1 <= so_far <= len(self.looks):
            raise EepolicyError(f"expected 1 to {len(self.looks)} p-values; got {so_far}")
        constants = (norm.isf(array) / self._factors()[:so_far]).max(-1)
        if len(self.looks) == 1:
            return np.asarray(norm.sf(constants))
        # a constant of 0 or less is a p-value of 1/2 or more at every look: never significant
        values = [self._crossing(c) if c > 0 else 1.0 for c in np.ravel(constants)]
        return np.reshape(np.array(values), np.shape(constants))

    def _factors(self) -> Floats:
        """Boundary of each look over the constant."""
        share = np.array(self.looks) / self.looks[-1]
        return np.asarray(share ** (self.shape - 0.5))

    def _crossing(self, constant: float) -> float:
        """Probability that the statistic crosses the boundary at any look, at the margin."""
        if not np.isfinite(constant):
            return 0.0
        return crossing_probability(constant * self._factors(), self.looks)


def crossing_probability(bounds: ArrayLike, looks: Sequence[int]) -> float:
    """Probability that a standardised sum exceeds any of its bounds, without a true difference.

    The distribution of the sum is carried from look to look on a grid (Armitage, McPherson and
    Rowe 1969).

    Args:
        bounds: (looks,) bound of the standard normal statistic at each look.
        looks: number of values in the sum at each look, ascending.

    Example:
        >>> round(crossing_probability([2.413] * 5, [1, 2, 3, 4, 5]), 4)  # Pocock 1977: 0.025
        0.025
    """
    limits = np.asarray(bounds, float) * np.sqrt(looks)  # of the sum, which has variance `look`
    crossed = float(norm.sf(limits[0] / np.sqrt(looks[0])))
    sums, weights = _grid(limits[0], looks[0])
    mass = weights * norm.pdf(sums, scale=np.sqrt(looks[0]))  # (points,)
    for i in range(1, len(looks)):
        deviation = np.sqrt(looks[i] - looks[i - 1])
        crossed += float(mass @ norm.sf((limits[i] - sums) / deviation))
        if i == len(looks) - 1:
            break
        later, weights = _grid(limits[i], looks[i])
        density = norm.pdf(later[:, None] - sums[None], scale=deviation)  # (points, points)
        mass, sums = weights * (density @ mass), later
    return min(1.0, crossed)


def _grid(limit: float, look: int) -> tuple[Floats, Floats]:
    """Sums below a limit and their weights, by Gauss and Legendre's rule: (points,) each."""
    nodes, weights = _nodes()
    low = min(LOWEST * np.sqrt(look), limit - 1)
    half = (limit - low) / 2
    return low + half * (nodes + 1), half * weights


@lru_cache(maxsize=1)
def _nodes() -> tuple[Floats, Floats]:
    nodes, weights = np.polynomial.legendre.leggauss(POINTS)
    return nodes, weights
