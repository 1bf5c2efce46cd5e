"""Layer-wise analysis: read out every layer at every token, keep statistics, drop the logits."""

from eepolicy.probing.documents import Document
from eepolicy.probing.plan import ProbeConfig, ProbePlan
from eepolicy.probing.recorded import record_plan, recorded_document, recorded_result
from eepolicy.probing.result import ProbeResult
from eepolicy.probing.run import run_probe
from eepolicy.probing.statistics import (
    STATISTICS,
    AttentionContext,
    LogitContext,
    StateContext,
    Statistic,
    given_rank,
    given_recall,
)

__all__ = [
    "STATISTICS",
    "AttentionContext",
    "Document",
    "LogitContext",
    "ProbeConfig",
    "ProbePlan",
    "ProbeResult",
    "StateContext",
    "Statistic",
    "given_rank",
    "given_recall",
    "record_plan",
    "recorded_document",
    "recorded_result",
    "run_probe",
]
