"""Every family with an adapter, on a small random model, against the stock model."""

from __future__ import annotations

import warnings

import pytest
from transformers import FalconConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from eepolicy import EepolicyError
from eepolicy.model.families import FAMILIES
from eepolicy.model.families.refused import reason_to_refuse, refused_types
from eepolicy.testing import check_family
from eepolicy.testing.configs import small_config
from eepolicy.testing.families import text_families
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
)
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


@pytest.mark.slow
@pytest.mark.parametrize("one_head", [True, False])
def test_falcon_with_alibi(one_head):
    config = FalconConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        alibi=True,
        multi_query=one_head,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=4,
        pad_token_id=0,
    )
    check_family(config)


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
