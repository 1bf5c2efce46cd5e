"""The parts of a stock model that the layer loop uses, and the table of adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from eepolicy.registry import NameTable

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"

#: what a layer reads about the positions of its columns, (rows, tokens, d) each; cosines and sines
#: in most families
Rotation = tuple[Tensor, ...]


@dataclass(frozen=True)
class DecoderParts:
    """The parts of a decoder-only model, as the layer loop uses them.

    Attributes:
        embed: ids (rows, tokens) -> (rows, tokens, width), the same as `inputs_embeds`.
        layers: the decoder layers.  A layer with other arguments than Llama's is in an
            `AdaptedLayer`.
        norm: the final norm, (..., width) -> (..., width).
        head: normed hidden states (..., width) -> logits (..., vocab).  Exit heads that share its
            rows or start from them need a `torch.nn.Linear`.
        attention: `"full_attention"`, `"sliding_attention"` or `"chunked_attention"` for each
            layer.
        window: number of positions that a sliding layer attends to, its own included.
        rotary: (like, positions (rows, tokens), kind of attention) -> what the layers read about
            the positions, (rows, tokens, d) each; cosines and sines in most families.  None for
            layers that read nothing.
        position_embedding: positions (rows, tokens) -> summand of the embedding (rows, tokens,
            width).  None for rotary positions.
        logit_softcap: elementwise function of the head's logits, such as Gemma's soft cap or
            Granite's scale; None for the identity.
        scale_input: function of the embeddings, of ids or given as `inputs_embeds`, before the
            first layer, (..., width) -> (..., width), such as Granite's scale; None for the
            identity.
        key_bias: positions (rows, tokens) -> summand of the attention scores of keys at these
            positions, (rows, heads, tokens), such as ALiBi's; None for none.
        chunk: number of positions of a chunk, for layers that attend to their own chunk only.
        max_positions: number of positions that the model has, or that the adapter supports; None
            for no limit.
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
    scale_input: Callable[[Tensor], Tensor] | None = None
    key_bias: Callable[[Tensor], Tensor] | None = None
    chunk: int | None = None
    max_positions: int | None = None


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
