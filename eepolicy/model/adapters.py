"""Where each model family keeps what the layer loop needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError


@dataclass(frozen=True)
class Parts:
    """The parts of a decoder-only model.

    Attributes:
        embed: ids (rows, tokens) -> (rows, tokens, width).
        layers: the decoder layers.
        norm: the final norm, (..., width) -> (..., width).
        head: normed hidden states (..., width) -> logits (..., vocabulary).
        rotary: (hidden, position ids (rows, tokens)) -> cos and sin, (rows, tokens, d) each.
    """

    embed: nn.Module
    layers: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _llama(model: PreTrainedModel) -> Parts:
    inner = model.model
    return Parts(inner.embed_tokens, inner.layers, inner.norm, model.lm_head, inner.rotary_emb)


#: model type of the config: its adapter
ADAPTERS: dict[str, Callable[[PreTrainedModel], Parts]] = {"llama": _llama, "qwen2": _llama}


def parts_of(model: PreTrainedModel) -> Parts:
    """The parts of a model, by its family's adapter.

    Raises:
        EepolicyError: the family has no adapter, or the model an attention that is not supported.
    """
    family = model.config.model_type
    if family not in ADAPTERS:
        raise EepolicyError(
            f"no adapter for model type {family!r}; there are {', '.join(sorted(ADAPTERS))}"
        )
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise EepolicyError(f"only full attention is supported; the model has {', '.join(kinds)}")
    attention = model.config._attn_implementation
    if attention != "sdpa":
        raise EepolicyError(
            f"the layer loop masks for sdpa attention; the model was loaded with {attention!r}, "
            "load it with attn_implementation='sdpa'"
        )
    return ADAPTERS[family](model)
