"""Weights in float32, bfloat16 and int8: how times are taken in turn, and the table."""

from __future__ import annotations

import pytest

from benchmarks import precision


class Output:
    """A reply of so many tokens."""

    def __init__(self, tokens: int) -> None:
        self.tokens = range(tokens)


class Model:
    """A model that takes so many seconds a token."""

    def __init__(self, clock: list[float], seconds: float, calls: list) -> None:
        self.clock, self.seconds, self.calls = clock, seconds, calls

    def generate(self, prompt, policy, max_new_tokens, compile):
        assert compile
        self.calls.append((self.seconds, policy, prompt))
        tokens = min(len(prompt), max_new_tokens)
        self.clock[0] += tokens * self.seconds / (2 if policy == "static@6" else 1)
        return Output(tokens)


def test_types_and_policies_take_turns(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(precision.time, "perf_counter", lambda: clock[0])
    models = {"float32": Model(clock, 0.008, calls), "int8": Model(clock, 0.004, calls)}
    times = precision.measure(models, ("full", "static@6"), ["abcd", "ab", "abcdefgh"], 6, 2)
    assert times["float32", "full"] == pytest.approx([8.0] * 3)
    assert times["int8", "static@6"] == pytest.approx([2.0] * 3)
    timed = calls[3 * 4 :]
    assert [call[2] for call in timed[::8]] == ["abcd", "ab", "abcdefgh"]
    firsts = [call[:2] for call in timed[::4]]
    assert len(set(firsts)) == 4  # another contender is first in each round
    assert sorted(timed[:4]) == sorted(timed[4:8])
    rows = {tuple(row[:2]): row[2:] for row in precision.rows(times)}
    assert rows["float32", "`full`"] == ["8.00", "1.00 [1.00, 1.00]"]
    assert rows["int8", "`static@6`"] == ["2.00", "4.00 [4.00, 4.00]"]
