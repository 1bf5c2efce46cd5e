"""Write a Llama of transformers as a GGUF file, which llama.cpp reads.

The file has no vocabulary: prompts are token ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from eepolicy.errors import EepolicyError

#: name in a layer of transformers -> name in a block of GGUF
LAYER_WEIGHTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model: PreTrainedModel, file: Path) -> None:
    """Write the weights of a model in float32.

    Args:
        model: a `LlamaForCausalLM` with rotary embeddings that are not scaled.
        file: file to write.

    Raises:
        EepolicyError: another model, or one with biases.
    """
    config: Any = model.config
    plain = isinstance(config, LlamaConfig)
    if plain:
        rope = config.rope_parameters
        plain = rope.get("rope_type", "default") == "default"
        plain = plain and not (config.attention_bias or config.mlp_bias)
    if not plain:
        raise EepolicyError(
            "only a Llama without biases and without scaled rotary embeddings is written as GGUF; "
            f"got {config!r:.80}"
        )
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("no_vocab")
    state = model.state_dict()
    writer.add_tensor("token_embd.weight", _numbers(state["model.embed_tokens.weight"]))
    writer.add_tensor("output_norm.weight", _numbers(state["model.norm.weight"]))
    if not config.tie_word_embeddings:
        writer.add_tensor("output.weight", _numbers(state["lm_head.weight"]))
    for layer in range(config.num_hidden_layers):
        for ours, theirs in LAYER_WEIGHTS.items():
            weight = _numbers(state[f"model.layers.{layer}.{ours}.weight"])
            if theirs in ("attn_q", "attn_k"):
                weight = _interleaved(weight, heads if theirs == "attn_q" else kv_heads)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def weight_bytes(file: Path) -> int:
    """Bytes of the weights that a token reads: all except the rows of a separate input table."""
    tensors = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(file).tensors}
    if "output.weight" in tensors:
        del tensors["token_embd.weight"]
    return sum(tensors.values())


def _numbers(weight: Tensor) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = weight.detach().float().contiguous().numpy()
    return numbers


def _interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of queries or keys in the order of llama.cpp, which rotates neighbours.

    transformers rotates a number with the one half a head further.

    Args:
        weight: (heads * d, width).
        heads: number of heads.

    Returns:
        The same shape.
    """
    halves = weight.reshape(heads, 2, -1, weight.shape[1])  # (heads, 2, d / 2, width)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
