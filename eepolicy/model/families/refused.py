"""Model types that are refused by name, with the reason."""

from __future__ import annotations

_STATE = "its layers keep a recurrent or convolution state, which later positions overwrite"

_REASONS: dict[str, tuple[str, ...]] = {}

_BY_TYPE = {model_type: reason for reason, types in _REASONS.items() for model_type in types}


def reason_to_refuse(model_type: str) -> str | None:
    """Why a model type is refused; None for other types."""
    return _BY_TYPE.get(model_type)
