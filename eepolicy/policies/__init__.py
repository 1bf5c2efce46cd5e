"""Exit policies: how deep each position goes."""

from eepolicy.policies.base import ExitPolicy, Readout, Step
from eepolicy.policies.by_modality import ByModality
from eepolicy.policies.control import Random
from eepolicy.policies.full import FullDepth
from eepolicy.policies.oracle import Oracle
from eepolicy.policies.patience import Patience
from eepolicy.policies.spark import SparK
from eepolicy.policies.spec import parse_policy
from eepolicy.policies.static import Static
from eepolicy.policies.threshold import Confidence, Entropy, Margin, Saturation

__all__ = [
    "ByModality",
    "Confidence",
    "Entropy",
    "ExitPolicy",
    "FullDepth",
    "Margin",
    "Oracle",
    "Patience",
    "Random",
    "Readout",
    "Saturation",
    "SparK",
    "Static",
    "Step",
    "parse_policy",
]
