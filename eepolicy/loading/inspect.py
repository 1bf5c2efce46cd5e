"""Check what a checkpoint is, whether it is complete, and how much memory it takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CsmForConditionalGeneration,
    PreTrainedConfig,
)

from eepolicy.errors import EepolicyError
from eepolicy.loading.auto import UPSTREAM
from eepolicy.loading.cards import shipped_cards
from eepolicy.loading.convert import AUDIO_ENCODER_FOLDER, CARD
from eepolicy.loading.findings import (
    Finding,
    finding_of,
    inspect_additions,
    inspect_spoken,
    inspect_weights,
)
from eepolicy.loading.huggingface import (
    READ_ERRORS,
    check_config,
    has_tokenizer,
    read_config,
    read_tokenizer,
)
from eepolicy.loading.streams import CODEBOOK_MODELS, refusal
from eepolicy.loading.upstream.checkpoint import load_native, read_shapes
from eepolicy.model.families import FAMILIES
from eepolicy.model.kv_cache import numbers_per_token
from eepolicy.speech.model_card import ModelCard


def inspect(folder: Path) -> Iterator[Finding]:
    """Check a checkpoint, with one weight in memory at a time.

    Args:
        folder: folder of the checkpoint.

    Yields:
        A finding each on config, weights, memory, tokenizer and cards.
    """
    try:
        config = read_config(folder / "config.json")
        check_config(config, folder / "config.json")
    except EepolicyError as error:
        yield Finding(False, str(error))
        return
    upstream = UPSTREAM.get(config.get("model_type", ""))
    if upstream is None:
        yield from _inspect_stock(folder, config)
        return
    module, name = upstream
    yield Finding(True, f"{name} in its authors' layout")
    try:
        model = load_native(module.native(config), folder, torch.bfloat16, read_shapes)
        yield Finding(True, "the weights are complete, and each belongs to the model")
        decoder: Any = getattr(model, "decoder", model)
        yield _memory(sum(p.numel() for p in model.parameters()), decoder.config)
        vocabulary = decoder.config.vocab_size
        shipped_cards()[name].layout(module.read_tokenizer(folder), vocabulary)
        yield Finding(True, f"the tokenizer has all tokens of the card {name}")
    except EepolicyError as error:
        yield Finding(False, str(error))


def _inspect_stock(folder: Path, config: dict[str, Any]) -> Iterator[Finding]:
    """Findings on a checkpoint in Hugging Face format."""
    family, reason = config.get("model_type"), refusal(config)
    if reason is not None:
        yield Finding(False, reason)
        return
    if family in CODEBOOK_MODELS:
        yield Finding(True, f"{family}, with several codebooks: load it with load_codebooks")
    elif family in FAMILIES:
        yield Finding(True, f"{family} in Hugging Face format, a family with an adapter")
    else:
        supported = ", ".join(sorted(FAMILIES.names()))
        yield Finding(False, f"model type {family!r} has no adapter; supported are {supported}")
    try:
        parts = [folder, *(f for f in [folder / AUDIO_ENCODER_FOLDER] if f.is_dir())]
        weights = sum(tensor.numel() for part in parts for _, _, tensor in read_shapes(part))
        stock = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        yield _memory(weights, stock)
        several = family in CODEBOOK_MODELS
        kind = CsmForConditionalGeneration if several else AutoModelForCausalLM
        yield from inspect_weights(folder, kind)
    except (EepolicyError, *READ_ERRORS) as error:
        yield Finding(False, str(error))
    yield from inspect_additions(folder, config)
    if family in CODEBOOK_MODELS:
        if not has_tokenizer(folder):
            yield Finding(True, "no tokenizer: prompts must be ids")
    elif CARD in config:
        with_card = ModelCard.from_dict
        yield finding_of(lambda: f"its config has the card {with_card(config[CARD], CARD).name}")
    elif "speech_layout" in config:
        yield finding_of(lambda: inspect_spoken(folder, config))
    elif not has_tokenizer(folder):
        yield Finding(True, "no tokenizer: prompts must be ids")
    else:
        yield from _inspect_cards(folder, config)


def _inspect_cards(folder: Path, config: dict[str, Any]) -> Iterator[Finding]:
    """A finding on the shipped cards whose tokens the tokenizer has."""
    try:
        tokenizer = read_tokenizer(folder)
    except EepolicyError as error:
        yield Finding(False, str(error))
        return

    def fits(card: ModelCard) -> bool:
        try:
            card.layout(tokenizer, config.get("vocab_size", 0))
        except EepolicyError:
            return False
        return card.model_type == config.get("model_type")

    fitting = [name for name, card in shipped_cards().items() if fits(card)]
    if fitting:
        yield Finding(True, f"a speech model with a card: load it with card={fitting[0]!r}")
    else:
        yield Finding(True, "no shipped card fits: it writes text, unless you load it with a card")


def _memory(weights: int, config: PreTrainedConfig) -> Finding:
    """The memory of the weights, and of the KV cache per token."""
    cached = config.num_hidden_layers * numbers_per_token(config)
    return Finding(
        True,
        f"{weights / 1e6:,.1f} million weights: {2 * weights / 1e9:.3f} GB in bfloat16, "
        f"{4 * weights / 1e9:.3f} GB in float32; KV cache {2 * cached / 1e3:.0f} kB per token "
        "in bfloat16",
    )
