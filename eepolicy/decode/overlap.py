"""What a device can be told of the next token before the host knows it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eepolicy.decode.batch import Batch, Block
from eepolicy.policies import ExitPolicy


def is_async(device: torch.device) -> bool:
    """Whether a device goes on while the host does something else."""
    return device.type == "cuda"


def start(batch: Batch, policy: ExitPolicy, tokens: Tensor, rows: list[int]) -> Block | None:
    """Start the layers that every position runs, whatever the token turns out to be.

    A device that works by itself would wait while the host learns the token, asks the policy and
    tells it the next layers.  It is therefore told those that no policy can leave away, see
    `ExitPolicy.min_depth`, before the host has looked.  Where a reply ends with the token, they
    were for nothing.

    Args:
        batch: of the rows.
        policy: that says how deep they go.
        tokens: (rows,) that were drawn, on the device.
        rows: of the batch, that they are of.

    Returns:
        The block of the next step, on its way; None where that is not worth while, or a record is
        kept, which tells what a step did.
    """
    if not is_async(tokens.device) or batch.recorder is not None:
        return None
    block = batch.enter(tokens[:, None], rows)
    batch.run(block, policy.min_depth(batch.model.depth))
    return block


def async_to_host(tokens: Tensor) -> Callable[[], list[int]]:
    """A function that gives tokens to the host, and waits for no more than them."""
    if tokens.device.type != "cuda":
        return tokens.tolist
    host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
    host.copy_(tokens, non_blocking=True)
    there = torch.cuda.current_stream(tokens.device).record_event()

    def wait() -> list[int]:
        there.synchronize()
        return host.tolist()

    return wait
