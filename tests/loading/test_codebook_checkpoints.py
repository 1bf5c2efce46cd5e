"""Checkpoints with several codebooks are loaded, checked, or refused with what is missing."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import eepolicy
from eepolicy import EepolicyError
from eepolicy.loading import load_codebooks
from eepolicy.loading.inspect import inspect
from eepolicy.testing.codebooks import random_csm

PROMPT = torch.tensor([7, 3, 21, 9])


@pytest.fixture(scope="module")
def stock():
    return random_csm(dtype=torch.float32)


@pytest.fixture(scope="module")
def folder(stock, tmp_path_factory):
    path = tmp_path_factory.mktemp("csm")
    stock.save_pretrained(path)
    return path


def test_a_saved_csm_gives_the_stock_codes(stock, folder):
    expected = stock.generate(input_ids=PROMPT[None], max_new_tokens=3)
    out = load_codebooks(folder).generate(PROMPT, max_new_tokens=3)
    assert out.codes.tolist() == expected[0].tolist()


def test_load_names_the_function_that_reads_it(folder):
    with pytest.raises(EepolicyError, match=r"eepolicy\.loading\.load_codebooks"):
        eepolicy.load(str(folder))


def test_the_check_finds_a_good_checkpoint(stock, folder):
    findings = list(inspect(folder))
    assert all(finding.ok for finding in findings)
    text = "\n".join(finding.sentence for finding in findings)
    assert "several codebooks: load it with load_codebooks" in text
    weights = sum(p.numel() for p in stock.parameters()) / 1e6
    assert f"{weights:,.1f} million weights" in text


@pytest.mark.parametrize(
    "named", ["transformers.safetensors", "transformers.safetensors.index.json"]
)
def test_the_weights_are_those_that_the_config_names(stock, folder, tmp_path, named):
    """CSM is published beside the authors' own file `model.safetensors`."""
    config = json.loads((folder / "config.json").read_text()) | {"transformers_weights": named}
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = (folder / "generation_config.json").read_bytes()
    (tmp_path / "generation_config.json").write_bytes(options)
    save_file({"authors": torch.zeros(10**6)}, tmp_path / "model.safetensors")
    (tmp_path / "transformers.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    names = dict.fromkeys(stock.state_dict(), "transformers.safetensors")
    index = {"metadata": {}, "weight_map": names}
    (tmp_path / "transformers.safetensors.index.json").write_text(json.dumps(index))
    sentences = [finding.sentence for finding in inspect(tmp_path)]
    assert sentences == [finding.sentence for finding in inspect(folder)]
    load_codebooks(tmp_path)


def test_a_checkpoint_without_a_weight_is_refused(stock, folder, tmp_path):
    weights = {k: v for k, v in stock.state_dict().items() if k != "lm_head.weight"}
    stock.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(EepolicyError, match=r"lacks 1 of the model's weights, such as lm_head"):
        load_codebooks(tmp_path)


KIMI = {
    "model_type": "kimi_audio",
    "architectures": ["MoonshotKimiaForCausalLM"],
    "kimia_mimo_transformer_from_layer_index": 21,
    "kimia_mimo_audiodelaytokens": 5,
}


@pytest.mark.parametrize("drop", ["model_type", "architectures"])
def test_kimi_audio_is_refused_with_what_is_missing(tmp_path, drop, run):
    config = {name: value for name, value in KIMI.items() if name != drop}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for load in (eepolicy.load, load_codebooks):
        with pytest.raises(EepolicyError, match=r"part after layer 21.*delayed by 5"):
            load(str(tmp_path))
    (finding,) = inspect(tmp_path)
    assert not finding.ok
    assert "an exit depth for each branch" in finding.sentence
    _, err = run("models", "check", str(tmp_path), code=1)
    assert "docs/codebooks.md" in err


def test_a_model_with_one_stream_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(EepolicyError, match=r"has 'llama': use eepolicy\.load"):
        load_codebooks(tmp_path)
