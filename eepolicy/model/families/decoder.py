"""Finds the decoder of a causal language model, also inside a multimodal wrapper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError

#: attributes of stock models that contain the decoder, outermost first
_CONTAINERS = ("language_model", "text_model", "model", "transformer", "decoder")
_LAYERS = ("layers", "h", "blocks")
_NORMS = (
    "norm",
    "final_layernorm",
    "final_layer_norm",
    "final_norm",
    "ln_f",
    "norm_f",
    "layer_norm",
    "layernorm",
)


@dataclass(frozen=True)
class Decoder:
    """The parts of a decoder that most families name alike.

    Attributes:
        inner: the module with the embedding, the layers and the final norm.
        layers: the decoder layers.
        head: the output embedding.
        config: config of the decoder, which is a part of the config of a multimodal model.
    """

    inner: Any
    layers: Sequence[nn.Module]
    head: nn.Module
    config: Any

    @property
    def norm(self) -> nn.Module:
        """The final norm."""
        norm: nn.Module = _first(self.inner, _NORMS)
        return norm


def text_config(model: PreTrainedModel) -> Any:
    """The config of the decoder: a multimodal model has one for each of its parts."""
    return model.config.get_text_config(decoder=True)


def decoder_of(model: PreTrainedModel) -> Decoder:
    """The decoder of a stock model.

    Raises:
        EepolicyError: the model has no output embedding, or no decoder layers were found.
    """
    path = list(_containers(model))
    inner = path[-1]
    head = next((h for h in map(_output_embedding, path) if h is not None), None)
    if head is None:
        raise EepolicyError(
            f"{type(model).__name__} has no output head, so it gives no tokens: load the model "
            "with AutoModelForCausalLM, or wrap the ...ForCausalLM class of its family"
        )
    return Decoder(inner, _first(inner, _LAYERS), head, text_config(model))


def _containers(model: nn.Module) -> Iterator[nn.Module]:
    """The model, and the modules inside it on the way to the one with the decoder layers."""
    yield model
    while _first(model, _LAYERS) is None:
        inside = _first(model, (*_CONTAINERS, getattr(model, "base_model_prefix", "")))
        if inside is None:
            raise EepolicyError(
                f"no decoder layers were found in {type(model).__name__}; pass "
                "wrap(model, parts=DecoderParts(...))"
            )
        model = inside
        yield model


def _output_embedding(module: nn.Module) -> nn.Module | None:
    head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
    return head if isinstance(head, nn.Module) else None


def _first(module: nn.Module, names: Sequence[str]) -> Any:
    """The first submodule of some names; None where there is none."""
    parts = (getattr(module, name, None) for name in names if name)
    return next((part for part in parts if isinstance(part, nn.Module)), None)
