"""Whole decodes on small random models, compared with the stock model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from eepolicy.decode.acceptance import AcceptAll, Acceptance
from eepolicy.decode.batch import Batch
from eepolicy.decode.batch_options import BatchOptions
from eepolicy.decode.fills import CatchUp, KVFill
from eepolicy.decode.output import Output
from eepolicy.decode.step import run_step
from eepolicy.hooked import HookedModel
from eepolicy.policies import ExitPolicy, FullDepth, Step
from eepolicy.testing.models import PROMPTS, LayerCounter
from eepolicy.testing.report import require

#: tokens of a reply: more than a chunk of text and one of speech
NEW_TOKENS = 12
#: Largest difference of logits, keys and values in float64.  Measured on ten families: 1e-14, and
#: 6e-7 for Gemma 2, whose eager attention computes its softmax in float32.  The logits have a
#: spread of 2, and mistakes change them by more than 1e-2.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class ScatteredDepths(ExitPolicy):
    """A depth that changes with each position, so that many layers have pending positions."""

    offset: int = 3

    def depths(self, step: Step) -> Tensor:
        return 1 + (7 * step.position + self.offset) % step.full_depth


def check_decoding(
    plugin: object,
    model: HookedModel,
    *,
    policy: ExitPolicy,
    fill: KVFill | None = None,
    accept: Acceptance | None = None,
    new_tokens: int = NEW_TOKENS,
) -> list[Output]:
    """Check decodes of ragged prompts, one at a time and as a batch.

    Args:
        plugin: object that the sentences name.
        model: a hooked random model.
        policy: exit policy.
        fill: fill; exact catch-up by default.
        accept: acceptance rule; `all` by default.
        new_tokens: largest number of tokens of a reply.

    Returns:
        The replies, decoded one at a time.

    Raises:
        AssertionError: with what was seen.
    """
    fill, accept = fill or CatchUp(), accept or AcceptAll()

    def generate(prompts: Sequence[Tensor]) -> list[Output]:
        return model.generate(prompts, policy, new_tokens, fill, accept)

    outputs = []
    for prompt in PROMPTS:
        with LayerCounter(model.model, model.heads) as counter:
            [output] = generate([prompt])
        _check_costs(plugin, output, counter, policy)
        if fill.defers:
            check_full_depth_tokens(plugin, model, output)
        outputs.append(output)
    for row, (alone, together) in enumerate(zip(outputs, generate(PROMPTS), strict=True)):
        for column in ("token", "depth", "draft_status"):
            one, other = getattr(alone.trace, column), getattr(together.trace, column)
            require(
                one.tolist() == other.tolist(),
                plugin,
                "check_batch",
                f"{column} of prompt {row} alone is {one.tolist()}, in a batch {other.tolist()}",
            )
    return outputs


def _check_costs(plugin: object, output: Output, counter: LayerCounter, policy: ExitPolicy) -> None:
    """The trace has the layer calls and depths that hooks on the layers count."""
    trace, check = output.trace, "check_costs"
    counted = len(counter.calls) + len(counter.branch_calls) - trace.prefill_layer_calls
    in_trace = int(trace.layer_calls.sum() + trace.filled.sum())
    require(
        counted == in_trace,
        plugin,
        check,
        f"the trace has {in_trace} layer calls, but {counted} ran",
    )
    branch_calls = int(trace.branch_calls.sum())
    require(
        branch_calls == len(counter.branch_calls),
        plugin,
        check,
        f"the trace has {branch_calls} branch calls, but {len(counter.branch_calls)} ran",
    )
    if not policy.needs_full_pass and not trace.filled.any() and not trace.draft_status.any():
        depths = counter.depths(trace.prefill_layer_calls)
        require(
            depths == trace.depth.tolist(),
            plugin,
            check,
            f"the trace has depths {trace.depth.tolist()}, but layers ran to {depths}",
        )


def stock_scores(model: HookedModel, output: Output) -> Tensor:
    """Logits of the stock model at each token of a reply, on the same prefix: (tokens, vocab)."""
    ids = torch.cat([output.prompt, output.tokens])
    with torch.no_grad():
        logits: Tensor = model.model(ids[None]).logits[0]
    return logits[len(output.prompt) - 1 : -1]


def check_full_depth_tokens(plugin: object, model: HookedModel, output: Output) -> None:
    """Tokens at full depth are the stock model's on the same prefix."""
    full = torch.from_numpy(output.trace.depth == model.depth)
    expected = stock_scores(model, output).argmax(-1)
    wrong = full & (output.tokens != expected)
    require(
        not bool(wrong.any()),
        plugin,
        "check_full_depth_tokens",
        f"at full depth the tokens {output.tokens[full].tolist()} differ from the stock model's "
        f"{expected[full].tolist()} on the same prefix",
    )


def check_cache(
    plugin: object, check: str, model: HookedModel, fill: KVFill, columns: int = 16
) -> None:
    """After scattered exits and one step at full depth, logits and cache are the stock model's.

    Args:
        plugin: object that the sentences name.
        check: name of the check.
        model: a hooked random model in float64.
        fill: a fill that defers.
        columns: number of columns of the batch.
    """
    padding, rows = [3, 0, 1], [0, 1, 2]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.vocab_size, (3, columns), generator=generator)
    batch = Batch(model, padding, columns, BatchOptions(fill=fill))
    zero = torch.zeros(3, dtype=torch.long)
    with torch.no_grad():
        batch.prefill(ids[:, :4])
        for column in range(4, columns - 1):
            position = torch.tensor(rows) * 2 + column
            step = Step(zero + 1, zero, position, position, position, model.depth)
            run_step(batch, ids[:, column : column + 1], rows, ScatteredDepths(), step)
        logits = run_step(batch, ids[:, -1:], rows, FullDepth(), step).logits
        for row in rows:
            require(
                batch.num_pending(row) == 0,
                plugin,
                check,
                f"{batch.num_pending(row)} positions are pending after a step at full depth",
            )
            cache = DynamicCache()
            own = ids[row : row + 1, padding[row] :]
            stock = model.model(own, past_key_values=cache, use_cache=True).logits[0, -1]
            _check_close(plugin, check, f"logits of row {row}", logits[row], stock)
            for index, layer in enumerate(cache.layers):
                for name, ours, theirs in zip(
                    ("keys", "values"),
                    batch.cache.layer(index, columns),
                    (layer.keys, layer.values),
                    strict=True,
                ):
                    # a sliding layer of the stock cache has its window only
                    ours = ours[row, :, padding[row] :][:, -theirs.shape[2] :]
                    what = f"{name} of row {row} in layer {index}"
                    _check_close(plugin, check, what, ours, theirs[0])


def _check_close(plugin: object, check: str, what: str, ours: Tensor, theirs: Tensor) -> None:
    error = float((ours - theirs).abs().max())
    require(
        error <= TOLERANCE,
        plugin,
        check,
        f"{what} differ from the stock model's by {error:.1e} (tolerance {TOLERANCE:.0e})",
    )
