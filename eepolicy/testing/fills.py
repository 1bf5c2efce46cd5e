"""Conformance checks of fills."""

from __future__ import annotations

import torch

from eepolicy.decode.batch import Batch
from eepolicy.decode.batch_options import BatchOptions
from eepolicy.decode.fills import KVFill, parse_fill
from eepolicy.policies import FullDepth, Static
from eepolicy.testing.decoding import ScatteredDepths, check_cache, check_decoding
from eepolicy.testing.models import random_llama
from eepolicy.testing.report import check_constructor, instances_of, require, run_checks

LAYERS = 4


def check_fill(fill: KVFill | type[KVFill] | str) -> None:
    """Check what the decoder relies on in a fill.

    Args:
        fill: a fill, its spec string, or a class that declares spec strings; its examples are
            checked then.

    Raises:
        AssertionError: with the class, the check and what was seen.
        Exception: of the fill itself, with a line that names the check.

    Examples:
        >>> check_fill("catch_up")
    """
    for each in instances_of(fill, parse_fill):
        run_checks(each, CHECKS)


def check_pending(fill: KVFill) -> None:
    """A fill that does not declare `defers` leaves no position pending."""
    batch = Batch(random_llama(LAYERS), [0, 0], 8, BatchOptions(fill=fill))
    ids = torch.tensor([[5, 30], [7, 9]])
    with torch.no_grad():
        batch.prefill(ids[:, :1])
        block = batch.begin_step(ids[:, 1:], [0, 1])
        batch.run(block, 2)
        batch.exit(block)
    pending = [batch.num_pending(row) for row in (0, 1)]
    require(
        fill.defers or not any(pending),
        fill,
        "check_pending",
        f"{pending} positions are pending after an exit; call batch.mark_computed, or set defers",
    )


def check_exactness(fill: KVFill) -> None:
    """After a catch-up, the cache of a fill that defers is the stock model's."""
    if fill.defers:
        check_cache(fill, "check_exactness", random_llama(LAYERS), fill)


def check_decodes(fill: KVFill) -> None:
    """Replies have the policy's depths and the trace's costs; without exits they are stock."""
    for policy in (ScatteredDepths(), Static(1, on="both"), Static(2), FullDepth()):
        model = random_llama(LAYERS)
        outputs = check_decoding(fill, model, policy=policy, fill=fill)
        if isinstance(policy, FullDepth):
            for output in outputs:
                expected = model.model.generate(
                    output.prompt[None],
                    attention_mask=torch.ones(1, len(output.prompt)),
                    max_new_tokens=len(output.tokens),
                    do_sample=False,
                )[0, len(output.prompt) :]
                require(
                    output.tokens.tolist() == expected.tolist(),
                    fill,
                    "check_decodes",
                    f"without exits the reply is {output.tokens.tolist()}, the stock model's "
                    f"{expected.tolist()}",
                )


CHECKS = (check_constructor, check_pending, check_exactness, check_decodes)
