"""Memory of fitting, computed before it starts."""

from __future__ import annotations

from eepolicy.fitting.config import FitConfig
from eepolicy.heads.fitted import KINDS, HeadSize


def fitting_memory(
    config: FitConfig, *, width: int, vocabulary: int, full_depth: int, longest: int = 512
) -> dict[str, int]:
    """Upper bound of the bytes that fitting takes beside the model, by use.

    Args:
        config: options of the fit.
        width: width of the model.
        vocabulary: number of ids in the vocabulary.
        full_depth: number of layers.
        longest: number of tokens in the longest reply.

    Examples:
        >>> from eepolicy.fitting import FitConfig, fitting_memory
        >>> glm = dict(width=4096, vocabulary=168_960, full_depth=40)
        >>> need = fitting_memory(FitConfig(), **glm)
        >>> round(sum(need.values()) / 2**30, 1)  # beside 18 GB of weights in bfloat16
        11.8
    """
    depths = full_depth - 1 if config.depths is None else len(config.depths)
    size = HeadSize(width, vocabulary, config.rank)
    weights = KINDS.get(config.kind).count(size)
    positions = config.batch_tokens + longest
    return {
        # float32 weights, their gradients and the two moments of Adam
        "parameters": 4 * 4 * depths * weights,
        # float32 states of each reply, and of all replies of a batch joined
        "hidden states": 4 * 2 * (depths + 1) * positions * width,
        # float32 target, logits, their gradient, and two temporaries
        "logits": 4 * 5 * min(config.chunk, positions) * vocabulary,
    }
