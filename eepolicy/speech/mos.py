"""How natural speech sounds: estimates of the mean opinion score (1 to 5), by other packages."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.speech.wav import write_wav

#: modules that a rater needs, and what installs them
NEEDS = {
    "distillmos": (
        ("distillmos", "xls_r_sqa"),
        "pip install --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0 ('make compare' does it)",
    ),
    "dnsmos": (
        ("speechmos", "librosa", "onnxruntime"),
        "pip install speechmos librosa onnxruntime",
    ),
    "utmosv2": (
        ("utmosv2",),
        "pip install git+https://github.com/sarulab-speech/UTMOSv2.git (it brings torchaudio)",
    ),
}


def missing_mos(rater: str = "distillmos") -> str | None:
    """What to install before speech can be rated; None where nothing is missing.

    Args:
        rater: `distillmos`, `dnsmos` or `utmosv2`.

    Raises:
        EepolicyError: there is no such rater.
    """
    if rater not in NEEDS:
        raise EepolicyError(f"speech is rated by {', '.join(NEEDS)}; got {rater!r}")
    modules, install = NEEDS[rater]
    return None if all(map(find_spec, modules)) else install


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
            raise EepolicyError(
                f"no speech rating ({error.name}): {NEEDS['distillmos'][1]}"
            ) from error

    @torch.no_grad()
    def rate(self, wave: Tensor) -> float:
        """The estimated opinion: wave (samples,) at 16 kHz; nan for no speech."""
        if wave.numel() == 0:
            return float("nan")
        return float(self._model(wave[None]).item())


class Dnsmos:
    """DNSMOS P.835 (2110.01763): the overall rating.

    On the pocket model's voice it is far above white noise, which DistillMOS is not.

    Raises:
        EepolicyError: the packages are not installed.
    """

    def __init__(self) -> None:
        try:
            from speechmos import dnsmos
        except ImportError as error:
            raise EepolicyError(f"no speech rating ({error.name}): {NEEDS['dnsmos'][1]}") from error
        self._run = dnsmos.run

    def rate(self, wave: Tensor) -> float:
        """The estimated opinion: wave (samples,) at 16 kHz; nan for no speech."""
        if wave.numel() == 0:
            return float("nan")
        return float(self._run(wave.numpy().astype(np.float32).clip(-1, 1), 16_000)["ovrl_mos"])


class UtmosV2:
    """UTMOSv2 (2409.09305), the paper's rater.

    Raises:
        EepolicyError: the package is not installed.
    """

    def __init__(self) -> None:
        try:
            import utmosv2
        except ImportError as error:
            raise EepolicyError(
                f"no speech rating ({error.name}): {NEEDS['utmosv2'][1]}"
            ) from error
        self._model = utmosv2.create_model(pretrained=True)

    def rate(self, wave: Tensor) -> float:
        """The estimated opinion: wave (samples,) at 16 kHz; nan for no speech."""
        if wave.numel() == 0:
            return float("nan")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "speech.wav"
            write_wav(file, wave)
            return float(self._model.predict(input_path=str(file)))


RATERS: dict[str, Any] = {"distillmos": DistillMos, "dnsmos": Dnsmos, "utmosv2": UtmosV2}
