"""Spec strings of policies: the terms `text=`, `speech=` and `both=` around single policies."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace

from eepolicy.errors import EepolicyError
from eepolicy.policies.base import POLICIES, ExitPolicy
from eepolicy.policies.by_modality import ByModality
from eepolicy.policies.full import FullDepth
from eepolicy.registry import Entry


def parse_policy(spec: str) -> ExitPolicy:
    """Build the policy of a spec string; `policy.spec` is the inverse.

    Other packages add policies by entry points in the group `eepolicy.policies`.  The entry point
    has the policy's name and loads its class.

    Args:
        spec: a spec string such as `"spark:triple@16"` or
            `"text=full,speech=entropy<0.5@[26,27]"`.

    Returns:
        The policy, not yet checked against the depth of a model.

    Raises:
        EepolicyError: no policy has this spec string; the message has the grammar.

    Examples:
        >>> parse_policy("spark:even@16")
        SparK(pattern='even', exit_depth=16, on='speech', restart=True)
    """
    plain = re.sub(r"\s", "", spec)
    # a comma inside [...] separates depths, one before "text=" or "speech=" separates policies
    terms = re.split(r",(?=(?:text|speech|both)=)", plain)
    policies: dict[str, ExitPolicy] = {}
    for term in terms:
        prefix = re.match(r"(text|speech|both)=", term)
        policy = POLICIES.create(term[prefix.end() :] if prefix else term)
        on = prefix[1] if prefix else policy.on
        if on in policies:
            raise EepolicyError(f"{spec!r} names {on} twice")
        policies[on] = _acting_on(policy, on)
    if len(policies) == 1:
        return next(iter(policies.values()))
    if set(policies) != {"text", "speech"}:
        raise EepolicyError(f"{spec!r}: beside 'both=' there can be no other term")
    return ByModality(policies["text"], policies["speech"])


def policy_entries(installed: bool = False) -> tuple[Entry, ...]:
    """Lines of a table of all policies, with the terms for modalities last.

    Args:
        installed: also list the policies of installed packages, which imports them.
    """
    terms = (Entry("", "", example, summary) for example, summary in ByModality.examples)
    return (*POLICIES.entries(installed), *terms)


def _acting_on(policy: ExitPolicy, on: str) -> ExitPolicy:
    """The policy for a modality; full depth is the same for all."""
    if policy.on == on or isinstance(policy, FullDepth):
        return policy
    if not is_dataclass(policy) or "on" not in {f.name for f in fields(policy)}:
        raise EepolicyError(
            f"{policy!r} acts on {policy.on}; only a dataclass with a field 'on' takes the prefix "
            f"{on}="
        )
    return replace(policy, on=on)
