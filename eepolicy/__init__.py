"""Early exit for language models that speak: how many layers does this token need?"""

from eepolicy.decode.acceptance import Acceptance, parse_acceptance
from eepolicy.decode.config import EarlyExitConfig
from eepolicy.decode.fills import KVFill, parse_fill
from eepolicy.decode.output import Output
from eepolicy.errors import EepolicyError
from eepolicy.heads import ExitHead
from eepolicy.hooked import HookedModel, probe, wrap
from eepolicy.loading import held_out, load
from eepolicy.modality import ChunkClock, Modality, TokenLayout
from eepolicy.model.families import DecoderParts
from eepolicy.policies import (
    ByModality,
    Confidence,
    Entropy,
    ExitPolicy,
    FullDepth,
    Margin,
    Oracle,
    Patience,
    Random,
    Saturation,
    SparK,
    Static,
    Step,
    parse_policy,
)
from eepolicy.probing import Document, ProbeResult, Statistic
from eepolicy.trace import DraftStatus, Trace

__version__ = "0.1.0"

__all__ = [
    "Acceptance",
    "ByModality",
    "ChunkClock",
    "Confidence",
    "DecoderParts",
    "Document",
    "DraftStatus",
    "EarlyExitConfig",
    "EepolicyError",
    "Entropy",
    "ExitHead",
    "ExitPolicy",
    "FullDepth",
    "HookedModel",
    "KVFill",
    "Margin",
    "Modality",
    "Oracle",
    "Output",
    "Patience",
    "ProbeResult",
    "Random",
    "Saturation",
    "SparK",
    "Static",
    "Statistic",
    "Step",
    "TokenLayout",
    "Trace",
    "held_out",
    "load",
    "parse_acceptance",
    "parse_fill",
    "parse_policy",
    "probe",
    "wrap",
]
