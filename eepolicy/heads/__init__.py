"""Exit heads: they turn hidden states below full depth into logits."""

from eepolicy.heads.base import ExitHead, RestrictedHead
from eepolicy.heads.branch import BranchHead
from eepolicy.heads.drafter import DrafterHead
from eepolicy.heads.files import load_heads, read_notes
from eepolicy.heads.fitted import KINDS, DepthHead, FittedHead, HeadSize
from eepolicy.heads.lens import LogitLens
from eepolicy.heads.linear import LinearHead, LowRankHead
from eepolicy.heads.predictor import ExitPredictor
from eepolicy.heads.predictor_files import load_predictor, save_predictor
from eepolicy.heads.tuned import TunedLens

__all__ = [
    "KINDS",
    "BranchHead",
    "DepthHead",
    "DrafterHead",
    "ExitHead",
    "ExitPredictor",
    "FittedHead",
    "HeadSize",
    "LinearHead",
    "LogitLens",
    "LowRankHead",
    "RestrictedHead",
    "TunedLens",
    "load_heads",
    "load_predictor",
    "read_notes",
    "save_predictor",
]
