"""Families with rotary positions whose layers take other arguments than Llama's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from eepolicy.model.families.base import DecoderParts, Rotation, register_family
from eepolicy.model.families.decoder import decoder_of
from eepolicy.model.families.layers import (
    BeamLayer,
    ComplexLayer,
    LayerPast,
    LayerPastWithPositions,
    LayerWithPositions,
    Llama4Layer,
    adapted,
)
from eepolicy.model.families.rotary import (
    one_window,
    plain_parts,
    rotary_parts,
    with_layer_types,
)
from eepolicy.model.families.scale import softcap


@register_family("gpt_neox", "gpt_neox_japanese")
def gpt_neox(model: PreTrainedModel) -> DecoderParts:
    """GPT-NeoX and Pythia: another name for the cache."""
    return adapted(rotary_parts(decoder_of(model)), LayerPast)


def numbers(like: Tensor, positions: Tensor, kind: str) -> Rotation:
    """The positions themselves, (rows, tokens, 1), in the place of a rotation."""
    return (positions[..., None],)


@register_family("gptj", "codegen")
def gptj(model: PreTrainedModel) -> DecoderParts:
    """GPT-J and CodeGen: the layers rotate by the positions themselves."""
    decoder = decoder_of(model)
    most = decoder.config.max_position_embeddings  # rows of the table of sines in each layer
    parts = replace(plain_parts(decoder), rotary=numbers, max_positions=most)
    return adapted(parts, LayerPastWithPositions)


@register_family("ministral3")
def ministral3(model: PreTrainedModel) -> DecoderParts:
    """Ministral 3: queries are scaled by the position."""
    parts = one_window(model)
    assert parts.rotary is not None
    return adapted(replace(parts, rotary=with_numbers(parts.rotary)), LayerWithPositions)


def with_numbers(
    rotary: Callable[[Tensor, Tensor, str], Rotation],
) -> Callable[[Tensor, Tensor, str], Rotation]:
    """A rotary embedding that also gives the positions themselves, (rows, tokens, 1)."""
    return lambda like, positions, kind: (*rotary(like, positions, kind), positions[..., None])


@register_family("mistral4")
def mistral4(model: PreTrainedModel) -> DecoderParts:
    """Mistral 4: queries are scaled by the position."""
    parts = rotary_parts(decoder_of(model))
    assert parts.rotary is not None
    return adapted(replace(parts, rotary=with_numbers(parts.rotary)), LayerWithPositions)


@register_family("deepseek_v2")
def deepseek_v2(model: PreTrainedModel) -> DecoderParts:
    """DeepSeek-V2: rotations are complex numbers."""
    return adapted(complex_rotary(rotary_parts(decoder_of(model))), ComplexLayer)


def complex_rotary(parts: DecoderParts) -> DecoderParts:
    """The parts with real and imaginary parts of rotations, which batches can index and pad."""
    rotary = parts.rotary
    assert rotary is not None

    def real(like: Tensor, positions: Tensor, kind: str) -> Rotation:
        turns: Any = rotary(like, positions, kind)
        return turns.real, turns.imag

    return replace(parts, rotary=real)


@register_family("llama4_text")
def llama4(model: PreTrainedModel) -> DecoderParts:
    """Llama 4: complex rotations, chunks in some layers, no rotation in the others."""
    decoder = decoder_of(model)
    parts = with_layer_types(complex_rotary(rotary_parts(decoder)), decoder.config)
    limit = decoder.config.floor_scale - 1 if decoder.config.attn_temperature_tuning else None
    return adapted(replace(parts, max_positions=limit), Llama4Layer)


@register_family("beam")
def beam(model: PreTrainedModel) -> DecoderParts:
    """Beam: windows with rotations; full attention scales queries by the position instead."""
    decoder = decoder_of(model)
    parts = with_layer_types(rotary_parts(decoder), decoder.config)
    rope, cap = decoder.config.rope_parameters, softcap(decoder.config.final_logit_softcapping)
    scaling = vars(sys.modules[type(model).__module__])["compute_attention_scaling"]
    rotary = parts.rotary
    assert rotary is not None

    def rotated(like: Tensor, positions: Tensor, kind: str) -> Rotation:
        if rope[kind] is None:
            return (scaling(positions)[:, 0],)
        return rotary(like, positions, kind)

    capped = cap and (lambda logits: cap(logits.float()))
    return adapted(replace(parts, rotary=rotated, logit_softcap=capped), BeamLayer)


@register_family("moshi")
def moshi(model: PreTrainedModel) -> DecoderParts:
    """Moshi's decoder: the layers rotate by the positions themselves."""
    parts = replace(plain_parts(decoder_of(model)), rotary=numbers)
    return adapted(parts, LayerWithPositions)
