"""Conformance checks of model families."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from eepolicy.decode.acceptance import AcceptAll, AcceptExact
from eepolicy.decode.fills import CatchUp
from eepolicy.errors import WithLine
from eepolicy.hooked import HookedModel
from eepolicy.model.families import FAMILIES, SLIDING, Adapter, parts_of
from eepolicy.policies import FullDepth
from eepolicy.prompts import pad_left
from eepolicy.testing.configs import small_config
from eepolicy.testing.decoding import (
    NEW_TOKENS,
    TOLERANCE,
    ScatteredDepths,
    check_cache,
    check_decoding,
)
from eepolicy.testing.models import PROMPTS, random_model
from eepolicy.testing.report import require

#: prompts of one length: a batch of them has no padding, and its rows share a mask
EQUAL_PROMPTS = tuple(torch.tensor(ids) for ids in ([8, 31, 12, 50], [44, 3, 21, 9]))
#: windows of the checked config are at most this long, so that texts beyond them stay short
MAX_WINDOW = 64

#: precision of stock models that do not run in float64
_DTYPES = {"xglm": torch.float32}


def check_family(config: PreTrainedConfig | str, adapter: Adapter | None = None) -> None:
    """Check the adapter of a model family on a small random model.

    The model gets random norms and biases and runs in float64.  The checks compare its logits with
    the stock forward beyond every sliding window, and ragged batches with catch-up with the stock
    model's logits, keys and values.

    Args:
        config: config of a small model of the family, with 3 or more layers; windows of 64
            positions or fewer.  A model type stands for `small_config(model_type, layers=3)`.
        adapter: adapter to check; the registered one by default.

    Raises:
        AssertionError: with the model type, the check and what was seen.
        EepolicyError: the family has no adapter, or its parts do not fit.

    Examples:
        >>> check_family("llama")
    """
    config = small_config(config, layers=3) if isinstance(config, str) else config
    family = config.model_type
    model = random_model(config, dtype=_DTYPES.get(family, torch.float64))
    line = f"The model family {family!r} fails a check with this error."
    with WithLine(lambda: line, unless=AssertionError):
        hooked = HookedModel(model, parts=(adapter or parts_of)(model))
        window = hooked.parts.window if SLIDING in hooked.parts.attention else None
        require(
            window is None or window <= MAX_WINDOW,
            family,
            "check_config",
            f"its window is {window}; check a config with {MAX_WINDOW} or fewer",
        )
        require(
            hooked.depth >= 3,
            family,
            "check_config",
            f"it has {hooked.depth} layers; use 3 or more",
        )
        length = 3 * (window or 8) + 2
        _check_logits(family, hooked, length)
        check_cache(family, "check_catch_up", hooked, CatchUp(), columns=length)
        for policy in (FullDepth(), ScatteredDepths()):
            check_decoding(family, hooked, policy=policy)
        if model.config._attn_implementation == "eager":
            model.float()  # the stock model's masks of padding overflow in float64
        check_generate(family, hooked)


def _check_logits(family: str, hooked: HookedModel, length: int) -> None:
    """Logits of the layer loop are the stock model's."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(hooked.vocab_size, (2, length), generator=generator)
    with torch.no_grad():
        *_, last = hooked.hidden_states(ids)
        ours, stock = hooked.logits(last, hooked.depth), hooked.model(ids).logits
    error = float((ours - stock).abs().max())
    require(
        error <= TOLERANCE,
        family,
        "check_logits",
        f"logits of {length} tokens differ from the stock model's by {error:.1e} (tolerance "
        f"{TOLERANCE:.0e})",
    )


def check_generate(family: str, hooked: HookedModel) -> None:
    """Replies at full depth and verified replies are those of the stock `generate`."""
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": NEW_TOKENS}
    for prompts in (PROMPTS, EQUAL_PROMPTS):
        ids, mask = pad_left(prompts, 0)
        with torch.no_grad():
            stock = hooked.model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :]
        for accept, policy in ((AcceptAll(), FullDepth()), (AcceptExact(), ScatteredDepths())):
            replies = hooked.generate(prompts, policy, NEW_TOKENS, accept=accept)
            for row, reply in enumerate(replies):
                tokens, expected = reply.tokens.tolist(), stock[row].tolist()
                require(
                    tokens + [0] * (len(expected) - len(tokens)) == expected,
                    family,
                    "check_generate",
                    f"the reply to prompt {row} with {accept!r} is {tokens}, the stock model's "
                    f"{expected}",
                )


def text_families() -> list[str]:
    """Model types with an adapter that transformers has as causal language models."""
    named = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return [name for name in FAMILIES.names() if name in named]
