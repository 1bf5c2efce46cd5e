"""Exit policies: the depth of each position."""

# The order of these imports is the order of the policies in tables and messages.
# isort: off
from eepolicy.policies.base import POLICIES, ExitPolicy, Readout, Step
from eepolicy.policies.full import FullDepth
from eepolicy.policies.static import Static
from eepolicy.policies.spark import SparK
from eepolicy.policies.threshold import Confidence, Entropy, Margin, Saturation
from eepolicy.policies.patience import Patience
from eepolicy.policies.drift import DriftRefresh
from eepolicy.policies.predictor import Predictor
from eepolicy.policies.draft import Draft
from eepolicy.policies.dynamic_draft import DynamicDraft
from eepolicy.policies.unit_classes import Silence, Steady
from eepolicy.policies.control import Random
from eepolicy.policies.oracle import Oracle
from eepolicy.policies.by_modality import ByModality
from eepolicy.policies.spec import parse_policy
from eepolicy.policies.history import History
from eepolicy.policies.state import PolicyState

# isort: on

__all__ = [
    "POLICIES",
    "ByModality",
    "Confidence",
    "Draft",
    "DriftRefresh",
    "DynamicDraft",
    "Entropy",
    "ExitPolicy",
    "FullDepth",
    "History",
    "Margin",
    "Oracle",
    "Patience",
    "PolicyState",
    "Predictor",
    "Random",
    "Readout",
    "Saturation",
    "Silence",
    "SparK",
    "Static",
    "Steady",
    "Step",
    "parse_policy",
]
