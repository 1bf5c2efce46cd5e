"""Whether the stock model itself gives other logits when a text comes in several blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eepolicy.heads.weights import quantised_types


@torch.no_grad()
def block_dependence(
    model: PreTrainedModel, ids: Tensor, error: Callable[[Tensor, Tensor], float], allowed: float
) -> str | None:
    """Why a catch-up cannot be exact on a quantised model; None where it can, or for other models.

    Some quantised layers have one scale for the activations of a whole call.  Their output at a
    position then depends on the positions that run in the same call.

    Args:
        model: stock model.
        ids: (1, tokens).
        error: difference of logits from those of one block.
        allowed: largest difference of equal logits.

    Returns:
        A sentence for an error.
    """
    if not (kinds := quantised_types(model)):
        return None
    whole = model(ids).logits
    parts, cache = [], None
    for tokens in ids.split(max(1, ids.shape[1] // 2), 1):
        out = model(tokens, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    difference = error(torch.cat(parts, 1), whole)
    if not difference > allowed:  # also where logits are NaN
        return None
    return (
        f"the stock {type(model).__name__} itself gives other logits when the same text comes in "
        f"two blocks ({difference:.1e} of their norm, allowed {allowed:.0e}). Its "
        f"quantised modules are {', '.join(kinds)}. A position that is caught up in another block "
        "would not get the stock model's states. Load the model without quantised activations, for "
        "example with weight-only int8, nf4, or llm_int8_threshold=0.0 of bitsandbytes"
    )
