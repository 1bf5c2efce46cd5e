"""Tables that studies store: damaged ones get one sentence."""

from __future__ import annotations

import pytest

from eepolicy import EepolicyError
from eepolicy.analysis.tables import read_table


def test_a_stored_table_is_read(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("wer,right\n0.5,1\n0.0,0\n")
    assert read_table(file, ["wer"], 2).wer.tolist() == [0.5, 0.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no table in CSV: No columns"),
        (b'wer\n"a\n', "is no table in CSV: "),
        (b"wer\n\xff\n", "is no table in CSV: "),
        (b"right\n1\n", "has no column 'wer'"),
        (b"wer\n1\n", "has 1 rows, not 2"),
        (None, "is no table in CSV: .*No such file"),
    ],
)
def test_a_damaged_table_is_refused(content, message, tmp_path):
    file = tmp_path / "a.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(EepolicyError, match=f"{message}.*; delete the file, and it is measured"):
        read_table(file, ["wer"], 2)
