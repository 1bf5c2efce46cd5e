"""Conformance checks that a plug-in package runs on its own classes.

Each check raises an `AssertionError` whose sentence names the class, the check and what was seen.
None of them needs a checkpoint, a network or pytest.
"""

from eepolicy.testing.acceptance import check_acceptance
from eepolicy.testing.families import check_family
from eepolicy.testing.fills import check_fill
from eepolicy.testing.heads import check_head
from eepolicy.testing.policies import check_policy

__all__ = ["check_acceptance", "check_family", "check_fill", "check_head", "check_policy"]
