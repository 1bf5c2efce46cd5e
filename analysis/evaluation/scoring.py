"""Right or wrong, and word errors, after the usual normalisation of English."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import jiwer
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer


@lru_cache(maxsize=1)
def _normalizer() -> EnglishTextNormalizer:
    return EnglishTextNormalizer({})  # British spellings stay as they are


def normalized(text: str) -> str:
    """Lower case, numbers as digits, no punctuation, contractions spelled out.

    Whisper's rules, and "cannot" as they write "can't".
    """
    plain: str = _normalizer()(text)
    return plain.replace("cannot", "can not")


def is_right(text: str, keys: Sequence[str | Sequence[str]]) -> bool:
    """Whether every key phrase of the right answer occurs in a text, whole words only.

    Args:
        text: of the reply.
        keys: phrases, or lists of aliases of which any will do.
    """
    padded = f" {normalized(text)} "
    choices = ([key] if isinstance(key, str) else key for key in keys)
    return all(any(f" {normalized(alias)} " in padded for alias in some) for some in choices)


def word_errors(reference: str, heard: str) -> tuple[int, int]:
    """Substitutions, deletions and insertions, and the words of the reference.

    The word error rate of several clips is the sum of the first over the sum of the second.
    """
    wanted, got = normalized(reference), normalized(heard)
    if not wanted:
        return len(got.split()), 0
    found = jiwer.process_words(wanted, got)
    return found.substitutions + found.deletions + found.insertions, len(wanted.split())
