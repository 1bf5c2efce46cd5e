"""Fit exit heads on the full-depth replies of the model."""

from eepolicy.fitting.config import FitConfig
from eepolicy.fitting.memory import fitting_memory
from eepolicy.fitting.replies import generate_replies
from eepolicy.fitting.result import FitResult
from eepolicy.fitting.trainer import fit

__all__ = ["FitConfig", "FitResult", "fit", "fitting_memory", "generate_replies"]
