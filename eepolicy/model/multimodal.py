"""Prompts of multimodal models as embeddings, made by the stock model's own code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError
from eepolicy.model.families.decoder import decoder_of

#: arguments of decoders that the layer loop replaces
_USED = {"attention_mask", "cache_position", "inputs_embeds", "position_ids"}


class _Reached(Exception):
    """Raised when the stock model calls its decoder."""


def prompt_embeddings(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """The embeddings that a multimodal model gives to its decoder.

    The stock model encodes audio and images and puts them among the embeddings of the text.  It
    stops where it calls its decoder, so no decoder layer runs.  Pass the result to
    `HookedModel.generate` as `inputs_embeds`, with the same `attention_mask`.

    Args:
        model: a stock multimodal model.
        **inputs: what its processor returns: `input_ids`, `attention_mask`, `input_features`,
            `pixel_values` and so on, padded on the left.

    Returns:
        (rows, tokens, width).

    Raises:
        EepolicyError: the decoder would get positions that are not consecutive, or a mask that
            looks ahead, as some models have for images.  The layer loop has neither.
    """
    return embeddings_into(decoder_of(model).inner, model, inputs)


@torch.no_grad()
def embeddings_into(decoder: nn.Module, model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    """The embeddings that a stock model gives to one of its decoders.

    Args:
        decoder: the decoder.
        model: the stock model.
        inputs: arguments of its forward pass.

    Returns:
        (rows, tokens, width).

    Raises:
        EepolicyError: see `prompt_embeddings`.
    """
    reached: dict[str, Any] = {}

    def stop(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        reached.update(options)
        raise _Reached

    handle = decoder.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**inputs)
    except _Reached:
        pass
    finally:
        handle.remove()
    embeddings = reached.get("inputs_embeds")
    if not isinstance(embeddings, Tensor):
        raise EepolicyError(
            f"{type(model).__name__} gives its decoder no embeddings; pass ids instead"
        )
    unused = sorted(
        k for k, v in reached.items() if isinstance(v, (Tensor, list)) and k not in _USED
    )
    if unused:
        raise EepolicyError(
            f"the decoder of {type(model).__name__} also reads {', '.join(unused)}, which the "
            "layer loop does not have: use prompts in text"
        )
    mask = inputs.get("attention_mask")
    _check_positions(reached.get("position_ids"), mask, embeddings)
    _check_masks(reached.get("attention_mask"))
    return embeddings


def _check_positions(positions: Tensor | None, mask: Tensor | None, embeddings: Tensor) -> None:
    """Refuse positions other than 0, 1, 2 and so on from the first token of each row."""
    if positions is None:
        return
    valid = embeddings.new_ones(embeddings.shape[:2], dtype=torch.long) if mask is None else mask
    consecutive = valid.cumsum(1) - 1
    # some models start at the first column, which shifts all positions of a padded row
    shift = (positions - consecutive) * valid
    first = shift.gather(-1, valid.argmax(1, keepdim=True).expand(*shift.shape[:-1], 1))
    if bool(((shift - first * valid) != 0).any()):
        raise EepolicyError(
            "the model gives audio or images positions in several dimensions, and the layer loop "
            "has one position for each token: use prompts in text"
        )


def _check_masks(masks: Any) -> None:
    """Refuse masks that let a position attend to later ones."""
    for mask in masks.values() if isinstance(masks, dict) else (masks,):
        if isinstance(mask, Tensor) and mask.ndim == 4:
            visible = mask if mask.dtype == torch.bool else mask == 0
            if bool(visible.triu(1 + visible.shape[3] - visible.shape[2]).any()):
                raise EepolicyError(
                    "images attend to later positions in this model, and the layer loop is "
                    "causal: use prompts in text"
                )
