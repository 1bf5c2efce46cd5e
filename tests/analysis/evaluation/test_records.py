"""The run folder after damage and with other files."""

from __future__ import annotations

from dataclasses import replace

import pytest
from example_record import RECORD, store

from eepolicy import EepolicyError
from eepolicy.analysis.evaluation.records import RunFolder


def test_a_run_goes_on_after_a_cut_line(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.open({"model": "m"}) == {}
    store(folder, [RECORD, replace(RECORD, question="q1")])
    file = folder.path / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-40])  # the machine went down in the middle of a line
    assert list(folder.records()) == [("q0", "full")]
    store(folder, [replace(RECORD, question="q2")])
    assert [q for q, _ in folder.records()] == ["q0", "q2"]
    file.write_text("not a record\n" + file.read_text())
    with pytest.raises(EepolicyError, match=r"records.jsonl, line 1 is not JSON"):
        folder.records()
    file.write_text(file.read_text().removeprefix("not a record\n"))
    folder.note(rows=["full"])
    assert folder.open({"model": "m"}) == {"rows": ["full"]}


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(EepolicyError, match="contains files that are not of a run"):
        RunFolder(tmp_path).open({})
    folder = RunFolder(tmp_path / "run")
    folder.open({"model": "m", "heads": "a"})
    with pytest.raises(EepolicyError, match="contains a run with another heads"):
        folder.open({"model": "m", "heads": "b"})
    (folder.path / "run.json").write_text("{")
    with pytest.raises(EepolicyError, match="cannot be read"):
        folder.open({"model": "m"})


def test_repeats_are_counted_in_speech():
    record = replace(RECORD, tokens=[7, 7, 1, 1, 2, 2], modalities=[0, 0, 1, 0, 1, 1])
    assert record.repeats == 1  # 1, 2, 2
