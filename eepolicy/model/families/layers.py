"""Stock layers whose arguments differ from Llama's, with the arguments of the layer loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from eepolicy.model.families.base import DecoderParts, Rotation


class AdaptedLayer(nn.Module):
    """A stock decoder layer that is called with the arguments of the layer loop.

    Subclasses override `translate`.  The stock layer is not changed.

    Args:
        stock: the stock layer.
    """

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.stock = stock

    @classmethod
    def all(cls, layers: Sequence[nn.Module]) -> tuple[AdaptedLayer, ...]:
        """Adapt all layers of a model."""
        return tuple(cls(layer) for layer in layers)

    def translate(
        self, hidden: Tensor, cache: Any, position: Rotation | None, options: dict[str, Any]
    ) -> Any:
        """Call the stock layer.

        Args:
            hidden: (rows, tokens, width).
            cache: KV cache; None without one.
            position: what `DecoderParts.rotary` gives for the tokens.
            options: `attention_mask` and `use_cache`.
        """
        raise NotImplementedError

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        position_embeddings: Rotation | None = None,
    ) -> Any:
        """Call the stock layer with the arguments of the layer loop."""
        options = {"attention_mask": attention_mask, "use_cache": use_cache}
        return self.translate(hidden, past_key_values, position_embeddings, options)


def adapted(parts: DecoderParts, kind: type[AdaptedLayer]) -> DecoderParts:
    """The parts with adapted layers."""
    return replace(parts, layers=kind.all(parts.layers))


class LayerPast(AdaptedLayer):
    """A layer that names the cache `layer_past`."""

    def translate(
        self, hidden: Tensor, cache: Any, position: Rotation | None, options: dict[str, Any]
    ) -> Any:
        if position is not None:
            options["position_embeddings"] = position
        return self.stock(hidden, layer_past=cache, **options)


class LayerWithRowMasks(AdaptedLayer):
    """A layer that takes no mask for all rows at once."""

    def translate(
        self, hidden: Tensor, cache: Any, position: Rotation | None, options: dict[str, Any]
    ) -> Any:
        mask = options.pop("attention_mask")
        mask = None if mask is None else mask.expand(len(hidden), -1, -1, -1)
        return self.stock(hidden, attention_mask=mask, past_key_values=cache, **options)


class BloomLayer(AdaptedLayer):
    """A layer of Bloom, or of Falcon with ALiBi, which is a part of the mask here."""

    def translate(
        self, hidden: Tensor, cache: Any, position: Rotation | None, options: dict[str, Any]
    ) -> Any:
        attention: Any = self.stock.self_attention
        heads = attention.num_heads
        mask = options["attention_mask"]
        columns = 1 if mask is None else mask.shape[-1]
        zeros = hidden.new_zeros(()).expand(hidden.shape[0] * heads, 1, columns)
        return self.stock(hidden, alibi=zeros, layer_past=cache, **options)


class FalconLayer(AdaptedLayer):
    """A layer of Falcon with rotary positions, which requires the argument `alibi`."""

    def translate(
        self, hidden: Tensor, cache: Any, position: Rotation | None, options: dict[str, Any]
    ) -> Any:
        return self.stock(
            hidden, alibi=None, layer_past=cache, position_embeddings=position, **options
        )


class SharedStatesLayer(AdaptedLayer):
    """A layer of Gemma 4, in models whose layers share neither keys nor values."""

    def translate(
        self, hidden: Tensor, cache: Any, position: Rotation | None, options: dict[str, Any]
    ) -> Any:
        return self.stock(
            hidden,
            past_key_values=cache,
            position_embeddings=position,
            shared_kv_states={},
            **options,
        )


class LayerPastWithPositions(AdaptedLayer):
    """A layer that names the cache `layer_past` and rotates by `position_ids` itself."""

    def translate(
        self, hidden: Tensor, cache: Any, position: Rotation | None, options: dict[str, Any]
    ) -> Any:
        assert position is not None
        [numbers] = position
        return self.stock(hidden, layer_past=cache, position_ids=numbers[..., 0], **options)


class LayerWithPositions(AdaptedLayer):
    """A layer that takes the positions beside cosines and sines."""

    def translate(
        self, hidden: Tensor, cache: Any, position: Rotation | None, options: dict[str, Any]
    ) -> Any:
        assert position is not None
        *rotation, numbers = position
        return self.stock(
            hidden,
            past_key_values=cache,
            position_ids=numbers[..., 0],
            **({"position_embeddings": tuple(rotation)} if rotation else {}),
            **options,
        )


class BeamLayer(AdaptedLayer):
    """A layer of Beam, which rotates, or scales queries by the position."""

    def translate(
        self, hidden: Tensor, cache: Any, position: Rotation | None, options: dict[str, Any]
    ) -> Any:
        assert position is not None
        rotates = len(position) == 2
        return self.stock(
            hidden,
            past_key_values=cache,
            position_embeddings=position if rotates else None,
            attention_scaling=None if rotates else position[0][:, None],
            **options,
        )


class ComplexLayer(AdaptedLayer):
    """A layer that rotates by complex numbers."""

    def translate(
        self, hidden: Tensor, cache: Any, position: Rotation | None, options: dict[str, Any]
    ) -> Any:
        assert position is not None
        real, imaginary = position
        turns = torch.complex(real, imaginary)
        return self.stock(hidden, past_key_values=cache, position_embeddings=turns, **options)


class Llama4Layer(ComplexLayer):
    """A layer of Llama 4, which takes the number of earlier positions from the cache.

    It scales queries by it from `floor_scale` positions on; the adapter allows fewer positions.
    """

    def translate(
        self, hidden: Tensor, cache: Any, position: Rotation | None, options: dict[str, Any]
    ) -> Any:
        cache = None if cache is None else _WithoutLength(cache)
        return super().translate(hidden, cache, position, options)


class _WithoutLength:
    """A KV cache that says it has no earlier positions."""

    def __init__(self, cache: Any) -> None:
        self.update = cache.update

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0
