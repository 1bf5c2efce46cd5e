"""Fit exit heads on replies of the model: at full depth, or with the exits themselves."""

from eepolicy.fitting.by_depth import fit_by_depth
from eepolicy.fitting.codebooks import fit_backbone, fit_depth_decoder
from eepolicy.fitting.config import FitConfig
from eepolicy.fitting.jacobian import fit_jacobian, read_jacobian_lens
from eepolicy.fitting.linear import fit_linear
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
    "fit_backbone",
    "fit_by_depth",
    "fit_depth_decoder",
    "fit_jacobian",
    "fit_linear",
    "fit_predictor",
    "fit_rounds",
    "fitting_memory",
    "generate_replies",
    "read_jacobian_lens",
]
