"""Configs of small models of the families whose combinations with plug-ins are tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GlmConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from eepolicy.errors import EepolicyError
from eepolicy.testing.sizes import SPECIAL, VOCAB, WIDTH, WINDOW, sized_config


def _shape(layers: int) -> dict[str, Any]:
    return dict(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        **SPECIAL,
    )


def _gemma(config: type[PreTrainedConfig], layers: int, **more: Any) -> PreTrainedConfig:
    kinds = ["sliding_attention", "full_attention"] * layers
    return config(
        **_shape(layers),
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=kinds[:layers],
        query_pre_attn_scalar=8,
        **more,
    )


def _gpt2(layers: int) -> PreTrainedConfig:
    return GPT2Config(
        vocab_size=VOCAB,
        n_embd=WIDTH,
        n_inner=48,
        n_layer=layers,
        n_head=4,
        n_positions=256,
        initializer_range=0.2,
        **SPECIAL,
    )


#: by model type: number of layers -> config
CONFIGS: dict[str, Callable[[int], PreTrainedConfig]] = {
    "llama": lambda layers: LlamaConfig(**_shape(layers)),
    "qwen2": lambda layers: Qwen2Config(**_shape(layers)),
    "qwen3": lambda layers: Qwen3Config(**_shape(layers), head_dim=8),
    "mistral": lambda layers: MistralConfig(**_shape(layers), head_dim=8, sliding_window=WINDOW),
    "glm": lambda layers: GlmConfig(**_shape(layers), head_dim=8, attention_bias=True),
    "phi3": lambda layers: Phi3Config(**_shape(layers), sliding_window=WINDOW),
    "olmo2": lambda layers: Olmo2Config(**_shape(layers)),
    "gemma2": lambda layers: _gemma(
        Gemma2Config, layers, final_logit_softcapping=3.0, attn_logit_softcapping=2.0
    ),
    "gemma3_text": lambda layers: _gemma(Gemma3TextConfig, layers),
    "gpt2": _gpt2,
}


def small_config(model_type: str, layers: int) -> PreTrainedConfig:
    """The config of a model of width 32 and vocabulary 60.

    Args:
        model_type: a model type of transformers.
        layers: number of layers.

    Raises:
        EepolicyError: transformers has no such model type.

    Examples:
        >>> small_config("gpt2", layers=3).n_layer
        3
        >>> small_config("starcoder2", layers=3).sliding_window
        5
    """
    if model_type in CONFIGS:
        return CONFIGS[model_type](layers)
    try:
        return sized_config(model_type, layers)
    except KeyError as error:
        raise EepolicyError(
            f"transformers has no model type {model_type!r}; pass a config instead"
        ) from error


__all__ = ["CONFIGS", "VOCAB", "WIDTH", "WINDOW", "small_config"]
