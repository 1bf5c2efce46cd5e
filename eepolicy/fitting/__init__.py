"""Fit exit heads on the full-depth replies of the model."""

from eepolicy.fitting.config import FitConfig
from eepolicy.fitting.memory import fitting_memory
from eepolicy.fitting.predictor import fit_predictor
from eepolicy.fitting.predictor_config import PredictorConfig, PredictorResult
from eepolicy.fitting.replies import generate_replies
from eepolicy.fitting.result import FitResult
from eepolicy.fitting.trainer import fit

__all__ = [
    "FitConfig",
    "FitResult",
    "PredictorConfig",
    "PredictorResult",
    "fit",
    "fit_predictor",
    "fitting_memory",
    "generate_replies",
]
