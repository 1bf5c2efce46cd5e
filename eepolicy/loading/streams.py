"""Checkpoints whose positions are no single tokens: how to load them, or what is missing."""

from __future__ import annotations

from typing import Any

from eepolicy.errors import EepolicyError

#: model types with several codebooks that `load_codebooks` reads
CODEBOOK_MODELS = ("csm",)
#: `model_type` of Kimi-Audio's configs; a converted one may have the name of the architecture alone
KIMI_TYPES = ("kimi_audio", "moonshot_kimia")
KIMI_ARCHITECTURE = "MoonshotKimiaForCausalLM"
KIMI_REASON = (
    "Kimi-Audio reads and writes a text token and an audio token at each position, and its text "
    "and audio heads follow two branches of layers that part after layer {layer}. Missing are a "
    "position of two tokens whose audio is delayed by {delay}, an exit depth for each branch, and "
    "a cache for both; docs/codebooks.md has the design"
)


def refusal(config: dict[str, Any]) -> str | None:
    """Why a checkpoint is refused that has several streams; None for others.

    Args:
        config: its `config.json`.

    Examples:
        >>> refusal({"model_type": "kimi_audio"})[:30]
        'Kimi-Audio reads and writes a '
        >>> refusal({"model_type": "llama"}) is None
        True
    """
    is_kimi = config.get("model_type") in KIMI_TYPES
    if is_kimi or KIMI_ARCHITECTURE in (config.get("architectures") or ()):
        return KIMI_REASON.format(
            layer=config.get("kimia_mimo_transformer_from_layer_index", 21),
            delay=config.get("kimia_mimo_audiodelaytokens", 5),
        )
    return None


def check_supported(config: dict[str, Any], name: object) -> None:
    """Refuse a checkpoint that no function reads.

    Args:
        config: its `config.json`.
        name: its name, for the message.

    Raises:
        EepolicyError: with what is missing.
    """
    reason = refusal(config)
    if reason is not None:
        raise EepolicyError(f"{name} cannot be loaded: {reason}")


def check_one_stream(config: dict[str, Any], name: object) -> None:
    """Refuse a checkpoint that `load` does not read because its positions are no single tokens.

    Args:
        config: its `config.json`.
        name: its name, for the message.

    Raises:
        EepolicyError: with the function that reads it, or with what is missing.
    """
    if config.get("model_type") in CODEBOOK_MODELS:
        raise EepolicyError(
            f"{name} has several codebooks, not one stream of tokens: 'eepolicy generate' decodes "
            "it; in Python, load it with eepolicy.loading.load_codebooks, also to probe and to fit"
        )
    check_supported(config, name)
