"""Spec strings: policies as one writes them on a command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from importlib.metadata import entry_points

from eepolicy.errors import EepolicyError
from eepolicy.policies.base import ExitPolicy
from eepolicy.policies.by_modality import ByModality
from eepolicy.policies.control import Random
from eepolicy.policies.full import FullDepth
from eepolicy.policies.oracle import Oracle
from eepolicy.policies.patience import Patience
from eepolicy.policies.spark import PATTERNS, SparK
from eepolicy.policies.static import Static
from eepolicy.policies.threshold import Confidence, Entropy, Margin, Saturation

#: entry points under which other packages offer policies: a function from the text behind the name
GROUP = "eepolicy.policies"

GRAMMAR = (
    "full, static@DEPTH, "
    f"spark:PATTERN@DEPTH (PATTERN {', '.join(PATTERNS)} or like FEEE; ~ behind it: not anew in "
    "each chunk), entropy<NATS@DEPTHS, confidence>PROBABILITY@DEPTHS, margin>PROBABILITY@DEPTHS, "
    "saturation>COSINE@DEPTHS, patience:COUNT@DEPTHS, random:MEAN@DEPTH (#SEED behind it), "
    "oracle@DEPTHS, where DEPTHS is 14 (from there on) or [14,16,18]; "
    "in front of it text= or both= (else speech), or text=...,speech=..."
)

#: how each is written, what it does, and where it is from
CATALOGUE = (
    ("full", "every layer, always", ""),
    ("static@16", "exits at depth 16", "Fixed of SPAR-K, 2603.09215"),
    ("spark:even@12", "full depth and exit in turn, anew in each chunk", "SPAR-K, 2603.09215"),
    ("spark:odd@12", "exit and full depth in turn", "SPAR-K, 2603.09215"),
    ("spark:triple@14", "full depth and two exits in turn", "SPAR-K, 2603.09215"),
    ("spark:FEEE~@14", "a pattern of your own; ~: running on from chunk to chunk", ""),
    ("entropy<0.5@14", "entropy below 0.5 nats, from depth 14 on", "Conf of SPAR-K, 2603.09215"),
    ("confidence>0.9@[14,16]", "the likeliest token has more than 0.9", "2004.07453"),
    ("margin>0.7@14", "the two likeliest lie more than 0.7 apart", "CALM, 2207.07061"),
    ("saturation>0.98@14", "cosine to the look before above 0.98", "CALM, 2207.07061"),
    ("patience:3@[8,10,12,14]", "three looks in a row name the same token", "2006.04152"),
    ("random:16.0@12", "full depth or 12 by lot, 16 on average", "a control"),
    ("oracle@1", "the shallowest depth that names the full model's token", "not realisable"),
    ("text=spark:even@12", "the same on text; both= on text and speech", ""),
    ("text=static@18,speech=spark:even@12", "one for each modality", ""),
)


def _looked_at(text: str) -> int | tuple[int, ...]:
    if text.startswith("["):
        return tuple(int(d) for d in text[1:-1].split(","))
    return int(text)


_NUMBER = r"(-?\d*\.?\d+(?:e[+-]?\d+)?)"
_DEPTHS = r"(\d+|\[\d+(?:,\d+)*\])"


def _threshold(kind: Callable[..., ExitPolicy]) -> Callable[[str, str], ExitPolicy]:
    return lambda number, depths: kind(float(number), _looked_at(depths))


_FORMS: tuple[tuple[str, Callable[..., ExitPolicy]], ...] = (
    (r"full", FullDepth),
    (r"static@(\d+)", lambda d: Static(int(d))),
    (
        rf"spark:({'|'.join(PATTERNS)}|[FE]+)(~?)@(\d+)",
        lambda p, on, d: SparK(p, int(d), restart=not on),
    ),
    (rf"entropy<{_NUMBER}@{_DEPTHS}", _threshold(Entropy)),
    (rf"confidence>{_NUMBER}@{_DEPTHS}", _threshold(Confidence)),
    (rf"margin>{_NUMBER}@{_DEPTHS}", _threshold(Margin)),
    (rf"saturation>{_NUMBER}@{_DEPTHS}", _threshold(Saturation)),
    (rf"patience:(\d+)@{_DEPTHS}", lambda n, d: Patience(int(n), _looked_at(d))),
    (
        rf"random:{_NUMBER}@(\d+)(?:#(\d+))?",
        lambda mean, d, seed: Random(float(mean), int(d), seed=int(seed or 0)),
    ),
    (rf"oracle@{_DEPTHS}", lambda d: Oracle(_looked_at(d))),
)


def _one(spec: str, whole: str) -> ExitPolicy:
    for form, build in _FORMS:
        if match := re.fullmatch(form, spec):
            return build(*match.groups())
    if name := re.match(r"[a-z_]+", spec):
        for offered in entry_points(group=GROUP, name=name[0]):
            policy: ExitPolicy = offered.load()(spec[name.end() :])
            return policy
    raise EepolicyError(f"{whole!r} is no policy; a policy is one of: {GRAMMAR}")


def _acting_on(policy: ExitPolicy, on: str) -> ExitPolicy:
    """The policy for a modality; full depth acts on none."""
    if policy.on == on or isinstance(policy, FullDepth):
        return policy
    if not is_dataclass(policy) or "on" not in {f.name for f in fields(policy)}:
        raise EepolicyError(
            f"{policy!r} acts on {policy.on}; to be put in front of {on}= a policy is a dataclass "
            "with a field 'on'"
        )
    return replace(policy, on=on)


def parse_policy(spec: str) -> ExitPolicy:
    """The policy that a spec string names; `policy.spec` is the way back.

    Other packages add theirs by entry points in the group `eepolicy.policies`, each named like its
    policy and loading a function that is given what stands behind the name.

    Args:
        spec: such as `"spark:triple@16"` or `"text=full,speech=entropy<0.5@[26,27]"`.

    Raises:
        EepolicyError: the string is no spec; the message has the grammar.

    Examples:
        >>> parse_policy("spark:even@16")
        SparK(pattern='even', exit_depth=16, on='speech', restart=True)
    """
    plain = re.sub(r"\s", "", spec)
    # a comma inside [...] parts depths, one before "text=" or "speech=" parts policies
    terms = re.split(r",(?=(?:text|speech|both)=)", plain)
    found: dict[str, ExitPolicy] = {}
    for term in terms:
        prefix = re.match(r"(text|speech|both)=", term)
        policy = _one(term[prefix.end() :] if prefix else term, spec)
        on = prefix[1] if prefix else policy.on
        if on in found:
            raise EepolicyError(f"{spec!r} names {on} twice")
        found[on] = _acting_on(policy, on)
    if len(found) == 1:
        return next(iter(found.values()))
    if set(found) != {"text", "speech"}:
        raise EepolicyError(f"{spec!r}: beside 'both=' there can be no other term")
    return ByModality(found["text"], found["speech"])
