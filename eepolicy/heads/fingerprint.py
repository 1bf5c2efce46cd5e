"""Fingerprints of models, which keep heads from being used on a model that they do not fit."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError
from eepolicy.heads.int8 import Int8Linear
from eepolicy.heads.weights import offloaded_weights

#: numbers of each weight that are hashed
SAMPLED = 256
#: the fields of a config that are part of a fingerprint
FIELDS = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")


def fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """The architecture of a model, and a hash over a sample of each of its weights.

    The sample is hashed in bfloat16: a model has one fingerprint in float32 and in bfloat16, and
    with offloaded weights.  Quantised weights give another one.
    """
    weights = hashlib.sha256()
    offloaded = offloaded_weights(model)
    int8 = [
        (f"{name}.{part}", buffer)
        for name, module in model.named_modules()
        if isinstance(module, Int8Linear)
        for part, buffer in module.named_buffers(recurse=False)
    ]
    for name, parameter in (*model.named_parameters(), *int8):
        weights.update(name.encode())
        for tensor in _stored(offloaded(name) if parameter.is_meta else parameter):
            sample = tensor.detach().flatten()[-SAMPLED:].to("cpu", torch.bfloat16)
            weights.update(sample.view(torch.int16).numpy().tobytes())
    config: Any = model.config
    if not hasattr(config, "num_hidden_layers"):  # one of several models, with a config of its own
        config = config.get_text_config()
    return {f: getattr(config, f) for f in FIELDS} | {"weights": weights.hexdigest()[:16]}


def _stored(tensor: Tensor) -> list[Tensor]:
    """The tensors in a quantised weight; otherwise the weight itself."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _stored(getattr(tensor, name))]


def describe(model: dict[str, Any]) -> str:
    """A fingerprint in words."""
    if not model:
        return "an unknown model"
    return (
        f"a {model['model_type']} of {model['num_hidden_layers']} layers, width "
        f"{model['hidden_size']}, vocabulary {model['vocab_size']}, weights {model['weights']}"
    )


def check_fingerprint(
    stored: dict[str, Any], model: PreTrainedModel, what: str, advice: str
) -> None:
    """Refuse what was fitted on another model.

    Args:
        stored: fingerprint in a file.
        model: stock model.
        what: beginning of the sentence, such as "the heads in FILE were fitted on".
        advice: what to do.

    Raises:
        EepolicyError: the fingerprints differ.
    """
    given = fingerprint(model)
    if stored != given:
        raise EepolicyError(f"{what} {describe(stored)}, this model is {describe(given)}; {advice}")


def digest(value: object) -> str:
    """The `repr` of an object, or the name of its class, and a hash over its tensors.

    Its tensors are those of its attributes and, of a module, those of its `state_dict()`.
    """
    hashed = hashlib.sha256()
    for tensor in _tensors(value):
        hashed.update(tensor.detach().float().cpu().numpy().tobytes())
    # the default repr holds an address in memory
    has_repr = type(value).__repr__ is not object.__repr__
    name = repr(value) if has_repr else type(value).__name__
    return f"{name} {hashed.hexdigest()[:12]}"


def _tensors(value: object) -> list[Tensor]:
    if value is None:
        return []
    attributes = vars(value) | (value.state_dict() if isinstance(value, nn.Module) else {})
    leaves = [
        leaf for _, attribute in sorted(attributes.items()) for leaf in tree_leaves(attribute)
    ]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
