"""Fit classes of speech units: which sound alike, and which are silent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.io import write_json
from eepolicy.policies.formats import UnitClasses
from eepolicy.probing.documents import Document
from eepolicy.speech.vocoders import codebook_of, required_vocoder

#: number of sound classes: about as many as English has phonemes
SOUNDS = 40
#: a unit is silent if it is at least this many dB below loud units, the ninth decile of all
SILENCE = 30.0


def fit_unit_classes(
    model: HookedModel,
    replies: Sequence[Document],
    sounds: int = SOUNDS,
    save: str | Path | None = None,
) -> UnitClasses:
    """Group the units of a model into classes of sounds, and find the silent ones.

    Sound classes are k-means clusters of the vocoder's codebook.  The level of a unit is the mean
    power of its share of the vocoder's sound of the replies.  A unit that the replies do not
    contain is not silent.

    Args:
        model: model with a vocoder that has a codebook.
        replies: replies of the model, on other questions than those of an evaluation.
        sounds: number of sound classes.
        save: JSON file to write, which the policies `steady` and `silence` read.

    Returns:
        The classes.

    Raises:
        EepolicyError: the vocoder has no codebook, or there are more classes than units.
    """
    codebook = codebook_of(required_vocoder(model.vocoder))
    if codebook is None or not 1 <= sounds <= len(codebook):
        given = "no codebook" if codebook is None else f"{len(codebook)} units"
        raise EepolicyError(
            f"{sounds} sound classes need a vocoder with a codebook of as many units; it has "
            f"{given}"
        )
    _, numbers = kmeans2(codebook.double().cpu().numpy(), sounds, minit="++", seed=0)
    level = unit_levels(model, replies, len(codebook))  # (units,), nan for unknown
    loud = np.nanquantile(level, 0.9) if not np.isnan(level).all() else 0.0
    classes = UnitClasses(
        first=model.layout.speech[0],
        sounds=numbers.tolist(),
        silent=np.flatnonzero(level < loud - SILENCE).tolist(),
        notes={"replies": len(replies), "sounds": sounds, "silence_db": SILENCE},
    )
    if save is not None:
        write_json(save, classes.model_dump())
    return classes


def unit_levels(model: HookedModel, replies: Sequence[Document], count: int) -> NDArray[np.float64]:
    """Mean level of each unit in the vocoder's sound of replies, in dB.

    Args:
        model: model with a vocoder.
        replies: replies of the model.
        count: number of units.

    Returns:
        (units,); nan for a unit that the replies do not contain.
    """
    vocoder = required_vocoder(model.vocoder)
    power, number = np.zeros(count), np.zeros(count)
    for reply in replies:
        units = model.layout.units(reply.reply)
        if len(units):
            wave = vocoder.decode(units).double().numpy()
            length = len(wave) // len(units)
            each = (wave[: length * len(units)].reshape(len(units), length) ** 2).mean(1)
            np.add.at(power, units.numpy(), each)
            np.add.at(number, units.numpy(), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        level: NDArray[np.float64] = 10 * np.log10(np.maximum(power / number, 1e-12))
    return level
