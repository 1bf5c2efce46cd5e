"""The table of fits in rounds."""

from __future__ import annotations

import json

import pytest

from benchmarks.rounds import table
from eepolicy import EepolicyError


def test_a_table_shows_finished_rounds(tmp_path):
    for number, wer in ((1, 0.0625), (0, None)):
        folder = tmp_path / f"depth-6/round-{number}"
        folder.mkdir(parents=True)
        row = {"depth": 6, "round": number, "agreement": 0.825, "kl": 0.17, "wer": wer}
        (folder / "row.json").write_text(json.dumps(row))
    (tmp_path / "depth-6/round-2").mkdir()
    lines = table([tmp_path]).strip().splitlines()
    assert len(lines) == 4
    first, second = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:])
    assert (first[1], first[3], first[6], first[7], first[-1]) == ("6", "0", "82.5", "0.170", "–")
    assert (second[3], second[-1]) == ("1", "6.2")
    with pytest.raises(EepolicyError, match="has no finished round"):
        table([tmp_path / "depth-6"])
