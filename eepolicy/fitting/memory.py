"""Memory of fitting, computed before it starts."""

from __future__ import annotations

from eepolicy.fitting.config import MAX_BATCH, FitConfig
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

    Branches, drafters and fits in rounds take one depth at a time, in float32, and their states are
    streamed from disk.

    Args:
        config: options of the fit.
        width: width of the model.
        vocabulary: number of ids in the vocabulary.
        full_depth: number of layers.
        longest: number of tokens in the longest reply, its prompt included.
        layer_weights: number of weights of a decoder layer, for branches and drafters.

    Examples:
        >>> from eepolicy.fitting import FitConfig, fitting_memory
        >>> glm = dict(width=4096, vocabulary=168_960, full_depth=40)
        >>> need = fitting_memory(FitConfig(), **glm)
        >>> round(sum(need.values()) / 2**30, 1)  # beside 18 GB of weights in bfloat16
        13.2
        >>> branch = FitConfig("branch", num_layers=2, depths=(12,), padded_positions=8192)
        >>> need = fitting_memory(branch, layer_weights=204_000_000, **glm)
        >>> {use: round(size / 2**30, 1) for use, size in need.items()}
        {'parameters': 7.6, 'hidden states': 2.1, 'activations': 13.1, 'logits': 0.8}
    """
    depths = full_depth - 1 if config.depths is None else len(config.depths)
    size = HeadSize(width, vocabulary, config.rank, config.num_layers, layer_weights)
    weights = KINDS.get(config.kind).count(size)
    has_layers = config.is_drafter or config.kind == "branch"
    stored = (config.batch_replies or MAX_BATCH) * longest
    # Adam updates one parameter after another, with two temporaries of its size; one of the
    # parameter before is alive then
    update = 4 * (2 * layer_weights if has_layers else (3 if depths > 1 else 2) * weights)
    # float32 target, logits, their gradient, and two temporaries
    logits = 4 * 5 * vocabulary
    if has_layers:
        steps, inputs = (config.unroll, 8 * width) if config.is_drafter else (1, 0)
        layers = config.num_layers * activations_of_layer(size)
        padded = max(config.padded_positions, longest)
        return {
            # float32 weights, their gradients and the two moments of Adam
            "parameters": 4 * 4 * weights + update,
            # float32 states of a batch at the exit and after the last layer, and those of the
            # branch or of each step of a drafter, their padded copy and their gradient
            "hidden states": 4 * width * (2 * stored + (2 + 3 * steps) * padded),
            # for the backward pass: inputs and outputs of the products, and what lies between them;
            # a drafter also keeps what its linear map and its norm read
            "activations": 4 * padded * steps * (layers + inputs),
            "logits": logits * min(config.chunk, stored),
        }
    if config.rounds:
        return {
            "parameters": 4 * 4 * weights + update,
            # float32 states of a batch at the exit and after the last layer, and one more copy of
            # the replies that are fitted on at once
            "hidden states": 4 * width * 3 * stored,
            "logits": logits * min(config.chunk, stored),
        }
    positions = config.batch_tokens + longest
    return {
        # float32 weights, their gradients, the two moments of Adam, and the best weights in half
        # precision
        "parameters": (4 * 4 + 2) * depths * weights + update,
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
