"""Exit heads: what reads tokens out of hidden states below full depth."""

from eepolicy.heads.base import ExitHead
from eepolicy.heads.lens import LogitLens
from eepolicy.heads.tuned import TunedLens

__all__ = ["ExitHead", "LogitLens", "TunedLens"]
