"""Read files of fitted heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eepolicy.arguments import checked
from eepolicy.errors import EepolicyError
from eepolicy.formats import parse
from eepolicy.heads.fingerprint import check_fingerprint
from eepolicy.heads.fitted import KINDS, DepthHead, FittedHead, HeadSize
from eepolicy.heads.formats import HeadsHeader
from eepolicy.heads.lens import LogitLens
from eepolicy.heads.weights import device_of
from eepolicy.tensor_files import open_tensors, read_tensors


def read_notes(path: str | Path) -> dict[str, Any]:
    """Read the metadata of a file of heads: `kinds`, `depths`, `model` and `notes`.

    Raises:
        EepolicyError: the file is not a file of heads.
    """
    with open_tensors(path, "heads", "a file of heads") as (metadata, _):
        pass
    return parse(HeadsHeader, metadata, str(path)).model_dump(exclude={"version"})


@checked()
def load_heads(
    path: str | Path, lens: LogitLens, model: PreTrainedModel, kind: str | None = None
) -> FittedHead:
    """Read heads that were fitted on a model, to its device and in its precision.

    Args:
        path: file that `FittedHead.save` wrote.
        lens: norm, output embedding and layers of the model, `HookedModel.lens`.
        model: stock model.
        kind: kind of heads to read; None reads the preferred head of each depth.

    Raises:
        EepolicyError: the heads were fitted on another model or are of an unknown kind, the file
            has none of the kind, or it is not a file of heads.
    """
    metadata = read_notes(path)
    kinds: list[str] = metadata["kinds"]
    for unknown in sorted({*kinds} - {*KINDS.names()}):
        raise EepolicyError(
            f"the heads in {path} are of the kind {unknown!r}; the known kinds are "
            f"{', '.join(KINDS.names())}"
        )
    if kind is not None and kind not in kinds:
        raise EepolicyError(
            f"{path} has no heads of the kind {kind!r}; it has {', '.join(sorted({*kinds}))}"
        )
    check_fingerprint(
        metadata["model"],
        model,
        f"the heads in {path} were fitted on",
        "fit heads for it with 'eepolicy fit'",
    )
    chosen: dict[int, str] = {}
    for depth, own in zip(metadata["depths"], kinds, strict=True):
        if kind in (None, own):
            chosen.setdefault(depth, own)
    beyond = [depth for depth in metadata["depths"] if depth >= len(lens.layers)]
    if beyond and lens.layers:
        raise EepolicyError(
            f"{path} has a head at depth {beyond[0]}; the model has heads below {len(lens.layers)}"
        )
    tensors = read_tensors(path, "a file of heads")
    pairs = zip(metadata["depths"], kinds, strict=True)
    prefixes = tuple(f"{own}.{depth}." for depth, own in pairs)
    unknown_names = [name for name in tensors if not name.startswith(prefixes)]
    if unknown_names:
        raise EepolicyError(f"{path} has the tensor {unknown_names[0]!r}, which no head has")
    heads: dict[int, DepthHead] = {}
    for depth, own in chosen.items():
        prefix = f"{own}.{depth}."
        weights = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        heads[depth] = _restored(KINDS.get(own), lens, (path, depth), weights)
    fitted = FittedHead(heads).to(device_of(model), model.dtype)
    _try(fitted, model, path)
    return fitted


def _restored(
    kind: type[DepthHead],
    lens: LogitLens,
    place: tuple[str | Path, int],
    weights: dict[str, Tensor],
) -> DepthHead:
    """Build a head from its weights.

    Raises:
        EepolicyError: weights are missing, or have other names.
    """
    path, depth = place
    try:
        return kind.restore(lens, depth, weights)
    except (TypeError, KeyError, RuntimeError) as error:
        raise EepolicyError(
            f"{path}: the head at depth {depth} is of the kind {kind.name!r}, and its tensors "
            f"{', '.join(sorted(weights)) or '(none)'} do not fit: {error}"
        ) from error


@torch.no_grad()
def _try(heads: FittedHead, model: PreTrainedModel, path: str | Path) -> None:
    """Read one hidden state out with each head that has no layers of its own.

    Raises:
        EepolicyError: the shape of a tensor does not fit the model.
    """
    width, vocabulary = text_sizes(model)
    hidden = torch.zeros(1, width, device=device_of(model), dtype=model.dtype)
    if hidden.is_meta:
        return
    for depth in map(int, heads.heads):
        if heads.layers_at(depth):
            continue
        try:
            shape = tuple(heads.logits(hidden, depth).shape)
        except RuntimeError as error:
            raise EepolicyError(
                f"{path}: the head at depth {depth} does not fit: {error}"
            ) from error
        if shape != (1, vocabulary):
            raise EepolicyError(
                f"{path}: the head at depth {depth} gives logits {shape} for one state, not "
                f"{(1, vocabulary)}: a tensor has another shape"
            )
        _check_count(heads.at(depth), width, vocabulary, f"{path}: the head at depth {depth}")


def _check_count(head: DepthHead, width: int, vocabulary: int, name: str) -> None:
    """Refuse weights that fit the model by broadcasting only.

    Raises:
        EepolicyError: with the number of weights of the file and of the kind of head.
    """
    weights = sum(weight.numel() for weight in head.parameters())
    fixed, one = (head.count(HeadSize(width, vocabulary, rank)) for rank in (0, 1))
    # the number grows with the rank, which the file does not name
    expected = fixed + (one - fixed) * ((weights - fixed) // max(1, one - fixed))
    if weights != max(expected, one):
        raise EepolicyError(
            f"{name} has {weights} weights, and a head of the kind {head.name!r} has "
            f"{max(expected, one)}: a tensor has another shape"
        )


def text_sizes(model: PreTrainedModel) -> tuple[int, int]:
    """Width and vocabulary of the decoder of a model."""
    config = model.config.get_text_config()
    return config.hidden_size, config.vocab_size
