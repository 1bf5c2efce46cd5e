"""Plain early exit on CSM: stock forward passes over all positions, without a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Frame:
    """One frame of the plain loop: its codes, -1 where missing, and the depth of each code."""

    codes: list[int]
    depths: list[int]


#: chooses a depth from the logits at each depth, (codes,) each, depth 1 first
Chooser = Callable[[int, int, list[Tensor]], int]
#: whether a frame stops after a code, from its logits (codes,): frame, codes so far, logits
Stopper = Callable[[int, int, Tensor], bool]


@torch.no_grad()
def plain_reply(
    model,
    ids: Tensor,
    frames: int,
    depth: Chooser,
    stops: Stopper = lambda *_: False,
    missing: Callable[[list[int]], list[int]] = lambda previous: [-1] * len(previous),
) -> list[Frame]:
    """Decode greedily.

    Args:
        model: the stock CSM.
        ids: prompt (tokens,).
        frames: number of frames; no reply ends earlier.
        depth: depth of a code; its first arguments are the frame and the codebook.
        stops: whether a frame gets no further code.
        missing: codes of a frame that are filled in, from the frame before.
    """
    config = model.config
    inputs = model.embed_text_tokens(ids)[None]
    reply, previous = [], [-1] * config.num_codebooks
    for number in range(frames):
        hidden = model.backbone_model(inputs_embeds=inputs, output_hidden_states=True).hidden_states
        states = [*(model.backbone_model.norm(h[0, -1]) for h in hidden[1:-1]), hidden[-1][0, -1]]
        logits = [model.lm_head(state) for state in states]
        chosen = depth(number, 0, logits)
        frame = Frame([int(logits[chosen - 1].argmax())], [chosen])
        newest, state = logits[chosen - 1], states[chosen - 1]
        while len(frame.codes) < config.num_codebooks and not stops(
            number, len(frame.codes), newest
        ):
            logits = depth_logits(model, state, frame.codes)
            chosen = depth(number, len(frame.codes), logits)
            newest = logits[chosen - 1]
            frame.codes.append(int(newest.argmax()))
            frame.depths.append(chosen)
        count = len(frame.codes)
        frame.codes += missing(previous)[count:]
        previous = frame.codes
        reply.append(frame)
        codes = torch.tensor(frame.codes)
        offsets = torch.arange(config.num_codebooks) * config.vocab_size
        embedded = model.backbone_model.embed_tokens.embed_audio_tokens(
            (codes + offsets)[codes >= 0]
        )
        inputs = torch.cat([inputs, embedded.sum(0)[None, None]], 1)
    return reply


def depth_logits(model, state: Tensor, codes: list[int]) -> list[Tensor]:
    """Logits of the next code at each depth of the depth decoder, (codes,) each."""
    decoder = model.depth_decoder.model
    offsets = torch.arange(len(codes)) * model.config.vocab_size
    embedded = decoder.embed_tokens(torch.tensor(codes) + offsets)
    inputs = torch.cat([state[None], embedded])[None]
    hidden = decoder(inputs_embeds=inputs, output_hidden_states=True).hidden_states
    states = [*(decoder.norm(h[0, -1]) for h in hidden[1:-1]), hidden[-1][0, -1]]
    weight = model.depth_decoder.codebooks_head.weight[len(codes) - 1]
    return [each @ weight for each in states]
