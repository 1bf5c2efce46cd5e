"""The table of fits in rounds."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from benchmarks.rounds import comparison, draw, table
from eepolicy import EepolicyError


def fit_folder(folder: Path, loss: dict[str, str], errors: list[list[int]]) -> Path:
    """The folder of a fit on 400 questions, with the word errors of each round."""
    for number, wrong in enumerate(errors):
        stage = folder / f"depth-6/round-{number}"
        stage.mkdir(parents=True)
        row = {
            **{"depth": 6, "round": number, "layers": 2, "questions": 400, "agreement": 0.5},
            **{"agreement_own": 0.25, "kl_own": 0.5, "wer": sum(wrong) / 10},
            **{"reply_errors": wrong, "reply_words": [4, 6]},
        }
        (stage / "row.json").write_text(json.dumps(row))
    (folder / "fit.json").write_text(json.dumps({"fitting": loss}))
    return folder


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_page_compares_the_rounds_of_fits(tmp_path):
    folders = [
        fit_folder(tmp_path / "soft", {}, [[1, 2], [0, 1]]),
        fit_folder(tmp_path / "reverse", {"loss": "reverse_kl"}, [[2, 3]]),
    ]
    full = [0, 2], [4, 6]
    rows = [cells_of(line) for line in comparison(folders, full).splitlines()[2:]]
    names = ["2 layers, 400 questions", "2 layers, 400 questions, reverse KL"]
    assert [(row[0], row[1]) for row in rows] == [(names[0], "0"), (names[0], "1"), (names[1], "0")]
    assert [row[2:4] for row in rows] == [["50.0", "25.0"]] * 3
    # resamples of two replies: both, or one of them twice
    assert [row[4] for row in rows] == [
        "30.0 [25.0, 33.3]",
        "10.0 [0.0, 16.7]",
        "50.0 [50.0, 50.0]",
    ]
    assert [row[5] for row in rows] == [
        "+10.0 [+0.0, +25.0]",
        "-10.0 [-16.7, +0.0]",
        "+30.0 [+16.7, +50.0]",
    ]
    figure = draw(folders, full)
    agreement, kl, wer = figure.axes
    assert [len(line.get_xdata()) for line in agreement.lines] == [2, 1]
    assert [list(line.get_ydata()) for line in kl.lines] == [[0.5, 0.5], [0.5]]
    assert list(wer.lines[0].get_ydata()) == [20, 20]  # full depth
    plt.close(figure)


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
