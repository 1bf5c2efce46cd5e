"""The vocoders of the paper's two models, by their authors' packages.

The packages must be installed.  This package contains none of their code.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import sys
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soundfile
import torch
from torch import Tensor

from eepolicy.errors import EepolicyError, translated
from eepolicy.speech.torchaudio_files import soundfile_in_torchaudio
from eepolicy.speech.vocoders import check_units


@dataclass(frozen=True)
class Authors:
    """What a vocoder needs from its authors.

    Attributes:
        module: module of their repository that has the vocoder.
        repository: address of the repository.
        paths: folders that belong on PYTHONPATH, in words.
        packages: packages to install, as pip names them.
        modules: modules that must be there.
        files: files of the checkpoint.
        num_codes: number of speech units.
    """

    module: str
    repository: str
    paths: str
    packages: str
    modules: tuple[str, ...]
    files: tuple[str, ...]
    num_codes: int

    @property
    def install(self) -> str:
        """How to install everything."""
        return (
            f"clone {self.repository}, add {self.paths} to PYTHONPATH, and install the packages "
            f"{self.packages}"
        )

    def missing(self) -> list[str]:
        """Names of the modules that are not there."""
        return [n for n in self.modules if n not in sys.modules and find_spec(n) is None]

    def check_files(self, folder: str | Path) -> None:
        """Check that a checkpoint is complete.

        Raises:
            EepolicyError: a file is missing.
        """
        folder = Path(folder)
        missing = [name for name in self.files if not (folder / name).is_file()]
        if missing:
            raise EepolicyError(
                f"{folder} lacks {', '.join(missing)}: give the folder of the vocoder's "
                f"checkpoint, which has {', '.join(self.files)}"
            )

    def load(self, make: str, *args: Any, **options: Any) -> Any:
        """Import the module and make the vocoder.

        Args:
            make: name of the class or function.
            *args: its arguments.
            **options: its named arguments.

        Raises:
            EepolicyError: a module is missing, or the call fails; the message says what to
                install.
        """
        with translated(lambda error: self._explain(make, error)):
            # making a vocoder draws weights, and can print, while stdout may be JSON
            devices = range(torch.cuda.device_count())
            with torch.random.fork_rng(devices), contextlib.redirect_stdout(sys.stderr):
                return getattr(importlib.import_module(self.module), make)(*args, **options)

    def _explain(self, make: str, error: Exception) -> EepolicyError:
        """The error for one of the authors' code."""
        if isinstance(error, ImportError):
            return EepolicyError(f"no module {error.name!r}: {self.install}")
        # configs import modules too, and name them in other errors
        return EepolicyError(
            f"{make} of {self.repository} cannot be loaded: {type(error).__name__}: {error}. "
            f"If a module is missing: {self.install}"
        )


#: what the vocoder of Step-Audio-2-mini needs
STEP = Authors(
    "token2wav",
    "https://github.com/stepfun-ai/Step-Audio2",
    "its folder",
    "torchaudio s3tokenizer onnxruntime hyperpyyaml librosa einops",
    ("token2wav", "torchaudio", "s3tokenizer", "onnxruntime", "hyperpyyaml", "librosa", "einops"),
    ("flow.yaml", "flow.pt", "hift.pt", "campplus.onnx", "speech_tokenizer_v2_25hz.onnx"),
    6561,
)
#: what the vocoder of GLM-4-Voice needs.  Of Matcha-TTS, the repository has the version that fits;
#: the package matcha-tts brings an old numpy and another torch
GLM = Authors(
    "flow_inference",
    "https://github.com/zai-org/GLM-4-Voice with its submodules",
    "its folder, cosyvoice and third_party/Matcha-TTS in it",
    "torchaudio hyperpyyaml omegaconf einops conformer diffusers hydra-core lightning "
    "torchmetrics gdown beautifulsoup4 wget rootutils",
    (
        "flow_inference",
        "matcha",
        "torchaudio",
        "hyperpyyaml",
        "omegaconf",
        "einops",
        "conformer",
        "diffusers",
        "hydra",
        "lightning",
        "torchmetrics",
        "gdown",
        "bs4",
        "wget",
        "rootutils",
    ),
    ("config.yaml", "flow.pt", "hift.pt"),
    16_384,
)


@contextlib.contextmanager
def running(device: str, units: Tensor) -> Iterator[None]:
    """Run code of the authors: on a device, without gradients, and with fixed random numbers.

    Flow matching starts at noise.  The noise depends on the units only, so the same units always
    sound the same.  The random state of the caller is kept.

    Args:
        device: name of the device.
        units: (units,), which seed the noise.
    """
    at = torch.device(device)
    digest = hashlib.sha256(",".join(map(str, units.tolist())).encode()).digest()
    cuda: list[int] = []
    if at.type == "cuda":
        if not torch.cuda.is_available():
            raise EepolicyError(f"there is no CUDA device; the vocoder is to run on {device}")
        cuda = [torch.cuda.current_device() if at.index is None else at.index]
    with contextlib.ExitStack() as stack:
        if cuda:  # their code asks for "cuda", which is the current device
            stack.enter_context(torch.cuda.device(cuda[0]))
        stack.enter_context(torch.random.fork_rng(cuda))
        stack.enter_context(torch.no_grad())
        stack.enter_context(soundfile_in_torchaudio())
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        yield


@dataclass(frozen=True)
class StepVoice:
    """The vocoder of Step-Audio-2-mini: its authors' `Token2wav`.

    Attributes:
        folder: the folder `token2wav` of the model's checkpoint.
        voice: audio file with the voice to imitate.
        device: CUDA device that it runs on; without one, their code runs on the CPU.
    """

    folder: str | Path
    voice: str | Path
    #: not in the repr: a stopped run may continue on another GPU
    device: str = field(default="cpu", repr=False)
    _loaded: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    #: samples per second
    sampling_rate: ClassVar[int] = 24_000
    #: what it needs
    authors: ClassVar[Authors] = STEP
    #: units of a block of `stream`, and those that it looks ahead, as in the authors' code
    BLOCK: ClassVar[int] = 25
    #: the blocks are made here, so that the first one waits for no further unit
    stream_chunk: ClassVar[int] = 1
    LOOK_AHEAD: ClassVar[int] = 3

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_loaded": {}}  # another process loads the authors' model itself

    def check(self) -> None:
        """Check that the files are there.

        Raises:
            EepolicyError: a file is missing.
        """
        self.authors.check_files(self.folder)
        if not Path(self.voice).is_file():
            raise EepolicyError(f"{self.voice} is missing: give a sound file with a voice")

    def decode(self, units: Tensor) -> Tensor:
        """Decode units (units,) into (samples,) at `sampling_rate`.

        Raises:
            EepolicyError: the authors' package is missing, or a unit is not in the codebook.
        """
        if not len(units):
            return torch.zeros(0)
        check_units(units, self.authors.num_codes)
        with running(self.device, units):
            audio = self._vocoder()(units.tolist(), prompt_wav=str(self.voice))
        wave, _ = soundfile.read(io.BytesIO(audio), dtype="float32", always_2d=True)
        return torch.from_numpy(np.ascontiguousarray(wave.mean(1)))

    def stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode units while they arrive, in blocks of 25, with the authors' caches.

        The sound differs from that of `decode`, because a block knows only three later units.

        Args:
            chunks: (units,) each.

        Returns:
            An iterator over pieces of sound, (samples,) at `sampling_rate`.

        Raises:
            EepolicyError: the authors' package is missing or cannot stream, or a unit is not in the
                codebook.
        """
        state: dict[str, Any] = {}
        buffer = torch.zeros(0, dtype=torch.int64)
        for chunk in chunks:
            check_units(chunk, self.authors.num_codes)
            buffer = torch.cat([buffer, chunk])
            while len(buffer) >= self.BLOCK + self.LOOK_AHEAD:
                yield self._block(buffer[: self.BLOCK + self.LOOK_AHEAD], state, is_last=False)
                buffer = buffer[self.BLOCK :]
        if len(buffer):
            yield self._block(buffer, state, is_last=True)

    def _block(self, units: Tensor, state: dict[str, Any], is_last: bool) -> Tensor:
        """Sound of a block; `state` has the caches of its stream between the calls."""
        with running(self.device, units):
            vocoder = self._vocoder()
            if not hasattr(vocoder, "set_stream_cache"):
                raise EepolicyError(
                    f"the clone of {self.authors.repository} is older than streaming: pull it"
                )
            if not state:
                vocoder.set_stream_cache(str(self.voice))
            vars(vocoder).update(state)
            pcm = vocoder.stream(units.tolist(), prompt_wav=str(self.voice), last_chunk=is_last)
            state |= {n: getattr(vocoder, n) for n in ("stream_cache", "hift_cache_dict")}
        return torch.from_numpy(np.frombuffer(pcm, "<i2").astype(np.float32) / 32_767)

    def _vocoder(self) -> Any:
        """The authors' object; loaded at the first call."""
        if not self._loaded:
            self._loaded["vocoder"] = self.authors.load("Token2wav", str(self.folder))
        return self._loaded["vocoder"]


@dataclass(frozen=True)
class GlmVoice:
    """The vocoder of GLM-4-Voice: its authors' `AudioDecoder`.

    Attributes:
        folder: folder of the checkpoint `glm-4-voice-decoder`, with `config.yaml`,
            `flow.pt` and `hift.pt`.
        device: device that it runs on.
    """

    folder: str | Path
    #: not in the repr: a stopped run may continue on another GPU
    device: str = field(default="cuda", repr=False)
    _loaded: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    #: samples per second, as in the authors' demo
    sampling_rate: ClassVar[int] = 22_050
    #: what it needs
    authors: ClassVar[Authors] = GLM
    #: units of the blocks of `stream`, as in the authors' demo; the last size repeats
    BLOCKS: ClassVar[tuple[int, ...]] = (10, 20, 40)
    #: the blocks are made here, so that the first one waits for no further unit
    stream_chunk: ClassVar[int] = 1

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_loaded": {}}  # another process loads the authors' model itself

    def check(self) -> None:
        """Check that the files are there.

        Raises:
            EepolicyError: a file is missing.
        """
        self.authors.check_files(self.folder)

    def decode(self, units: Tensor) -> Tensor:
        """Decode units (units,) into (samples,) at `sampling_rate`.

        Raises:
            EepolicyError: the authors' package is missing, or a unit is not in the codebook.
        """
        if not len(units):
            return torch.zeros(0)
        check_units(units, self.authors.num_codes)
        return self._block(_GlmStream(str(uuid.uuid4())), units, is_last=True)

    def stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode units while they arrive, in the blocks of the authors' demo: 10, 20, then 40.

        The sound differs from that of `decode`, because a block does not know later units.

        Args:
            chunks: (units,) each.

        Returns:
            An iterator over pieces of sound, (samples,) at `sampling_rate`.

        Raises:
            EepolicyError: the authors' package is missing, or a unit is not in the codebook.
        """
        state, number = _GlmStream(str(uuid.uuid4())), 0
        buffer = torch.zeros(0, dtype=torch.int64)
        for chunk in chunks:
            check_units(chunk, self.authors.num_codes)
            buffer = torch.cat([buffer, chunk])
            # a unit stays for the end, because the last block is marked as such
            while len(buffer) > (size := self.BLOCKS[min(number, len(self.BLOCKS) - 1)]):
                yield self._block(state, buffer[:size], is_last=False)
                buffer, number = buffer[size:], number + 1
        if len(buffer):
            yield self._block(state, buffer, is_last=True)

    def _block(self, state: _GlmStream, units: Tensor, is_last: bool) -> Tensor:
        """Sound of a block, (samples,); units and mel frames of earlier ones are its prompt."""
        with running(self.device, units):
            vocoder = self._vocoder()
            tokens = units[None].to(self.device)
            speech, mel = vocoder.token2wav(
                tokens,
                uuid=state.key,
                prompt_token=torch.cat([torch.zeros_like(tokens[:, :0]), *state.tokens], 1),
                prompt_feat=torch.cat([torch.zeros(1, 0, 80, device=self.device), *state.mels], 1),
                finalize=is_last,
            )
        state.tokens.append(tokens)
        if not is_last:
            state.mels.append(mel.transpose(1, 2))
        return torch.as_tensor(speech).float().cpu().flatten()

    def _vocoder(self) -> Any:
        """The authors' object; loaded at the first call, and without dropout."""
        if not self._loaded:
            files = [str(Path(self.folder) / name) for name in self.authors.files]
            vocoder = self.authors.load("AudioDecoder", *files, device=self.device)
            for part in (vocoder.flow, vocoder.hift):  # their code leaves them in training mode
                part.eval()
            self._loaded["vocoder"] = vocoder
        return self._loaded["vocoder"]


@dataclass(frozen=True)
class _GlmStream:
    """What the authors' code gets again with each block.

    Attributes:
        key: name of the stream in their caches.
        tokens: units of earlier blocks, (1, units) each.
        mels: mel frames of earlier blocks, (1, frames, 80) each.
    """

    key: str
    tokens: list[Tensor] = field(default_factory=list)
    mels: list[Tensor] = field(default_factory=list)
