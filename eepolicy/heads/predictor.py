"""Exit predictors: whether the head at a depth will agree with the full model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from eepolicy.errors import EepolicyError
from eepolicy.heads.base import ExitHead


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
        heads: `repr` of the exit heads whose agreement it predicts; `""` if that is unknown.
        seed: seed of the initial weights.

    Examples:
        >>> predictor = ExitPredictor([4, 6], width=8)
        >>> predictor.probability(torch.zeros(2, 8), 6).shape
        torch.Size([2])
    """

    def __init__(
        self,
        depths: Iterable[int],
        width: int,
        hidden: int = 64,
        *,
        heads: str = "",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.width, self.hidden, self.heads = width, hidden, heads
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

    def check(self, depths: Iterable[int]) -> None:
        """Refuse depths without a network.

        Raises:
            EepolicyError: with the depth and those that have one.
        """
        for depth in depths:
            if depth not in self.depths:
                raise EepolicyError(
                    f"no exit predictor was fitted at depth {depth}; the depths with one are "
                    f"{', '.join(map(str, self.depths))}"
                )

    def scores(self, hidden: Tensor, depth: int) -> Tensor:
        """The log-odds of agreement: (..., width) -> (...).

        Args:
            hidden: hidden states after `depth` layers.
            depth: number of layers that the states have passed.

        Raises:
            EepolicyError: the depth has no network.
        """
        self.check([depth])
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


def check_predicted(
    predictor: ExitPredictor | None, heads: ExitHead, depths: Sequence[int]
) -> None:
    """Refuse depths without an exit predictor for the model's exit heads.

    Args:
        predictor: exit predictor of the model, if it has one.
        heads: exit heads of the model.
        depths: depths at which a policy reads the predictor.

    Raises:
        EepolicyError: with the depth and those that have one, or with both heads.
    """
    if not depths:
        return
    fit = "fit one with 'eepolicy fit-predictor', and set model.predictor"
    if predictor is None:
        raise EepolicyError(
            f"the policy reads an exit predictor at depth {depths[0]}, and this model has none: "
            f"{fit}"
        )
    predictor.check(depths)
    if predictor.heads not in ("", repr(heads)):
        raise EepolicyError(
            f"the exit predictor was fitted for the heads {predictor.heads}, and this model has "
            f"{heads!r}; load those heads, or {fit}"
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
