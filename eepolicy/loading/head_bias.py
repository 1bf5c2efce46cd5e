"""Language models whose output embedding has a bias, which their stock class does not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

#: key of the bias in a checkpoint
KEY = "lm_head.bias"


def with_head_bias(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A stock class with a bias of the output embedding.

    The converted CosyVoice2 has one: minus infinity for text, so that only speech is sampled.  The
    stock class of Qwen 2 has none, and transformers leaves the key out with a warning.

    Args:
        stock: class of the model, with an `lm_head`.
    """

    def init(self: Any, *args: Any, **options: Any) -> None:
        stock.__init__(self, *args, **options)
        self.lm_head = nn.Linear(self.lm_head.in_features, self.lm_head.out_features, bias=True)

    members = {"__init__": init, "__module__": stock.__module__, "__doc__": stock.__doc__}
    return type(stock.__name__, (stock,), members)


@torch.no_grad()
def bound_bias(model: PreTrainedModel) -> None:
    """Replace minus infinity in the bias by the smallest number of float16.

    The probabilities stay zero, and entropies and divergences stay finite.
    """
    bias = model.lm_head.bias
    bias.masked_fill_(bias.isneginf(), torch.finfo(torch.float16).min)
