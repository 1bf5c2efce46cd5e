"""Search for the policy that saves the most layer calls within a loss budget, with a guarantee.

Learn then test (Angelopoulos et al. 2021, arXiv 2110.01052): policies are ordered in chains by
increasing savings, and each chain is tested until the first policy whose loss cannot be shown to be
within the budget.  The probability that any policy that passes exceeds the budget is at most
1 - confidence.  It is over the draw of the calibration prompts, and holds for any number of
candidates.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from pydantic import Field

from eepolicy import EepolicyError, HookedModel, held_out
from eepolicy.analysis.evaluation.identity import identity
from eepolicy.analysis.evaluation.metrics import Recognizer
from eepolicy.analysis.stats.bootstrap import means
from eepolicy.analysis.stats.clustered import as_columns
from eepolicy.analysis.studies.base import BatchOptions, Measure, Study, Workspace, by_name
from eepolicy.analysis.studies.batch_scores import BatchScorer, BatchScores, ScoreItem
from eepolicy.analysis.style import families, outside_legend
from eepolicy.analysis.tables import markdown_table, number, read_table
from eepolicy.fields import CheckedFields, Share
from eepolicy.folder_lock import locked
from eepolicy.io import make_folder, write_text
from eepolicy.policies.base import check_depth
from eepolicy.policies.spec import file_digests
from eepolicy.speech.asr import Whisper
from eepolicy.workers import Workers

#: speech schedules to search: the spec string before the exit depth
PATTERNS = ("static", "spark:even", "spark:triple")
#: columns of the scores of a policy
SCORES = ("wer", "right", "calls", "tokens")
MEASURES = (
    Measure("calls", "layer calls a token"),
    Measure("wer_loss", "WER loss", "points", 100.0, 1),
    Measure("accuracy_loss", "accuracy loss", "points", 100.0, 1),
    Measure("p", "p", digits=3),
)

Questions = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class LossBudget(CheckedFields):
    """Maximum mean loss against full depth.

    Attributes:
        wer: increase of the word error rate of a reply (clipped to 1); 0.02 is two points.
        accuracy: decrease of the share of correct replies in speech.
        confidence: confidence of the guarantee.
    """

    wer: Share = 0.02
    accuracy: Share = 0.02
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95


@dataclass(frozen=True, eq=False)
class SearchResult(Study):
    """The tested policies, and a check of the best one.

    Attributes:
        best: spec string of the policy with the fewest layer calls among those that passed; `full`
            if none did.
        tried: one row for each policy in the order of the tests: `policy`, `calls` (layer calls a
            token), `wer_loss`, `accuracy_loss` (means), `p` (of the loss exceeding the budget),
            `passed`.
        checked: `calls`, `wer_loss` and `accuracy_loss` of the best policy on other prompts, the
            losses with 95 % intervals `..._low` and `..._high`.
    """

    best: str
    tried: pd.DataFrame
    checked: dict[str, float]

    name: ClassVar[str] = "policy_search"
    title: ClassVar[str] = "The most savings within a loss budget"
    help: ClassVar[str] = "the policy with the fewest layer calls within a loss of WER and accuracy"
    needs_asr: ClassVar[bool] = True
    by_default: ClassVar[bool] = False

    @classmethod
    def run(cls, workspace: Workspace) -> SearchResult:
        """Search with 300 dev questions and 4 points of WER and 8 of accuracy as the budget."""
        model = workspace.model
        return search_policies(
            PolicyEvaluator(model, Whisper(), folder=workspace.folder / "policy-search"),
            held_out("dev")[:300],
            workspace.questions,
            LossBudget(wer=0.04, accuracy=0.08),
            candidates=policy_chains(
                model.depth, [workspace.depth(x) for x in (0.85, 0.75, 0.65, 0.55)]
            ),
        )

    def to_pandas(self) -> pd.DataFrame:
        """The tested policies, see `tried`."""
        return self.tried

    def table(self) -> str:
        """Markdown, one row for each tested policy."""
        rows = [
            [
                f"`{row.policy}`",
                *(
                    number(getattr(row, m.name), m.digits, m.scale, sign=m.name.endswith("loss"))
                    for m in MEASURES
                ),
                "yes" if row.passed else "no",
            ]
            for row in self.tried.itertuples()
        ]
        return markdown_table(["policy", *(m.heading for m in MEASURES), "passed"], rows)

    def figure(self) -> Figure:
        """Losses against layer calls a token; filled markers passed."""
        figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.2), layout="constrained")
        styles = families(list(self.tried.policy))
        for ax, name in zip(axes, ("wer_loss", "accuracy_loss"), strict=True):
            measure = by_name(MEASURES, name)
            for row, (colour, marker) in zip(self.tried.itertuples(), styles, strict=True):
                ax.plot(
                    row.calls,
                    measure.scale * getattr(row, name),
                    color=colour,
                    marker=marker,
                    mfc=colour if row.passed else "none",
                    ls="none",
                    label=row.policy,
                )
            ax.set_xlabel(by_name(MEASURES, "calls").heading)
            ax.set_ylabel(measure.heading)
        outside_legend(figure, axes[0], loc="outside right center", ncols=1)
        return figure


def loss_p_value(losses: ArrayLike, budget: float, confidence: float = 0.95) -> float:
    """p-value of the hypothesis that the mean loss exceeds a budget, by betting.

    Under the hypothesis the wealth of a gambler who bets against it cannot grow in expectation
    (Waudby-Smith and Ramdas 2023, arXiv 2010.09686).  The test is valid for any distribution on
    -1 to 1 and any number of prompts.

    Args:
        losses: losses of -1 to 1, (prompts,), in an order independent of their values.
        budget: mean loss under test.
        confidence: intended confidence; it sets the size of the bets.
    """
    x, limit = (np.asarray(losses, float) + 1) / 2, (budget + 1) / 2
    wealth = most = 1.0
    total, squares = 0.5, 0.25
    for count, value in enumerate(x, start=1):
        # a bet may depend on earlier values only
        bet = math.sqrt(2 * math.log(1 / (1 - confidence)) / (squares / count * len(x)))
        wealth *= 1 + min(bet, 0.75 / (1 - limit)) * (limit - value)
        most = max(most, wealth)
        total += value
        squares += (value - total / (count + 1)) ** 2
    return 1 / most


def min_prompts(budget: float, level: float, maximum: int = 100_000) -> int:
    """Smallest number of prompts with which a policy without any loss passes.

    Args:
        budget: mean loss under test, above 0.
        level: level of the test.
        maximum: largest number to try.

    Raises:
        EepolicyError: not even the maximum is enough.
    """
    low, high = 1, 1
    while loss_p_value(np.zeros(high), budget, 1 - level) > level:
        low, high = high, 2 * high
        if high > maximum:
            raise EepolicyError(
                f"no number of prompts shows that a loss is below {budget}; allow more loss"
            )
    while low < high:
        middle = (low + high) // 2
        if loss_p_value(np.zeros(middle), budget, 1 - level) > level:
            low = middle + 1
        else:
            high = middle
    return high


def policy_chains(full_depth: int, depths: Sequence[int] | None = None) -> list[list[str]]:
    """Policies to test: one chain for each schedule, by decreasing exit depth.

    Args:
        full_depth: number of layers.
        depths: exit depths; all down to half of full depth if None.

    Raises:
        EepolicyError: the model does not have a depth.

    Example:
        >>> policy_chains(20, [14, 16])[0]
        ['static@16', 'static@14']
    """
    for depth in depths or ():
        check_depth(depth, full_depth, "an exit of the search")
    chosen = depths or range(full_depth - 1, full_depth // 2 - 1, -1)
    descending = sorted(chosen, reverse=True)
    return [[f"{pattern}@{depth}" for depth in descending] for pattern in PATTERNS]


@dataclass(frozen=True)
class PolicyEvaluator:
    """Generates replies with a policy, transcribes and scores them.

    Attributes:
        model: model that speaks.
        asr: speech recognition.
        folder: stores the scores, one file for each policy, so that a stopped search goes on; None
            to store nothing.
        options: batch size and maximum length of a reply.
        workers: score the batches in parallel; None to score them in this process.
    """

    model: HookedModel
    asr: Recognizer
    folder: Path | None = None
    options: BatchOptions = field(default_factory=BatchOptions)
    workers: Workers[ScoreItem, BatchScores] | None = field(default=None, repr=False)

    def scores(self, policy: str, questions: Questions) -> pd.DataFrame:
        """One row for each question: `wer` (at most 1), `right`, `calls`, `tokens`.

        Args:
            policy: spec string.
            questions: dicts with `question` and `keys`.
        """
        if self.folder is None:
            return self._measure(policy, questions)
        metadata = identity(self.model, self.options.max_new_tokens)
        metadata |= {"speech recognition": getattr(self.asr, "name", type(self.asr).__name__)}
        metadata |= {"batch": self.options.size, "policy": policy}
        if files := file_digests(policy):
            metadata |= {"files": files}
        texts = [[q["question"], list(q["keys"])] for q in questions]
        name = hashlib.sha256(json.dumps([metadata, texts]).encode()).hexdigest()[:16]
        file = self.folder / f"{name}.csv"
        if not file.exists():
            scores = self._measure(policy, questions)
            make_folder(self.folder)
            write_text(file, scores.to_csv(index=False))
        return read_table(file, SCORES, len(questions))

    def _measure(self, policy: str, questions: Questions) -> pd.DataFrame:
        size = self.options.size
        items = [
            ScoreItem(number, policy, questions[start : start + size])
            for number, start in enumerate(self.options.starts(questions))
        ]
        if self.workers is None:
            scorer = BatchScorer(self.model, self.asr, self.options.max_new_tokens)
            scores = list(map(scorer, items))
        else:
            for item in items:
                self.workers.submit(item)
            scores = sorted(self.workers.finish(), key=lambda batch: batch.number)
        return pd.DataFrame([row for batch in scores for row in batch.rows])


def search_policies(
    evaluator: PolicyEvaluator,
    calibration: Questions,
    check: Questions,
    budget: LossBudget | None = None,
    *,
    candidates: Sequence[Sequence[str]] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> SearchResult:
    """Find the policy with the fewest layer calls within a loss budget.

    Args:
        evaluator: generates and scores replies.
        calibration: questions for the tests, dicts with `question` and `keys`.
        check: other questions, to measure the loss of the best policy.
        budget: maximum loss.
        candidates: chains of spec strings by increasing savings; `policy_chains` if None.
        report: receives one line for each policy.

    Raises:
        EepolicyError: there are too few calibration prompts for any policy to pass, or another
            process works on the folder.
    """
    budget = budget or LossBudget()
    chains = candidates or policy_chains(evaluator.model.depth)
    level = (1 - budget.confidence) / len(chains)
    needed = max(min_prompts(x, level) for x in (budget.wer, budget.accuracy))
    if len(calibration) < needed:
        raise EepolicyError(
            f"{len(calibration)} prompts are too few: even a policy without any loss would not "
            f"pass; use {needed} prompts or more, or allow more loss"
        )
    with nullcontext() if evaluator.folder is None else locked(evaluator.folder):
        table = _run_chains(evaluator, calibration, budget, chains, report)
        passed = table[table.passed]
        best = "full" if passed.empty else str(passed.policy[passed.calls.idxmin()])
        checked = _losses(evaluator.scores(best, check), evaluator.scores("full", check))
    ones = np.ones(len(checked))
    intervals = {x: means(checked[x].to_numpy(), ones) for x in ("wer_loss", "accuracy_loss")}
    calls = {"calls": float(checked.calls.sum() / checked.tokens.sum())}
    return SearchResult(best, table, calls | as_columns(intervals))


def _run_chains(
    evaluator: PolicyEvaluator,
    calibration: Questions,
    budget: LossBudget,
    chains: Sequence[Sequence[str]],
    report: Callable[[str], None],
) -> pd.DataFrame:
    """Test each chain until a policy does not pass: the `tried` of a `SearchResult`."""
    level = (1 - budget.confidence) / len(chains)
    full, tried = evaluator.scores("full", calibration), []
    for chain in chains:
        for policy in chain:
            losses = _losses(evaluator.scores(policy, calibration), full)
            row = _test(losses, budget, level) | {"policy": policy}
            tried.append(row)
            verdict = "passed" if row["passed"] else "not passed, chain ends"
            report(f"{policy}: p {row['p']:.4f}, {verdict}")
            if not row["passed"]:
                break
    columns = ["policy", "calls", "wer_loss", "accuracy_loss", "p", "passed"]
    return pd.DataFrame(tried)[columns]


def _losses(scores: pd.DataFrame, full: pd.DataFrame) -> pd.DataFrame:
    """Scores of a policy with `wer_loss` and `accuracy_loss` against full depth."""
    return scores.assign(wer_loss=scores.wer - full.wer, accuracy_loss=full.right - scores.right)


def _test(losses: pd.DataFrame, budget: LossBudget, level: float) -> dict[str, Any]:
    """Mean losses of a policy, and whether they are within the budget at a level."""
    p = max(
        loss_p_value(losses.wer_loss, budget.wer, 1 - level),
        loss_p_value(losses.accuracy_loss, budget.accuracy, 1 - level),
    )
    return {
        "calls": losses.calls.sum() / losses.tokens.sum(),
        "wer_loss": losses.wer_loss.mean(),
        "accuracy_loss": losses.accuracy_loss.mean(),
        "p": p,
        "passed": p <= level,
    }
