"""Fit tuned-lens translators on the model's own full-depth replies, all depths in one pass."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.heads.tuned import TunedLens
from eepolicy.model.hooked import HookedModel


@dataclass(frozen=True)
class Reply:
    """A prompt and the reply that the model gave to it at full depth.

    Attributes:
        prompt: (tokens,) ids.
        tokens: (tokens,) ids of the reply.
    """

    prompt: Tensor
    tokens: Tensor


def own_replies(
    model: HookedModel,
    questions: Sequence[str],
    max_new_tokens: int = 300,
    batch: int = 32,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Reply]:
    """The model's greedy full-depth replies.

    Args:
        model: with tokenizer and layout.
        questions: in text.
        max_new_tokens: most tokens of a reply.
        batch: questions at a time.
        progress: wraps the batches, to show them.
    """
    prompts = sorted((model.encode(q) for q in questions), key=len)
    replies = []
    for start in progress(range(0, len(prompts), batch)):
        part = prompts[start : start + batch]
        outs = model.generate(part, max_new_tokens=max_new_tokens)
        replies += [Reply(p, out.tokens) for p, out in zip(part, outs, strict=True)]
    return replies


@torch.no_grad()
def _states(model: HookedModel, reply: Reply) -> Tensor:
    """Hidden states from which the reply's tokens were read out: (depths, tokens, width)."""
    whole = torch.cat([reply.prompt, reply.tokens])[None]
    states = [h[0, len(reply.prompt) - 1 : -1] for h in model.hidden_states(whole)]
    return torch.stack(states)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum p log q against the last layer's distribution p (SPAR-K, the loss of its heads).

    Args:
        logits: (..., vocabulary) of a head.
        target: (..., vocabulary), the probabilities of the last layer.

    Returns:
        (...,) in nats.
    """
    return logits.logsumexp(-1) - (target * logits).sum(-1)


@torch.no_grad()
def evaluate(
    model: HookedModel, heads: TunedLens, replies: Sequence[Reply]
) -> dict[str, list[float]]:
    """Loss above the last layer's own entropy (that is, KL, nats) and agreement, by depth.

    Returns:
        `"kl"` and `"agreement"`, one number a depth below full.
    """
    depths = model.depth - 1
    kl, agree, tokens = torch.zeros(depths), torch.zeros(depths), 0
    for reply in replies:
        states = _states(model, reply)
        last = model.lens.logits(states[-1], model.depth)
        target = last.softmax(-1)
        floor = soft_cross_entropy(last, target)
        tokens += len(target)
        for depth in range(1, model.depth):
            logits = heads.logits(states[depth - 1], depth)
            kl[depth - 1] += (soft_cross_entropy(logits, target) - floor).sum()
            agree[depth - 1] += (logits.argmax(-1) == target.argmax(-1)).sum()
    return {"kl": (kl / tokens).tolist(), "agreement": (agree / tokens).tolist()}


def fit_tuned(
    model: HookedModel,
    train: Sequence[Reply],
    held_out: Sequence[Reply],
    *,
    epochs: int = 3,
    batch_tokens: int = 512,
    learning_rate: float = 1e-3,
    seed: int = 0,
    report: Callable[[str], None] = lambda _: None,
) -> tuple[TunedLens, dict[str, dict[str, list[float]]]]:
    """Fit a translator for every depth; the backbone stays as it is.

    Soft-label cross-entropy against the last layer on the model's own replies, text and speech
    positions alike.  A depth whose translator is no better than the plain lens on the held-out
    replies gets the plain lens.

    Args:
        model: whose depths are fitted.
        train: replies to fit on.
        held_out: replies to judge by.
        epochs: passes over the training replies.
        batch_tokens: about so many tokens a step.
        learning_rate: highest; falls to zero along a cosine.
        seed: of the order.
        report: gets a line now and then.

    Returns:
        The heads, and `"before"` and `"after"` as `evaluate` gives them on the held-out replies.

    Raises:
        EepolicyError: there are no replies.
    """
    if not train or not held_out:
        raise EepolicyError("fitting heads takes replies to fit on and replies to judge by")
    depths, width = model.depth - 1, model.model.config.hidden_size
    heads = TunedLens.identity(model.lens, depths, width)
    before = evaluate(model, heads, held_out)
    rng = random.Random(seed)
    per_batch = max(1, round(batch_tokens / (sum(len(r.tokens) for r in train) / len(train))))
    steps = epochs * -(-len(train) // per_batch)
    optimiser = torch.optim.Adam([heads.weight, heads.bias], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    requires = [(p, p.requires_grad) for p in model.model.parameters()]
    for parameter, _ in requires:
        parameter.requires_grad_(False)
    try:
        for epoch in range(epochs):
            order = rng.sample(range(len(train)), len(train))
            for start in range(0, len(order), per_batch):
                states = torch.cat(
                    [_states(model, train[i]) for i in order[start : start + per_batch]], 1
                )
                target = model.lens.logits(states[-1], model.depth).softmax(-1)
                total = 0.0
                for depth in range(1, model.depth):
                    # one depth's logits at a time: memory holds tokens x vocabulary, not x depths
                    loss = soft_cross_entropy(heads.logits(states[depth - 1], depth), target).mean()
                    loss.backward()
                    total += loss.item()
                optimiser.step()
                optimiser.zero_grad()
                schedule.step()
                if start // per_batch % 20 == 0:
                    report(f"epoch {epoch + 1}, reply {start}: mean loss {total / depths:.4f}")
    finally:
        for parameter, needed in requires:
            parameter.requires_grad_(needed)
    after = evaluate(model, heads, held_out)
    with torch.no_grad():
        for i, (plain, fitted) in enumerate(zip(before["kl"], after["kl"], strict=True)):
            if fitted >= plain:
                heads.weight[i], heads.bias[i] = 0.0, 0.0
                after["kl"][i], after["agreement"][i] = plain, before["agreement"][i]
    heads.weight.requires_grad_(False)
    heads.bias.requires_grad_(False)
    return heads, {"before": before, "after": after}
