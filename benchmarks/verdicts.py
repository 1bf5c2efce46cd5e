"""Error rates and power of the verdicts of a comparison, by simulation.

    python -m benchmarks.verdicts [--tables 4000] [--write docs/benchmarks/verdicts.md]

A policy is simulated whose word error rate is higher than full depth's by exactly the margin.  A
test must find it "not worse" in at most 5 % of the samples.  The power is measured with a policy
that makes as many errors as full depth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from eepolicy.analysis.evaluation.verdict import LEVEL, Margins
from eepolicy.analysis.stats.noninferiority import BURST_SHARE, margin_test
from eepolicy.analysis.stats.sequential import UntilDecided
from eepolicy.analysis.stats.tests import holm
from eepolicy.analysis.studies.policy_search import loss_p_value
from eepolicy.analysis.tables import MISSING, markdown_table

Floats = NDArray[np.float64]

MARGIN = Margins().wer / 100
ROWS = 7  # beside full depth, as in the default comparison
QUESTIONS = (24, 100, 300)
#: replies with so many word errors, of 360: 120 held-out questions, the pocket model at full depth,
#: with `static@16` and with `spark:triple@14`, transcribed by the packaged Whisper tiny.en
REPLIES = {0: 236, 1: 60, 2: 42, 3: 10, 4: 7, 5: 3, 8: 1, 9: 1}
#: share of questions on which a policy's reply is heard as full depth's is, beside those with equal
#: errors by chance; 69 and 71 % of the questions then have equal errors, as measured
SAME = 0.4
#: share of questions that only one of full depth and the policy answers; measured: 12 and 16 %
CHANGED = (0.06, 0.14)
WORDS = (4, 14)  # of a reply, uniform; measured: 4 to 17, mean 8.9
LOOP = (10, 40)  # word errors of a reply that loops, uniform
BURST = (1, 5)
RESAMPLES = 999  # of the bootstraps and the sign-flip test


@dataclass(frozen=True)
class Excess:
    """Where the errors come from that a policy makes in excess of full depth's.

    Attributes:
        name: description for the tables.
        bursts: share of the excess that comes in bursts of 1 to 5 words; the rest is single words.
        loops: share that comes from replies that loop.
        looping: share of replies of full depth and of the policy that loop anyway.
    """

    name: str
    bursts: float = 0.0
    loops: float = 0.0
    looping: float = 0.0

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], mean: float) -> Floats:
        """Draw the excess errors of replies with a mean number of excess errors."""
        parts = (
            (1 - self.bursts - self.loops, (1, 1)),
            (self.bursts, BURST),
            (self.loops, LOOP),
        )
        errors = np.zeros(shape)
        for share, (least, most) in parts:
            if share > 0:
                hit = rng.random(shape) < mean * share / ((least + most) / 2)
                errors += hit * rng.integers(least, most + 1, shape)
        return errors


#: the first three are what replies of the pocket model look like
EXCESSES = (
    Excess("single words"),
    Excess("bursts of 1 to 5 words", bursts=1.0),
    Excess("single words, and 0.4 % of all replies loop", looping=0.004),
    Excess("half from loops", loops=0.5),
    Excess("all from loops", loops=1.0),
)
REALISTIC = EXCESSES[:3]


def influence_differences(
    rng: np.random.Generator, shape: tuple[int, int], excess: Excess, points: float
) -> tuple[Floats, float]:
    """Simulate comparisons of one policy with full depth.

    Args:
        rng: random generator.
        shape: number of comparisons and of questions.
        excess: where the excess errors come from.
        points: true excess of the word error rate; 0.02 is two points.

    Returns:
        Differences of the influences on the word error rate, (comparisons, questions), and the
        influence of one word error.
    """
    errors, words = simulated(rng, shape, excess, (points,))
    return influences_of(errors[0] - errors[1], words), 2 / sum(WORDS)


def simulated(
    rng: np.random.Generator, shape: tuple[int, int], excess: Excess, points: tuple[float, ...]
) -> tuple[Floats, Floats]:
    """Word errors of policies, the last one full depth, and the words of the replies.

    Args:
        rng: random generator.
        shape: number of comparisons and of questions.
        excess: where the excess errors come from.
        points: true excess of each policy's word error rate.

    Returns:
        Errors (policies + 1, comparisons, questions) and words (comparisons, questions).
    """
    words = rng.integers(WORDS[0], WORDS[1] + 1, shape).astype(float)
    share = np.array(list(REPLIES.values())) / sum(REPLIES.values())
    errors = rng.choice(list(REPLIES), p=share, size=(len(points) + 1, *shape)).astype(float)
    if excess.looping:
        loops = rng.random(errors.shape) < excess.looping
        errors = np.where(loops, rng.integers(LOOP[0], LOOP[1] + 1, errors.shape), errors)
    same = rng.random((len(points), *shape)) < SAME
    errors[:-1] = np.where(same, errors[-1], errors[:-1])
    for i, point in enumerate(points):
        errors[i] += excess.draw(rng, shape, point * sum(WORDS) / 2)
    return errors, words


def influences_of(errors: Floats, words: Floats) -> Floats:
    """Influences on the ratio of sums over questions: (..., questions)."""
    mean = words.mean(-1, keepdims=True)
    ratio = errors.mean(-1, keepdims=True) / mean
    return np.asarray(ratio + (errors - ratio * words) / mean)


def with_share(share: float) -> Callable[[Floats, float], Floats]:
    """The test of verdicts with another share of the missing bursts; 0 is Student's t-test."""

    def p(x: Floats, unit: float) -> Floats:
        test = margin_test(x, MARGIN, unit)
        return replace(test, burst=test.burst * share / BURST_SHARE).p

    return p


def bootstraps(x: Floats) -> dict[str, Floats]:
    """p-values of three bootstraps and of a sign-flip test, by name: (comparisons,) each."""
    rng, questions = np.random.default_rng(1), x.shape[1]
    drawn = rng.multinomial(questions, np.full(questions, 1 / questions), size=RESAMPLES) * 1.0
    mean, deviation = x.mean(1), x.std(1)
    means, squares = drawn @ x.T / questions, drawn @ (x**2).T / questions
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(np.maximum(squares - means**2, 0))
        scores = np.where(spread > 0, (means - mean) / spread, np.sign(means - mean) * np.inf)
        studentized = np.nan_to_num(scores, nan=0.0) <= (mean - MARGIN) / deviation
        skewness = ((x - mean[:, None]) ** 3).mean(1) / deviation**3
    least = 1 / (RESAMPLES + 1)
    middle = norm.ppf(np.clip((means < mean).mean(0) + (means == mean).mean(0) / 2, least, 1))
    z = norm.ppf(np.clip((means < MARGIN).mean(0), least, 1 - least)) - middle
    signs = 2.0 * rng.integers(0, 2, (RESAMPLES, questions)) - 1
    shifted = x - MARGIN
    return {
        "percentile bootstrap": (1 + (means >= MARGIN).sum(0)) * least,
        "bootstrap-t": (1 + studentized.sum(0)) * least,
        "BCa bootstrap": norm.sf(z / (1 + skewness / (6 * np.sqrt(questions)) * z) - middle),
        "sign flips": (1 + (signs @ shifted.T <= shifted.sum(1)).sum(0)) * least,
    }


def p_values(x: Floats, unit: float) -> dict[str, Floats]:
    """p-values of all candidate tests by name, (comparisons,) each; the chosen one is first."""
    shares = {f"bursts, share {share:g}": share for share in (0.5, 1.0)} | {"Student's t": 0.0}
    return {name: with_share(share)(x, unit) for name, share in shares.items()} | bootstraps(x)


def rates(
    tables: int, level: float
) -> Iterator[tuple[str, int, Mapping[str, tuple[float, float]]]]:
    """Error rate and power of each test, by excess and number of questions."""
    rng = np.random.default_rng(0)
    for excess in EXCESSES:
        for questions in QUESTIONS:
            worse, same = (
                p_values(*influence_differences(rng, (tables, questions), excess, points))
                for points in (MARGIN, 0.0)
            )
            yield (
                excess.name,
                questions,
                {
                    name: (
                        float((worse[name] <= level).mean()),
                        float((same[name] <= level).mean()),
                    )
                    for name in worse
                },
            )


def of_tests(tables: int, level: float) -> str:
    """Markdown: error rate and power of each test."""
    rows, names = [], []
    for excess, questions, measured in rates(tables, level):
        names = list(measured)
        cells = (f"{100 * error:.1f} / {100 * power:.0f}" for error, power in measured.values())
        rows.append([excess, str(questions), *cells])
    return markdown_table(["excess errors", "questions", *names], rows)


def right_answers(
    rng: np.random.Generator, shape: tuple[int, int], changed: float, loss: float
) -> Floats:
    """Losses of accuracy: 1 where only full depth is right, -1 where only the policy is."""
    drawn = rng.random(shape)
    return np.where(drawn < (changed + loss) / 2, 1.0, np.where(drawn < changed, -1.0, 0.0))


def of_accuracy(tables: int) -> str:
    """Markdown: error rate and power of the test of accuracy."""
    rng, margin, rows = np.random.default_rng(4), Margins().accuracy / 100, []
    for changed in CHANGED:
        for questions in QUESTIONS:
            cells = []
            for level in (LEVEL, LEVEL / ROWS):
                measured = []
                for loss in (margin, 0.0):
                    x = right_answers(rng, (tables, questions), changed, loss)
                    measured.append(float((margin_test(x, margin).p <= level).mean()))
                cells.append(f"{100 * measured[0]:.1f} / {100 * measured[1]:.0f}")
            rows.append([f"{100 * changed:.0f}", str(questions), *cells])
    levels = (f"at level {level:.2g}" for level in (LEVEL, LEVEL / ROWS))
    return markdown_table(["answers that change, %", "questions", *levels], rows)


#: true excess of the rows of a simulated table, in margins: worse, at the margin, and equal
TRUTH = (3.0, 2.0, 1.0, 1.0, 0.0, 0.0, 0.0)


def whole_tables(tables: int, excess: Excess, questions: int) -> tuple[float, float]:
    """Rate of tables with any wrong verdict, and share of rows away from the margin decided."""
    rng = np.random.default_rng(2)
    points = tuple(MARGIN * x for x in TRUTH)
    errors, words = simulated(rng, (tables, questions), excess, points)
    x = influences_of(errors[:-1] - errors[-1], words)  # (rows, tables, questions)
    p = margin_test(x, MARGIN, 2 / sum(WORDS)).p.T  # (tables, rows)
    adjusted = np.array([holm(row) for row in np.minimum(p, 1 - p)])
    decided, better = adjusted <= LEVEL, p < 0.5
    truth = np.array(TRUTH)
    wrong = decided & np.where(better, truth >= 1, truth <= 1)
    return float(wrong.any(1).mean()), float(decided[:, truth != 1].mean())


def of_tables(tables: int) -> str:
    """Markdown: rates of whole tables."""
    rows = []
    for excess in EXCESSES:
        for questions in QUESTIONS:
            wrong, decided = whole_tables(tables, excess, questions)
            rows.append([excess.name, str(questions), f"{100 * wrong:.1f}", f"{100 * decided:.0f}"])
    return markdown_table(
        ["excess errors", "questions", "tables with a wrong verdict, %", "rows decided, %"], rows
    )


@dataclass(frozen=True)
class Stopping:
    """Measured properties of a rule that adds questions.

    Attributes:
        error: rate of "not worse" at the margin.
        power: rate of "not worse" of a policy that equals full depth.
        questions: mean number of questions until the decision of such a policy.
    """

    error: float
    power: float
    questions: float

    def cells(self) -> list[str]:
        """Cells of a table."""
        mean = MISSING if np.isnan(self.questions) else f"{self.questions:.0f}"
        return [f"{100 * self.error:.1f}", f"{100 * self.power:.0f}", mean]


def sequential(rule: UntilDecided, tables: int, excess: Excess, level: float) -> Stopping:
    """Measure a rule with prestated looks at one row."""
    rng, shape = np.random.default_rng(3), (tables, rule.looks[-1])
    crossed = []
    for points in (MARGIN, 0.0):
        errors, words = simulated(rng, shape, excess, (points,))
        p = np.stack(
            [
                margin_test(
                    influences_of((errors[0] - errors[1])[:, :look], words[:, :look]),
                    MARGIN,
                    2 / sum(WORDS),
                ).p
                for look in rule.looks
            ],
            axis=-1,
        )  # (tables, looks)
        at_level = replace(rule, level=level)
        crossed.append(p <= np.array([at_level.level_at(look) for look in rule.looks]))
    error, power = (float(x.any(1).mean()) for x in crossed)
    stopped = np.where(crossed[1].any(1), crossed[1].argmax(1), len(rule.looks) - 1)
    return Stopping(error, power, float(np.array(rule.looks)[stopped].mean()))


def betting(questions: int, tables: int, excess: Excess, level: float) -> Stopping:
    """Measure the anytime-valid betting test of `eepolicy tune`, which clips a reply's loss."""
    rng, crossed = np.random.default_rng(3), []
    for points in (MARGIN, 0.0):
        errors, words = simulated(rng, (tables, questions), excess, (points,))
        own, full = (np.minimum(e / words, 1) for e in errors)
        p = np.array([loss_p_value(x, MARGIN, 1 - level) for x in own - full])
        crossed.append(float((p <= level).mean()))
    return Stopping(crossed[0], crossed[1], np.nan)


def of_looks(tables: int) -> str:
    """Markdown: rules that add questions."""
    rows = []
    few = max(1, tables // 10)  # the betting test goes through the questions one by one
    all_looks = ((100, 200, 300), UntilDecided().looks, (50, 100, 150, 200, 250, 300))
    for level, name in ((LEVEL, "one row"), (LEVEL / ROWS, f"the hardest of {ROWS} rows")):
        for excess, each in ((EXCESSES[0], all_looks), (EXCESSES[1], all_looks[1:2])):
            for looks in each:
                for shape, label in ((0.0, "O'Brien–Fleming"), (0.25, "between"), (0.5, "Pocock")):
                    measured = sequential(UntilDecided(looks, shape=shape), tables, excess, level)
                    rows.append([name, excess.name, str(len(looks)), label, *measured.cells()])
            measured = betting(300, few, excess, level)
            rows.append([name, excess.name, "any", "betting", *measured.cells()])
            fixed = sequential(UntilDecided((300,)), tables, excess, level)
            rows.append([name, excess.name, "1", "none", *fixed.cells()])
    headings = ["level of", "excess errors", "looks", "boundary", "error, %", "power, %"]
    return markdown_table([*headings, "mean questions"], rows)


def page(tables: int) -> str:
    """The whole page as Markdown."""
    level = LEVEL / ROWS
    return "\n\n".join(
        [
            "# Error rates of verdicts",
            f"Simulated comparisons, {tables} for each figure; what verdicts mean is on the page "
            "[Verdicts](../verdicts.md). The word errors of a reply are drawn from those of "
            f"{sum(REPLIES.values())} replies of the pocket model. *Error* is the rate at which a "
            f"policy counts as not worse although its WER is {Margins().wer:g} points higher; "
            "*power* is the same rate for a policy that makes as many errors as full depth.",
            f"    python -m benchmarks.verdicts --tables {tables}",
            "## Tests",
            f"Error / power in percent, one row at level {LEVEL:g}. Verdicts use the first test.",
            of_tests(tables, LEVEL),
            f"The same at level {level:.4f}, which Holm's adjustment asks of the first of {ROWS} "
            f"rows; the error should be {100 * level:.1f} at most:",
            of_tests(tables, level),
            "## Accuracy",
            f"Error / power in percent at a margin of {Margins().accuracy:g} points:",
            of_accuracy(tables),
            "## Whole tables",
            f"{ROWS} policies whose excess is {', '.join(f'{x:g}' for x in TRUTH)} times the "
            f"margin, tested together at level {LEVEL:g}. Decided rows are counted among those "
            "away from the margin.",
            of_tables(tables),
            "## Adding questions until rows are decided",
            "All looks together have the level. Mean questions are those of a policy that makes as "
            "many errors as full depth.",
            of_looks(tables),
        ]
    )


def main() -> None:
    """Parse the command line and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tables", type=int, default=4000, help="comparisons for each figure")
    parser.add_argument("--write", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    text = page(arguments.tables) + "\n"
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
