"""Small random models with several codebooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    CsmConfig,
    CsmForConditionalGeneration,
    PreTrainedModel,
    Qwen3OmniMoeConfig,
    Qwen3OmniMoeForConditionalGeneration,
)

from eepolicy.testing.models import randomise

#: codes of a frame, and codes of a codebook: those of the codec, and two for the language model
CODEBOOKS, CODEC_CODES = 5, 32
CODES = CODEC_CODES + 2

_CODEC: dict[str, Any] = dict(
    model_type="mimi",
    hidden_size=16,
    num_filters=4,
    num_residual_layers=1,
    upsampling_ratios=[4, 2],
    codebook_size=CODEC_CODES,
    codebook_dim=8,
    num_quantizers=CODEBOOKS,
    vector_quantization_hidden_dimension=8,
    upsample_groups=16,
    num_hidden_layers=1,
    intermediate_size=16,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    sampling_rate=8000,
)
_HEADS: dict[str, Any] = dict(num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)
_WIDTH: dict[str, Any] = dict(hidden_size=32, intermediate_size=24, head_dim=8, **_HEADS)
_EXPERTS: dict[str, Any] = dict(
    _WIDTH,
    moe_intermediate_size=16,
    num_experts_per_tok=2,
    num_local_experts=4,
    rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
)
#: ids of audio, images and videos in Qwen3-Omni's prompts, and of marks before them
_MEDIA: dict[str, Any] = dict(
    audio_token_id=50,
    image_token_id=51,
    video_token_id=52,
    audio_start_token_id=53,
    vision_start_token_id=54,
)
#: codebooks of Qwen3-Omni's talker, and first codes that the stock model does not suppress
TALKER_CODEBOOKS, FIRST_CODES = 4, 48


def csm_config(layers: int = 4, depth_layers: int = 3, codebooks: int = CODEBOOKS) -> CsmConfig:
    """Config of a small CSM with its codec.

    Args:
        layers: layers of the backbone.
        depth_layers: layers of the depth decoder.
        codebooks: codes of a frame.
    """
    depth = dict(
        num_codebooks=codebooks,
        vocab_size=CODES,
        backbone_hidden_size=32,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=depth_layers,
        max_position_embeddings=codebooks + 1,
        **_HEADS,
    )
    return CsmConfig(
        num_codebooks=codebooks,
        vocab_size=CODES,
        text_vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        pad_token_id=60,
        bos_token_id=61,
        audio_token_id=62,
        audio_eos_token_id=63,
        codebook_pad_token_id=CODES - 1,
        codebook_eos_token_id=0,
        depth_decoder_config=depth,
        codec_config=dict(_CODEC, num_quantizers=codebooks),
        **_HEADS,
    )


def random_csm(
    config: CsmConfig | None = None, seed: int = 0, dtype: torch.dtype = torch.float64
) -> PreTrainedModel:
    """A stock CSM with random weights, norms and codebooks of the codec.

    Args:
        config: config of the model; default: that of `csm_config`.
        seed: seed of the weights.
        dtype: precision; float64 by default, so that no comparison depends on rounding.
    """
    torch.manual_seed(seed)
    model = CsmForConditionalGeneration._from_config(config or csm_config())
    randomise(model)
    for module in model.codec_model.modules():
        _randomise_codebook(module)
    return model.to(dtype).eval()


def qwen3_omni_config() -> Qwen3OmniMoeConfig:
    """Config of a small Qwen3-Omni.

    The stock model suppresses the last 1,024 first codes, and `FIRST_CODES` precede them.
    """
    audio = dict(
        d_model=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=16,
        num_mel_bins=8,
        output_dim=32,
        n_window=4,
        downsample_hidden_size=8,
    )
    vision = dict(
        depth=1,
        hidden_size=16,
        intermediate_size=16,
        num_heads=2,
        out_hidden_size=32,
        deepstack_visual_indexes=[0],
        num_position_embeddings=16,
    )
    thinker = dict(
        _MEDIA,
        user_token_id=41,
        audio_config=audio,
        vision_config=vision,
        text_config=dict(_EXPERTS, vocab_size=64, num_hidden_layers=3),
    )
    return Qwen3OmniMoeConfig(
        thinker_config=thinker,
        talker_config=_talker_config(),
        code2wav_config=_code2wav_config(),
        im_start_token_id=60,
        im_end_token_id=61,
        tts_pad_token_id=55,
        tts_bos_token_id=56,
        tts_eos_token_id=57,
        system_token_id=42,
        user_token_id=41,
        assistant_token_id=40,
    )


def _talker_config() -> dict[str, Any]:
    """Config of the talker of a small Qwen3-Omni."""
    text = dict(
        _EXPERTS,
        vocab_size=FIRST_CODES + 1024,
        num_hidden_layers=4,
        shared_expert_intermediate_size=16,
    )
    predictor = dict(
        _WIDTH, vocab_size=CODEC_CODES, num_hidden_layers=3, num_code_groups=TALKER_CODEBOOKS
    )
    return dict(
        _MEDIA,
        spatial_merge_size=2,
        num_code_groups=TALKER_CODEBOOKS,
        thinker_hidden_size=32,
        accept_hidden_layer=2,
        codec_eos_token_id=45,
        codec_nothink_id=46,
        codec_think_bos_id=43,
        codec_think_eos_id=44,
        codec_pad_id=42,
        codec_bos_id=41,
        speaker_id={"ethan": 40},
        code_predictor_config=predictor,
        text_config=text,
    )


def _code2wav_config() -> dict[str, Any]:
    """Config of the vocoder of a small Qwen3-Omni."""
    return dict(
        codebook_size=FIRST_CODES,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        num_hidden_layers=1,
        num_quantizers=TALKER_CODEBOOKS,
        upsample_rates=(2, 2),
        upsampling_ratios=(2,),
        decoder_dim=16,
    )


def random_qwen3_omni(seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A stock Qwen3-Omni with random weights.

    Args:
        seed: seed of the weights.
        dtype: precision; float64 by default, so that no comparison depends on rounding.
    """
    torch.manual_seed(seed)
    # kernels for all experts at once have no float64
    model = Qwen3OmniMoeForConditionalGeneration._from_config(
        qwen3_omni_config(), experts_implementation="eager"
    )
    with torch.no_grad():
        for parameter in model.parameters():  # transformers leaves some of them uninitialised
            parameter.normal_(0.0, 0.2)
    randomise(model)
    return model.to(dtype).eval()


@torch.no_grad()
def _randomise_codebook(module: nn.Module) -> None:
    """Randomise the vectors of a codebook, which transformers initialises with zeros."""
    vectors = dict(module.named_buffers(recurse=False)).get("embed_sum")
    if vectors is not None:
        vectors.normal_()
