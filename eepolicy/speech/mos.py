"""How natural speech sounds: DistillMOS, an estimate of the mean opinion score (1 to 5)."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError

INSTALL = "pip install --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0 ('make compare' does it)"


def missing_mos() -> str | None:
    """What to install before speech can be rated; None where nothing is missing."""
    return None if find_spec("distillmos") and find_spec("xls_r_sqa") else INSTALL


@contextlib.contextmanager
def _without_torchaudio() -> Iterator[None]:
    """Let `import torchaudio` find an empty module.

    DistillMOS imports it for its command line alone; its PyPI wheel is a CUDA build.
    """
    names = [n for n in ("torchaudio", "torchaudio.transforms") if n not in sys.modules]
    if find_spec("torchaudio"):
        names = []
    sys.modules.update({n: ModuleType(n) for n in names})
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


class DistillMos:
    """DistillMOS on the CPU.

    Raises:
        EepolicyError: the packages are not installed.
    """

    def __init__(self) -> None:
        try:
            with _without_torchaudio(), contextlib.redirect_stdout(io.StringIO()):
                from distillmos import ConvTransformerSQAModel

                self._model = ConvTransformerSQAModel().eval()
        except ImportError as error:
            raise EepolicyError(f"no speech rating ({error.name}): {INSTALL}") from error

    @torch.no_grad()
    def rate(self, wave: Tensor) -> float:
        """The estimated opinion: wave (samples,) at 16 kHz; nan for no speech."""
        if wave.numel() == 0:
            return float("nan")
        return float(self._model(wave[None]).item())
