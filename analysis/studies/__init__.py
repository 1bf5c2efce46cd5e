"""Studies of layers, heads, drift and policies; each gives a table, a figure and a data frame."""

from eepolicy.analysis.studies.acceptance import AcceptanceSweep
from eepolicy.analysis.studies.base import BatchOptions, Measure, RatioMeasure, Study, Workspace
from eepolicy.analysis.studies.calibration import Reliability
from eepolicy.analysis.studies.drift import Drift
from eepolicy.analysis.studies.fixed_depth import FixedDepthReadout
from eepolicy.analysis.studies.heads import HeadGain
from eepolicy.analysis.studies.heard_drift import HeardDrift
from eepolicy.analysis.studies.layers import TokenStatistics
from eepolicy.analysis.studies.lenses import LensComparison
from eepolicy.analysis.studies.policy_search import SearchResult
from eepolicy.analysis.studies.positions import ChunkPositions
from eepolicy.analysis.studies.safe_exits import SafeExits
from eepolicy.analysis.studies.sequences import SequenceStatistics
from eepolicy.analysis.studies.text_in_speech import TextInSpeech
from eepolicy.analysis.studies.writer import write_studies

#: all studies, in the order in which they run
STUDIES: tuple[type[Study], ...] = (
    HeadGain,
    TokenStatistics,
    ChunkPositions,
    Reliability,
    SequenceStatistics,
    Drift,
    HeardDrift,
    FixedDepthReadout,
    TextInSpeech,
    SafeExits,
    LensComparison,
    AcceptanceSweep,
    SearchResult,
)

__all__ = [
    "STUDIES",
    "AcceptanceSweep",
    "BatchOptions",
    "ChunkPositions",
    "Drift",
    "FixedDepthReadout",
    "HeadGain",
    "HeardDrift",
    "LensComparison",
    "Measure",
    "RatioMeasure",
    "Reliability",
    "SafeExits",
    "SearchResult",
    "SequenceStatistics",
    "Study",
    "TextInSpeech",
    "TokenStatistics",
    "Workspace",
    "write_studies",
]
