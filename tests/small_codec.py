"""Small random codecs of transformers: 64 units, and a semantic encoder of one layer."""

from __future__ import annotations

import torch
from transformers import (
    NeuCodecConfig,
    NeuCodecModel,
    PreTrainedModel,
    Xcodec2Config,
    Xcodec2Model,
)

CLASSES = {"xcodec2": (Xcodec2Config, Xcodec2Model), "neucodec": (NeuCodecConfig, NeuCodecModel)}
SEMANTIC = {
    "model_type": "wav2vec2-bert",
    "hidden_size": 32,
    "output_hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "feature_projection_input_dim": 160,
}


def small_codec(kind: str) -> PreTrainedModel:
    """A random codec, with randomised norms and biases."""
    config, model = CLASSES[kind]
    torch.manual_seed(0)
    codec = model(
        config(
            hidden_size=64,  # the norms have 32 groups
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            encoder_hidden_size=1,
            semantic_model_config=SEMANTIC,
            quantization_dim=64 + 32,
            quantization_levels=[4, 4, 4],
        )
    )
    with torch.no_grad():
        for name, parameter in codec.named_parameters():
            if parameter.ndim == 1 and "norm" in name:
                parameter.normal_(float(name.endswith("weight")), 0.3)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif parameter.ndim > 1:  # the initial weights hardly let the input through
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    return codec.eval()
