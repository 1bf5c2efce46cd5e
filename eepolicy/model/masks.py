"""Attention masks of a block of new columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eepolicy.heads.weights import device_of
from eepolicy.model.families import CHUNKED, SLIDING, DecoderParts


@dataclass(frozen=True)
class MaskForm:
    """What the masks of a model depend on.

    Attributes:
        parts: parts of the model: its windows, and the bias of its keys.
        model: the stock model.  Its dtype and its device are read where a mask is made: they take
            longer than the check that none is needed.
        attention: `"sdpa"`, whose masks are of bool, or `"eager"`, whose masks are additive.
    """

    parts: DecoderParts
    model: PreTrainedModel
    attention: str


@dataclass(frozen=True, eq=False)
class BlockColumns:
    """The columns that a block of new columns sees; attributes as in `Backbone.block_masks`."""

    tokens: int
    start: int
    valid: Tensor | None = None  # (rows, start + tokens)
    positions: Tensor | None = None  # (rows, start + tokens)


def block_mask(form: MaskForm, kind: str, columns: BlockColumns) -> Tensor | None:
    """The mask of one kind of attention.

    Args:
        form: what masks of the model depend on.
        kind: kind of attention.
        columns: columns of the block, and those before it.

    Returns:
        (rows or 1, 1 or heads, tokens, start + tokens), or None; see `Backbone.block_masks`.
    """
    tokens, start, valid, positions = (
        columns.tokens,
        columns.start,
        columns.valid,
        columns.positions,
    )
    stop = start + tokens
    reach = {SLIDING: form.parts.window, CHUNKED: form.parts.chunk}.get(kind)
    is_eager, bias = form.attention == "eager", form.parts.key_bias
    is_causal_without = bias is None and (tokens == 1 or (start == 0 and not is_eager))
    if is_causal_without and valid is None and (reach is None or stop <= reach):
        return None
    device = device_of(form.model) if valid is None else valid.device
    every = torch.arange(stop, device=device)
    own = every[start:, None]
    visible = (every <= own)[None]
    if positions is None:
        positions = every[None]
    if reach is not None:
        new, old = positions[:, start:, None], positions[:, None]
        near = new // reach == old // reach if kind == CHUNKED else new - old < reach
        visible = visible & near
    if valid is not None:
        visible = (visible & valid[:, None]) | (every == own)
    visible = visible[:, None]
    if bias is None and not is_eager:
        return visible
    dtype = form.model.dtype
    summand = torch.zeros((), dtype=dtype, device=device)
    if bias is not None:
        summand = bias(positions)[:, :, None].to(dtype)
    return torch.where(visible, summand, torch.finfo(dtype).min)
