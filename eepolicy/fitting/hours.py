"""Time of fitting in rounds on another machine, computed from the speed of the machine."""

from __future__ import annotations

from dataclasses import dataclass

from eepolicy.fitting.config import FitConfig
from eepolicy.heads.fitted import KINDS, HeadSize


@dataclass(frozen=True)
class Machine:
    """Speed of a machine.

    Attributes:
        flops: floating-point operations in a second.
        tokens_per_second: number of tokens that it generates in a second, all rows of a batch
            together.
    """

    flops: float
    tokens_per_second: float


def fitting_hours(
    config: FitConfig, machine: Machine, *, size: HeadSize, full_depth: int, tokens: int
) -> dict[str, float]:
    """Hours of the rounds at one depth, by use: arithmetic from the number of weights.

    A product with w weights takes 2 w operations a position, and 6 w with its gradients.

    Args:
        config: options of the fit.
        machine: speed.
        size: sizes of the model.
        full_depth: number of layers.
        tokens: number of tokens of the replies to all questions, prompts included.

    Examples:
        >>> from eepolicy.fitting import FitConfig
        >>> from eepolicy.fitting.hours import HeadSize, Machine, fitting_hours
        >>> glm = HeadSize(4096, 168_960, num_layers=2, layer_weights=204_000_000)
        >>> branch = FitConfig("branch", depths=(12,), epochs=3, rounds=2, round_epochs=3)
        >>> hours = fitting_hours(
        ...     branch, Machine(3e14, 2000), size=glm, full_depth=40, tokens=10_000_000
        ... )
        >>> {use: round(value, 1) for use, value in hours.items()}
        {'replies': 2.8, 'states': 0.3, 'fitting': 0.7}
    """
    ratio = config.mix / (1 - config.mix)
    own = [number * config.part for number in range(1, config.rounds + 1)]
    replies = (1 + config.part * config.rounds) * tokens
    fitted = tokens * (
        config.epochs + config.round_epochs * sum(part + min(1, part * ratio) for part in own)
    )
    layers = full_depth * size.layer_weights
    output = size.width * size.vocabulary
    head = KINDS.get(config.kind).count(size)
    steps = config.unroll if config.is_drafter else 1
    return {
        "replies": replies / machine.tokens_per_second / 3600,
        "states": 2 * layers * replies / machine.flops / 3600,
        # labels: one product with the output embedding; the head: one, and one for the gradient
        "fitting": (6 * steps * head + (2 + 4 * steps) * output) * fitted / machine.flops / 3600,
    }
