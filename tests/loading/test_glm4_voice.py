"""GLM-4-Voice: a small random model in its authors' layout against a ChatGLM written here."""

from __future__ import annotations

import base64
import json
import math
import re
from pathlib import Path

import pytest
import torch
from conftest import write_shards
from safetensors.torch import save_file
from torch import Tensor

import eepolicy
from eepolicy import EepolicyError
from eepolicy.heads import KINDS

CONFIG = {
    "model_type": "chatglm",
    "num_layers": 4,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
    "kv_channels": 8,
    "padded_vocab_size": 330,
    "seq_length": 512,
    "layernorm_epsilon": 3.90625e-08,
    "rope_ratio": 50,
    "add_qkv_bias": True,
    "add_bias_linear": False,
    "rmsnorm": True,
    "multi_query_attention": True,
    "eos_token_id": [270, 271],
    "pad_token_id": 270,
}
AUDIO, USER = 290, 271
SPECIAL = {270: "<|endoftext|>", 271: "<|user|>", 272: "<|assistant|>", 273: "<|system|>"}
END = SPECIAL[270]
SPECIAL |= {274: "[gMASK]", 275: "<sop>", 276: "<|observation|>"}
SPECIAL |= {277: "<|begin_of_audio|>", 278: "<|end_of_audio|>"}
SPECIAL |= {AUDIO + i: f"<|audio_{i}|>" for i in range(40)}


def weights(layers: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 0.2, about: float = 0.0) -> Tensor:
        return about + scale * torch.randn(*shape, generator=generator)

    fused = (4 + 2 * 2) * 8
    made = {
        "transformer.embedding.word_embeddings.weight": draw(330, 32),
        "transformer.encoder.final_layernorm.weight": draw(32, about=1.0),
        "transformer.output_layer.weight": draw(330, 32),
        "transformer.rotary_pos_emb.inv_freq": draw(2),
    }
    for i in range(layers):
        layer = f"transformer.encoder.layers.{i}."
        made |= {
            layer + "input_layernorm.weight": draw(32, about=1.0),
            layer + "post_attention_layernorm.weight": draw(32, about=1.0),
            layer + "self_attention.query_key_value.weight": draw(fused, 32),
            layer + "self_attention.query_key_value.bias": draw(fused),
            layer + "self_attention.dense.weight": draw(32, 32),
            layer + "mlp.dense_h_to_4h.weight": draw(96, 32),
            layer + "mlp.dense_4h_to_h.weight": draw(32, 48),
        }
    return made


def plain(w: dict[str, Tensor], ids: Tensor) -> Tensor:
    """ChatGLM as its paper and config describe it: logits (tokens, vocabulary)."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 3.90625e-08).rsqrt() * weight

    def rotate(x: Tensor) -> Tensor:  # (tokens, heads, 8): the first half of a head, in pairs
        tokens = len(x)
        turned = x.clone()
        for pair in range(2):
            angle = torch.arange(tokens) / (10_000.0 * 50) ** (2 * pair / 4)
            cos, sin = angle.cos()[:, None], angle.sin()[:, None]
            a, b = x[..., 2 * pair], x[..., 2 * pair + 1]
            turned[..., 2 * pair] = a * cos - b * sin
            turned[..., 2 * pair + 1] = b * cos + a * sin
        return turned

    x = w["transformer.embedding.word_embeddings.weight"][ids]
    tokens = len(ids)
    for i in range(4):
        layer = {k.split(f"layers.{i}.")[1]: v for k, v in w.items() if f"layers.{i}." in k}
        h = norm(x, layer["input_layernorm.weight"])
        fused = h @ layer["self_attention.query_key_value.weight"].T
        fused = fused + layer["self_attention.query_key_value.bias"]
        queries = rotate(fused[:, :32].reshape(tokens, 4, 8))
        keys = rotate(fused[:, 32:48].reshape(tokens, 2, 8))
        values = fused[:, 48:].reshape(tokens, 2, 8)
        out = torch.zeros(tokens, 4, 8)
        for head in range(4):
            for t in range(tokens):
                scores = keys[: t + 1, head // 2] @ queries[t, head] / math.sqrt(8)
                out[t, head] = scores.softmax(0) @ values[: t + 1, head // 2]
        x = x + out.reshape(tokens, 32) @ layer["self_attention.dense.weight"].T
        h = norm(x, layer["post_attention_layernorm.weight"])
        gate, up = (h @ layer["mlp.dense_h_to_4h.weight"].T).chunk(2, -1)
        x = x + (torch.nn.functional.silu(gate) * up) @ layer["mlp.dense_4h_to_h.weight"].T
    x = norm(x, w["transformer.encoder.final_layernorm.weight"])
    return x @ w["transformer.output_layer.weight"].T


MERGED = [b"th", b"the", b" t", b" the", b"in", b"an", b"and", b"er", b"on", b"re", b"at"]
# What the authors' web_demo.py sends to their tokenizer, for a written and a spoken question:
# github.com/zai-org/GLM-4-Voice, da598d9.
WRITTEN = (
    "<|system|>\nUser will provide you with a text instruction. Do it step by step. First, think "
    "about the instruction and respond in a interleaved manner, with 13 text token followed by 26 "
    "audio tokens.<|user|>\n{question}<|assistant|>streaming_transcription\n"
)
SPOKEN = (
    "<|system|>\nUser will provide you with a speech instruction. Do it step by step. First, think "
    "about the instruction and respond in a interleaved manner, with 13 text token followed by 26 "
    "audio tokens. <|user|>\n{question}<|assistant|>streaming_transcription\n"
)


def authors_ids(text: str) -> list[int]:
    """What the authors' tokenizer returns: it puts [gMASK] and <sop> before the ids of a text."""
    by_name = {name: i for i, name in SPECIAL.items()}
    ids = [by_name["[gMASK]"], by_name["<sop>"]]
    for part in re.split("(" + "|".join(map(re.escape, by_name)) + ")", text):
        if part in by_name:
            ids.append(by_name[part])
            continue
        tokens = [bytes([byte]) for byte in part.encode()]
        for merged in MERGED:  # the merge of the lowest rank comes first
            at = 0
            while at + 1 < len(tokens):
                if tokens[at] + tokens[at + 1] == merged:
                    tokens[at : at + 2] = [merged]
                at += 1
        ids += [256 + MERGED.index(t) if len(t) > 1 else t[0] for t in tokens]
    return ids


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, weights(), CONFIG)
    return tmp_path


def write(folder: Path, tensors: dict[str, Tensor], config: dict) -> None:
    """A checkpoint folder as the authors publish theirs, in two shards."""
    write_shards(folder, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    tokens = [bytes([i]) for i in range(256)] + MERGED
    lines = (base64.b64encode(t) + f" {i}".encode() for i, t in enumerate(tokens))
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines))
    added = {str(i): {"content": name, "special": True} for i, name in SPECIAL.items()}
    tokenizer = {"added_tokens_decoder": added, "eos_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def test_the_logits_equal_those_of_the_reference(folder):
    model = eepolicy.load(str(folder))
    assert type(model.model).__name__ == "GlmForCausalLM"
    ids = torch.randint(330, (17,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model.model(ids[None]).logits[0]
    expected = plain(weights(), ids)
    # measured 5e-6 on logits of spread 1
    torch.testing.assert_close(logits, expected, rtol=0, atol=5e-5)
    assert not any(p.is_meta for p in model.model.parameters())
    half = eepolicy.load(str(folder), torch.bfloat16)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}


def test_heads_in_the_folder_are_loaded(folder):
    """Where `eepolicy fit --out FOLDER/heads.safetensors` writes them."""
    model = eepolicy.load(str(folder))
    assert model.heads is model.lens
    heads = KINDS.get("tuned").untrained(model.lens, (2,), width=model.width)
    heads.save(folder / "heads.safetensors", model.model, {})
    assert eepolicy.load(str(folder)).heads.depths == (2,)
    plain = eepolicy.load(str(folder), heads="lens")
    assert plain.heads is plain.lens


def test_the_tokenizer_has_the_end_token_of_its_config(folder):
    """lm-eval decodes it before its first request."""
    tokenizer = eepolicy.load(str(folder)).tokenizer
    assert SPECIAL[tokenizer.eos_token_id] == tokenizer.pad_token == END
    assert tokenizer.decode(tokenizer.eos_token_id) == END


def test_prompt_and_chunks(folder):
    model = eepolicy.load(str(folder))
    layout = model.layout
    assert layout.speech == (AUDIO, AUDIO + 40)
    assert (layout.text_chunk, layout.speech_chunk, layout.end) == (13, 26, USER)
    prompt = model.encode("the and")
    assert prompt.tolist() == authors_ids(WRITTEN.format(question="the and"))
    assert prompt[:4].tolist() == [274, 275, 273, ord("\n")]
    # byte pairs are merged as the file ranks them
    assert model.tokenizer(" the").input_ids == [259]
    out = model.generate("the and", "spark:triple@2", max_new_tokens=60)
    shallow = out.trace.depth == 2
    assert (out.trace.modality[shallow] == 1).all()
    assert ((out.trace.phase % 3 != 0) == shallow)[out.trace.modality == 1].all()
    with pytest.raises(EepolicyError, match="has no vocoder"):
        _ = out.audio


def test_a_question_in_speech_tokens_gets_the_prompt_of_speech(folder):
    model = eepolicy.load(str(folder))
    question = "<|begin_of_audio|><|audio_3|><|audio_39|><|end_of_audio|>"
    prompt = model.encode(question)
    assert prompt.tolist() == authors_ids(SPOKEN.format(question=question))
    before, after = model.prompt_format.encode_affixes(is_spoken=True)
    assert [*before, 277, AUDIO + 3, AUDIO + 39, 278, *after] == prompt.tolist()


def test_each_end_token_of_the_authors_ends_a_reply(folder):
    model = eepolicy.load(str(folder))
    ends = [270, USER, 276]  # <|endoftext|>, <|user|>, <|observation|>
    assert sorted(model.layout.ends) == ends
    assert model.layout.text_ids(torch.tensor([72, *ends, 73])).tolist() == [72, 73]
    start = len(model.encode("the"))
    for end in ends:

        def only(ids, scores, end=end):
            token = 65 if ids.shape[1] < start + 2 else end
            return torch.full_like(scores, -1e9).index_fill_(1, torch.tensor([token]), 0.0)

        out = model.generate("the", logits_processor=[only], max_new_tokens=9)
        assert out.tokens.tolist() == [65, 65, end]
        assert out.text == "AA"


def test_early_exit_with_exact_acceptance(folder):
    model = eepolicy.load(str(folder))
    full = model.generate("the", max_new_tokens=50)
    exact = model.generate("the", "static@2", max_new_tokens=50, accept="exact")
    assert exact.tokens.tolist() == full.tokens.tolist()


def broken(folder, what):
    first = folder / "model-00001-of-00002.safetensors"
    config = dict(CONFIG)
    if what == "cut":
        first.write_bytes(first.read_bytes()[:2000])
    elif what == "gone":
        first.unlink()
    elif what == "foreign":
        save_file({"bert.embeddings.weight": torch.zeros(2)}, first)
    elif what == "partial":
        save_file({"transformer.encoder.final_layernorm.weight": torch.ones(32)}, first)
        second = folder / "model-00002-of-00002.safetensors"
        save_file({"transformer.output_layer.weight": torch.ones(330, 32)}, second)
    elif what == "shape":
        config["ffn_hidden_size"] = 50
    elif what == "groups":
        config["multi_query_group_num"] = 1
    elif what == "field":
        del config["num_layers"]
    elif what == "layernorm":
        config["rmsnorm"] = False
    elif what == "tokenizer":
        (folder / "tokenizer.model").write_text("no tokens")
    elif what == "ids":
        added = {"267": {"content": "<|user|>"}, "500": {"content": "the"}}
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps({"added_tokens_decoder": added}))
    elif what == "text":
        added = {"270": {"content": "<|user|>"}}
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps({"added_tokens_decoder": added}))
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("cut", "00001-of-00002.safetensors is damaged"),
        ("gone", "lacks 1 of the 2 files in its index"),
        ("foreign", "bert.embeddings.weight, which the model in config.json does not have"),
        ("partial", "of the model's weights, such as model.embed_tokens.weight"),
        ("shape", r"the shape \(\d+, .*; config\.json gives \("),
        ("groups", "has 64 rows; config.json gives 48"),
        ("field", "has no 'num_layers'"),
        ("layernorm", "has rmsnorm = False"),
        ("tokenizer", "is not a tiktoken file"),
        ("ids", "belong to different models"),
        ("text", "it is not the tokenizer of glm-4-voice"),
    ],
)
def test_wrong_checkpoints_are_refused(folder, what, match):
    broken(folder, what)
    with pytest.raises(EepolicyError, match=match):
        eepolicy.load(str(folder))
