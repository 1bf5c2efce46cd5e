"""Reads scores from the replies of a judge: the requested format, and usual phrasings."""

from __future__ import annotations

import re

#: largest number of the judge's scale
TOP = 10
#: scales that judges use in a fraction, such as 4/5
_SCALES = (5, TOP, 100)

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = r"(?<![\w.,])(?:\d+(?:[.,]\d{1,2})?)(?![\w]|[.,]\d)"
_NUMBER = rf"(?:{_DIGITS}|\b(?:{'|'.join(_WORDS)})\b)"
#: a number is not a count of something: "3 trees"
_NO_NOUN = r"(?![ \t]+(?!(?:out|of|on|for|as|because|since|and|but|points?|stars?)\b)[a-z])"
#: the scale itself, which is no score
_RANGE = re.compile(r"\b(?:1|one)\s*(?:to|-|–|—|through|and)\s*(?:10|ten)\b|\b10[- ]point\b")
_FRACTION = re.compile(rf"({_NUMBER})\W{{0,4}}\s*(?:/|out of|of)\s*({_NUMBER})")
_LABELLED = re.compile(
    r"\b(?:score|rating|rate|rated|grade|give)\b(?:\s+(?!out\b)[a-z]+){0,4}?"
    rf"[^\w\n]{{0,8}}({_NUMBER}){_NO_NOUN}"
)
_FIRST = re.compile(rf"\W*({_DIGITS}){_NO_NOUN}")
_LINE = re.compile(rf"^\W*({_NUMBER})\W*$", re.MULTILINE)

_RIGHT = ("yes", "correct", "right", "accurate", "true")
_WRONG = ("no", "incorrect", "wrong", "inaccurate", "false")
_VERDICT = "|".join((*_RIGHT, *_WRONG))
_BRACKETED = re.compile(r"\[\[\s*([^\[\]]+?)\s*\]\]")
#: nothing, punctuation or a reason follows
_ENDS = r"(?=\s*(?:$|[^\w\s]|because\b|since\b|as\b))"
#: a verdict at the start; "no" may begin a sentence on errors, such as "no mistake"
_OPENING = re.compile(
    rf"\W*(?:(not)\s+)?(yes\b|no\b(?=\s*(?:$|[^\w\s]|it\b|the\b|this\b|that\b|because\b|since\b))"
    rf"|(?:{_VERDICT})\b{_ENDS})"
)
_CONCLUSION = re.compile(
    r"\b(?:verdict|judge?ment|decision|conclusion|final answer)\b(?:\s+is)?[^\w\n]{0,8}"
    rf"(?:(not)\s+)?({_VERDICT})\b{_ENDS}"
)
_ANSWER = re.compile(rf"\banswer\W{{0,8}}(?:is\W{{0,4}})?(not\s+)?(yes|no)\b{_ENDS}")
_STATEMENT = re.compile(
    r"\b(?:answer|reply|response|it|this|that|assistant)(?:\s+(?:is|was)|'s)"
    r"(?P<not>\s+not|n't)?(?:\s+(?:indeed|clearly|factually|completely|entirely|therefore|also))?"
    rf"\s+(?P<verdict>{'|'.join((*_RIGHT[1:], *_WRONG[1:]))})\b(?!\s*\?)"
)
_ALONE = re.compile(r"(?:^|[^\w\s]\s*|\bsay\s+)()(yes|no)\b(?=\s*(?:$|[^\w\s]))", re.MULTILINE)


def read_rating(response: str) -> float | None:
    """Read a rating from 1 to 10.

    The last `[[n]]` counts.  Without one, these are tried in order: a fraction ("6/10"), a number
    after a label ("Rating: 7.5"), a number at the start, a line with a number alone, and the only
    number of the response.

    Args:
        response: the judge's reply.

    Returns:
        The rating divided by 10; 0 counts as 1.  None if there is no rating, or more than one
        candidate.

    Examples:
        >>> read_rating("The answer names 3 trees. [[7]]"), read_rating("Score: 6/10")
        (0.7, 0.6)
        >>> read_rating("It is a good answer.") is None
        True
    """
    text = _said(response)
    bracketed = [n for n in map(_number, _BRACKETED.findall(text)) if n is not None]
    if bracketed:
        return _scaled(bracketed[-1], TOP)
    text = _RANGE.sub(" ", text)
    fractions = [(_number(a), _number(b)) for a, b in _FRACTION.findall(text)]
    known = [(a, b) for a, b in fractions if b in _SCALES]
    if known:
        return _scaled(*known[-1])
    first = _FIRST.match(text)
    for matches in (
        _LABELLED.findall(text)[-1:],
        [first[1]] if first else [],
        _LINE.findall(text)[-1:],
        re.findall(_DIGITS, text),
    ):
        values = {_number(number) for number in matches}
        if len(values) == 1:
            return _scaled(values.pop(), TOP)
    return None


def read_verdict(response: str) -> float | None:
    """Read whether an answer is right.

    The last `[[yes]]` or `[[no]]` counts.  Without one, these are tried in order: a verdict at the
    start, a labelled one ("Verdict: no"), a sentence such as "the answer is correct", and a "yes"
    or "no" that stands alone.

    Args:
        response: the judge's reply.

    Returns:
        1 for right, 0 for wrong.  None if there is no verdict, or verdicts contradict each other.

    Examples:
        >>> read_verdict("[[yes]]"), read_verdict("Answer: Yes. There is no error.")
        (1.0, 1.0)
        >>> read_verdict("There is no error.") is None
        True
    """
    text = _said(response)
    bracketed = [match for match in _BRACKETED.findall(text) if match in (*_RIGHT, *_WRONG, *"10")]
    if bracketed:
        return float(bracketed[-1] in (*_RIGHT, "1"))
    opening = _OPENING.match(text)
    for matches in (
        [opening.groups()] if opening else [],
        _CONCLUSION.findall(text)[-1:],
        _ANSWER.findall(text)[-1:],
        [(m["not"], m["verdict"]) for m in _STATEMENT.finditer(text)],
        _ALONE.findall(text),
    ):
        verdicts = {(word in _RIGHT) != bool(negated) for negated, word in matches}
        if verdicts:
            return float(verdicts.pop()) if len(verdicts) == 1 else None
    return None


def _said(response: str) -> str:
    """The response in lower case, without what the judge thought before it."""
    return response.rpartition("</think>")[2].lower().replace("’", "'").strip()


def _number(text: str) -> float | None:
    text = text.strip()
    if text in _WORDS:
        return float(_WORDS.index(text))
    try:
        return float(text.split("/")[0].replace(",", "."))
    except ValueError:
        return None


def _scaled(number: float | None, top: float | None) -> float | None:
    """A score from 0.1 to 1, or None for a number beyond the scale."""
    if number is None or top is None or not 0 <= number <= top:
        return None
    return max(number / top, 1 / TOP)
