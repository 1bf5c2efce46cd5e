"""The benchmark of the time to the first sound."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.first_sound import CHUNKS, POLICIES, measure, page


class Speaker:
    """Pieces of 0.1 s of sound that come after 0.05 s, 0.02 s and 0.25 s."""

    def generate(self, question, policy):
        time.sleep(0.3)
        return SimpleNamespace(audio=None)

    def stream_audio(self, question, policy, chunk):
        speaker = self

        class Stream:
            sampling_rate = 16_000

            def __iter__(self):
                for wait in speaker.waits:
                    time.sleep(wait)
                    yield torch.zeros(1600)

        return Stream()

    waits = (0.05, 0.02, 0.25)


def test_silence_counts_only_waits_beyond_the_played_sound():
    whole, first, last, silence = measure(Speaker(), "full", "Why?", (8,))
    # waits have at least the given length; a loaded machine may lengthen them
    assert whole >= 0.3
    assert first == pytest.approx(0.05, abs=0.04)
    assert last == pytest.approx(0.32, abs=0.1)
    # 0.27 s after the first piece, of which 0.2 s have sound
    assert silence == pytest.approx(0.07, abs=0.06)


def test_the_page_has_a_row_for_each_way():
    values = np.arange(1, 2 + 3 * len(CHUNKS)) / 1000 * np.ones((5, 1))
    text = page(dict.fromkeys(POLICIES, values), 5, 1)
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(POLICIES) * (1 + len(CHUNKS))
    assert rows[1] == "| `full` | 2 units | 2 [2, 2] | 3 [3, 3] | 4 [4, 4] |"
