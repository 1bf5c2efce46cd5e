"""Early exit for spoken language models: how many layers does each token need?

The names below are imported on first use (PEP 562).  `import eepolicy` and the help of the command
line therefore start without torch and transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eepolicy.decode.acceptance import Acceptance, parse_acceptance
    from eepolicy.decode.config import EarlyExitConfig
    from eepolicy.decode.fills import KVFill, parse_fill
    from eepolicy.decode.output import Output
    from eepolicy.errors import EepolicyError
    from eepolicy.heads import ExitHead, ExitPredictor
    from eepolicy.hooked import HookedModel, wrap
    from eepolicy.layerwise import probe
    from eepolicy.loading import held_out, load
    from eepolicy.modality import ChunkClock, Modality, TokenLayout
    from eepolicy.model.families import DecoderParts
    from eepolicy.pipelines import EarlyExitPipeline, register_pipeline
    from eepolicy.policies import (
        ByModality,
        Confidence,
        Draft,
        DriftRefresh,
        DynamicDraft,
        Entropy,
        ExitPolicy,
        FullDepth,
        History,
        Margin,
        Oracle,
        Patience,
        PolicyState,
        Predictor,
        Random,
        Saturation,
        SparK,
        Static,
        Step,
        parse_policy,
    )
    from eepolicy.probing import Document, ProbeResult, Statistic
    from eepolicy.stock import custom_generate, early_exit
    from eepolicy.trace import DraftStatus, Trace

__version__ = "0.1.0"

#: public names by the module that defines them; the same imports as above, for run time
_MODULES = {
    "decode.acceptance": ("Acceptance", "parse_acceptance"),
    "decode.config": ("EarlyExitConfig",),
    "decode.fills": ("KVFill", "parse_fill"),
    "decode.output": ("Output",),
    "errors": ("EepolicyError",),
    "heads": ("ExitHead", "ExitPredictor"),
    "hooked": ("HookedModel", "wrap"),
    "layerwise": ("probe",),
    "loading": ("held_out", "load"),
    "modality": ("ChunkClock", "Modality", "TokenLayout"),
    "model.families": ("DecoderParts",),
    "pipelines": ("EarlyExitPipeline", "register_pipeline"),
    "policies": (
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
        "Saturation",
        "SparK",
        "Static",
        "Step",
        "parse_policy",
    ),
    "probing": ("Document", "ProbeResult", "Statistic"),
    "stock": ("custom_generate", "early_exit"),
    "trace": ("DraftStatus", "Trace"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Acceptance",
    "ByModality",
    "ChunkClock",
    "Confidence",
    "DecoderParts",
    "Document",
    "Draft",
    "DraftStatus",
    "DriftRefresh",
    "DynamicDraft",
    "EarlyExitConfig",
    "EarlyExitPipeline",
    "EepolicyError",
    "Entropy",
    "ExitHead",
    "ExitPolicy",
    "ExitPredictor",
    "FullDepth",
    "History",
    "HookedModel",
    "KVFill",
    "Margin",
    "Modality",
    "Oracle",
    "Output",
    "Patience",
    "PolicyState",
    "Predictor",
    "ProbeResult",
    "Random",
    "Saturation",
    "SparK",
    "Static",
    "Statistic",
    "Step",
    "TokenLayout",
    "Trace",
    "custom_generate",
    "early_exit",
    "held_out",
    "load",
    "parse_acceptance",
    "parse_fill",
    "parse_policy",
    "probe",
    "register_pipeline",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
