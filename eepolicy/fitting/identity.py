"""What replies and fits of a model depend on, so that none is continued with another model."""

from __future__ import annotations

from typing import Any

from eepolicy.heads.fingerprint import fingerprint
from eepolicy.modality import TokenLayout
from eepolicy.model.backbone import Backbone


def model_identity(model: Backbone, layout: TokenLayout) -> dict[str, Any]:
    """Weights, data type, vocabulary and chunks of a model, as JSON types.

    Args:
        model: the model.
        layout: its vocabulary and chunks.
    """
    return {
        "model": fingerprint(model.model),
        "dtype": str(model.model.dtype),
        "layout": layout.to_dict(),
    }
