"""What tells one model from another, so that heads are never used on a model they do not fit."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

#: numbers of each weight that are hashed
SAMPLED = 256
#: the fields of a config that are part of a fingerprint
FIELDS = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")


def fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """A model's architecture and a hash over some of each of its weights.

    They are hashed in bfloat16, so that a model has one fingerprint in float32 and in bfloat16.
    """
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        found.update(name.encode())
        some = parameter.detach().flatten()[-SAMPLED:].to("cpu", torch.bfloat16)
        found.update(some.view(torch.int16).numpy().tobytes())
    return {f: getattr(model.config, f) for f in FIELDS} | {"weights": found.hexdigest()[:16]}


def describe(found: dict[str, Any]) -> str:
    """A fingerprint in words."""
    if not found:
        return "an unknown model"
    return (
        f"a {found['model_type']} of {found['num_hidden_layers']} layers, width "
        f"{found['hidden_size']}, vocabulary {found['vocab_size']}, weights {found['weights']}"
    )


def digest(holder: object) -> str:
    """What an object is, and a hash over the tensors that it holds."""
    found = hashlib.sha256()
    for _, held in sorted(vars(holder).items()) if holder is not None else ():
        for value in tree_leaves(held):
            if isinstance(value, Tensor):
                found.update(value.detach().float().cpu().numpy().tobytes())
    plain = type(holder).__repr__ is object.__repr__  # it would tell where the object lies
    name = type(holder).__name__ if plain else repr(holder)
    return f"{name} {found.hexdigest()[:12]}"
