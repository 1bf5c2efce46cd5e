"""Small random multimodal models, each with another decoder."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from eepolicy.testing.models import randomise
from eepolicy.testing.sizes import SPECIAL, VOCAB, WIDTH, WINDOW

#: ids of audio and images in prompts, and of marks around them
AUDIO, IMAGE, VIDEO, BEGIN, END = 59, 58, 57, 56, 55

_TEXT: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.2,
    **SPECIAL,
)
_WHISPER: dict[str, Any] = dict(
    d_model=WIDTH,
    encoder_layers=1,
    encoder_attention_heads=4,
    encoder_ffn_dim=32,
    num_mel_bins=8,
    max_source_positions=20,
)
_ENCODER: dict[str, Any] = dict(
    hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4
)
_IMAGE: dict[str, Any] = dict(_ENCODER, image_size=28, patch_size=14)
_QWEN_IMAGE: dict[str, Any] = dict(
    depth=1, hidden_size=WIDTH, intermediate_size=32, num_heads=4, out_hidden_size=WIDTH
)
_QWEN3_IMAGE: dict[str, Any] = dict(
    _QWEN_IMAGE, patch_size=14, deepstack_visual_indexes=[0], num_position_embeddings=16
)
_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}
_MROPE = {**_ROPE, "mrope_section": [1, 1, 2]}
_EXPERTS: dict[str, Any] = dict(
    num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8
)
_LATENT: dict[str, Any] = dict(
    num_key_value_heads=4,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_rope_head_dim=4,
    qk_nope_head_dim=8,
    v_head_dim=8,
    moe_intermediate_size=16,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    n_shared_experts=1,
    first_k_dense_replace=1,
)
_VISION_IDS: dict[str, Any] = dict(
    image_token_id=IMAGE,
    video_token_id=VIDEO,
    vision_start_token_id=BEGIN,
    vision_end_token_id=END,
)


def _pixtral(text: dict[str, Any]) -> dict[str, Any]:
    vision = dict(_IMAGE, model_type="pixtral", head_dim=8)
    return dict(text_config=text, vision_config=vision, image_token_index=IMAGE)


#: by the name of the class without its ending: the sizes of its config
MULTIMODAL: dict[str, dict[str, Any]] = {
    "Qwen2Audio": dict(
        text_config=dict(_TEXT, model_type="qwen2"), audio_config=_WHISPER, audio_token_index=AUDIO
    ),
    "Voxtral": dict(
        text_config=dict(_TEXT, model_type="llama", head_dim=8),
        audio_config=dict(_ENCODER, intermediate_size=128, num_mel_bins=8, max_source_positions=20),
        audio_token_id=AUDIO,
    ),
    "Qwen2_5OmniThinker": dict(
        text_config=dict(_TEXT, rope_parameters=_MROPE),
        audio_config=dict(_WHISPER, output_dim=WIDTH, n_window=4),
        vision_config=dict(_QWEN_IMAGE, fullatt_block_indexes=[0]),
        audio_token_id=AUDIO,
        audio_start_token_id=54,
        **_VISION_IDS,
    ),
    "Qwen3OmniMoeThinker": dict(
        text_config=dict(_TEXT, rope_parameters=_MROPE, **_EXPERTS),
        audio_config=dict(
            _WHISPER, output_dim=WIDTH, n_window=4, n_window_infer=8, downsample_hidden_size=8
        ),
        vision_config=_QWEN3_IMAGE,
        audio_token_id=AUDIO,
        audio_start_token_id=54,
        **_VISION_IDS,
    ),
    "Gemma3": dict(
        text_config=dict(_TEXT, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8),
        vision_config=_IMAGE,
        image_token_index=IMAGE,
        boi_token_index=BEGIN,
        eoi_token_index=END,
        mm_tokens_per_image=4,
    ),
    "Llava": dict(
        text_config=dict(_TEXT, model_type="llama"),
        vision_config=dict(_IMAGE, model_type="clip_vision_model", num_hidden_layers=2),
        image_token_index=IMAGE,
    ),
    "Mistral3": _pixtral(dict(_TEXT, model_type="mistral", head_dim=8)),
    "Mistral3 with mistral4": _pixtral(dict(_TEXT, model_type="mistral4", **_LATENT)),
    "Qwen2VL": dict(
        text_config=dict(_TEXT, rope_parameters=_MROPE),
        vision_config=dict(depth=1, embed_dim=WIDTH, hidden_size=WIDTH, num_heads=4, mlp_ratio=2),
        **_VISION_IDS,
    ),
    "Qwen2_5_VL": dict(
        text_config=dict(_TEXT, rope_parameters=_MROPE),
        vision_config=dict(_QWEN_IMAGE, fullatt_block_indexes=[0]),
        **_VISION_IDS,
    ),
    "Qwen3VL": dict(
        text_config=dict(_TEXT, head_dim=8, rope_parameters=_MROPE),
        vision_config=_QWEN3_IMAGE,
        **_VISION_IDS,
    ),
    "Qwen3VLMoe": dict(
        text_config=dict(_TEXT, rope_parameters=_MROPE, **_EXPERTS),
        vision_config=_QWEN3_IMAGE,
        **_VISION_IDS,
    ),
    "Glm4v": dict(
        text_config=dict(
            _TEXT,
            rope_parameters={**_ROPE, "mrope_section": [1, 1], "partial_rotary_factor": 0.5},
        ),
        vision_config=dict(_QWEN_IMAGE, image_size=28, patch_size=14),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=BEGIN,
        image_end_token_id=END,
        video_start_token_id=54,
        video_end_token_id=53,
    ),
}


def small_multimodal(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A small random multimodal model.

    Args:
        name: a key of `MULTIMODAL`.
        dtype: precision.

    Examples:
        >>> small_multimodal("Voxtral").config.get_text_config().model_type
        'llama'
    """
    prefix = name.split()[0]
    cls: Any = getattr(transformers, f"{prefix}ForConditionalGeneration")
    config = getattr(transformers, f"{prefix}Config")(**MULTIMODAL[name])
    torch.manual_seed(0)
    model: PreTrainedModel = cls._from_config(config, experts_implementation="eager")
    randomise(model)
    return model.to(dtype).eval()
