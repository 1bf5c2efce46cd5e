"""GLM-4-Voice (2412.02612): a ChatGLM checkpoint read into the native GLM class."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import GlmConfig, GlmForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter, bytes_to_unicode

from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.loading.cards import ModelCard
from eepolicy.loading.upstream.checkpoint import Native, complete, load_native, read_json

#: what the model's config.json says it is
MODEL_TYPE = "chatglm"
#: fields of their config, and what the native class does
_SUPPORTED = {"rmsnorm": True, "multi_query_attention": True, "add_bias_linear": False}
#: names of a layer's weights, theirs to ours
_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}
_OUTER = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}


def native_config(theirs: dict[str, Any]) -> GlmConfig:
    """The native config of a ChatGLM one.

    Args:
        theirs: `config.json` as a dict.

    Raises:
        EepolicyError: a field is missing, or asks for what the native class does not do.
    """
    for name, wanted in _SUPPORTED.items():
        if theirs.get(name, wanted) != wanted:
            raise EepolicyError(
                f"the checkpoint has {name} = {theirs[name]}; {wanted} is supported"
            )
    try:
        ends = theirs.get("eos_token_id")
        return GlmConfig(
            vocab_size=theirs["padded_vocab_size"],
            hidden_size=theirs["hidden_size"],
            intermediate_size=theirs["ffn_hidden_size"],
            num_hidden_layers=theirs["num_layers"],
            num_attention_heads=theirs["num_attention_heads"],
            num_key_value_heads=theirs["multi_query_group_num"],
            head_dim=theirs["kv_channels"],
            max_position_embeddings=theirs["seq_length"],
            rms_norm_eps=theirs["layernorm_epsilon"],
            attention_bias=theirs.get("add_qkv_bias", False),
            tie_word_embeddings=theirs.get("tie_word_embeddings", False),
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10_000.0 * theirs.get("rope_ratio", 1.0),
                "partial_rotary_factor": 0.5,
            },
            eos_token_id=ends,
            pad_token_id=theirs.get("pad_token_id"),
        )
    except KeyError as error:
        raise EepolicyError(f"the config.json of a ChatGLM model has no {error}") from error


def convert(config: GlmConfig, key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """One of their weights as ours: queries, keys and values lie in one of theirs."""
    if key in _OUTER:
        yield _OUTER[key], tensor
        return
    if key.endswith("rotary_pos_emb.inv_freq"):  # follows from the config
        return
    head, _, rest = key.removeprefix("transformer.encoder.layers.").partition(".")
    prefix = f"model.layers.{head}."
    name, _, kind = rest.rpartition(".")
    if name == "self_attention.query_key_value":
        queries = config.num_attention_heads * config.head_dim
        groups = config.num_key_value_heads * config.head_dim
        sizes = [queries, groups, groups]
        if len(tensor) != sum(sizes):
            raise EepolicyError(
                f"{key} has {len(tensor)} rows; by config.json there are {sum(sizes)}"
            )
        for part, one in zip("qkv", tensor.split(sizes), strict=True):
            yield f"{prefix}self_attn.{part}_proj.{kind}", one
    else:
        yield prefix + _LAYER.get(rest, rest), tensor


class _Converter(TikTokenConverter):  # type: ignore[misc]  # transformers' types are skipped
    """Reads the file itself: tiktoken's reader keeps a copy by name and would miss a change."""

    def extract_vocab_merges_from_model(
        self, tiktoken_url: str
    ) -> tuple[dict[str, int], list[tuple[str, str]]]:
        lines = Path(tiktoken_url).read_bytes().splitlines()
        pairs = (line.split() for line in lines if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
        shown = bytes_to_unicode()
        names = {token: "".join(shown[byte] for byte in token) for token in ranks}
        halves = (
            (token[:i], token[i:], rank)
            for token, rank in ranks.items()
            for i in range(1, len(token))
        )
        merges = sorted(
            (rank, ranks[left], ranks[right], names[left], names[right])
            for left, right, rank in halves
            if left in ranks and right in ranks
        )
        vocabulary = {names[token]: rank for token, rank in ranks.items()}
        return vocabulary, [(left, right) for *_, left, right in merges]


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer, from its tiktoken file and its config, with no code of the checkpoint.

    Raises:
        EepolicyError: a file is missing or damaged.
    """
    file = folder / "tokenizer.model"
    added = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    if not file.is_file():
        raise EepolicyError(f"{folder} has no tokenizer.model")
    try:
        converted = _Converter(vocab_file=str(file), extra_special_tokens=()).converted()
    except Exception as error:
        raise EepolicyError(f"{file} is no tiktoken file: {error}") from error
    by_id = {int(i): token["content"] for i, token in added.items()}
    # ids that no token has are filled up: what is added gets the next free one
    first = converted.get_vocab_size()
    names = [by_id.get(i, f"<|unused_{i}|>") for i in range(first, max(by_id, default=-1) + 1)]
    converted.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in names])
    wrong = next((n for i, n in by_id.items() if converted.token_to_id(n) != i), None)
    if wrong is not None:
        raise EepolicyError(
            f"{wrong} would get the id {converted.token_to_id(wrong)}: {file} and "
            "tokenizer_config.json do not belong together"
        )
    return PreTrainedTokenizerFast(tokenizer_object=converted)


def native(config: dict[str, Any]) -> Native[GlmForCausalLM]:
    """How a checkpoint becomes the native model, by its `config.json`.

    Raises:
        EepolicyError: a field is missing, or asks for what the native class does not do.
    """
    ours = native_config(config)
    tied = frozenset({"lm_head.weight"} if ours.tie_word_embeddings else ())
    return Native(lambda: GlmForCausalLM(ours), partial(convert, ours), tied)


def load(folder: Path, dtype: torch.dtype, card: ModelCard) -> HookedModel:
    """GLM-4-Voice from a folder in its authors' layout, without a vocoder.

    Args:
        folder: with `config.json`, safetensors, `tokenizer.model` and `tokenizer_config.json`.
        dtype: of the weights.
        card: how it speaks.

    Raises:
        EepolicyError: a file or key is missing, damaged or of another model.
    """
    model = load_native(native(read_json(folder / "config.json")), folder, dtype)
    tokenizer = read_tokenizer(folder)
    layout = card.layout(tokenizer, model.config.vocab_size)
    return HookedModel(complete(model), layout, tokenizer, card=card)
