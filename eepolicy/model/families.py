"""Where each model family keeps what the layer loop needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError

FULL, SLIDING = "full_attention", "sliding_attention"
#: entry points under which other packages offer adapters, named by model type
GROUP = "eepolicy.families"

Rotation = tuple[Tensor, Tensor]  # cosines and sines, (rows, tokens, d) each


@dataclass(frozen=True)
class DecoderParts:
    """The parts of a decoder-only model, as the layer loop uses them.

    Attributes:
        embed: ids (rows, tokens) -> (rows, tokens, width), what `inputs_embeds` would be.
        layers: the decoder layers.
        norm: the final norm, (..., width) -> (..., width).
        head: normed hidden states (..., width) -> logits (..., vocabulary); a `torch.nn.Linear`
            where heads are to share or start from its rows.
        attention: of each layer, `"full_attention"` or `"sliding_attention"`.
        window: how many positions a sliding layer sees, its own included.
        rotary: (like, positions (rows, tokens), kind of attention) -> the rotation; None where
            positions are learned.
        position_embedding: positions (rows, tokens) -> what is added to the embedding; None where positions
            rotate.
        logit_softcap: what each logit of the head goes through; None where that is nothing.
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


def _llama(model: PreTrainedModel) -> DecoderParts:
    """Llama and all that are laid out like it; what differs lies inside their layers."""
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


def _gemma(model: PreTrainedModel) -> DecoderParts:
    """Gemma 2 and 3: soft-capped logits; Gemma 3 rotates sliding layers by another base."""
    parts, rotary = _llama(model), model.model.rotary_emb
    cap = model.config.final_logit_softcapping

    def capped(logits: Tensor) -> Tensor:
        out: Tensor = torch.tanh(logits / cap) * cap
        return out

    def by_kind(like: Tensor, positions: Tensor, kind: str) -> Rotation:
        rotation: Rotation = rotary(like, positions, kind)
        return rotation

    return DecoderParts(
        **vars(parts)
        | ({"logit_softcap": capped} if cap else {})
        | ({"rotary": by_kind} if model.config.model_type == "gemma3_text" else {})
    )


def _gpt2(model: PreTrainedModel) -> DecoderParts:
    """GPT-2: learned positions, no rotation."""
    inner = model.transformer
    return DecoderParts(
        embed=inner.wte,
        layers=inner.h,
        norm=inner.ln_f,
        head=model.lm_head,
        attention=(FULL,) * len(inner.h),
        position_embedding=inner.wpe,
    )


#: model type of the config: its adapter
ADAPTERS: dict[str, Callable[[PreTrainedModel], DecoderParts]] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "glm", "phi3", "olmo2"), _llama),
    **dict.fromkeys(("gemma2", "gemma3_text"), _gemma),
    "gpt2": _gpt2,
}


def parts_of(model: PreTrainedModel) -> DecoderParts:
    """The parts of a model, by its family's adapter.

    Raises:
        EepolicyError: the family has no adapter.
    """
    family = model.config.model_type
    adapter = ADAPTERS.get(family)
    if adapter is None:
        offered = entry_points(group=GROUP, name=family)
        if not offered:
            raise EepolicyError(
                f"no adapter for model type {family!r}; there are {', '.join(sorted(ADAPTERS))}. "
                "Pass wrap(model, parts=DecoderParts(...)), or install a package that offers one under "
                f"the entry point {GROUP!r}; docs/families.md says what an adapter needs"
            )
        adapter = next(iter(offered)).load()
    return adapter(model)


def check_parts(model: PreTrainedModel, parts: DecoderParts) -> None:
    """Refuse what the layer loop cannot give.

    Raises:
        EepolicyError: an attention, its kind, or rotations that are not supported.
    """
    attention = model.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise EepolicyError(
            f"the layer loop masks for sdpa and eager attention; the model was loaded with "
            f"{attention!r}: load it with attn_implementation='sdpa'"
        )
    strange = set(parts.attention) - {FULL, SLIDING}
    if strange:
        raise EepolicyError(
            f"attention is {FULL} or {SLIDING}; the model has {', '.join(sorted(strange))}"
        )
    scaling = getattr(model.config, "rope_parameters", None) or {}
    for kind in {scaling.get("rope_type"), *(v.get("rope_type") for v in _dicts(scaling))}:
        if kind in ("dynamic", "longrope"):
            raise EepolicyError(
                f"rotations of type {kind!r} change with the length of the text, so that keys that "
                "are caught up later would not be the stock model's; load the model with another "
                "rope_parameters"
            )


def _dicts(of: dict[str, Any]) -> list[dict[str, Any]]:
    return [v for v in of.values() if isinstance(v, dict)]
