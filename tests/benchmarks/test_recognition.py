"""The benchmark of speech recognition: windows of joined clips, and words in another clip."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.joined_clips import Joining, attribution_errors, join


@pytest.mark.parametrize(
    ("alone", "joined", "wrong"),
    [
        (["a cat sees", "no dog"], ["a cat sees", "no dog"], (0, 5)),
        (["a cat sees", "no dog"], ["a cat", "sees no dog"], (1, 5)),
        (["a cat sees", "no dog"], ["a hat sees", "no dog"], (0, 4)),
        (["a cat", "no dog"], ["", "a cat no dog"], (2, 4)),
    ],
)
def test_words_in_another_clip(alone, joined, wrong):
    assert attribution_errors(alone, joined) == wrong


def test_joined_clips_fill_windows_in_order():
    waves = [np.zeros(int(16_000 * seconds), np.float32) for seconds in (4, 5, 0.5, 9)]
    assert join(waves, Joining(0.5, window=10)) == [[(0, 0.0), (1, 4.5)], [(2, 0.0), (3, 1.0)]]
