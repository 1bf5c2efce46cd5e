"""Adapters: the parts of a stock model that the layer loop uses, one function per family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError
from eepolicy.registry import NameTable

FULL, SLIDING = "full_attention", "sliding_attention"

Rotation = tuple[Tensor, Tensor]  # cosines and sines, (rows, tokens, d) each


@dataclass(frozen=True)
class DecoderParts:
    """The parts of a decoder-only model, as the layer loop uses them.

    Attributes:
        embed: ids (rows, tokens) -> (rows, tokens, width), the same as `inputs_embeds`.
        layers: the decoder layers.
        norm: the final norm, (..., width) -> (..., width).
        head: normed hidden states (..., width) -> logits (..., vocab).  Exit heads that share its
            rows or start from them need a `torch.nn.Linear`.
        attention: `"full_attention"` or `"sliding_attention"` for each layer.
        window: number of positions that a sliding layer attends to, its own included.
        rotary: (like, positions (rows, tokens), kind of attention) -> the rotation, in the dtype
            and on the device of `like`.  None for learned positions.
        position_embedding: positions (rows, tokens) -> summand of the embedding (rows, tokens,
            width).  None for rotary positions.
        logit_softcap: elementwise function of the head's logits, such as Gemma's soft cap; None for
            the identity.
    """

    embed: Callable[[Tensor], Tensor]
    layers: Sequence[nn.Module]
    norm: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]
    attention: tuple[str, ...]
    window: int | None = None
    rotary: Callable[[Tensor, Tensor, str], Rotation] | None = None
    position_embedding: Callable[[Tensor], Tensor] | None = None
    logit_softcap: Callable[[Tensor], Tensor] | None = None


Adapter = Callable[[PreTrainedModel], DecoderParts]

#: adapters by the `model_type` of the config
FAMILIES: NameTable[Adapter] = NameTable(kind="model family", group="eepolicy.families")


def register_family(*model_types: str) -> Callable[[Adapter], Adapter]:
    """Register an adapter for model types; a decorator.

    Args:
        *model_types: values of `model.config.model_type`.

    Examples:
        >>> @register_family("my_llama")
        ... def my_llama(model):
        ...     return FAMILIES.get("llama")(model)
    """

    def register(adapter: Adapter) -> Adapter:
        for model_type in model_types:
            FAMILIES.add(model_type, adapter)
        return adapter

    return register


@register_family("llama", "qwen2", "qwen3", "mistral", "glm", "phi3", "olmo2")
def llama(model: PreTrainedModel) -> DecoderParts:
    """Llama, and families that differ from it only inside their layers."""
    inner, config = model.model, model.config
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or [SLIDING if window else FULL] * len(
        inner.layers
    )
    return DecoderParts(
        embed=inner.embed_tokens,
        layers=inner.layers,
        norm=inner.norm,
        head=model.lm_head,
        attention=tuple(kinds),
        window=window,
        rotary=lambda like, positions, kind: inner.rotary_emb(like, positions),
    )


@register_family("gemma2", "gemma3_text")
def gemma(model: PreTrainedModel) -> DecoderParts:
    """Gemma 2 and 3: soft-capped logits; Gemma 3 has a rotary base for each kind of attention."""
    parts, rotary = llama(model), model.model.rotary_emb
    cap = model.config.final_logit_softcapping

    def softcap(logits: Tensor) -> Tensor:
        capped: Tensor = torch.tanh(logits / cap) * cap
        return capped

    def rotary_by_kind(like: Tensor, positions: Tensor, kind: str) -> Rotation:
        rotation: Rotation = rotary(like, positions, kind)
        return rotation

    if cap:
        parts = replace(parts, logit_softcap=softcap)
    if model.config.model_type == "gemma3_text":
        parts = replace(parts, rotary=rotary_by_kind)
    return parts


@register_family("gpt2")
def gpt2(model: PreTrainedModel) -> DecoderParts:
    """GPT-2: learned positions instead of rotations."""
    inner = model.transformer
    return DecoderParts(
        embed=inner.wte,
        layers=inner.h,
        norm=inner.ln_f,
        head=model.lm_head,
        attention=(FULL,) * len(inner.h),
        position_embedding=inner.wpe,
    )


def parts_of(model: PreTrainedModel) -> DecoderParts:
    """The parts of a model, from the adapter of its family.

    Raises:
        EepolicyError: the family has no adapter.
    """
    model_type = model.config.model_type
    if model_type not in FAMILIES:
        raise EepolicyError(
            f"no adapter for model type {model_type!r}; there are adapters for "
            f"{', '.join(sorted(FAMILIES.names()))}. Pass wrap(model, parts=DecoderParts(...)), or "
            f"install a package with an entry point in the group {FAMILIES.group!r}; "
            "docs/families.md says what an adapter needs"
        )
    return FAMILIES.get(model_type)(model)


def check_parts(model: PreTrainedModel, parts: DecoderParts) -> None:
    """Refuse attention and rotations that the layer loop does not support.

    Raises:
        EepolicyError: with what the model has and how to load it instead.
    """
    attention = model.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise EepolicyError(
            f"the layer loop masks for sdpa and eager attention; the model was loaded with "
            f"{attention!r}: load it with attn_implementation='sdpa'"
        )
    unsupported = set(parts.attention) - {FULL, SLIDING}
    if unsupported:
        raise EepolicyError(
            f"attention is {FULL} or {SLIDING}; the model has {', '.join(sorted(unsupported))}"
        )
    scaling = getattr(model.config, "rope_parameters", None) or {}
    for kind in {scaling.get("rope_type"), *(v.get("rope_type") for v in _dicts(scaling))}:
        if kind in ("dynamic", "longrope"):
            raise EepolicyError(
                f"rotations of type {kind!r} change with the length of the text, so keys that are "
                "caught up later would differ from the stock model's; load the model with other "
                "rope_parameters"
            )


def _dicts(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [v for v in values.values() if isinstance(v, dict)]
