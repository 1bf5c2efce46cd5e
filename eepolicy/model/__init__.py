"""The hooked model and what it knows of model families."""

from eepolicy.model.adapters import Parts
from eepolicy.model.hooked import HookedModel

#: hook a loaded model; `HookedModel.unwrap` gives it back
wrap = HookedModel

__all__ = ["HookedModel", "Parts", "wrap"]
