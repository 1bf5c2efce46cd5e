"""The hooked model and what it knows of model families."""

from eepolicy.model.hooked import HookedModel

__all__ = ["HookedModel"]
