"""Every family with an adapter, on a small random model, against the stock model."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from eepolicy import EepolicyError, HookedModel
from eepolicy.heads.branch import BranchHead
from eepolicy.model.families import FAMILIES
from eepolicy.model.families.refused import reason_to_refuse, refused_types
from eepolicy.testing import check_family
from eepolicy.testing.configs import small_config
from eepolicy.testing.families import check_generate, text_families
from eepolicy.testing.models import random_model
from eepolicy.testing.sizes import sized_config
from tools import families

#: one family for each way in which layers or positions differ from Llama's
FAST = ("bloom", "cohere2", "gpt_neox", "llama4_text", "ministral3")
SLOW = (
    "codegen",
    "deepseek_v2",
    "falcon",
    "gemma4_text",
    "gpt_oss",
    "granite",
    "mixtral",
    "nanochat",
    "opt",
    "phi",
    "qwen2",
    "smollm3",
    "xglm",
)
#: queries are scaled from 12 positions on
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 12,
    "llama_4_scaling_beta": 0.3,
}
#: model types that contain the decoder of another type; see test_multimodal.py
WRAPPERS = {
    "emu3",
    "fuyu",
    "gemma3",
    "gemma4",
    "gemma4_unified",
    "got_ocr2",
    "llama4",
    "moss_transcribe_diarize",
}


def check(family):
    with warnings.catch_warnings():  # a stock model may ignore the window of its config
        warnings.filterwarnings("ignore", message="the config names sliding_window")
        check_family(sized_config(family, layers=3))


@pytest.mark.parametrize("family", FAST)
def test_family(family):
    check(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", SLOW)
def test_common_family(family):
    check(family)


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", sorted({*text_families()} - {*FAST, *SLOW}))
def test_any_family(family):
    check(family)


#: other structures of some families
VARIANTS = (
    ("cohere", dict(use_qk_norm=True)),
    ("falcon", dict(alibi=True)),
    ("falcon", dict(alibi=True, multi_query=False)),
    ("falcon", dict(new_decoder_architecture=True, num_kv_heads=2)),
    ("falcon", dict(multi_query=False, parallel_attn=False, bias=True)),
    ("gemma4_text", dict(enable_moe_block=False, attention_k_eq_v=True)),
    ("gpt_bigcode", dict(multi_query=False)),
    ("gpt_neox", dict(use_parallel_residual=False)),
    ("ministral3", dict(rope_parameters=YARN)),
    ("olmo", dict(clip_qkv=2.0)),
    ("opt", dict(do_layer_norm_before=False, word_embed_proj_dim=32)),
    ("phi", dict(qk_layernorm=True)),
    ("qwen2_moe", dict(mlp_only_layers=[1])),
    ("stablelm", dict(use_parallel_residual=True, qk_layernorm=True)),
)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_variants(family, changes):
    check_family(sized_config(family, layers=3, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt_neox", "bloom", "ministral3"])
def test_branches_copy_adapted_layers(family):
    """Drafts of an untrained branch are verified by the stock model's layers."""
    config = small_config(family, layers=3)
    model = HookedModel(random_model(config, dtype=torch.float32))
    heads = BranchHead.untrained(model.lens, (1, 2), width=model.width)
    model.heads = heads.to(model.model.dtype)
    assert model.heads.branch_depths == (1, 2)
    check_generate(family, model)


def test_every_causal_model_has_an_adapter_or_a_reason():
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        known = model_type in FAMILIES or model_type in WRAPPERS
        assert known != bool(reason_to_refuse(model_type)), model_type


def test_the_page_names_every_family():
    assert families.left_out(families.PAGE.read_text(encoding="utf-8")) == []


def test_reasons_name_model_types_of_transformers():
    named = [name for names in refused_types().values() for name in names]
    assert len(named) == len(set(named))
    assert set(named) <= {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}


def test_per_layer_inputs_are_refused():
    """Small Gemma 4 models have them, large ones do not."""
    config = small_config("gemma4_text", layers=3)
    config.hidden_size_per_layer_input = 4
    with pytest.raises(EepolicyError, match="hidden_size_per_layer_input=4: a layer would need"):
        check_family(config)
