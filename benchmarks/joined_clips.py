"""Speech recognition of clips that are joined in one window, to compare with one clip a window.

The words of a window are attributed to clips by timestamps of words or of segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from eepolicy.analysis.evaluation.scoring import normalized
from eepolicy.speech.windows import SAMPLE_RATE

Wave = NDArray[np.float32]


@dataclass(frozen=True)
class Joining:
    """A way to join clips.

    Attributes:
        gap: seconds between two clips.
        window: length of the window in seconds.
        noise: standard deviation of the noise in the gaps and below the clips.
        words: attribute words by their own timestamps, or else by those of their segments.
    """

    gap: float
    window: int = 30
    noise: float = 0.0
    words: bool = True
    batch_size: int = 4

    @property
    def name(self) -> str:
        """Its name in the table."""
        between = f"noise {self.noise:g}" if self.noise else "silence"
        stamps = "words" if self.words else "segments"
        return f"joined in {self.window} s, gaps of {self.gap:g} s, {between}, by {stamps}"


def join(waves: Sequence[Wave], how: Joining) -> list[list[tuple[int, float]]]:
    """Fill windows with clips in order: number and start in seconds of each clip, by window."""
    windows: list[list[tuple[int, float]]] = []
    end = float("inf")
    for i, wave in enumerate(waves):
        seconds = len(wave) / SAMPLE_RATE
        if end + seconds > how.window:
            windows.append([])
            end = 0.0
        windows[-1].append((i, end))
        end += seconds + how.gap
    return windows


def transcribe_joined(model: Any, tokenizer: Any, waves: Sequence[Wave], how: Joining) -> list[str]:
    """Transcribe joined clips.

    Args:
        model: model of faster-whisper.
        tokenizer: its tokenizer.
        waves: the clips, (samples,) each.
        how: how they are joined.

    Returns:
        The words that are attributed to each clip.
    """
    texts = [""] * len(waves)
    windows = join(waves, how)
    noise = np.random.default_rng(0).standard_normal(how.window * SAMPLE_RATE)
    for begin in range(0, len(windows), how.batch_size):
        batch = windows[begin : begin + how.batch_size]
        features = np.stack([_features(model, waves, clips, how, noise) for clips in batch])
        encoded = model.encode(features)
        prompt = [*tokenizer.sot_sequence, *([tokenizer.no_timestamps] if how.words else [])]
        results = model.model.generate(encoded, [prompt] * len(batch), beam_size=1)
        tokens = [result.sequences_ids[0] for result in results]
        pieces = (
            _words(model, tokenizer, encoded, tokens, features.shape[2])
            if how.words
            else [_segments(model, tokenizer, ids, how.window) for ids in tokens]
        )
        for clips, timed in zip(batch, pieces, strict=True):
            ends = [start + len(waves[i]) / SAMPLE_RATE for i, start in clips]
            borders = [end + how.gap / 2 for end in ends[:-1]]
            for middle, text in timed:
                texts[clips[int(np.searchsorted(borders, middle))][0]] += text
    return [text.strip() for text in texts]


def _features(
    model: Any,
    waves: Sequence[Wave],
    clips: Sequence[tuple[int, float]],
    how: Joining,
    noise: NDArray[np.float64],
) -> Wave:
    """Log-mel spectrum of a window, (mels, frames)."""
    joined = (how.noise * noise).astype(np.float32)
    for i, start in clips:
        begin = int(start * SAMPLE_RATE)
        joined[begin : begin + len(waves[i])] += waves[i]
    frames = how.window * model.frames_per_second
    mel: Wave = model.feature_extractor(joined)[:, :frames]
    return mel


def _words(
    model: Any, tokenizer: Any, encoded: Any, tokens: Sequence[Sequence[int]], frames: int
) -> list[list[tuple[float, str]]]:
    """Middle in seconds and text of each word, by window."""
    texts = [[token for token in ids if token < tokenizer.eot] for ids in tokens]
    aligned = model.find_alignment(tokenizer, texts, encoded, frames)
    return [[((w["start"] + w["end"]) / 2, w["word"]) for w in words] for words in aligned]


def _segments(
    model: Any, tokenizer: Any, ids: Sequence[int], window: int
) -> list[tuple[float, str]]:
    """Middle in seconds and text of each segment of a window."""
    segments, *_ = model._split_segments_by_timestamps(
        tokenizer=tokenizer,
        tokens=ids,
        time_offset=0.0,
        segment_size=window * model.frames_per_second,
        segment_duration=window,
        seek=0,
    )
    return [((s["start"] + s["end"]) / 2, tokenizer.decode(s["tokens"])) for s in segments]


def attribution_errors(alone: Sequence[str], joined: Sequence[str]) -> tuple[int, int]:
    """Count the words that stand in another clip than where each clip is transcribed alone.

    The words of all clips are aligned, alone against joined; those that are equal are counted.

    Args:
        alone: transcript of each clip alone.
        joined: words attributed to each clip.

    Returns:
        The number of words in another clip, and of words that are equal.
    """
    sides = [
        [(word, i) for i, text in enumerate(texts) for word in normalized(text).split()]
        for texts in (alone, joined)
    ]
    words = [[word for word, _ in side] for side in sides]
    wrong = equal = 0
    for block in Levenshtein.opcodes(*words):
        if block.tag == "equal":
            pairs = zip(
                sides[0][block.src_start : block.src_end],
                sides[1][block.dest_start : block.dest_end],
                strict=True,
            )
            moved = [left != right for (_, left), (_, right) in pairs]
            wrong, equal = wrong + sum(moved), equal + len(moved)
    return wrong, equal
