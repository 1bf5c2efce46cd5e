"""Overlaps the layers of the next step with the host's work on an asynchronous device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eepolicy.decode.batch import Batch
from eepolicy.decode.block import Block
from eepolicy.policies import ExitPolicy


def is_async(device: torch.device) -> bool:
    """Whether a device computes while the host continues."""
    return device.type == "cuda"


def launch_next_step(
    batch: Batch, policy: ExitPolicy, tokens: Tensor, rows: list[int]
) -> Block | None:
    """Start those layers of the next step that run for every token and every depth.

    Otherwise the device waits while the host reads the token, asks the policy, and launches the
    layers.  `ExitPolicy.min_depth` says how many layers run in any case.  The work is wasted if a
    reply ends with this token.

    Args:
        batch: batch that decodes.
        policy: exit policy.
        tokens: (rows,) ids of the new tokens, on the device.
        rows: row of each token.

    Returns:
        The block of the next step; None on a synchronous device, with a policy that reads the
        history, with a recorder, which must know to which step a layer belongs, and where the model
        may have no further position.
    """
    if not is_async(tokens.device) or batch.recorder is not None or policy.needs_history:
        return None
    limit = batch.backbone.parts.max_positions
    if limit is not None and batch.columns >= limit:
        return None  # the reply may end with this token, so another position is no error yet
    block = batch.begin_step(tokens[:, None], rows)
    batch.run(block, policy.min_depth(batch.full_depth))
    return block


def async_to_host(tokens: Tensor) -> Callable[[], list[int]]:
    """Start a copy of ids (rows,) to the host; the returned function waits for this copy only."""
    if tokens.device.type != "cuda":
        return tokens.tolist
    host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
    host.copy_(tokens, non_blocking=True)
    copied = torch.cuda.current_stream(tokens.device).record_event()

    def wait() -> list[int]:
        copied.synchronize()
        return host.tolist()

    return wait
