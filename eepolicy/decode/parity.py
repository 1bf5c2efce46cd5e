"""Checks that the layer loop gives the logits of the stock model."""

from __future__ import annotations

import torch
from torch import Tensor

from eepolicy.decode.batch import Batch
from eepolicy.decode.block_dependence import block_dependence
from eepolicy.errors import EepolicyError
from eepolicy.model.backbone import Backbone

#: Largest difference from the stock logits, as a share of their standard deviation, at which the
#: layer loop counts as equal.  Measured on ten families on a CPU: 0.0, because the loop makes the
#: same calls.  The tolerance is for devices whose kernels are not deterministic.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-5, torch.bfloat16: 1e-1, torch.float16: 2e-2}

#: Factor on `TOLERANCE` for the check in two blocks.  The second block runs with a mask and reads
#: the first from the cache.  Measured on the ten families: 0.0, and 2e-6 with Gemma 2's eager
#: attention in float32.  A layer that ignores its mask differs by several standard deviations.
TWO_BLOCK_FACTOR = 10


@torch.no_grad()
def check_stock_logits(backbone: Backbone) -> None:
    """Compare the layer loop with the stock forward pass, in one block and in two.

    Raises:
        EepolicyError: the logits differ.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(backbone.vocab_size, (1, 8), generator=generator).to(backbone.device)
    stock = backbone.model(ids).logits
    *_, one_block = backbone.hidden_states(ids)
    batch, blocks = Batch(backbone, [0], ids.shape[1]), []
    for tokens in ids.split(4, 1):
        block = batch.begin_block(tokens)
        batch.run(block, backbone.depth)
        blocks.append(block.hidden)
    tolerance = TOLERANCE.get(backbone.model.dtype, 0.0)
    for states, allowed in (
        (one_block, tolerance),
        (torch.cat(blocks, 1), TWO_BLOCK_FACTOR * tolerance),
    ):
        logits = backbone.lens.logits(states, backbone.depth)
        error = _share(logits, stock)
        if not error <= allowed:
            reason = block_dependence(backbone.model, ids, _share, TWO_BLOCK_FACTOR * tolerance)
            raise EepolicyError(
                reason
                or f"the layer loop differs from the stock {type(backbone.model).__name__} by "
                f"{error:.1e} of its logits' standard deviation (tolerance {allowed:.0e}): "
                "the adapter of its family does not fit"
            )


def _share(logits: Tensor, stock: Tensor) -> float:
    """Largest difference as a share of the standard deviation of stock logits; shapes are equal."""
    return ((logits - stock).abs().max() / stock.std()).item()
