"""The Jacobian lens: the mean Jacobian from each depth to the last layer, as heads."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.heads.fitted import FittedHead
from eepolicy.heads.tuned import TunedLens
from eepolicy.hooked import HookedModel
from eepolicy.probing import Document

#: first positions of a document, which are left out: they attract attention as no others do
SKIP = 16


def fit_jacobian(
    model: HookedModel,
    documents: Sequence[Document],
    depths: Iterable[int] | None = None,
    *,
    skip: int = SKIP,
    rows: int = 32,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> FittedHead:
    """Fit a Jacobian lens: J h, then the norm and output embedding of the model.

    J is the derivative of the last layer's states with respect to the state at a depth.  The
    derivatives of the states at a position and at all later ones are added, and the sum is averaged
    over positions and documents.  No labels are needed.  The first positions and the last one of a
    document are left out.  The result is a tuned lens with W = J - I and b = 0, and is saved and
    read as one.

    Source: Gurnee et al. 2026, https://transformer-circuits.pub/2026/workspace/index.html.

    Args:
        model: model whose layers are differentiated.
        documents: texts; about a hundred suffice according to the authors.
        depths: depths below full; None for all.
        skip: number of first positions that are left out.
        rows: number of rows of J that are computed together; memory grows with it.
        progress: wraps the documents, to show progress.

    Returns:
        A head for each depth, in float32.

    Raises:
        EepolicyError: a depth that does not exist, or no document that is long enough.

    Examples:
        >>> import eepolicy
        >>> from eepolicy.fitting import fit_jacobian
        >>> model = eepolicy.load("pocket")
        >>> out = model.generate("What color is snow?", max_new_tokens=12)
        >>> heads = fit_jacobian(model, [eepolicy.Document.of(out)], depths=[19])
        >>> heads.depths
        (19,)
    """
    chosen = lens_depths(model, depths)
    total = torch.zeros(len(chosen), model.width, model.width, dtype=torch.float64)
    count = 0
    for document in progress(documents):
        if len(document.inputs) > skip + 1:
            total += _jacobians(model, document.inputs, chosen, skip, rows)
            count += 1
    if not count:
        raise EepolicyError(
            f"no document has more than {skip + 1} tokens: the first {skip} positions and the last "
            "one are left out"
        )
    mean = (total / count).float()
    return _as_heads(model, dict(zip(chosen, mean, strict=True)))


def read_jacobian_lens(path: str | Path, model: HookedModel) -> FittedHead:
    """Read a Jacobian lens in the published format.

    Such a file is written by `torch.save`.  It has `J`, a matrix (width, width) for each layer by
    the layer's number from 0, and `d_model`.

    Args:
        path: the file.
        model: model that the lens was fitted on.  The file does not name it: only its width and
            its number of layers are checked.

    Raises:
        EepolicyError: the file is no Jacobian lens, or one of another width or depth.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise EepolicyError(f"{path} cannot be read as a Jacobian lens: {error}") from error
    matrices = stored.get("J") if isinstance(stored, dict) else None
    if not isinstance(matrices, dict) or not matrices:
        raise EepolicyError(f"{path} is no Jacobian lens: it has no matrices 'J' by layer")
    shape = (model.width, model.width)
    for layer, matrix in matrices.items():
        if tuple(matrix.shape) != shape or not 0 <= int(layer) < model.depth:
            raise EepolicyError(
                f"the model has layers 0 to {model.depth - 1} and needs matrices {shape}; {path} "
                f"has {tuple(matrix.shape)} at layer {layer}"
            )
    below = {int(layer) + 1: matrix.float() for layer, matrix in sorted(matrices.items())}
    below.pop(model.depth, None)  # the last layer's matrix is the identity
    return _as_heads(model, below)


def lens_depths(model: HookedModel, depths: Iterable[int] | None) -> list[int]:
    """Depths of a lens, rising; all below full depth for None.

    Raises:
        EepolicyError: there is none, or one that does not exist.
    """
    chosen = sorted({*(range(1, model.depth) if depths is None else depths)})
    if not chosen or not 1 <= chosen[0] <= chosen[-1] < model.depth:
        raise EepolicyError(f"a lens is fitted at depths 1 to {model.depth - 1}; got {chosen}")
    return chosen


def maps_as_heads(model: HookedModel, maps: Mapping[int, tuple[Tensor, Tensor]]) -> FittedHead:
    """Tuned lenses that map a state h to A h + b.

    Args:
        model: model of the heads.
        maps: A, (width, width), and b, (width,), by depth.
    """
    heads = {
        depth: TunedLens(model.lens, matrix - torch.eye(len(matrix)), bias)
        for depth, (matrix, bias) in maps.items()
    }
    return FittedHead(heads).to(model.device)


def _as_heads(model: HookedModel, jacobians: Mapping[int, Tensor]) -> FittedHead:
    """Tuned lenses that map a state h to J h: matrices (width, width) by depth."""
    return maps_as_heads(
        model, {depth: (each, torch.zeros(model.width)) for depth, each in jacobians.items()}
    )


def _jacobians(
    model: HookedModel, inputs: Tensor, depths: Sequence[int], skip: int, rows: int
) -> Tensor:
    """Mean Jacobians of a document's inputs: (tokens, ...) -> (depths, width, width)."""
    width, tokens = model.width, len(inputs)
    valid = slice(skip, tokens - 1)
    jacobians = torch.empty(len(depths), width, width, dtype=torch.float64)
    for first in range(0, width, rows):
        outputs = torch.arange(first, min(first + rows, width))
        repeated = inputs.to(model.device).expand(len(outputs), *inputs.shape)
        states = _states(model, repeated, depths[0])
        last = states[model.depth]
        # row r of the batch is differentiated for output r, at all positions at once
        directions = torch.zeros_like(last)
        directions[torch.arange(len(outputs)), valid, outputs] = 1
        sources = [states[depth] for depth in depths]
        for index, grad in enumerate(torch.autograd.grad(last, sources, directions)):
            jacobians[index, outputs] = grad[:, valid].mean(1).double().cpu()
    return jacobians


def _states(model: HookedModel, inputs: Tensor, shallowest: int) -> dict[int, Tensor]:
    """States after each layer from a depth on, with a graph from there: inputs of `embed`."""
    tokens = inputs.shape[1]
    positions = torch.arange(tokens, device=inputs.device)[None]
    with torch.no_grad():
        hidden = model.embed(inputs, positions)
    rotations, masks = model.rotations(tokens), model.block_masks(tokens, 0)
    states: dict[int, Tensor] = {}
    for depth in range(1, model.depth + 1):
        with torch.set_grad_enabled(depth > shallowest):
            hidden = model.run_layer(depth - 1, hidden, rotations, masks)
        if depth == shallowest:
            hidden = hidden.detach().requires_grad_()
        states[depth] = hidden
    return states
