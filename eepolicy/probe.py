"""Layer-wise analysis: one teacher-forced pass, a readout at every depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eepolicy.heads.base import ExitHead
from eepolicy.modality import ChunkClock
from eepolicy.model.hooked import HookedModel


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """What every layer says of every token of a reply.

    Attributes:
        modality: (tokens,) of the places, see `Modality`.
        top1: (depths, tokens) likeliest token, depth 1 first.
        entropy: (depths, tokens) in nats.
        confidence: (depths, tokens) probability of the likeliest token.
    """

    modality: NDArray[np.int64]
    top1: NDArray[np.int64]
    entropy: NDArray[np.float32]
    confidence: NDArray[np.float32]

    def agreement(self) -> NDArray[np.bool_]:
        """Where a depth's likeliest token is the last layer's: (depths, tokens)."""
        return self.top1 == self.top1[-1]

    def __repr__(self) -> str:
        return f"ProbeResult({self.top1.shape[0]} depths, {self.top1.shape[1]} tokens)"


@torch.no_grad()
def probe(
    model: HookedModel, prompt: str | Tensor, reply: Tensor, heads: ExitHead | None = None
) -> ProbeResult:
    """Read every depth out, at every token of a reply, with the reply itself as history.

    Args:
        model: whose layers are probed.
        prompt: a question in text, or ids (tokens,).
        reply: (tokens,) ids, such as `Output.tokens`.
        heads: the exit heads; the model's own where none are given.

    Returns:
        Statistics of the distribution *from which* each token of the reply came.
    """
    ids = model.encode(prompt)
    places, clock = [], ChunkClock(model.layout)
    for token in reply.tolist():
        places.append(int(clock.modality))
        if token != model.layout.end:
            clock.advance(token)
    whole = torch.cat([ids, reply])[None].to(model.model.device)
    heads = heads or model.heads
    top1, entropy, confidence = [], [], []
    for depth, hidden in enumerate(model.hidden_states(whole), start=1):
        # the token at t + 1 is read out at t
        states = hidden[0, len(ids) - 1 : -1]
        head = model.lens if depth == model.depth else heads
        logs = head.logits(states, depth).float().log_softmax(-1)
        top1.append(logs.argmax(-1))
        entropy.append(-(logs.exp() * logs).sum(-1))
        confidence.append(logs.amax(-1).exp())
    return ProbeResult(
        modality=np.array(places),
        top1=torch.stack(top1).cpu().numpy(),
        entropy=torch.stack(entropy).cpu().numpy(),
        confidence=torch.stack(confidence).cpu().numpy(),
    )
