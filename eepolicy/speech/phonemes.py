"""Text to phonemes, for models that read phonemes."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

from eepolicy.errors import EepolicyError


@dataclass(frozen=True)
class EspeakPhonemizer:
    """Phonemes by espeak, with stress and punctuation, as NeuTTS reads them.

    It calls the package `phonemizer`, which calls the library espeak-ng.  Without them, set
    `model.phonemizer` to None and write the prompt and the transcript of the voice in phonemes.

    Attributes:
        language: language in the names of espeak, such as `"en-us"`.
    """

    language: str
    _loaded: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, text: str) -> str:
        """Return the phonemes of a text, with single spaces between words.

        Raises:
            EepolicyError: phonemizer or espeak-ng is not installed.
        """
        if not self._loaded:
            self._loaded["backend"] = self._backend()
        return " ".join(self._loaded["backend"].phonemize([text])[0].split())

    def _backend(self) -> Any:
        try:
            backend = importlib.import_module("phonemizer.backend").EspeakBackend
            return backend(self.language, preserve_punctuation=True, with_stress=True)
        except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: no espeak
            raise EepolicyError(
                f"this model reads phonemes ({self.language}), and they cannot be made: {error}; "
                "install espeak-ng and 'pip install phonemizer', or set model.phonemizer = None "
                "and write the prompt in phonemes"
            ) from error
