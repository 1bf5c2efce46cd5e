"""Memory and time of fitting, computed before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from eepolicy.fitting.config import FitConfig
from eepolicy.heads.fitted import KINDS, HeadSize


def fitting_memory(
    config: FitConfig,
    *,
    width: int,
    vocabulary: int,
    full_depth: int,
    longest: int = 512,
    layer_weights: int = 0,
) -> dict[str, int]:
    """Upper bound of the bytes that fitting takes beside the model, by use.

    Branches are fitted one depth at a time, in float32, and their states are streamed from disk.

    Args:
        config: options of the fit.
        width: width of the model.
        vocabulary: number of ids in the vocabulary.
        full_depth: number of layers.
        longest: number of tokens in the longest reply, its prompt included.
        layer_weights: number of weights of a decoder layer, for branches.

    Examples:
        >>> from eepolicy.fitting import FitConfig, fitting_memory
        >>> glm = dict(width=4096, vocabulary=168_960, full_depth=40)
        >>> need = fitting_memory(FitConfig(), **glm)
        >>> round(sum(need.values()) / 2**30, 1)  # beside 18 GB of weights in bfloat16
        11.8
        >>> branch = FitConfig("branch", num_layers=2, depths=(12,), padded_positions=8192)
        >>> need = fitting_memory(branch, layer_weights=204_000_000, **glm)
        >>> {use: round(size / 2**30, 1) for use, size in need.items()}
        {'parameters': 6.1, 'hidden states': 2.1, 'activations': 13.1, 'logits': 0.8}
    """
    depths = full_depth - 1 if config.depths is None else len(config.depths)
    size = HeadSize(width, vocabulary, config.rank, config.num_layers, layer_weights)
    weights = KINDS.get(config.kind).count(size)
    # float32 target, logits, their gradient, and two temporaries
    logits = 4 * 5 * vocabulary
    if config.kind == "branch":
        padded = max(config.padded_positions, longest)
        stored = config.batch_replies * longest
        return {
            # float32 weights, their gradients and the two moments of Adam
            "parameters": 4 * 4 * weights,
            # float32 states of a batch at the exit and after the last layer, and those of the
            # branch, their padded copy and their gradient
            "hidden states": 4 * width * (2 * stored + 5 * padded),
            # for the backward pass: inputs and outputs of the products, and what lies between them
            "activations": 4 * padded * config.num_layers * activations_of_layer(size),
            "logits": logits * min(config.chunk, stored),
        }
    positions = config.batch_tokens + longest
    return {
        # float32 weights, their gradients and the two moments of Adam
        "parameters": 4 * 4 * depths * weights,
        # float32 states of each reply, and of all replies of a batch joined
        "hidden states": 4 * 2 * (depths + 1) * positions * width,
        "logits": logits * min(config.chunk, positions),
    }


def activations_of_layer(size: HeadSize) -> int:
    """Upper bound of the numbers that a decoder layer keeps of a position for the backward pass.

    A product with (m, n) weights keeps its m inputs.  The weights divided by the width bound the
    sum of all n from above; norms, rotations and gates keep up to twice as many again.
    """
    return 3 * size.layer_weights // size.width + 16 * size.width


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
        >>> from eepolicy.fitting.memory import HeadSize, Machine, fitting_hours
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
    return {
        "replies": replies / machine.tokens_per_second / 3600,
        "states": 2 * layers * replies / machine.flops / 3600,
        # labels: one product with the output embedding; the head: one, and one for the gradient
        "fitting": (6 * head + 6 * output) * fitted / machine.flops / 3600,
    }
