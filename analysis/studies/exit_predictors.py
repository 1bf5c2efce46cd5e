"""Predictors of a safe exit: the context of the position, and how sure the exit head is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from eepolicy.policies.formats import UnitClasses

#: acoustic contexts, by the last two units
CONTEXTS = ("onset", "steady", "silence")


@dataclass(frozen=True)
class Predictor:
    """A value of a position.

    Attributes:
        name: column.
        label: words in tables and figures, for a high value.
        before: it is known before the position runs, so that a schedule can use it.
    """

    name: str
    label: str
    before: bool = True


PREDICTORS = (
    Predictor("phase", "late in the chunk"),
    Predictor("onset", "onset: the sound just changed"),
    Predictor("steady", "steady: the last two units of one class"),
    Predictor("silent", "silence: the last unit is silent"),
    Predictor("repeated", "the last two units are the same"),
    Predictor("jump", "distance between the last two units"),
    Predictor("level", "level of the last unit"),
    Predictor("last_entropy", "entropy of the last unit, full depth"),
    Predictor("repeats", "the exit repeats the last unit", before=False),
    Predictor("entropy", "entropy at the exit", before=False),
    Predictor("doubt", "1 - confidence at the exit", before=False),
    Predictor("tie", "1 - margin at the exit", before=False),
)


def with_predictors(
    exits: pd.DataFrame,
    classes: UnitClasses,
    codebook: NDArray[np.float64],
    level: NDArray[np.float64],
) -> pd.DataFrame:
    """Add the columns of `PREDICTORS` and `context`, one of `CONTEXTS`.

    Args:
        exits: rows of `read_exits`; those of a document follow each other in order.
        classes: classes of the units.
        codebook: (units, features).
        level: (units,) in dB; nan for unknown.

    Returns:
        The rows with the columns; nan where there is no unit before.
    """
    sounds, silent = np.array(classes.sounds), np.zeros(len(classes.sounds), bool)
    silent[classes.silent] = True
    token = exits.groupby("document").token
    last = (token.shift(1) - classes.first).to_numpy()
    before = (token.shift(2) - classes.first).to_numpy()
    has_one, has_two = ~np.isnan(last), ~np.isnan(before)
    one, two = (np.nan_to_num(x).astype(int) for x in (last, before))
    jump = np.where(has_two, np.linalg.norm(codebook[one] - codebook[two], axis=1), np.nan)
    is_silent = has_one & silent[one]
    is_steady = has_two & (sounds[one] == sounds[two])
    context = np.where(is_silent, "silence", np.where(is_steady, "steady", "onset"))
    return exits.assign(
        context=context,
        onset=np.where(has_two, context == "onset", np.nan),
        steady=np.where(has_two, is_steady, np.nan),
        silent=np.where(has_one, is_silent, np.nan),
        repeated=np.where(has_two, one == two, np.nan),
        jump=jump,
        level=np.where(has_one, level[one], np.nan),
        last_entropy=exits.groupby("document").full_entropy.shift(1),
        repeats=np.where(has_one, exits.exit - classes.first == last, np.nan),
        doubt=1 - exits.confidence,
        tie=1 - exits.margin,
    )
