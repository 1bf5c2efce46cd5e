"""The number of CPU threads that suits the size of a model."""

from __future__ import annotations

import torch
from torch import nn

from eepolicy.errors import EepolicyError

#: number of parameters below which `"auto"` is one thread.  More threads divide each product, and
#: all wait for the slowest.  Medians of a token on two busy cores, in ms with two threads and with
#: one: 351 and 48 (pocket, 16 million parameters), 341 and 62 (41 million), 374 and 96 (67
#: million), 370 and 67 (138 million).  Larger models were not measured.  On two idle cores,
#: two threads are faster: 29 ms and 51 (135 million, compiled)
SMALL_MODEL = 150_000_000


def set_threads(model: nn.Module, threads: int | str) -> None:
    """Set PyTorch's number of CPU threads, for the whole process.

    Args:
        model: the model that will run.
        threads: the number; or `"auto"`, which is 1 for a model with fewer than 150 million
            parameters, and otherwise leaves the number that PyTorch chose.

    Raises:
        EepolicyError: the number is not 1 or more.
    """
    if threads == "auto":
        if sum(parameter.numel() for parameter in model.parameters()) < SMALL_MODEL:
            torch.set_num_threads(1)
    elif isinstance(threads, int) and not isinstance(threads, bool) and threads >= 1:
        torch.set_num_threads(threads)
    else:
        raise EepolicyError(f"threads is 1 or more, or 'auto'; got {threads!r}")
