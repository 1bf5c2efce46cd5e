"""What a checkpoint is, what of it fits, and what it takes, before it is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from eepolicy.errors import EepolicyError
from eepolicy.loading import ORIGINAL
from eepolicy.loading.cards import ModelCard, shipped_cards
from eepolicy.loading.convert import AUDIO_ENCODER_FOLDER, CARD
from eepolicy.loading.huggingface import TOKENIZERS, UNREADABLE, read_tokenizer
from eepolicy.loading.upstream.checkpoint import headers, load_native, read_json
from eepolicy.model.families import FAMILIES


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        good: it is as it must be.
        sentence: what was found.
    """

    good: bool
    sentence: str


def check(folder: Path) -> Iterator[Finding]:
    """Look at a checkpoint without reading its weights.

    Args:
        folder: of the checkpoint.

    Yields:
        What was found: config, weights, tokenizer, cards, memory.
    """
    try:
        config = read_json(folder / "config.json")
    except EepolicyError as error:
        yield Finding(False, str(error))
        return
    original = ORIGINAL.get(config.get("model_type", ""))
    if original is None:
        yield from _stock(folder, config)
        return
    module, name = original
    yield Finding(True, f"{name} in its authors' layout")
    try:
        model = load_native(module.native(config), folder, torch.bfloat16, headers)
        yield Finding(True, "every weight has its place, and none is missing")
        decoder: Any = getattr(model, "decoder", model)
        yield _memory(sum(p.numel() for p in model.parameters()), decoder.config)
        vocabulary = decoder.config.vocab_size
        shipped_cards()[name].layout(module.read_tokenizer(folder), vocabulary)
        yield Finding(True, f"the tokenizer has what the card {name} names")
    except EepolicyError as error:
        yield Finding(False, str(error))


def _stock(folder: Path, config: dict[str, Any]) -> Iterator[Finding]:
    """A checkpoint in Hugging Face format."""
    kind = config.get("model_type")
    if kind in FAMILIES:
        yield Finding(True, f"{kind} in Hugging Face format, a family that has an adapter")
    else:
        known = ", ".join(sorted(FAMILIES.names()))
        yield Finding(False, f"model type {kind!r} has no adapter; there are {known}")
    try:
        parts = [folder, *(f for f in [folder / AUDIO_ENCODER_FOLDER] if f.is_dir())]
        weights = [tensor for part in parts for _, _, tensor in headers(part)]
        stock = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        yield _memory(sum(t.numel() for t in weights), stock)
    except (EepolicyError, *UNREADABLE) as error:
        yield Finding(False, str(error))
    if CARD in config:
        yield Finding(True, f"it has a card of its own: {config[CARD].get('name')}")
    elif "speech_layout" in config:
        yield Finding(True, "it has the pocket model's format, and speaks")
    elif not any((folder / file).is_file() for file in TOKENIZERS):
        yield Finding(True, "no tokenizer: prompts are ids")
    else:
        yield from _cards(folder, config)


def _cards(folder: Path, config: dict[str, Any]) -> Iterator[Finding]:
    """The cards whose tokens a tokenizer has."""
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

    found = [name for name, card in shipped_cards().items() if fits(card)]
    if found:
        yield Finding(True, f"it speaks as a card says: load it with card={found[0]!r}")
    else:
        yield Finding(True, "no card that ships fits: it writes text, unless you give it a card")


def _memory(weights: int, config: PreTrainedConfig) -> Finding:
    """What a model takes on a device."""
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 2 * config.num_hidden_layers * heads * size
    return Finding(
        True,
        f"{weights / 1e6:,.1f} million weights: {2 * weights / 1e9:.3f} GB in bfloat16, "
        f"{4 * weights / 1e9:.3f} GB in float32; keys and values {2 * cached / 1e3:.0f} kB a token "
        "in bfloat16",
    )
