"""Model types that are refused by name, with the reason."""

from __future__ import annotations

_REASONS = {
    "it is an encoder, or the decoder of an encoder-decoder model": (
        "bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small camembert "
        "data2vec-text electra ernie git marian mbart megatron-bert musicgen musicgen_melody mvp "
        "pegasus plbart prophetnet rembert roberta roberta-prelayernorm roc_bert roformer trocr "
        "whisper xlm xlm-roberta xlm-roberta-xl xlnet xmod"
    ),
    "its layers keep a recurrent or convolution state, which holds no earlier positions": (
        "bailing_hybrid bamba falcon_h1 falcon_mamba granitemoehybrid inkling2_text inkling_text "
        "jamba kimi_linear lfm2 lfm2_moe lfm3 mamba mamba2 minimax nemotron_h olmo_hybrid "
        "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next qwen4_exp qwen4_exp_text "
        "recurrent_gemma rwkv xlstm zamba zamba2 zaya"
    ),
    "its attention selects keys by a score of its own, which needs states beside keys and values": (
        "axk2 deepseek_v32 deepseek_v4 doge dots3_note dots3_note_text glm_moe_dsa hy_v4 "
        "minimax_m3_vl_text"
    ),
    "a layer reads more than the states of the layer before": ("blt gemma3n gemma3n_text mllama"),
    "a layer calls attention more than once, or is called more than once": (
        "hrm_text longcat_flash"
    ),
    "its attention counts columns of the cache in the place of positions": "cpmant gpt_neo mpt",
    "it has no KV cache": "openai-gpt reformer",
    "it drafts for another model and reads that model's states": (
        "gemma4_assistant gemma4_unified_assistant"
    ),
    "its checkpoints have rotations that change with the length of the text": "phi4_multimodal",
}

_BY_TYPE = {model_type: why for why, types in _REASONS.items() for model_type in types.split()}


def reason_to_refuse(model_type: str) -> str | None:
    """Why a model type is refused; None for other types."""
    return _BY_TYPE.get(model_type)


def refused_types() -> dict[str, list[str]]:
    """Model types that are refused, by the reason."""
    return {why: sorted(types.split()) for why, types in _REASONS.items()}
