"""Rows against the static exit of nearly the same cost, from a run folder made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from board_example import IDENTITY, example
from example_record import RECORD, store

from eepolicy import EepolicyError
from eepolicy.analysis.evaluation.equal_cost import at_equal_cost, equal_cost_table
from eepolicy.analysis.evaluation.load import load_comparison
from eepolicy.analysis.evaluation.records import RunFolder

#: by row: layer calls and word errors of the replies to four questions, each of six tokens and two
#: words
ROWS = {
    "full": ([120] * 4, [0, 0, 0, 0]),
    "static@16": ([96] * 4, [1, 0, 0, 1]),
    "static@8": ([48] * 4, [2, 2, 2, 2]),
    # 15 layer calls a token: static@16 is the nearest
    "spark:even@10": ([84, 96, 84, 96], [0, 0, 1, 0]),
    # 11.5 is nearer to 8 than to 16
    "spark:even@3": ([69] * 4, [2, 1, 2, 2]),
    # full depth is the static exit at the last layer
    "static@16, accept=exact": ([126] * 4, [0, 0, 0, 0]),
}


@pytest.fixture
def comparison(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open(IDENTITY)
    folder.note(rows=list(ROWS))
    for number in range(4):
        records = [
            replace(
                RECORD, question=f"q{number}", policy=p, errors=e[number], layer_calls=c[number]
            )
            for p, (c, e) in ROWS.items()
        ]
        store(folder, records)
    return load_comparison(folder.path)


def test_rows_are_compared_with_the_nearest_static_exit(comparison):
    even, low, exact = at_equal_cost(comparison)
    assert (even.policy, even.exit) == ("spark:even@10", "static@16")
    assert even.calls.value == 15
    assert even.cost.value == -1
    # 1 of 8 words against 2 of 8
    assert even.differences["wer"].value == -0.125
    assert (low.exit, low.cost.value) == ("static@8", 3.5)
    assert low.differences["wer"].value == -0.125
    assert (exact.exit, exact.cost.value) == ("full", 1)
    assert exact.differences["accuracy_speech"].value == 0


def test_intervals_resample_pairs(comparison):
    even = at_equal_cost(comparison, ["wer"])[0]
    drawn = np.random.default_rng(1).integers(4, size=(4000, 4))
    differences = np.array(ROWS["spark:even@10"][1]) - np.array(ROWS["static@16"][1])
    low, high = np.percentile(differences[drawn].sum(1) / 8, [2.5, 97.5])
    # four questions have few different resamples: these quantiles are whole eighths
    assert (even.differences["wer"].low, even.differences["wer"].high) == (low, high)


def test_the_table(comparison):
    table = equal_cost_table(at_equal_cost(comparison)).splitlines()
    assert table[0] == (
        "| row | layer calls a token | static exit | layer calls more | WER, points "
        "| accuracy in speech, points |"
    )
    assert table[2].startswith("| `spark:even@10` | 15.00 | `static@16` | -1.00 | -12.5 [")
    assert table[4].endswith("| +0.0 [+0.0, +0.0] | +0.0 [+0.0, +0.0] |")


def test_a_run_without_static_exits_is_refused(tmp_path):
    folder = example(tmp_path / "run", {"full": (0, 1.0), "spark:even@8": (0, 1.0)}, questions=2)
    with pytest.raises(EepolicyError, match="no row static@DEPTH"):
        at_equal_cost(load_comparison(folder))
