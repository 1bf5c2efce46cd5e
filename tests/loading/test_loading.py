"""Loading any causal language model from a folder in Hugging Face format."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, tiny
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import eepolicy
from eepolicy import EepolicyError
from eepolicy.heads import KINDS

IDS = torch.tensor([7, 30, 12, 9])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_any_family(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    # transformers before 5.21 takes sdpa for Gemma 2, which leaves out its attention's soft cap
    attention = stock.config._attn_implementation
    model = eepolicy.load(str(tmp_path), attn_implementation=attention)
    expected = stock.generate(IDS[None], max_new_tokens=20, do_sample=False)[0, len(IDS) :]
    assert model.generate(IDS, max_new_tokens=20).tokens.tolist() == expected.tolist()
    assert not model.layout.has_speech
    assert eepolicy.load(str(tmp_path), torch.bfloat16).model.dtype == torch.bfloat16


def test_heads_that_do_not_fit_are_not_read_if_others_are_given(tmp_path):
    """As after fine-tuning in place; otherwise no new heads could be fitted."""
    heads = KINDS.get("tuned")
    for seed in (0, 1):
        tiny("llama", seed).save_pretrained(tmp_path)
        if not seed:
            old = eepolicy.load(tmp_path)
            heads.untrained(old.lens, (2,), width=32).save(
                tmp_path / "heads.safetensors", old.model, {}
            )
    with pytest.raises(EepolicyError, match=r"were fitted on a llama .* this model is"):
        eepolicy.load(tmp_path)
    model = eepolicy.load(tmp_path, heads="lens")
    new = tmp_path / "new.safetensors"
    heads.untrained(model.lens, (3,), width=32).save(new, model.model, {})
    assert eepolicy.load(tmp_path, heads=new).heads.depths == (3,)


def test_prompts_and_replies_use_the_tokenizer_of_the_folder(tmp_path):
    words = {f"w{i}": i for i in range(60)}
    written = Tokenizer(models.WordLevel(words, unk_token="w0"))
    written.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=written, eos_token="w4").save_pretrained(tmp_path)
    tiny("olmo2").save_pretrained(tmp_path)
    model = eepolicy.load(str(tmp_path))
    out = model.generate("w7 w30 w12 w9", max_new_tokens=12)
    assert out.tokens.tolist() == model.generate(IDS, max_new_tokens=12).tokens.tolist()
    kept = out.tokens[:-1] if out.ended else out.tokens
    assert out.text == " ".join(f"w{i}" for i in kept.tolist())


@pytest.mark.parametrize("family", ["llama"])
def test_incomplete_checkpoints_are_refused(stock, tmp_path, monkeypatch):
    with pytest.raises(eepolicy.EepolicyError, match=r"has no config\.json: give the folder"):
        eepolicy.load(str(tmp_path))
    stock.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(eepolicy.EepolicyError, match=r"lacks 1 .*layers\.2\.mlp\.up_proj"):
        eepolicy.load(str(tmp_path))
    # pickles run code, so they are not read
    (tmp_path / "model.safetensors").unlink()
    torch.save(stock.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(eepolicy.EepolicyError, match="cannot be loaded as a causal language model"):
        eepolicy.load(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        eepolicy.EepolicyError,
        match="nobody/nothing cannot be loaded: it is neither a folder nor an id",
    ):
        eepolicy.load("nobody/nothing")
