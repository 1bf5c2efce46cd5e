"""Exit predictors: whether the head at a depth will agree with the full model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError
from eepolicy.formats import PredictorHeader, parse
from eepolicy.heads.base import ExitHead
from eepolicy.heads.fingerprint import describe, fingerprint
from eepolicy.io import write_atomically


class ExitPredictor(nn.Module):
    """The probability that the exit head has the full model's most likely token.

    A network of its own for each depth reads the hidden state and no vocabulary.  The state is
    normalised to mean 0 and variance 1.  A linear map to one number follows, or two linear maps
    with a SiLU between them.  It works in float32 in any model.

    This is the learned classifier of CALM (arXiv 2207.07061) and the predictor of SpecEE
    (arXiv 2504.08850), without SpecEE's draft tokens as inputs.

    Args:
        depths: depths that get a network, rising.
        width: width of the model.
        hidden: width of the layer in between; 0 for one linear map.
        seed: seed of the initial weights.

    Examples:
        >>> predictor = ExitPredictor([4, 6], width=8)
        >>> predictor.probability(torch.zeros(2, 8), 6).shape
        torch.Size([2])
    """

    def __init__(
        self, depths: Iterable[int], width: int, hidden: int = 64, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        generator = torch.Generator().manual_seed(seed)
        self.networks = nn.ModuleDict(
            {str(depth): _network(width, hidden, generator) for depth in depths}
        )

    def __repr__(self) -> str:
        depths = ", ".join(map(str, self.depths))
        return f"ExitPredictor(depths {depths}, width {self.width}, hidden {self.hidden})"

    @property
    def depths(self) -> tuple[int, ...]:
        """Depths that have a network, rising."""
        return tuple(map(int, self.networks))

    def scores(self, hidden: Tensor, depth: int) -> Tensor:
        """The log-odds of agreement: (..., width) -> (...).

        Args:
            hidden: hidden states after `depth` layers.
            depth: number of layers that the states have passed.

        Raises:
            EepolicyError: the depth has no network.
        """
        check_predicted(self, [depth])
        states = nn.functional.layer_norm(hidden.float(), (self.width,))
        scores: Tensor = self.networks[str(depth)](states)
        return scores.squeeze(-1)

    @torch.no_grad()
    def probability(self, hidden: Tensor, depth: int) -> Tensor:
        """The probability of agreement: (..., width) -> (...).

        Args:
            hidden: hidden states after `depth` layers.
            depth: number of layers that the states have passed.

        Raises:
            EepolicyError: the depth has no network.
        """
        return self.scores(hidden, depth).sigmoid()

    def save(
        self, path: str | Path, model: PreTrainedModel, heads: ExitHead, notes: dict[str, Any]
    ) -> None:
        """Write the weights, with the fingerprint of the model.

        Args:
            path: safetensors file to write.
            model: model that the predictor was fitted on.
            heads: exit heads whose agreement it predicts.
            notes: description of the fit as JSON types.
        """
        # one metadata entry: safetensors does not keep the order of several
        header = {
            "depths": self.depths,
            "width": self.width,
            "hidden": self.hidden,
            "heads": repr(heads),
            "model": fingerprint(model),
            "notes": notes,
        }
        tensors = {name: value.detach().cpu() for name, value in self.state_dict().items()}
        metadata = {"predictor": json.dumps(header)}
        write_atomically(path, lambda part: save_file(tensors, part, metadata))


def load_predictor(path: str | Path, model: PreTrainedModel, heads: ExitHead) -> ExitPredictor:
    """Read an exit predictor that was fitted on a model, to the model's device.

    Args:
        path: file that `ExitPredictor.save` wrote.
        model: stock model.
        heads: exit heads of the model.

    Raises:
        EepolicyError: the predictor was fitted on another model or for other heads, or the file is
            not one of a predictor.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {})["predictor"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise EepolicyError(f"{path} is not a file of an exit predictor: {error}") from error
    header, given = parse(PredictorHeader, metadata, str(path)), fingerprint(model)
    stored = header.model_dump()["model"]
    if stored != given:
        raise EepolicyError(
            f"the exit predictor in {path} was fitted on {describe(stored)}, this model is "
            f"{describe(given)}; fit one for it with 'eepolicy fit --predictor'"
        )
    if header.heads != repr(heads):
        raise EepolicyError(
            f"the exit predictor in {path} was fitted for the heads {header.heads}, this model has "
            f"{heads!r}; load those heads, or fit a predictor with 'eepolicy fit --predictor'"
        )
    predictor = ExitPredictor(header.depths, header.width, header.hidden)
    try:
        predictor.load_state_dict(tensors)
    except RuntimeError as error:
        raise EepolicyError(f"{path} is not a file of an exit predictor: {error}") from error
    return predictor.requires_grad_(False).to(model.device)


def check_predicted(predictor: ExitPredictor | None, depths: Sequence[int]) -> None:
    """Refuse depths without an exit predictor.

    Raises:
        EepolicyError: with the depth and those that have one.
    """
    if not depths:
        return
    if predictor is None:
        raise EepolicyError(
            f"the policy reads an exit predictor at depth {depths[0]}, and this model has none: "
            "fit one with 'eepolicy fit --predictor', and set model.predictor"
        )
    for depth in depths:
        if depth not in predictor.depths:
            raise EepolicyError(
                f"no exit predictor was fitted at depth {depth}; the depths with one are "
                f"{', '.join(map(str, predictor.depths))}"
            )


def _network(width: int, hidden: int, generator: torch.Generator) -> nn.Sequential:
    """Layers of one depth, in float32; the last one starts at zero: probability 0.5."""
    last = nn.Linear(hidden or width, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    if not hidden:
        return nn.Sequential(last)
    first = nn.Linear(width, hidden)
    nn.init.normal_(first.weight, std=width**-0.5, generator=generator)
    nn.init.zeros_(first.bias)
    return nn.Sequential(first, nn.SiLU(), last)
