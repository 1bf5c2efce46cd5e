"""Spec strings: policies as one writes them on a command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from eepolicy.errors import EepolicyError
from eepolicy.policies.base import ExitPolicy
from eepolicy.policies.by_modality import ByModality
from eepolicy.policies.full import FullDepth
from eepolicy.policies.spark import PATTERNS, SparK
from eepolicy.policies.static import Static
from eepolicy.policies.threshold import Confidence, Entropy

GRAMMAR = (
    "full, static@DEPTH, "
    f"spark:{{{'|'.join(PATTERNS)}}}@DEPTH, "
    "entropy<NATS@DEPTHS, confidence>PROBABILITY@DEPTHS, "
    "where DEPTHS is 14 (from there on) or [14,16,18]; "
    "in front of it text= or both= (else speech), or text=...,speech=..."
)


def _looked_at(text: str) -> int | tuple[int, ...]:
    if text.startswith("["):
        return tuple(int(d) for d in text[1:-1].split(","))
    return int(text)


_NUMBER = r"(-?\d*\.?\d+(?:e[+-]?\d+)?)"
_DEPTHS = r"(\d+|\[\d+(?:,\d+)*\])"

_FORMS: tuple[tuple[str, Callable[..., ExitPolicy]], ...] = (
    (r"full", FullDepth),
    (r"static@(\d+)", lambda d: Static(int(d))),
    (rf"spark:({'|'.join(PATTERNS)})@(\d+)", lambda p, d: SparK(p, int(d))),
    (rf"entropy<{_NUMBER}@{_DEPTHS}", lambda x, d: Entropy(float(x), _looked_at(d))),
    (rf"confidence>{_NUMBER}@{_DEPTHS}", lambda x, d: Confidence(float(x), _looked_at(d))),
)


def _one(spec: str, whole: str) -> ExitPolicy:
    for form, build in _FORMS:
        if match := re.fullmatch(form, spec):
            return build(*match.groups())
    raise EepolicyError(f"{whole!r} is no policy; a policy is one of: {GRAMMAR}")


def parse_policy(spec: str) -> ExitPolicy:
    """The policy that a spec string names; `policy.spec` is the way back.

    Args:
        spec: such as `"spark:triple@16"` or `"text=full,speech=entropy<0.5@[26,27]"`.

    Raises:
        EepolicyError: the string is no spec; the message has the grammar.

    Example:
        >>> parse_policy("spark:even@16")
        SparK(pattern='even', exit_depth=16, on='speech')
    """
    plain = re.sub(r"\s", "", spec)
    # a comma inside [...] parts depths, one before "text=" or "speech=" parts policies
    terms = re.split(r",(?=(?:text|speech|both)=)", plain)
    found: dict[str, ExitPolicy] = {}
    for term in terms:
        on, _, body = (
            term.partition("=")
            if re.match(r"(text|speech|both)=", term)
            else (
                "speech",
                "",
                term,
            )
        )
        policy = _one(body, spec)
        if on in found:
            raise EepolicyError(f"{spec!r} names {on} twice")
        found[on] = policy if isinstance(policy, FullDepth) else replace(policy, on=on)  # type: ignore[type-var]
    if len(found) == 1:
        return next(iter(found.values()))
    if set(found) != {"text", "speech"}:
        raise EepolicyError(f"{spec!r}: beside 'both=' there can be no other term")
    return ByModality(found["text"], found["speech"])
