"""Acceptance rules for tokens drafted by early exits.  One file a rule."""

from eepolicy.decode.acceptance.accept_all import AcceptAll
from eepolicy.decode.acceptance.acoustic import AcceptAcoustic
from eepolicy.decode.acceptance.base import (
    ACCEPTANCE_RULES,
    Acceptance,
    Drafts,
    parse_acceptance,
)
from eepolicy.decode.acceptance.exact import AcceptExact
from eepolicy.decode.acceptance.ratio import AcceptRatio
from eepolicy.decode.acceptance.sampling import AcceptSampling
from eepolicy.decode.acceptance.top import AcceptTop

__all__ = [
    "ACCEPTANCE_RULES",
    "AcceptAcoustic",
    "AcceptAll",
    "AcceptExact",
    "AcceptRatio",
    "AcceptSampling",
    "AcceptTop",
    "Acceptance",
    "Drafts",
    "parse_acceptance",
]
