"""A row of a comparison: a policy, and its own fill and acceptance rule if it names them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from eepolicy.decode.config import EarlyExitConfig
from eepolicy.errors import EepolicyError
from eepolicy.fields import CheckedFields
from eepolicy.policies import ExitPolicy, parse_policy
from eepolicy.policies.spec import policy_label

#: options that a row can set
OPTIONS = ("fill", "accept")
_OPTION = re.compile(r",\s*(fill|accept)=(\w[^,\s()]*(?:\([^()]*\))?)\s*$")


@dataclass(frozen=True)
class Row(CheckedFields):
    """A row of a comparison.

    Attributes:
        policy: exit policy.
        fill: spec string of the fill; None for the one of the comparison.
        accept: spec string of the acceptance rule; None for the one of the comparison.

    Examples:
        >>> from eepolicy.analysis.evaluation.rows import parse_row
        >>> row = parse_row("spark:triple@14, accept=exact")
        >>> row.policy.spec, row.accept, row.spec
        ('spark:triple@14', 'exact', 'spark:triple@14, accept=exact')
    """

    policy: ExitPolicy
    fill: str | None = None
    accept: str | None = None

    @property
    def own(self) -> dict[str, str]:
        """Options that the row sets."""
        options = {name: getattr(self, name) for name in OPTIONS}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def spec(self) -> str:
        """The row as text; `parse_row` reads it."""
        return policy_label(self.policy) + "".join(f", {name}={v}" for name, v in self.own.items())

    def decoding(self, shared: EarlyExitConfig) -> EarlyExitConfig:
        """Options of early exit for the row.

        Args:
            shared: options that all rows share.

        Raises:
            EepolicyError: the options exclude each other.
        """
        return shared.replace(policy=self.policy, **self.own)


def parse_row(row: str | ExitPolicy) -> Row:
    """Read a row: a policy, and after commas `fill=FILL` and `accept=RULE`.

    Args:
        row: such as `"spark:triple@14, fill=mask"`; or a policy.

    Raises:
        EepolicyError: the policy cannot be read, or an option occurs twice.
    """
    if isinstance(row, ExitPolicy):
        return Row(row)
    policy, options = row.strip(), dict[str, str]()
    while match := _OPTION.search(policy):
        name, value = match.groups()
        if name in options:
            raise EepolicyError(f"a row sets {name} once; got {row!r}")
        options[name] = value
        policy = policy[: match.start()]
    return Row(parse_policy(policy), **{name: options.get(name) for name in OPTIONS})
