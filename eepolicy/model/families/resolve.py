"""The parts of a given model, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError
from eepolicy.model.families.base import (
    CHUNKED,
    FAMILIES,
    FULL,
    SLIDING,
    DecoderParts,
    Rotation,
)
from eepolicy.model.families.decoder import text_config
from eepolicy.model.families.refused import reason_to_refuse


def parts_of(model: PreTrainedModel) -> DecoderParts:
    """The parts of a model, from the adapter of its family.

    A multimodal model without an adapter of its own has the adapter of its decoder's family.

    Raises:
        EepolicyError: the family has no adapter, or cannot be decoded layer by layer.
    """
    outer, inner = model.config.model_type, text_config(model).model_type
    for model_type in dict.fromkeys((outer, inner)):
        if model_type in FAMILIES:
            return FAMILIES.get(model_type)(model)
    reason = reason_to_refuse(inner) or reason_to_refuse(outer)
    if reason:
        raise EepolicyError(f"model type {outer!r} is refused: {reason}; see docs/families.md")
    what = f"{outer!r}" if outer == inner else f"{outer!r} or its decoder's, {inner!r}"
    raise EepolicyError(
        f"no adapter for model type {what}; there are adapters for "
        f"{', '.join(sorted(FAMILIES.names()))}. Pass wrap(model, parts=DecoderParts(...)), or "
        f"install a package with an entry point in the group {FAMILIES.group!r}; "
        "docs/families.md says what an adapter needs"
    )


def check_weights(model: PreTrainedModel) -> None:
    """Refuse a model without weights.

    Weights that accelerate has offloaded are on `meta` between calls; they are not refused.

    Raises:
        EepolicyError: parameters are on the device `meta`.
    """
    is_offloaded = any("_hf_hook" in vars(module) for module in model.modules())
    if is_offloaded or getattr(model, "hf_device_map", None):
        return
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if empty:
        raise EepolicyError(
            f"{len(empty)} weights of {type(model).__name__} are on the device 'meta', which has "
            f"no values ({empty[0]} first): load the weights before wrapping the model"
        )


def check_parts(model: PreTrainedModel, parts: DecoderParts) -> None:
    """Refuse attention that the layer loop does not support.

    Raises:
        EepolicyError: with what the model has and how to load it instead.
    """
    config = text_config(model)
    attention = config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise EepolicyError(
            f"the layer loop masks for sdpa and eager attention; the model was loaded with "
            f"{attention!r}: load it with attn_implementation='sdpa'"
        )
    unsupported = set(parts.attention) - {FULL, SLIDING, CHUNKED}
    if unsupported:
        raise EepolicyError(
            f"attention is {FULL}, {SLIDING} or {CHUNKED}; the model has "
            f"{', '.join(sorted(unsupported))}"
        )
    if CHUNKED in parts.attention and not parts.chunk:
        raise EepolicyError(f"{CHUNKED} needs the size of a chunk; give DecoderParts(chunk=...)")


def with_stable_rotations(model: PreTrainedModel, parts: DecoderParts) -> DecoderParts:
    """Limit texts to the positions up to which rotations are the same in texts of all lengths.

    Rotations of the types `dynamic` and `longrope` change when a text gets longer than a limit.
    Keys that are caught up later would then differ from the stock model's.

    Args:
        model: the stock model.
        parts: its parts.

    Returns:
        The parts; with other types of rotations, unchanged.
    """
    config, rotary = text_config(model), parts.rotary
    scaling = getattr(config, "rope_parameters", None) or {}
    kinds = [scaling, *(v for v in scaling.values() if isinstance(v, dict))]
    limits = [_limit(kind, config) for kind in kinds if kind.get("rope_type") in _CHANGING]
    if not limits or rotary is None:
        return parts
    limit = min(limits)

    def stable(like: Tensor, positions: Tensor, kind: str) -> Rotation:
        return rotary(like, positions.clamp(max=limit - 1), kind)

    most = limit if parts.max_positions is None else min(limit, parts.max_positions)
    return replace(parts, rotary=stable, max_positions=most)


#: types of rotations that depend on the length of the text
_CHANGING = ("dynamic", "longrope")


def _limit(scaling: dict[str, Any], config: Any) -> int:
    """Length of text from which rotations change."""
    if scaling["rope_type"] == "dynamic":
        return int(config.max_position_embeddings)
    own = scaling.get("original_max_position_embeddings")
    return int(own or config.original_max_position_embeddings)
