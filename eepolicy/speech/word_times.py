"""Times of words in speech, and the units that they cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class WordTime:
    """A word of a text and its time in the speech.

    Attributes:
        word: the word as the text has it, with the punctuation after it.
        start: seconds from the beginning of the waveform.
        end: seconds; a pause after the word is not part of it where it has punctuation.
    """

    word: str
    start: float
    end: float


def join_pieces(pieces: Sequence[WordTime]) -> list[WordTime]:
    """Join the pieces of words.

    Args:
        pieces: pieces in the order of the text.  One that starts a word starts with a space.

    Returns:
        The words.  Pieces of punctuation belong to the word before, whose time they do not extend.

    Examples:
        >>> pieces = [WordTime(" It", 0.1, 0.2), WordTime("'s", 0.2, 0.3), WordTime(".", 0.3, 1)]
        >>> join_pieces(pieces)
        [WordTime(word="It's.", start=0.1, end=0.3)]
    """
    words: list[WordTime] = []
    for piece in pieces:
        text = piece.word.strip()
        if not words or piece.word.startswith(" "):
            words.append(WordTime(text, piece.start, piece.end))
        else:
            last = words[-1]
            sounds = any(character.isalnum() for character in text)
            words[-1] = WordTime(last.word + text, last.start, piece.end if sounds else last.end)
    return words


def words_of_units(
    words: Sequence[WordTime], units: int, units_per_second: float
) -> NDArray[np.int64]:
    """Number of the word that each unit belongs to.

    A unit belongs to the word that contains its middle.

    Args:
        words: words in order; their times do not overlap.
        units: number of units.
        units_per_second: rate of the units.

    Returns:
        (units,), -1 for a unit in no word.

    Examples:
        >>> words_of_units([WordTime("it", 0.1, 0.2), WordTime("is", 0.2, 0.28)], 8, 25).tolist()
        [-1, -1, 0, 0, 0, 1, 1, -1]
    """
    middles = (np.arange(units) + 0.5) / units_per_second
    owner = np.full(units, -1)
    for number, word in enumerate(words):
        owner[(middles >= word.start) & (middles < word.end)] = number
    return owner
