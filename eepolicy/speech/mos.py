"""Naturalness of speech: other packages predict the mean opinion score (MOS, 1 to 5)."""

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
from eepolicy.speech.audio import write_audio

#: for each MOS predictor: the modules that it needs, and how to install them
NEEDS = {
    "distillmos": (
        ("distillmos", "xls_r_sqa"),
        "pip install --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0 ('make mos' does it)",
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
    """Return what to install for a MOS predictor, or None if nothing is missing.

    Args:
        rater: `distillmos`, `dnsmos` or `utmosv2`.

    Raises:
        EepolicyError: the predictor does not exist.
    """
    if rater not in NEEDS:
        raise EepolicyError(f"the MOS predictors are {', '.join(NEEDS)}; got {rater!r}")
    modules, install = NEEDS[rater]
    return None if all(map(find_spec, modules)) else install


@contextlib.contextmanager
def _without_torchaudio() -> Iterator[None]:
    """Make `import torchaudio` return an empty module if it is not installed.

    DistillMOS needs torchaudio only for its command line, and the wheel on PyPI is a CUDA build.
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


def _device(name: str) -> str:
    """The device that a name stands for; `"auto"` is a CUDA device if there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


class DistillMos:
    """DistillMOS.

    Args:
        device: device that it runs on; by default a CUDA device if there is one.

    Raises:
        EepolicyError: a package is missing.
    """

    def __init__(self, device: str = "auto") -> None:
        self._device = _device(device)
        try:
            with _without_torchaudio(), contextlib.redirect_stdout(io.StringIO()):
                from distillmos import ConvTransformerSQAModel

                self._model = ConvTransformerSQAModel().eval().to(self._device)
        except ImportError as error:
            raise EepolicyError(
                f"DistillMOS needs the package {error.name}: {NEEDS['distillmos'][1]}"
            ) from error

    @torch.no_grad()
    def rate(self, wave: Tensor) -> float:
        """Predict the MOS of a waveform, (samples,) at 16 kHz; nan if it is empty."""
        if wave.numel() == 0:
            return float("nan")
        return float(self._model(wave[None].to(self._device)).item())


class Dnsmos:
    """DNSMOS P.835 (arXiv 2110.01763): the overall rating.

    It rates the pocket model's voice far above white noise; DistillMOS does not.

    Raises:
        EepolicyError: a package is missing.
    """

    def __init__(self) -> None:
        try:
            from speechmos import dnsmos
        except ImportError as error:
            raise EepolicyError(
                f"DNSMOS needs the package {error.name}: {NEEDS['dnsmos'][1]}"
            ) from error
        self._run = dnsmos.run

    def rate(self, wave: Tensor) -> float:
        """Predict the MOS of a waveform, (samples,) at 16 kHz; nan if it is empty."""
        if wave.numel() == 0:
            return float("nan")
        return float(self._run(wave.numpy().astype(np.float32).clip(-1, 1), 16_000)["ovrl_mos"])


class UtmosV2:
    """UTMOSv2 (arXiv 2409.09305), which the paper uses.

    Args:
        device: device that it runs on; by default a CUDA device if there is one.

    Raises:
        EepolicyError: the package is missing.
    """

    def __init__(self, device: str = "auto") -> None:
        self._device = _device(device)
        try:
            import utmosv2
        except ImportError as error:
            raise EepolicyError(
                f"UTMOSv2 needs the package {error.name}: {NEEDS['utmosv2'][1]}"
            ) from error
        self._model = utmosv2.create_model(pretrained=True)

    def rate(self, wave: Tensor) -> float:
        """Predict the MOS of a waveform, (samples,) at 16 kHz; nan if it is empty."""
        if wave.numel() == 0:
            return float("nan")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "speech.wav"
            write_audio(file, wave)
            # by default it starts four processes and shows a bar for each file
            options = {"device": self._device, "num_workers": 0, "verbose": False}
            return float(self._model.predict(input_path=str(file), **options))


#: MOS predictors by name
RATERS: dict[str, Any] = {"distillmos": DistillMos, "dnsmos": Dnsmos, "utmosv2": UtmosV2}
