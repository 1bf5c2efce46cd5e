"""What tells one model from another, so that heads are never used on a model they do not fit."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from transformers import PreTrainedModel

#: the fields of a config that are part of a fingerprint
FIELDS = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")


def fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """A model's architecture and a hash over some of its weights.

    The weights are hashed in bfloat16, so that a model has one fingerprint in all its precisions.
    """
    digest = hashlib.sha256()
    named = list(model.named_parameters())
    for name, parameter in (named[0], named[len(named) // 2], named[-1]):
        digest.update(name.encode())
        some = parameter.detach().flatten()[:4096].to("cpu", torch.bfloat16)
        digest.update(some.view(torch.int16).numpy().tobytes())
    return {f: getattr(model.config, f) for f in FIELDS} | {"weights": digest.hexdigest()[:16]}


def describe(found: dict[str, Any]) -> str:
    """A fingerprint in words."""
    if not found:
        return "an unknown model"
    return (
        f"a {found['model_type']} of {found['num_hidden_layers']} layers, width "
        f"{found['hidden_size']}, vocabulary {found['vocab_size']}, weights {found['weights']}"
    )
