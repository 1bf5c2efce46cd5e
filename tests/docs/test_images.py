"""Figures of made-up data against stored pictures.

`python tests/docs/test_images.py` draws the stored ones again; look at them before a commit.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images

from eepolicy.analysis.evaluation.columns import COLUMNS
from eepolicy.analysis.evaluation.plots import agreement_figure, depth_figure, quality_figure
from eepolicy.analysis.evaluation.records import Record
from eepolicy.analysis.studies.drift import TOKEN_MEASURES, Drift
from eepolicy.analysis.style import COLOURS, figures

REFERENCES = Path(__file__).parent / "references"
#: root mean square of the differences of grey values; one that a line makes which is missing or of
#: another colour lies above it
TOLERANCE = 4.0

pytestmark = pytest.mark.skipif(
    matplotlib.__version_info__ < (3, 11), reason="text had other sizes before matplotlib 3.11"
)


def quality() -> Figure:
    rows = []
    for i, policy in enumerate(("full", "static@16", "spark:triple@14", "entropy<0.5@14")):
        row = {"policy": policy}
        for column in COLUMNS:
            value = 0.5 + 0.1 * i if "depth" not in column.name else 20 - i
            row |= {column.name: value, f"{column.name}_low": value - 0.05}
            row |= {f"{column.name}_high": value + 0.05}
        rows.append(row | {"mos": None, "judge_score": None})
    return quality_figure(rows)


def agreement() -> Figure:
    curves = {
        head: {m: np.linspace(low, 1, 20) for m, low in (("text", 0.3), ("speech", 0.1))}
        for head, low in (("fitted heads", 0.4), ("plain logit lens", 0.0))
    }
    return agreement_figure(curves, 24)


def depths() -> Figure:
    modalities = [0, 0, 0, *[1] * 9] * 2
    records = [
        Record(
            question="q",
            policy=policy,
            text="",
            transcript=None,
            right_text=True,
            right_speech=None,
            errors=None,
            words=None,
            mos=None,
            ended=True,
            seconds=1.0,
            speech_seconds=1.0,
            layer_calls=420,
            readouts=24,
            tokens=list(range(24)),
            depths=[20 if m == 0 or i % 3 == 0 else exits for i, m in enumerate(modalities)],
            modalities=modalities,
        )
        for policy, exits in (("full", 20), ("spark:triple@14", 14))
    ]
    words = [["Snow" if m == 0 else "" for m in modalities]] * 2
    return depth_figure(records, words, 20)


def saw_tooth() -> Figure:
    rng = np.random.default_rng(0)
    rows = [
        {"policy": "spark:triple@14", "fill": fill, "document": document, "modality": "speech"}
        | {"chunk": 1, "phase": phase, "depth": 14, "since_refresh": phase % 3}
        | dict.fromkeys(
            (m.name for m in TOKEN_MEASURES), size * (phase % 3) * rng.uniform(0.5, 1.5)
        )
        for fill, size in (("catch_up", 0.1), ("mask", 1.0))
        for document in range(8)
        for phase in range(12)
    ]
    return Drift(pd.DataFrame(rows), pd.DataFrame(), 12).figure("kl")


DRAWN = {f.__name__: f for f in (quality, agreement, depths, saw_tooth)}


def draw(name: str, path: Path) -> None:
    with figures():
        DRAWN[name]().savefig(path, dpi=60)


def difference(name: str, path: Path) -> float:
    result = compare_images(str(REFERENCES / f"{name}.png"), str(path), 0.0, in_decorator=True)
    return result["rms"] if result else 0.0


@pytest.mark.parametrize("name", DRAWN)
def test_the_figure_equals_the_reference_image(name, tmp_path):
    draw(name, tmp_path / "new.png")
    assert difference(name, tmp_path / "new.png") <= TOLERANCE


def test_another_colour_exceeds_the_tolerance(tmp_path, monkeypatch):
    monkeypatch.setitem(COLOURS, "speech", "#00aa00")
    draw("depths", tmp_path / "new.png")
    assert difference("depths", tmp_path / "new.png") > TOLERANCE


if __name__ == "__main__":
    for each in DRAWN:
        draw(each, REFERENCES / f"{each}.png")
