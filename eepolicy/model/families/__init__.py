"""Adapters: the parts of a stock model that the layer loop uses, one function per family."""

from eepolicy.model.families import arguments, learned, rotary, scaled  # noqa: F401  (registers adapters)
from eepolicy.model.families.base import (
    CHUNKED,
    FAMILIES,
    FULL,
    SLIDING,
    Adapter,
    DecoderParts,
    Rotation,
    register_family,
)
from eepolicy.model.families.decoder import text_config
from eepolicy.model.families.layers import AdaptedLayer
from eepolicy.model.families.resolve import (
    check_parts,
    check_weights,
    parts_of,
    with_stable_rotations,
)

__all__ = [
    "CHUNKED",
    "FAMILIES",
    "FULL",
    "SLIDING",
    "AdaptedLayer",
    "Adapter",
    "DecoderParts",
    "Rotation",
    "check_parts",
    "check_weights",
    "parts_of",
    "register_family",
    "text_config",
    "with_stable_rotations",
]
