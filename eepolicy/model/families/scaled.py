"""Families that scale embeddings or logits."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError
from eepolicy.model.families.base import DecoderParts, Rotation, register_family
from eepolicy.model.families.decoder import decoder_of
from eepolicy.model.families.rotary import plain_parts, rotary_parts, with_layer_types
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


@register_family("cohere2", "cohere2_moe")
def cohere2(model: PreTrainedModel) -> DecoderParts:
    """Cohere 2: scaled logits, windows in some layers, no rotation in the others."""
    return with_layer_types(cohere(model), decoder_of(model).config)


@register_family("cohere_compass_text")
def compass(model: PreTrainedModel) -> DecoderParts:
    """Cohere's multimodal decoder: some kinds of attention have no rotation."""
    parts, rope = cohere2(model), decoder_of(model).config.rope_parameters
    rotary = parts.rotary
    assert rotary is not None

    def rotated(like: Tensor, positions: Tensor, kind: str) -> Rotation:
        return () if rope[kind] is None else rotary(like, positions, kind)

    return replace(parts, rotary=rotated)


@register_family("granite_swa", "granitemoe_swa")
def granite_swa(model: PreTrainedModel) -> DecoderParts:
    """Granite with windows: each layer has a base of its rotation, or none.

    Raises:
        EepolicyError: layers of one kind of attention have several bases.
    """
    decoder = decoder_of(model)
    config, embeddings = decoder.config, decoder.inner.rotary_embs
    kinds = config.layer_types[: len(decoder.layers)]
    bases = dict(zip(kinds, config.layer_rope_theta, strict=False))
    if any(bases[k] != base for k, base in zip(kinds, config.layer_rope_theta, strict=False)):
        raise EepolicyError(
            "layers with the same kind of attention have several values of layer_rope_theta; "
            "the layer loop has one rotation for each kind"
        )
    by_base = {e.config.rope_parameters["rope_theta"]: e for e in embeddings}

    def rotated(like: Tensor, positions: Tensor, kind: str) -> Rotation:
        base = bases[kind]
        return by_base[base](like, positions) if base else ()

    parts = with_layer_types(replace(plain_parts(decoder), rotary=rotated), config)
    return replace(
        parts,
        scale_input=times(config.embedding_multiplier),
        logit_softcap=divided(config.logits_scaling),
    )


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
