"""Sizes of small configs, by the names that transformers uses for them."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

#: number of ids
VOCAB = 60
#: width of the hidden states
WIDTH = 32
#: positions that sliding layers attend to: fewer than the prompts of the checks have
WINDOW = 5

#: tokens with a meaning
SPECIAL = dict(bos_token_id=1, eos_token_id=4, pad_token_id=0)

_SIZES: dict[str, Any] = {
    **SPECIAL,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), WIDTH),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_intermediate_size"), 24),
    **dict.fromkeys(("shared_expert_intermediate_size", "expert_ffn_hidden_size"), 24),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 256),
    **dict.fromkeys(("initializer_range", "init_std"), 0.2),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "head_dim", "query_pre_attn_scalar"), 8),
    "qk_rope_head_dim": 4,
    "moe_num_experts": 4,
    "num_key_value_heads": 2,
    "word_embed_proj_dim": 16,
    # factors whose default is 1 would hide a factor that is left out
    "embedding_multiplier": 3.0,
    "logits_scaling": 4.0,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.4,
    "final_logit_softcapping": 3.0,
    "mup_enabled": True,
    "vocab_size": VOCAB,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "max_window_layers": 2,
}
_ALTERNATING = ("sliding_attention", "full_attention")
_KINDS = set(_ALTERNATING)
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

#: what single model types need beside
_OTHER: dict[str, dict[str, Any]] = {
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": None,
        },
        "logit_scale": 0.25,
    },
    "ctrl": {"dff": 48},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 3.0, "rope_theta": 1e4},
        "ffn_config": {"hidden_size": WIDTH, "ffn_hidden_size": 24, "moe_top_k": 2},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "gemma4_text": {
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": VOCAB,
        "enable_moe_block": True,
        "top_k_experts": 2,
    },
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "gptj": {"rotary_dim": 4},
    "granite_swa": {"layer_rope_theta": [1e4, 0, 1e4]},
    "granitemoe_swa": {"layer_rope_theta": [1e4, 0, 1e4]},
    "llama4_text": {"no_rope_layers": [1, 1, 0]},
    "smollm3": {"no_rope_layer_interval": 2},
    "moshi": {"sliding_window": 3000},
}


def sized_config(model_type: str, layers: int, **changes: Any) -> PreTrainedConfig:
    """A small config of any model type.

    Args:
        model_type: a model type of transformers.
        layers: number of layers.
        **changes: other values of the config.

    Raises:
        KeyError: transformers has no such model type.
    """
    kind = CONFIG_MAPPING[model_type]
    fields = {name for base in kind.__mro__ for name in vars(base).get("__annotations__", {})}
    sizes = {**_SIZES, **dict.fromkeys(_LAYERS, layers)}
    own = {name: size for name, size in sizes.items() if name in fields}
    if "qk_rope_head_dim" in own:  # latent attention: the width of a head follows from others
        own.pop("head_dim", None)
        own["num_key_value_heads"] = 4
    if "use_sliding_window" in fields:
        own["use_sliding_window"] = True
    own |= {**_OTHER.get(model_type, {}), **changes}
    config = kind(**own)
    named = set(getattr(config, "layer_types", None) or ())
    if "layer_types" in fields and "layer_types" not in own and named and named <= _KINDS:
        # the defaults alternate after more layers than small models have
        config = kind(**own, layer_types=[*_ALTERNATING * layers][:layers])
    return config
