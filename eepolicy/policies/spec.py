"""Spec strings of policies: the terms `text=`, `speech=` and `both=` around single policies."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise

from eepolicy.arguments import checked
from eepolicy.errors import EepolicyError
from eepolicy.plugin_files import file_digest, files_in, is_file_spec, load_plugin
from eepolicy.policies.base import POLICIES, ExitPolicy
from eepolicy.policies.by_modality import ByModality
from eepolicy.policies.full import FullDepth
from eepolicy.registry import Entry


@checked()
def parse_policy(spec: str, *, files: bool = True) -> ExitPolicy:
    """Build the policy of a spec string; `policy.spec` is the inverse.

    Other packages add policies by entry points in the group `eepolicy.policies`.  The entry point
    has the policy's name and loads its class.

    Args:
        spec: a spec string such as `"spark:triple@16"` or
            `"text=full,speech=entropy<0.5@[26,27]"`, or a class in a Python file with the arguments
            of its constructor, such as `"mine.py:Settled(1.0)"`.
        files: whether Python files may be run.  Pass False for a spec string that was read from a
            file of somebody else.

    Returns:
        The policy, not yet checked against the depth of a model.

    Raises:
        EepolicyError: no policy has this spec string, and the message has the grammar; or a Python
            file fails.

    Examples:
        >>> parse_policy("spark:even@16")
        SparK(pattern='even', exit_depth=16, on='speech', restart=True)
    """
    policies: dict[str, ExitPolicy] = {}
    for term in _terms(spec):
        prefix = re.match(r"\s*(text|speech|both)\s*=\s*", term)
        policy = _single(term[prefix.end() :] if prefix else term, prefix and prefix[1], files)
        on = prefix[1] if prefix else policy.on
        if on in policies:
            raise EepolicyError(f"{spec!r} names {on} twice")
        policies[on] = policy
    if len(policies) == 1:
        return next(iter(policies.values()))
    if set(policies) != {"text", "speech"}:
        raise EepolicyError(f"{spec!r}: beside 'both=' there can be no other term")
    return ByModality(policies["text"], policies["speech"])


def policy_label(policy: ExitPolicy | str) -> str:
    """The spec string of a policy, or its `repr` if it has none.

    Results name a policy by this label.  A policy object without spec string is a row as well, but
    only the object itself makes it again.

    Args:
        policy: a policy or a spec string.

    Raises:
        EepolicyError: the policy has neither a spec string nor a `repr` of its own, so that its
            label would change from run to run.

    Examples:
        >>> policy_label(parse_policy("static @ 16"))
        'static@16'
    """
    if isinstance(policy, str):
        return parse_policy(policy).spec
    try:
        return policy.spec
    except EepolicyError:
        if type(policy).__repr__ is object.__repr__:
            raise EepolicyError(
                f"{type(policy).__name__} has neither a spec string nor a __repr__, so results "
                "cannot name it: make it a frozen dataclass"
            ) from None
        return repr(policy)


def file_digests(*policies: ExitPolicy | str) -> dict[str, str]:
    """Hashes of the files that policies read, by name: data, and Python files of their classes.

    Args:
        *policies: policies or spec strings.

    Raises:
        EepolicyError: a file cannot be read, or a spec string is not one.
    """
    files: dict[str, None] = {}
    for policy in policies:
        own = parse_policy(policy) if isinstance(policy, str) else policy
        files |= dict.fromkeys((*files_in(policy_label(own)), *own.files))
    return {file: file_digest(file) for file in files}


def policy_entries(installed: bool = False) -> tuple[Entry, ...]:
    """Lines of a table of all policies, with the terms for modalities last.

    Args:
        installed: also list the policies of installed packages, which imports them.
    """
    terms = (Entry("", "", example, summary) for example, summary in ByModality.examples)
    return (*POLICIES.entries(installed), *terms)


def _terms(spec: str) -> list[str]:
    """The policies of a spec string: a comma before `text=` and so on separates them.

    A comma inside brackets separates depths or arguments.
    """
    commas, depth = [-1], 0
    for i, character in enumerate(spec):
        depth += (character in "([") - (character in ")]")
        is_term = re.match(r",\s*(?:text|speech|both)\s*=", spec[i:])
        if depth == 0 and is_term:
            commas.append(i)
    return [spec[a + 1 : b] for a, b in pairwise([*commas, len(spec)])]


def _single(spec: str, on: str | None, files: bool) -> ExitPolicy:
    """The policy of one term, for a modality if one is given."""
    if not is_file_spec(spec):
        policy = POLICIES.create(re.sub(r"\s*([:@<>=,#()\[\]])\s*", r"\1", spec.strip()))
        return policy if on is None else _acting_on(policy, on)
    if not files:
        raise EepolicyError(f"{spec!r} is a policy in a Python file, which is not run here")
    label = spec.strip() if on is None else f"{on}={spec.strip()}"
    policy = load_plugin(spec, ExitPolicy, "policy", label)  # type: ignore[type-abstract]
    return policy if on is None else _acting_on(policy, on)


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
