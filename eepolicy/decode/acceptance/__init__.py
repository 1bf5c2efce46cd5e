"""Acceptance rules for tokens drafted by early exits.  One file a rule."""

from eepolicy.decode.acceptance.accept_all import AcceptAll
from eepolicy.decode.acceptance.acoustic import AcceptAcoustic
from eepolicy.decode.acceptance.base import (
    ACCEPTANCE_RULES,
    Acceptance,
    Drafts,
)
from eepolicy.decode.acceptance.block import AcceptBlock
from eepolicy.decode.acceptance.exact import AcceptExact
from eepolicy.decode.acceptance.groups import AcceptGroups
from eepolicy.decode.acceptance.joined import AcceptJoined, parse_acceptance
from eepolicy.decode.acceptance.ratio import AcceptRatio
from eepolicy.decode.acceptance.regret import AcceptRegret
from eepolicy.decode.acceptance.sampling import AcceptSampling
from eepolicy.decode.acceptance.tolerance import AcceptTolerance
from eepolicy.decode.acceptance.top import AcceptTop

__all__ = [
    "ACCEPTANCE_RULES",
    "AcceptAcoustic",
    "AcceptAll",
    "AcceptBlock",
    "AcceptExact",
    "AcceptGroups",
    "AcceptJoined",
    "AcceptRatio",
    "AcceptRegret",
    "AcceptSampling",
    "AcceptTolerance",
    "AcceptTop",
    "Acceptance",
    "Drafts",
    "parse_acceptance",
]
