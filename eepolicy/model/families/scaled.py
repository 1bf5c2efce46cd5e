"""Families that scale embeddings or logits."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from eepolicy.model.families.base import DecoderParts, register_family
from eepolicy.model.families.decoder import decoder_of
from eepolicy.model.families.rotary import rotary_parts, with_layer_types
from eepolicy.model.families.scale import divided, softcap, times


@register_family("granite", "granitemoe", "granitemoeshared")
def granite(model: PreTrainedModel) -> DecoderParts:
    """Granite: scaled embeddings and logits."""
    decoder = decoder_of(model)
    return replace(
        rotary_parts(decoder),
        scale_input=times(decoder.config.embedding_multiplier),
        logit_softcap=divided(decoder.config.logits_scaling),
    )


@register_family("hyperclovax")
def hyperclovax(model: PreTrainedModel) -> DecoderParts:
    """HyperCLOVA X: scaled embeddings and logits."""
    decoder = decoder_of(model)
    return replace(
        rotary_parts(decoder),
        scale_input=times(decoder.config.embedding_multiplier),
        logit_softcap=times(decoder.config.logits_scaling),
    )


@register_family("cohere")
def cohere(model: PreTrainedModel) -> DecoderParts:
    """Cohere: scaled logits, parallel attention and MLP."""
    decoder = decoder_of(model)
    return replace(rotary_parts(decoder), logit_softcap=times(decoder.config.logit_scale))


@register_family("cohere2", "cohere2_moe", "cohere_compass_text")
def cohere2(model: PreTrainedModel) -> DecoderParts:
    """Cohere 2: scaled logits, windows in some layers, no rotation in the others."""
    return with_layer_types(cohere(model), decoder_of(model).config)


@register_family("minicpm3")
def minicpm3(model: PreTrainedModel) -> DecoderParts:
    """MiniCPM 3: its final states are scaled after the norm."""
    decoder = decoder_of(model)
    norm, scale = decoder.norm, divided(decoder.config.logits_scaling)
    return replace(rotary_parts(decoder), norm=lambda hidden: scale(norm(hidden)))


@register_family("nanochat")
def nanochat(model: PreTrainedModel) -> DecoderParts:
    """nanochat: normed embeddings, soft-capped logits."""
    decoder = decoder_of(model)
    return replace(
        rotary_parts(decoder),
        scale_input=decoder.norm,
        logit_softcap=softcap(decoder.config.final_logit_softcapping),
    )


@register_family("afmoe")
def afmoe(model: PreTrainedModel) -> DecoderParts:
    """AFMoE: scaled embeddings, windows in some layers."""
    decoder = decoder_of(model)
    parts = with_layer_types(rotary_parts(decoder), decoder.config)
    if not decoder.config.mup_enabled:
        return parts
    return replace(parts, scale_input=times(decoder.config.hidden_size**0.5))
