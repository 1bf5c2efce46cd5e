"""Fit exit heads on replies of the model: at full depth, or with the exits themselves."""

from eepolicy.fitting.config import FitConfig
from eepolicy.fitting.memory import fitting_memory
from eepolicy.fitting.plan import Questions, Reports
from eepolicy.fitting.predictor import fit_predictor
from eepolicy.fitting.predictor_config import PredictorConfig, PredictorResult
from eepolicy.fitting.replies import Exits, Generation, generate_replies
from eepolicy.fitting.result import FitResult
from eepolicy.fitting.rounds import fit_rounds
from eepolicy.fitting.trainer import fit

__all__ = [
    "Exits",
    "FitConfig",
    "FitResult",
    "Generation",
    "PredictorConfig",
    "PredictorResult",
    "Questions",
    "Reports",
    "fit",
    "fit_predictor",
    "fit_rounds",
    "fitting_memory",
    "generate_replies",
]
