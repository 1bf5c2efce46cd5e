"""Small random models, their norms and biases randomised so that no mistake hides behind ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from eepolicy import HookedModel, TokenLayout

# tiny models run fastest on one thread, and a busy machine then slows them least
torch.set_num_threads(1)

# timings on shared machines vary too much for hypothesis to judge by them
settings.register_profile("shared", deadline=None, derandomize=True)
settings.load_profile("shared")

LAYERS = 6
LAYOUT = TokenLayout(
    text=(0, 20), speech=(20, 60), text_chunk=3, speech_chunk=7, end_of_text=3, end=4
)


def tiny(family: str, seed: int = 0, layers: int = LAYERS, dtype=torch.float32) -> PreTrainedModel:
    """A random model of a family: width 32, vocabulary 60."""
    torch.manual_seed(seed)
    shape = dict(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=4,
        pad_token_id=0,
    )
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**shape))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.3)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
    return model.to(dtype).eval()


@pytest.fixture(params=["llama", "qwen2"])
def stock(request) -> PreTrainedModel:
    """A random stock model of each family."""
    return tiny(request.param)


@pytest.fixture
def hooked(stock) -> HookedModel:
    """The same model, hooked."""
    return HookedModel(stock, layout=LAYOUT)
