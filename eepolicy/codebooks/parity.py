"""Checks that the layer loops of both models give the logits of the stock model."""

from __future__ import annotations

import torch
from torch import Tensor

from eepolicy.codebooks.adapter import CodebookAdapter
from eepolicy.decode.parity import TOLERANCE
from eepolicy.errors import EepolicyError
from eepolicy.model.backbone import Backbone

#: frames of the check
FRAMES = 6


@torch.no_grad()
def check_backbone(adapter: CodebookAdapter, backbone: Backbone) -> None:
    """Compare the first codes' logits with those of the stock forward pass.

    Args:
        adapter: parts of the stock model.
        backbone: the backbone.

    Raises:
        EepolicyError: they differ.
    """
    codes = _random_codes(adapter, backbone, FRAMES)[None]
    *_, hidden = backbone.hidden_states(codes)
    ours = backbone.lens.logits(hidden, backbone.depth)
    _require("backbone", ours, adapter.stock_logits(codes), backbone)


@torch.no_grad()
def check_depth_decoder(adapter: CodebookAdapter, depth_decoder: Backbone, width: int) -> None:
    """Compare the logits of all other codes with those of the stock forward pass.

    Args:
        adapter: parts of the stock model.
        depth_decoder: the depth decoder.
        width: width of the backbone.

    Raises:
        EepolicyError: they differ.
    """
    codes = _random_codes(adapter, depth_decoder, 2)
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(2, width, generator=generator).to(codes.device, depth_decoder.model.dtype)
    inputs = [adapter.embed_state(states)]
    inputs += [adapter.embed_code(codes[:, i], i) for i in range(adapter.num_codebooks - 1)]
    *_, hidden = depth_decoder.hidden_states(torch.cat(inputs, 1))
    normed = depth_decoder.parts.norm(hidden)
    ours = torch.stack([head(normed[:, i + 1]) for i, head in enumerate(adapter.heads())], 1)
    stock = adapter.stock_depth_logits(states, codes)
    _require("depth decoder", ours, stock, depth_decoder)


def _random_codes(adapter: CodebookAdapter, backbone: Backbone, frames: int) -> Tensor:
    """Random frames: (frames, codebooks)."""
    generator = torch.Generator().manual_seed(0)
    # some first codes are marks that other codebooks do not have
    num_codes = min(backbone.vocab_size, adapter.num_codes)
    shape = (frames, adapter.num_codebooks)
    return torch.randint(num_codes, shape, generator=generator).to(backbone.device)


def _require(what: str, ours: Tensor, stock: Tensor, backbone: Backbone) -> None:
    ours, stock = ours.float(), stock.float()
    error = float(((ours - stock).norm(dim=-1) / stock.norm(dim=-1)).max())
    allowed = TOLERANCE.get(backbone.model.dtype, 0.0)
    if not error <= allowed:
        raise EepolicyError(
            f"the layer loop of the {what} differs from the stock {type(backbone.model).__name__} "
            f"by {error:.1e} of its logits' norm (tolerance {allowed:.0e}): the adapter of "
            f"{backbone.text_config.model_type!r} does not fit"
        )
