"""GLM-4-Voice (arXiv 2412.02612): a ChatGLM checkpoint in the native GLM class."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import AddedToken
from torch import Tensor
from transformers import GlmConfig, GlmForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter, bytes_to_unicode

from eepolicy.errors import EepolicyError, translated
from eepolicy.hooked import HookedModel
from eepolicy.loading.huggingface import read_config
from eepolicy.loading.upstream.checkpoint import NativeModel, finish, load_native
from eepolicy.loading.upstream.glm_speech_tokenizer import add_speech_tokenizer, beside
from eepolicy.speech.config_fields import check_supported
from eepolicy.speech.model_card import ModelCard

#: `model_type` in the config.json of the model
MODEL_TYPE = "chatglm"
#: fields of the ChatGLM config, with the value that the native class implements
_SUPPORTED = {
    "rmsnorm": True,
    "multi_query_attention": True,
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "original_rope": True,
    "post_layer_norm": True,
}
#: names of the weights in a layer: ChatGLM to native
_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}
#: names of the other weights: ChatGLM to native
_OUTER = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}


def native_config(chatglm: dict[str, Any]) -> GlmConfig:
    """Convert a ChatGLM config to the native one.

    Args:
        chatglm: `config.json` as a dict.

    Raises:
        EepolicyError: a field is missing, or has a value that the native class does not implement.
    """
    check_supported(chatglm, _SUPPORTED, "config.json")
    try:
        return GlmConfig(
            vocab_size=chatglm["padded_vocab_size"],
            hidden_size=chatglm["hidden_size"],
            intermediate_size=chatglm["ffn_hidden_size"],
            num_hidden_layers=chatglm["num_layers"],
            num_attention_heads=chatglm["num_attention_heads"],
            num_key_value_heads=chatglm["multi_query_group_num"],
            head_dim=chatglm["kv_channels"],
            max_position_embeddings=chatglm["seq_length"],
            rms_norm_eps=chatglm["layernorm_epsilon"],
            attention_bias=chatglm.get("add_qkv_bias", False),
            tie_word_embeddings=chatglm.get("tie_word_embeddings", False),
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10_000.0 * chatglm.get("rope_ratio", 1.0),
                "partial_rotary_factor": 0.5,
            },
            eos_token_id=chatglm.get("eos_token_id"),
            pad_token_id=chatglm.get("pad_token_id"),
        )
    except KeyError as error:
        raise EepolicyError(f"the config.json of a ChatGLM model has no {error}") from error
    except (TypeError, StrictDataclassError) as error:
        raise EepolicyError(f"the config.json is refused: {error}") from error


def convert(config: GlmConfig, key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Convert a ChatGLM weight to native ones.

    ChatGLM has queries, keys and values in one matrix, (queries + keys + values, width).
    """
    if key in _OUTER:
        yield _OUTER[key], tensor
        return
    if key.endswith("rotary_pos_emb.inv_freq"):  # computed from the config
        return
    layer, _, rest = key.removeprefix("transformer.encoder.layers.").partition(".")
    prefix = f"model.layers.{layer}."
    name, _, parameter = rest.rpartition(".")
    if name == "self_attention.query_key_value":
        queries = config.num_attention_heads * config.head_dim
        groups = config.num_key_value_heads * config.head_dim
        sizes = [queries, groups, groups]
        if len(tensor) != sum(sizes):
            raise EepolicyError(f"{key} has {len(tensor)} rows; config.json gives {sum(sizes)}")
        for letter, part in zip("qkv", tensor.split(sizes), strict=True):
            yield f"{prefix}self_attn.{letter}_proj.{parameter}", part
    else:
        yield prefix + _LAYER.get(rest, rest), tensor


class _Converter(TikTokenConverter):  # type: ignore[misc]  # transformers' types are skipped
    """Reads the file directly: the reader of tiktoken caches by name and would miss a change."""

    def extract_vocab_merges_from_model(
        self, tiktoken_url: str
    ) -> tuple[dict[str, int], list[tuple[str, str]]]:
        lines = Path(tiktoken_url).read_bytes().splitlines()
        pairs = (line.split() for line in lines if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
        unicode = bytes_to_unicode()
        names = {token: "".join(unicode[byte] for byte in token) for token in ranks}
        splits = (
            (token[:i], token[i:], rank)
            for token, rank in ranks.items()
            for i in range(1, len(token))
        )
        merges = sorted(
            (rank, ranks[left], ranks[right], names[left], names[right])
            for left, right, rank in splits
            if left in ranks and right in ranks
        )
        vocabulary = {names[token]: rank for token, rank in ranks.items()}
        return vocabulary, [(left, right) for *_, left, right in merges]


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer from its tiktoken file and its config, without code of the checkpoint.

    Raises:
        EepolicyError: a file is missing or damaged.
    """
    file = folder / "tokenizer.model"
    config = read_config(folder / "tokenizer_config.json")
    added = config.get("added_tokens_decoder", {})
    if not file.is_file():
        raise EepolicyError(f"{folder} has no tokenizer.model")
    # tokenizers raises plain exceptions
    with translated(lambda error: EepolicyError(f"{file} is not a tiktoken file: {error}")):
        converted = _Converter(vocab_file=str(file), extra_special_tokens=()).converted()
    by_id = {int(i): token["content"] for i, token in added.items()}
    # an added token gets the next free id, so ids without a token get a placeholder
    first = converted.get_vocab_size()
    names = [by_id.get(i, f"<|unused_{i}|>") for i in range(first, max(by_id, default=-1) + 1)]
    converted.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in names])
    mismatched = next((n for i, n in by_id.items() if converted.token_to_id(n) != i), None)
    if mismatched is not None:
        raise EepolicyError(
            f"{mismatched} would get the id {converted.token_to_id(mismatched)}: {file} and "
            "tokenizer_config.json belong to different models"
        )
    named = {
        name: config[name]
        for name in ("eos_token", "pad_token")
        if converted.token_to_id(str(config.get(name))) is not None
    }
    return PreTrainedTokenizerFast(tokenizer_object=converted, **named)


def native(config: dict[str, Any]) -> NativeModel[GlmForCausalLM]:
    """Return the native model of a `config.json`, and the conversion of its weights.

    Raises:
        EepolicyError: a field is missing, or has a value that the native class does not implement.
    """
    glm = native_config(config)
    tied = frozenset({"lm_head.weight"} if glm.tie_word_embeddings else ())
    return NativeModel(lambda: GlmForCausalLM(glm), partial(convert, glm), tied)


def load(folder: Path, dtype: torch.dtype, card: ModelCard) -> HookedModel:
    """Load GLM-4-Voice from a folder in its authors' layout, without a vocoder.

    If the folder `glm-4-voice-tokenizer` is in it or beside it, prompts can be sound.

    Args:
        folder: folder with `config.json`, safetensors, `tokenizer.model` and
            `tokenizer_config.json`.
        dtype: dtype of the weights.
        card: card of the model.

    Raises:
        EepolicyError: a file or key is missing or damaged, or belongs to another model.
    """
    model = load_native(native(read_config(folder / "config.json")), folder, dtype)
    tokenizer = read_tokenizer(folder)
    layout = card.layout(tokenizer, model.config.vocab_size)
    hooked = HookedModel(finish(model), layout, tokenizer, card=card)
    speech_tokenizer = beside(folder)
    return hooked if speech_tokenizer is None else add_speech_tokenizer(hooked, speech_tokenizer)
