"""Checks that the layer loop gives the logits of the stock model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from eepolicy.decode.batch import Batch
from eepolicy.decode.block_dependence import block_dependence
from eepolicy.decode.far_cache import FarCache, far_position, limits_of
from eepolicy.errors import EepolicyError
from eepolicy.model.backbone import Backbone
from eepolicy.model.families import FULL, AdaptedLayer

#: Largest difference from the stock logits of a position, as a share of their norm, at which the
#: layer loop counts as equal.  Measured on a CPU on 94 families (not Beam): 0.0, because the loop
#: makes the same calls, and 7e-3 in bfloat16 for Bloom, whose ALiBi is a part of the mask here.
#: The tolerance is also for devices whose kernels are not deterministic.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}

#: Factor on `TOLERANCE` for the check in two blocks.  The second block runs with a mask and reads
#: the first from the cache, so its sums have another order.  Measured on the same families with
#: four layers: 1e-5 in float32, 7e-3 in bfloat16.  Rounding grows with the number of layers.
TWO_BLOCK_FACTOR = 10


@torch.no_grad()
def check_stock_logits(backbone: Backbone) -> None:
    """Compare the layer loop with the stock forward pass.

    The checks compare the readout of the stock model's own states, all layers in one block and in
    two, and one token beyond every window that the config names.

    Raises:
        EepolicyError: the logits differ.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(backbone.vocab_size, (1, 8), generator=generator).to(backbone.device)
    with _outputs_of(backbone.parts.layers[-1]) as states:
        stock = backbone.model(ids).logits
    *_, one_block = backbone.hidden_states(ids)
    half = ids.shape[1] // 2
    batch = Batch(backbone, [0], ids.shape[1])
    for tokens in ids.split(half, 1):
        block = batch.begin_block(tokens)
        batch.run(block, backbone.depth)
    # the median, because the router of a mixture of experts may decide a tie by rounding
    second = _errors(_read(backbone, block.hidden), stock[:, half:]).median().item()
    if not second <= _allowed(backbone, TWO_BLOCK_FACTOR):
        reason = block_dependence(backbone.model, ids, _error, _allowed(backbone, TWO_BLOCK_FACTOR))
        if reason is not None:
            raise EepolicyError(reason)
    if states:  # empty where another package replaces the call of the layers
        _require(backbone, "readout", _errors(_read(backbone, states[0]), stock).max().item())
    _require(backbone, "layer loop", _errors(_read(backbone, one_block), stock).max().item())
    _require(backbone, "layer loop in two blocks", second, TWO_BLOCK_FACTOR)
    position = far_position(backbone)
    if position is not None:
        ours, far_stock = far_logits(backbone, ids[:, :1], position)
        what = f"layer loop at position {position}"
        _require(backbone, what, _errors(ours, far_stock).max().item())
    _warn_of_unused_window(backbone)


def far_logits(backbone: Backbone, token: Tensor, position: int) -> tuple[Tensor, Tensor]:
    """Logits of one token after many positions: the layer loop's and the stock model's.

    Args:
        backbone: the model.
        token: (1, 1), its id.
        position: its position.

    Returns:
        (1, 1, vocab) each.
    """
    windows = limits_of(backbone)
    stock_cache, cache = FarCache(position, windows), cast(Any, FarCache(position, windows))
    stock = backbone.model(token, past_key_values=stock_cache, use_cache=True).logits
    hidden = backbone.embed(token, torch.tensor([[position]], device=token.device))
    rotations = {
        kind: tuple(part[:, position:] for part in rotation)
        for kind, rotation in backbone.rotations(position + 1).items()
    }
    masks = backbone.block_masks(1, position)
    for index in range(backbone.depth):
        hidden = backbone.run_layer(index, hidden, rotations, masks, cache)
    return _read(backbone, hidden), stock


def _warn_of_unused_window(backbone: Backbone) -> None:
    """Warn of a window in the config that the stock model ignores and its cache does not."""
    config = backbone.text_config
    window = getattr(config, "sliding_window", None)
    if window and set(backbone.parts.attention) == {FULL} and not _names_layers(config):
        warnings.warn(
            f"the config names sliding_window={window}, and {type(backbone.model).__name__} "
            "attends to all positions, so this library does too. The cache of the stock generate "
            f"drops keys beyond {window} positions nevertheless; set sliding_window = None in the "
            "config for equal tokens",
            stacklevel=4,
        )


def _names_layers(config: Any) -> bool:
    """Whether the config names the attention of each layer, which the stock cache then follows."""
    return getattr(config, "layer_types", None) is not None


def _read(backbone: Backbone, hidden: Tensor) -> Tensor:
    return backbone.lens.logits(hidden, backbone.depth)


def _errors(ours: Tensor, stock: Tensor) -> Tensor:
    """Difference at each position, as a share of the norm of the stock logits: (rows, tokens)."""
    ours, stock = ours.float().to(stock.device), stock.float()  # the last layer may be elsewhere
    errors: Tensor = (ours - stock).norm(dim=-1) / stock.norm(dim=-1)
    return errors


def _error(ours: Tensor, stock: Tensor) -> float:
    """Median of the differences at the positions of the second half."""
    half = stock.shape[1] // 2
    return _errors(ours[:, half:], stock[:, half:]).median().item()


def _allowed(backbone: Backbone, factor: int) -> float:
    return factor * TOLERANCE.get(backbone.model.dtype, 0.0)


def _require(backbone: Backbone, what: str, error: float, factor: int = 1) -> None:
    allowed = _allowed(backbone, factor)
    if not error <= allowed:
        raise EepolicyError(
            f"the {what} differs from the stock {type(backbone.model).__name__} by "
            f"{error:.1e} of its logits' norm (tolerance {allowed:.0e}): "
            "the adapter of its family does not fit"
        )


@contextmanager
def _outputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the outputs of a stock layer, (rows, tokens, width) each."""
    states: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    stock = layer.stock if isinstance(layer, AdaptedLayer) else layer
    handle = stock.register_forward_hook(keep)
    try:
        yield states
    finally:
        handle.remove()
