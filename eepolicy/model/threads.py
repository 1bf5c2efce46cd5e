"""CPU threads of PyTorch while worker processes run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(active: bool = True) -> Iterator[None]:
    """Use one CPU thread in the block, as each worker process does.

    Args:
        active: False changes nothing.
    """
    before = torch.get_num_threads()
    if active:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if active:
            torch.set_num_threads(before)
