"""The linear lens: the least-squares map from each depth to the last layer, as heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fitting.jacobian import lens_depths, maps_as_heads
from eepolicy.heads.fitted import FittedHead
from eepolicy.hooked import HookedModel
from eepolicy.probing import Document


@torch.no_grad()
def fit_linear(
    model: HookedModel,
    documents: Sequence[Document],
    depths: Iterable[int] | None = None,
    *,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> FittedHead:
    """Fit a linear lens: A h + b, then the norm and output embedding of the model.

    A and b minimise the squared error at the states of the last layer, over the positions that
    predict a token of the documents' replies.  They are computed in closed form from sums over
    positions, in float64.  With fewer positions than the model is wide, they are the solution of
    least norm.  The result is a tuned lens with W = A - I, and is saved and read as one.

    Source: Din et al. 2023, arXiv 2303.09435.  They fit no b.

    Args:
        model: model whose states are mapped.
        documents: prompts with their replies, such as those of `generate_replies`.
        depths: depths below full; None for all.
        progress: wraps the documents, to show progress.

    Returns:
        A head for each depth, in float32.

    Raises:
        EepolicyError: a depth that does not exist, or no document.

    Examples:
        >>> import eepolicy
        >>> from eepolicy.fitting import fit_linear
        >>> model = eepolicy.load("pocket")
        >>> out = model.generate("What color is snow?", max_new_tokens=20)
        >>> heads = fit_linear(model, [eepolicy.Document.of(out)], depths=[12, 16])
        >>> heads.depths
        (12, 16)
    """
    chosen = lens_depths(model, depths)
    if not documents:
        raise EepolicyError("a linear lens is fitted on one document or more; got none")
    size, width = (len(chosen), model.width + 1), model.width
    # sums over positions of x x' and x y': x is the state with a 1 appended, y the last state
    squares = torch.zeros(*size, width + 1, dtype=torch.float64)
    products = torch.zeros(*size, width, dtype=torch.float64)
    for document in progress(documents):
        at = slice(*document.span)
        every = list(model.hidden_states(document.inputs[None].to(model.device)))
        states = torch.stack([every[depth - 1][0, at] for depth in chosen]).double().cpu()
        last = every[-1][0, at].double().cpu()  # (positions, width)
        inputs = torch.cat([states, torch.ones_like(states[..., :1])], -1)
        squares += inputs.mT @ inputs
        products += inputs.mT @ last
    # the driver for sums that may be singular
    solved = torch.linalg.lstsq(squares, products, driver="gelsd").solution
    maps = {depth: _split(each) for depth, each in zip(chosen, solved, strict=True)}
    return maps_as_heads(model, maps)


def _split(solution: Tensor) -> tuple[Tensor, Tensor]:
    """A, (width, width), and b, (width,), of a solution (width + 1, width)."""
    return solution[:-1].T.float().contiguous(), solution[-1].float()
