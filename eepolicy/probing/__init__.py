"""Layer-wise analysis: read out every layer at every token, keep statistics, drop the logits."""

from eepolicy.probing.documents import Document
from eepolicy.probing.plan import ProbeConfig, ProbePlan
from eepolicy.probing.recorded import record_plan, recorded_result
from eepolicy.probing.result import ProbeResult
from eepolicy.probing.run import run_probe
from eepolicy.probing.statistics import STATISTICS, LogitContext, StateContext, Statistic

__all__ = [
    "STATISTICS",
    "Document",
    "LogitContext",
    "ProbeConfig",
    "ProbePlan",
    "ProbeResult",
    "StateContext",
    "Statistic",
    "record_plan",
    "recorded_result",
    "run_probe",
]
