"""Reading and writing sound files for packages that do it through torchaudio.

From version 2.9, torchaudio reads and writes files through torchcodec, and does not write into
memory.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor


@contextlib.contextmanager
def soundfile_in_torchaudio() -> Iterator[None]:
    """Let `torchaudio.load` and `torchaudio.save` use soundfile inside the block."""
    if "torchaudio" not in sys.modules and find_spec("torchaudio") is None:
        yield
        return
    torchaudio = importlib.import_module("torchaudio")
    own = {"load": _load, "save": _save}
    before = {name: getattr(torchaudio, name, None) for name in own}
    vars(torchaudio).update(own)
    try:
        yield
    finally:
        vars(torchaudio).update(before)


def _load(file: Any, **_: Any) -> tuple[Tensor, int]:
    """A sound file: (channels, samples) and samples per second."""
    wave, rate = soundfile.read(file, dtype="float32", always_2d=True)
    return torch.from_numpy(np.ascontiguousarray(wave.T)), rate


def _save(target: Any, wave: Tensor, sample_rate: int, format: str = "wav", **_: Any) -> None:
    """Write (channels, samples) into a file or into memory, without loss."""
    samples = wave.detach().float().cpu().numpy().T
    subtype = "FLOAT" if format.lower() == "wav" else None
    soundfile.write(target, samples, sample_rate, format=format.upper(), subtype=subtype)
