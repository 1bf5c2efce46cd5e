"""Accuracy and word errors after Whisper's normalisation of English text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import jiwer
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from eepolicy.analysis.evaluation.spelling import american, split_characters

#: abbreviations and initials, such as "U.S.A.", "a.m." and "J. R. R."
_DOTTED = re.compile(r"\b[A-Za-z](?:\.[A-Za-z])+\b\.?|\b[A-Z]\.(?: ?[A-Z]\.)+")
#: times of day, such as "7:30"; the normaliser writes "seven thirty" as 730
_TIME = re.compile(r"\b(\d{1,2}):(\d\d)\b")
#: normalised words that Whisper's normaliser leaves in two spellings
_SPELLINGS = {"cannot": "can not", "mt": "mount"}


@lru_cache(maxsize=1)
def _normalizer() -> EnglishTextNormalizer:
    return EnglishTextNormalizer({})  # `american` stands in for the table of British spellings


def normalized(text: str) -> str:
    """Normalise a text: lower case, numbers as digits, no punctuation, no contractions.

    These are Whisper's rules, and four that it lacks: "cannot" becomes "can not", as "can't" does;
    "Mt." becomes "mount"; abbreviations such as "U.S.A." become one word; times such as "7:30" lose
    their colon, as "seven thirty" becomes 730.  Scripts without spaces, such as Chinese, are split
    into characters.

    Example:
        >>> normalized("It's 7:30 a.m. in the U.S.A.")
        'it is 730 am in the usa'
    """
    joined = _DOTTED.sub(lambda match: re.sub("[. ]", "", match[0]) + " ", text)
    plain: str = _normalizer()(split_characters(_TIME.sub(r"\1\2", joined)))
    return american(" ".join(_SPELLINGS.get(word, word) for word in plain.split()))


def is_right(text: str, keys: Sequence[str | Sequence[str]]) -> bool:
    """Check whether a text contains every key phrase of the right answer, as whole words.

    Args:
        text: text or transcript of the reply.
        keys: key phrases; a list within it has aliases, of which one is sufficient.  An alias that
            normalises to nothing, such as "!!!", is in no text.
    """
    padded = f" {normalized(text)} "
    choices = ([key] if isinstance(key, str) else key for key in keys)
    return all(any(_contains(padded, alias) for alias in some) for some in choices)


def _contains(padded: str, alias: str) -> bool:
    """Check whether a normalised text, with a space at both ends, contains an alias."""
    words = normalized(alias)
    return bool(words) and f" {words} " in padded


def word_errors(reference: str, transcript: str) -> tuple[int, int]:
    """Count word errors: substitutions, deletions and insertions.

    The word error rate of several replies is the sum of the errors over the sum of the words.

    Args:
        reference: the reply's text.
        transcript: transcript of its speech.

    Returns:
        The number of errors and the number of words in the reference.
    """
    expected, actual = normalized(reference), normalized(transcript)
    if not expected:
        return len(actual.split()), 0
    result = jiwer.process_words(expected, actual)
    return result.substitutions + result.deletions + result.insertions, len(expected.split())


#: jiwer's names of the parts of an alignment, as `word_alignment` gives them
OPERATIONS = {
    "equal": "equal",
    "substitute": "substitution",
    "insert": "insertion",
    "delete": "deletion",
}


def word_alignment(reference: str, transcript: str) -> list[tuple[str, str, str]]:
    """Align a transcript with the reply's text, word by word, after normalisation.

    The number of words that are not equal is the number of errors of `word_errors`.

    Args:
        reference: the reply's text.
        transcript: transcript of its speech.

    Returns:
        Triples of `"equal"`, `"substitution"`, `"insertion"` or `"deletion"`, the word of the
        text, and the word of the transcript; the word that is missing is `""`.

    Examples:
        >>> from eepolicy.analysis.evaluation.scoring import word_alignment
        >>> word_alignment("It is.", "it's so")
        [('equal', 'it', 'it'), ('equal', 'is', 'is'), ('insertion', '', 'so')]
    """
    expected, actual = normalized(reference), normalized(transcript)
    if not expected:
        return [("insertion", "", word) for word in actual.split()]
    result = jiwer.process_words(expected, actual)
    texts, words = result.references[0], result.hypotheses[0]
    aligned = []
    for chunk in result.alignments[0]:
        own = texts[chunk.ref_start_idx : chunk.ref_end_idx]
        other = words[chunk.hyp_start_idx : chunk.hyp_end_idx]
        for i in range(max(len(own), len(other))):
            pair = ("".join(own[i : i + 1]), "".join(other[i : i + 1]))
            aligned.append((OPERATIONS[chunk.type], *pair))
    return aligned
