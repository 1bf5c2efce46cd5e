"""Outcomes of an exit, and how well each predictor ranks exits by them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from eepolicy.analysis.stats.auc import auc
from eepolicy.analysis.stats.bootstrap import Interval
from eepolicy.analysis.studies.exit_predictors import PREDICTORS


@dataclass(frozen=True)
class Outcome:
    """What an exit may change.

    Attributes:
        name: column, 0 or 1.
        label: words in tables and figures.
    """

    name: str
    label: str


OUTCOMES = (
    Outcome("unit", "another unit"),
    Outcome("sound", "another sound"),
    Outcome("word", "another word"),
)


def with_outcomes(
    exits: pd.DataFrame, continuations: pd.DataFrame, threshold: float, seed: int = 0
) -> pd.DataFrame:
    """Add the columns of `OUTCOMES`.

    An exit with the token of full depth changes nothing, so it has no continuation.  If only a
    random share of the others is continued, the rest is left out, and so is the same share of the
    exits that change nothing.

    Args:
        exits: rows of `read_exits`.
        continuations: rows of `what_follows` of exits whose token differs.
        threshold: the sound is another one above this acoustic distance.
        seed: seed of the choice among exits that change nothing.
    """
    keys = ["document", "position"]
    # without a distance, one of the replies ends at the exit
    continuations = continuations.assign(distance=continuations.distance.fillna(np.inf))
    joined = exits.merge(continuations[[*keys, "distance", "words"]], "left", on=keys)
    differs = joined.exit != joined.token
    share = len(continuations) / max(1, differs.sum())
    chosen = np.random.default_rng(seed).random(len(joined)) < share
    joined = joined[joined.words.notna() | (~differs & chosen)].reset_index(drop=True)
    return joined.assign(
        unit=(joined.exit != joined.token).astype(float),
        sound=(joined.distance > threshold).astype(float),
        word=(joined.words > 0).astype(float),
    )


def auc_table(exits: pd.DataFrame) -> dict[str, dict[str, Interval[float]]]:
    """AUC of each predictor for each outcome.

    The further outcome `word, of other units` has the exits whose unit differs only.
    """
    differing = exits[exits.unit == 1]
    table = {}
    for predictor in PREDICTORS:
        cells = {outcome.name: _auc(exits, predictor.name, outcome.name) for outcome in OUTCOMES}
        table[predictor.name] = cells | {"if_other": _auc(differing, predictor.name, "word")}
    return table


def _auc(exits: pd.DataFrame, predictor: str, outcome: str) -> Interval[float]:
    values = exits[predictor].to_numpy(float)
    return auc(values, exits[outcome].to_numpy() == 1, exits.document.to_numpy())
