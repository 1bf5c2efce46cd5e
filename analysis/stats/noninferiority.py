"""Non-inferiority: the test that a policy is not worse than full depth by a margin or more.

Word errors come in bursts: most replies have none, and a few have many.  The spread of a sample
with few bursts is too small, so a t-test finds policies not worse too often.  The test here counts
the bursts that the sample would have if the policy were worse by the margin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, t

from eepolicy.errors import EepolicyError

Floats = NDArray[np.float64]

#: share of the missing bursts in the variance; for a Poisson count, 1/2 stabilises the variance.
#: `python -m benchmarks.verdicts` measures the error rates of other shares
BURST_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class MarginTest:
    """One-sided tests of mean losses against a margin, of any shape (...); a single one is ().

    Attributes:
        loss: (...) mean loss; positive is worse.
        margin: margin, in the unit of the losses.
        spread: (...) standard deviation of the losses.
        burst: (...) size of a typical loss, see `margin_test`.
        questions: number of questions.
    """

    loss: Floats
    margin: float
    spread: Floats
    burst: Floats
    questions: int

    @property
    def t(self) -> Floats:
        """The loss less the margin, over its standard error at the margin."""
        distance = self.loss - self.margin
        lacking = np.abs(distance) * self.burst
        variance = np.maximum(self.spread**2 + BURST_SHARE * lacking, lacking)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = distance * np.sqrt(self.questions / variance)
        return np.where(variance > 0, ratio, 0.0)

    @property
    def p(self) -> Floats:
        """p-value of "worse by the margin or more": small if the policy is not worse.

        1 minus this value is the p-value of "worse by the margin at most".
        """
        p: Floats = t.cdf(self.t, self.questions - 1)
        return p

    def upper(self, level: float = 0.05) -> Floats:
        """Upper end of a one-sided confidence interval of the loss.

        It is the margin at which `p` would be the level.

        Args:
            level: 1 minus the confidence.
        """
        squared = t.ppf(1 - level, self.questions - 1) ** 2 / self.questions
        linear = squared * BURST_SHARE * self.burst
        root = np.sqrt(linear**2 + 4 * squared * self.spread**2)
        return np.asarray(self.loss + np.maximum((linear + root) / 2, squared * self.burst))

    def more_questions(self, level: float = 0.05, power: float = 0.8) -> float:
        """Number of further questions after which the policy probably counts as not worse.

        It assumes that the observed loss and spread are the true ones, so it is a rough guide.

        Args:
            level: level of the test.
            power: probability of finding the policy not worse.

        Returns:
            Number of questions, 0 or more; inf if the loss is at or over the margin.
        """
        score = -float(self.t)
        if score <= 0:
            return math.inf
        needed = self.questions * ((norm.isf(level) + norm.ppf(power)) / score) ** 2
        return float(max(0, math.ceil(needed) - self.questions))


def margin_test(losses: ArrayLike, margin: float, unit: float = 1.0) -> MarginTest:
    """Test whether a mean loss is below a margin.

    This is a t-test whose variance contains half of the bursts that the sample lacks if its mean
    is below the margin.  The size of a burst is the sum of the squared losses over the sum of
    their absolute values.  The variance is at least that of the lacking bursts alone, as in the
    score test of Tango (1998) for a sample without any difference.

    Args:
        losses: (..., questions) losses of one policy against full depth, paired by question; for a
            ratio of sums, the difference of the influences.
        margin: margin, above 0.
        unit: smallest size of a burst, such as one word error; it keeps a sample without any
            difference from proving more than its size allows.

    Returns:
        Tests of shape (...).

    Raises:
        EepolicyError: there are fewer than two questions, or the margin is not above 0.

    Example:
        >>> test = margin_test([0.0] * 99 + [0.5], margin=0.02, unit=0.1)
        >>> round(float(test.p), 3), round(float(test.upper()), 3)
        (0.043, 0.019)
    """
    array = np.asarray(losses, float)
    questions = array.shape[-1] if array.ndim else 0
    if questions < 2 or not margin > 0:
        raise EepolicyError(
            "the test needs two questions or more and a margin above 0; got "
            f"{questions} and {margin}"
        )
    total = np.abs(array).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        burst = np.where(total > 0, (array**2).sum(-1) / total, 0.0)
    return MarginTest(
        loss=np.asarray(array.mean(-1)),
        margin=margin,
        spread=np.asarray(array.std(-1, ddof=1)),
        burst=np.asarray(np.maximum(burst, unit)),
        questions=questions,
    )
