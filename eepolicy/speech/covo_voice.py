"""The vocoder of Covo-Audio-Chat, by its authors' package."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.speech.authors_vocoders import Authors, running
from eepolicy.speech.vocoders import check_units

#: what the vocoder needs
COVO = Authors(
    "token2wav.decode",
    "https://github.com/Tencent/Covo-Audio",
    "its folder, without that of Step-Audio2, which has a module of the same name,",
    "torchaudio torchdiffeq einops json5",
    ("token2wav", "torchaudio", "torchdiffeq", "einops", "json5"),
    ("model.pt", "global_mean_var.npy"),
    16_384,
)
#: files of a voice
VOICE = ("prompt_token.npy", "prompt_latent.npy", "speaker_embed.npy")


@dataclass(frozen=True)
class CovoVoice:
    """The vocoder of Covo-Audio-Chat: its authors' `token2wav`, with flow matching and BigVGAN.

    Attributes:
        folder: the folder `token2wav` of the model's checkpoint.
        voice: folder with the files of a voice; None for the one in the authors' repository.
        device: device that it runs on.
    """

    folder: str | Path
    voice: str | Path | None = None
    #: not in the repr: a stopped run may continue on another GPU
    device: str = field(default="cuda", repr=False)
    _loaded: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    #: samples per second
    sampling_rate: ClassVar[int] = 24_000
    #: what it needs
    authors: ClassVar[Authors] = COVO

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_loaded": {}}  # another process loads the authors' model itself

    def check(self) -> None:
        """Check that the files and a CUDA device are there.

        Raises:
            EepolicyError: one of them is missing.
        """
        self.authors.check_files(self.folder)
        if self.voice is not None:
            missing = [name for name in VOICE if not (Path(self.voice) / name).is_file()]
            if missing:
                raise EepolicyError(
                    f"{self.voice} lacks {', '.join(missing)}: give a folder with the files of a "
                    "voice"
                )
        if not torch.cuda.is_available():
            raise EepolicyError(
                f"the vocoder of {self.authors.repository} asks for a CUDA device when it is made, "
                "even to run on a CPU, and there is none here"
            )

    def decode(self, units: Tensor) -> Tensor:
        """Decode units (units,) into (samples,) at `sampling_rate`.

        Raises:
            EepolicyError: the authors' package, a file or a CUDA device is missing, or a unit is
                not in the codebook.
        """
        if not len(units):
            return torch.zeros(0)
        check_units(units, self.authors.num_codes)
        with running(self.device, units):
            module, model, config = self._vocoder()
            sound = module.decode(
                llm_tokens=units.tolist(),
                prompt_dir=str(self.voice or Path(module.__file__).parent / "prompt"),
                model=model,
                config=config,
            )
        return torch.as_tensor(sound["wav"]).float().flatten()

    def _vocoder(self) -> tuple[Any, Any, Any]:
        """The authors' module, model and config; loaded at the first call."""
        if not self._loaded:
            try:
                module = importlib.import_module(self.authors.module)
            except ImportError as error:
                raise EepolicyError(f"no module {error.name!r}: {self.authors.install}") from error
            self.check()
            arguments = SimpleNamespace(
                decode_model_config=str(Path(str(module.__file__)).parent / "config.json"),
                decode_load_path=str(Path(self.folder) / "model.pt"),
            )
            made = self.authors.load("init_model", arguments, decode_device=self.device)
            self._loaded["vocoder"] = (module, *made)
        vocoder: tuple[Any, Any, Any] = self._loaded["vocoder"]
        return vocoder
