"""Fills: what becomes of the keys and values above an exit.  One file a fill."""

from eepolicy.decode.fills.base import FILLS, FillBatch, KVFill, parse_fill
from eepolicy.decode.fills.catch_up import CatchUp
from eepolicy.decode.fills.mask import Mask
from eepolicy.decode.fills.propagate import Propagate

__all__ = ["FILLS", "CatchUp", "FillBatch", "KVFill", "Mask", "Propagate", "parse_fill"]
