"""Families with rotary positions whose layers take Llama's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError
from eepolicy.model.families.base import (
    CHUNKED,
    FULL,
    SLIDING,
    DecoderParts,
    Rotation,
    register_family,
)
from eepolicy.model.families.decoder import Decoder, decoder_of
from eepolicy.model.families.layers import SharedStatesLayer
from eepolicy.model.families.scale import softcap


def by_kind(rotary: nn.Module) -> Callable[[Tensor, Tensor, str], Rotation]:
    """A rotary embedding as `DecoderParts.rotary`; some have a base for each kind of attention."""
    if "layer_type" in inspect.signature(rotary.forward).parameters:
        return lambda like, positions, kind: rotary(like, positions, kind)
    return lambda like, positions, kind: rotary(like, positions)


def plain_parts(decoder: Decoder) -> DecoderParts:
    """Parts of a decoder with full attention and without rotary positions."""
    return DecoderParts(
        embed=decoder.inner.get_input_embeddings(),
        layers=decoder.layers,
        norm=decoder.norm,
        head=decoder.head,
        attention=(FULL,) * len(decoder.layers),
    )


def rotary_parts(decoder: Decoder) -> DecoderParts:
    """Parts of a decoder with full attention and rotary positions."""
    return replace(plain_parts(decoder), rotary=by_kind(decoder.inner.rotary_emb))


@register_family(
    "apertus",
    "arcee",
    "aria_text",
    "axk1",
    "bitnet",
    "dbrx",
    "deepseek_v3",
    "diffllama",
    "emu3_text_model",
    "ernie4_5",
    "ernie4_5_moe",
    "flex_olmo",
    "gemma",
    "glm",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "helium",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "hy_v3",
    "internlm3",
    "glm4v_text",
    "iquestcoder",
    "jais2",
    "jetmoe",
    "llama",
    "minimax_m2",
    "nemotron",
    "olmo",
    "olmo2",
    "olmoe",
    "persimmon",
    "phi",
    "qwen3_omni_moe_text",
    "qwen3_vl_moe_text",
    "qwen3_vl_text",
    "seed_oss",
    "solar_open",
    "stablelm",
    "youtu",
)
def llama(model: PreTrainedModel) -> DecoderParts:
    """Llama, and families that differ from it only inside their layers.

    These families attend to all positions, whatever window their config names.
    """
    return rotary_parts(decoder_of(model))


@register_family("mistral", "mixtral", "phi3", "phimoe", "qwen3_moe", "starcoder2")
def one_window(model: PreTrainedModel) -> DecoderParts:
    """Families with one window for all layers, if their config has one."""
    decoder = decoder_of(model)
    window = decoder.config.sliding_window
    parts = rotary_parts(decoder)
    if window is None:
        return parts
    return replace(parts, attention=(SLIDING,) * len(decoder.layers), window=window)


@register_family(
    "cwm",
    "dots1",
    "exaone4",
    "exaone_moe",
    "flint",
    "gpt_oss",
    "kolibri1",
    "laguna",
    "mellum",
    "mimo_v2_flash",
    "ministral",
    "olmo3",
    "qwen2",
    "qwen2_5_omni_text",
    "qwen2_5_vl_text",
    "qwen2_moe",
    "qwen2_vl_text",
    "qwen3",
    "smollm3",
)
def layer_types(model: PreTrainedModel) -> DecoderParts:
    """Families whose config names the kind of attention of each layer."""
    decoder = decoder_of(model)
    return with_layer_types(rotary_parts(decoder), decoder.config)


def with_layer_types(parts: DecoderParts, config: Any) -> DecoderParts:
    """The kinds of attention that `layer_types` names."""
    kinds = tuple(config.layer_types[: len(parts.layers)])
    window = config.sliding_window if SLIDING in kinds else None
    chunk = config.attention_chunk_size if CHUNKED in kinds else None
    return replace(parts, attention=kinds, window=window, chunk=chunk)


@register_family("gemma2", "gemma3_text", "vaultgemma")
def gemma(model: PreTrainedModel) -> DecoderParts:
    """Gemma 2 and 3, and VaultGemma: soft-capped logits, windows in some layers."""
    decoder = decoder_of(model)
    parts = with_layer_types(rotary_parts(decoder), decoder.config)
    return replace(parts, logit_softcap=softcap(decoder.config.final_logit_softcapping))


@register_family("modernbert-decoder")
def modernbert(model: PreTrainedModel) -> DecoderParts:
    """ModernBERT's decoder: normed embeddings, windows in some layers, a head of two modules."""
    decoder = decoder_of(model)
    embeddings, transform, norm = decoder.inner.embeddings, model.lm_head, decoder.norm
    return replace(
        with_layer_types(rotary_parts(decoder), decoder.config),
        scale_input=lambda hidden: embeddings(inputs_embeds=hidden),
        norm=lambda hidden: transform(norm(hidden)),
    )


@register_family("gemma4_text", "gemma4_unified_text")
def gemma4(model: PreTrainedModel) -> DecoderParts:
    """Gemma 4, as far as its layers read the states of the layer before only.

    Raises:
        EepolicyError: the model has per-layer inputs, or layers that share keys and values.
    """
    parts, config = gemma(model), decoder_of(model).config
    for name in ("hidden_size_per_layer_input", "num_kv_shared_layers"):
        if getattr(config, name, 0):
            raise EepolicyError(
                f"the config has {name}={getattr(config, name)}: a layer would need more than the "
                "states of the layer before, which a catch-up does not store"
            )
    return replace(parts, layers=SharedStatesLayer.all(parts.layers))
