"""Families with learned or sinusoidal positions, or with ALiBi."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eepolicy.model.families.base import DecoderParts, register_family
from eepolicy.model.families.decoder import decoder_of
from eepolicy.model.families.layers import (
    BloomLayer,
    FalconLayer,
    LayerPast,
    LayerWithRowMasks,
    adapted,
)
from eepolicy.model.families.rotary import plain_parts, rotary_parts
from eepolicy.model.families.scale import times


@register_family("gpt2", "gpt-sw3")
def gpt2(model: PreTrainedModel) -> DecoderParts:
    """GPT-2: learned positions instead of rotations."""
    decoder = decoder_of(model)
    table = decoder.inner.wpe
    return replace(
        plain_parts(decoder), position_embedding=table, max_positions=table.num_embeddings
    )


@register_family("gpt_bigcode")
def gpt_bigcode(model: PreTrainedModel) -> DecoderParts:
    """GPT-BigCode: as GPT-2, with another name for the cache."""
    return adapted(gpt2(model), LayerPast)


def offset_positions(table: Any) -> Callable[[Tensor], Tensor]:
    """The learned positions of OPT, whose table starts at an offset."""

    def embedding(positions: Tensor) -> Tensor:
        mask = positions.new_ones(positions.shape)
        result: Tensor = table(mask, 0, position_ids=positions)
        return result

    return embedding


@register_family("opt")
def opt(model: PreTrainedModel) -> DecoderParts:
    """OPT: learned positions; small models project embeddings and final states."""
    decoder = decoder_of(model)
    inner, table = decoder.inner, decoder.inner.embed_positions

    def norm(hidden: Tensor) -> Tensor:
        for part in (inner.final_layer_norm, inner.project_out):
            hidden = hidden if part is None else part(hidden)
        return hidden

    return replace(
        plain_parts(decoder),
        norm=norm,
        scale_input=inner.project_in,
        position_embedding=offset_positions(table),
        max_positions=table.num_embeddings - table.offset,
    )


@register_family("biogpt")
def biogpt(model: PreTrainedModel) -> DecoderParts:
    """BioGPT: learned positions."""
    decoder = decoder_of(model)
    table = decoder.inner.embed_positions
    return replace(
        plain_parts(decoder),
        position_embedding=offset_positions(table),
        max_positions=table.num_embeddings - table.offset,
    )


@register_family("ctrl")
def ctrl(model: PreTrainedModel) -> DecoderParts:
    """CTRL: sinusoidal positions, scaled embeddings."""
    decoder = decoder_of(model)
    inner, table = decoder.inner, decoder.inner.pos_encoding

    def embedding(positions: Tensor) -> Tensor:
        like = decoder.inner.get_input_embeddings().weight
        rows: Tensor = inner.pos_encoding.to(like.device, like.dtype)[positions]
        return rows

    return adapted(
        replace(
            plain_parts(decoder),
            scale_input=times(decoder.config.n_embd**0.5),
            position_embedding=embedding,
            max_positions=len(table),
        ),
        LayerPast,
    )


@register_family("xglm")
def xglm(model: PreTrainedModel) -> DecoderParts:
    """XGLM: sinusoidal positions."""
    decoder = decoder_of(model)
    table = decoder.inner.embed_positions

    def embedding(positions: Tensor) -> Tensor:
        # the table grows to the positions before the block and those in it
        rows: Tensor = table(positions, int(positions.max()) + 1 - positions.shape[1])
        return rows

    parts = replace(plain_parts(decoder), position_embedding=embedding)
    return adapted(parts, LayerWithRowMasks)


def alibi(
    model: PreTrainedModel, heads: int, dtype: torch.dtype = torch.float32
) -> Callable[[Tensor], Tensor]:
    """ALiBi with the slopes of a stock model, as `DecoderParts.key_bias`.

    Args:
        model: stock model.
        heads: number of attention heads.
        dtype: precision in which the stock model multiplies.
    """
    build = vars(sys.modules[type(model).__module__])["build_alibi_tensor"]
    slopes: Tensor = build(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)[:, 0, 1]

    def bias(positions: Tensor) -> Tensor:
        products = slopes.to(positions.device, dtype)[:, None] * positions[:, None]
        return products.float()

    return bias


@register_family("bloom")
def bloom(model: PreTrainedModel) -> DecoderParts:
    """Bloom: ALiBi, normed embeddings."""
    decoder = decoder_of(model)
    parts = replace(
        plain_parts(decoder),
        scale_input=decoder.inner.word_embeddings_layernorm,
        key_bias=alibi(model, decoder.config.n_head),
    )
    return adapted(parts, BloomLayer)


@register_family("falcon")
def falcon(model: PreTrainedModel) -> DecoderParts:
    """Falcon: rotary positions or ALiBi."""
    decoder = decoder_of(model)
    if not decoder.config.alibi:
        return adapted(rotary_parts(decoder), FalconLayer)
    heads = decoder.config.num_attention_heads
    # the stock model multiplies in bfloat16, also if its weights are in another precision
    bias = alibi(model, heads, torch.bfloat16)
    scale = (decoder.config.hidden_size // heads) ** 0.5
    parts = replace(plain_parts(decoder), key_bias=lambda positions: bias(positions) / scale)
    return adapted(parts, BloomLayer)
