"""Find the policy that saves most within a stated loss, with a guarantee.

Learn then test (Angelopoulos et al. 2021, 2110.01052): policies stand in chains, from those that
save least to those that save most, and each chain is tested until the first that cannot be shown to
lose less than was allowed.  Whatever passes loses more with a chance below 1 - confidence, over the
drawing of the calibration prompts, however many were tried.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from eepolicy import EepolicyError, HookedModel
from eepolicy.analysis.evaluation.run import Recognizer, identity
from eepolicy.analysis.evaluation.scoring import is_right, word_errors
from eepolicy.analysis.stats.clustered import as_columns, means
from eepolicy.io import write_text

#: patterns of speech schedules: what stands in front of the exit depth in a spec string
PATTERNS = ("static", "spark:even", "spark:triple")


@dataclass(frozen=True)
class Allowed:
    """The loss against full depth that is allowed, on average over prompts.

    Attributes:
        wer: of the word error rate of a reply (at most 1 each), 0.02 being two points.
        accuracy: of the share of replies that are right in the speech.
        confidence: of the guarantee.
    """

    wer: float = 0.02
    accuracy: float = 0.02
    confidence: float = 0.95


@dataclass(frozen=True, eq=False)
class Tuned:
    """What was found.

    Attributes:
        best: spec string of the policy that saves most among those that passed; `full` where none
            did.
        tried: a row a policy in the order they were tested: `policy`, `calls` (layer calls a
            token), `wer_loss`, `accuracy_loss` (means), `p` (that it loses more than allowed),
            `passed`.
        checked: loss of the best one on other prompts, as `tried` has it, with 95 % intervals
            `..._low` and `..._high`.
    """

    best: str
    tried: pd.DataFrame
    checked: dict[str, float]

    def table(self) -> str:
        """Markdown, a line a policy that was tested."""
        lines = [
            "| policy | layer calls a token | WER loss, points | accuracy loss, points | p | "
            "passed |",
            "|---" * 6 + "|",
        ]
        for row in self.tried.itertuples():
            lines.append(
                f"| `{row.policy}` | {row.calls:.2f} | {100 * row.wer_loss:+.1f} | "
                f"{100 * row.accuracy_loss:+.1f} | {row.p:.3f} | {'yes' if row.passed else 'no'} |"
            )
        return "\n".join(lines)


def loss_exceeds(losses: ArrayLike, allowed: float, confidence: float = 0.95) -> float:
    """p-value of the mean loss being above what is allowed, by betting on every prompt.

    The wealth of one who bets that it is below cannot grow if it is not (Waudby-Smith and Ramdas
    2023, 2010.09686): valid for any distribution on -1 to 1 and any number of prompts.

    Args:
        losses: (prompts,) in -1..1, in an order that says nothing of them.
        allowed: the mean under test.
        confidence: that is aimed at; it sets how high the bets are.
    """
    x, limit = (np.asarray(losses, float) + 1) / 2, (allowed + 1) / 2
    wealth = most = 1.0
    total, squares = 0.5, 0.25
    for number, value in enumerate(x, start=1):
        # the bet depends on what was seen before it alone
        bet = math.sqrt(2 * math.log(1 / (1 - confidence)) / (squares / number * len(x)))
        wealth *= 1 + min(bet, 0.75 / (1 - limit)) * (limit - value)
        most = max(most, wealth)
        total += value
        squares += (value - total / (number + 1)) ** 2
    return 1 / most


def prompts_for(allowed: float, level: float, most: int = 100_000) -> int:
    """Prompts without which not even losing nothing at all passes at a level.

    Args:
        allowed: mean loss under test, above 0.
        level: that p is held against.
        most: to try.

    Raises:
        EepolicyError: so many would not do.
    """
    low, high = 1, 1
    while loss_exceeds(np.zeros(high), allowed, 1 - level) > level:
        low, high = high, 2 * high
        if high > most:
            raise EepolicyError(f"no number of prompts shows a loss below {allowed}; allow more")
    while low < high:
        middle = (low + high) // 2
        if loss_exceeds(np.zeros(middle), allowed, 1 - level) > level:
            low = middle + 1
        else:
            high = middle
    return high


def chains(full_depth: int, depths: Sequence[int] | None = None) -> list[list[str]]:
    """Policies to try, each chain from those that save least to those that save most.

    Args:
        full_depth: of the model.
        depths: of the exits; down to half of full depth where none are given.
    """
    chosen = depths or range(full_depth - 1, full_depth // 2 - 1, -1)
    falling = sorted(chosen, reverse=True)
    return [[f"{pattern}@{depth}" for depth in falling] for pattern in PATTERNS]


def tune(
    model: HookedModel,
    calibration: Sequence[Mapping[str, Any]],
    check: Sequence[Mapping[str, Any]],
    asr: Recognizer,
    allowed: Allowed | None = None,
    *,
    candidates: Sequence[Sequence[str]] | None = None,
    batch: int = 25,
    max_new_tokens: int = 400,
    keep: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Tuned:
    """Search chains of policies for the deepest saving within a loss.

    Args:
        model: which answers.
        calibration: prompts to choose by: dicts with `question` and `keys`.
        check: other prompts, to see what was chosen.
        asr: speech recognition.
        allowed: the loss.
        candidates: chains of spec strings, see `chains`.
        batch: replies side by side.
        max_new_tokens: most tokens of a reply.
        keep: folder of what was heard, a file a policy; a search that was stopped goes on from it.
        report: gets a line a policy.

    Raises:
        EepolicyError: too few prompts to show anything.
    """
    allowed = allowed or Allowed()

    def heard(policy: str, questions: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        if keep is None:
            return _heard(model, policy, questions, asr, batch, max_new_tokens)
        told = identity(model, asr, None, max_new_tokens) | {"batch": batch, "policy": policy}
        asked = [[q["question"], list(q["keys"])] for q in questions]
        name = hashlib.sha256(json.dumps([told, asked]).encode()).hexdigest()[:16]
        file = keep / f"{name}.csv"
        if not file.exists():
            found = _heard(model, policy, questions, asr, batch, max_new_tokens)
            keep.mkdir(parents=True, exist_ok=True)
            write_text(file, found.to_csv(index=False))
        return pd.read_csv(file)

    lists = candidates or chains(model.depth)
    level = (1 - allowed.confidence) / len(lists)
    needed = max(prompts_for(x, level) for x in (allowed.wer, allowed.accuracy))
    if len(calibration) < needed:
        raise EepolicyError(
            f"with {len(calibration)} prompts not even a policy that loses nothing could be shown "
            f"to lose less than is allowed: take {needed} prompts or more, or allow more"
        )
    full = heard("full", calibration)
    tried: list[dict[str, Any]] = []
    for chain in lists:
        for policy in chain:
            row = _loss(heard(policy, calibration), full)
            p = max(
                loss_exceeds(row.wer_loss, allowed.wer, 1 - level),
                loss_exceeds(row.accuracy_loss, allowed.accuracy, 1 - level),
            )
            passed = p <= level
            tried.append(
                {
                    "policy": policy,
                    "calls": row.calls.sum() / row.tokens.sum(),
                    "wer_loss": row.wer_loss.mean(),
                    "accuracy_loss": row.accuracy_loss.mean(),
                    "p": p,
                    "passed": passed,
                }
            )
            report(f"{policy}: p {p:.4f}, {'passed' if passed else 'not shown, chain ends'}")
            if not passed:
                break
    table = pd.DataFrame(tried)
    good = table[table.passed]
    best = "full" if good.empty else str(good.policy[good.calls.idxmin()])
    seen = _loss(heard(best, check), heard("full", check))
    one = np.ones(len(seen))
    losses = {x: means(seen[x].to_numpy(), one) for x in ("wer_loss", "accuracy_loss")}
    checked = {"calls": float(seen.calls.sum() / seen.tokens.sum())} | as_columns(losses)
    return Tuned(best, table, checked)


def _heard(
    model: HookedModel,
    policy: str,
    questions: Sequence[Mapping[str, Any]],
    asr: Recognizer,
    batch: int,
    max_new_tokens: int,
) -> pd.DataFrame:
    """A row a question: `wer` (at most 1), `right`, `calls`, `tokens`."""
    rows = []
    for start in range(0, len(questions), batch):
        part = questions[start : start + batch]
        outs = model.generate([q["question"] for q in part], policy, max_new_tokens)
        for question, out in zip(part, outs, strict=True):
            transcript = asr.transcribe(out.audio)
            errors, words = word_errors(out.text or "", transcript)
            rows.append(
                {
                    "wer": min(1.0, errors / words) if words else float(errors > 0),
                    "right": float(is_right(transcript, question["keys"])),
                    "calls": int(out.trace.layer_calls.sum()),
                    "tokens": len(out.trace),
                }
            )
    return pd.DataFrame(rows)


def _loss(found: pd.DataFrame, full: pd.DataFrame) -> pd.DataFrame:
    return found.assign(wer_loss=found.wer - full.wer, accuracy_loss=full.right - found.right)
