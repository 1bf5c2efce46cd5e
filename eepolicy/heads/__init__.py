"""Exit heads: what reads tokens out of hidden states below full depth."""

from eepolicy.heads.base import ExitHead, RestrictedHead
from eepolicy.heads.fitted import FittedHead, load_heads, read_notes
from eepolicy.heads.lens import LogitLens
from eepolicy.heads.linear import LinearHead, LowRankHead
from eepolicy.heads.tuned import TunedLens

__all__ = [
    "ExitHead",
    "FittedHead",
    "LinearHead",
    "LogitLens",
    "LowRankHead",
    "RestrictedHead",
    "TunedLens",
    "load_heads",
    "read_notes",
]
