"""Positions of families that rotate nothing, past the sizes of the small test models."""

from __future__ import annotations

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM, XGLMConfig, XGLMForCausalLM
from transformers.models.falcon.modeling_falcon import build_alibi_tensor

from eepolicy import EepolicyError, HookedModel
from eepolicy.testing.configs import small_config
from eepolicy.testing.models import random_model

PROMPT = torch.tensor([[9, 31, 12, 44]])


@pytest.mark.parametrize("heads", [16, 32])
def test_the_bias_of_falcon_is_rounded_as_in_the_stock_model(heads):
    """16 heads have slopes that bfloat16 rounds, as the products with positions past 256."""
    config = FalconConfig(
        alibi=True,
        vocab_size=60,
        hidden_size=4 * heads,
        num_hidden_layers=2,
        num_attention_heads=heads,
        new_decoder_architecture=False,
    )
    model = HookedModel(FalconForCausalLM(config).eval())
    positions = torch.arange(600)[None]
    expected = build_alibi_tensor(torch.ones(1, 600, dtype=torch.long), heads, torch.float32)
    ours = model._parts.key_bias(positions) * 4**0.5
    torch.testing.assert_close(ours.reshape(heads, 600), expected[:, 0], rtol=0, atol=0)


def test_the_table_of_xglm_grows():
    config = XGLMConfig(
        vocab_size=60,
        d_model=32,
        ffn_dim=64,
        num_layers=2,
        attention_heads=2,
        max_position_embeddings=16,
        eos_token_id=59,
    )
    torch.manual_seed(0)
    stock = XGLMForCausalLM(config).eval()
    expected = stock.generate(PROMPT, max_new_tokens=40, do_sample=False)[0, 4:]
    fresh = XGLMForCausalLM(config).eval()  # whose table has its first size
    fresh.load_state_dict(stock.state_dict())
    out = HookedModel(fresh).generate(PROMPT[0], max_new_tokens=40)
    assert out.tokens.tolist() == expected.tolist()


@pytest.mark.parametrize("family", ["gptj", "codegen"])
def test_a_text_beyond_the_table_of_sines_is_refused(family):
    stock = random_model(small_config(family, 2))
    most = stock.config.n_positions
    with pytest.raises(EepolicyError, match=f"{most}"):
        HookedModel(stock).generate(PROMPT[0], max_new_tokens=most, eos_token_id=None)
