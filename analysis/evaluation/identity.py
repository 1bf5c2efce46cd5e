"""What all records of a run share."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch

from eepolicy.heads.fingerprint import digest, fingerprint
from eepolicy.hooked import HookedModel


def identity(model: HookedModel, max_new_tokens: int) -> dict[str, Any]:
    """Describe the model, the machine and the versions, as JSON types.

    Args:
        model: model that replies.
        max_new_tokens: maximum number of tokens per reply.
    """
    voice = {} if model.voice is None else {"voice": digest(model.voice)}
    return voice | {
        "model": fingerprint(model.model),
        "numbers": f"{model.model.dtype} on {model.device.type}",
        "card": model.card.name if model.card else None,
        "heads": digest(model.heads),
        "predictor": None if model.predictor is None else digest(model.predictor),
        "units": digest(model.vocoder),
        "vocoder": digest(getattr(model.vocoder, "network", None)),
        "threads": torch.get_num_threads(),
        "max_new_tokens": max_new_tokens,
        "versions": {p: version(p) for p in ("eepolicy", "torch", "transformers")},
    }
