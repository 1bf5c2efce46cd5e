"""The Pareto front against its definition, and what figures must survive."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from example_record import RECORD
from hypothesis import given
from hypothesis import strategies as st

from eepolicy.analysis.evaluation.columns import COLUMNS
from eepolicy.analysis.evaluation.plots import (
    depth_figure,
    pareto,
    quality_figure,
    save,
    summary_figure,
)
from eepolicy.analysis.style import figures


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12),
    st.booleans(),
)
def test_the_pareto_front_contains_exactly_the_undominated_points(points, higher):
    costs, values = zip(*points, strict=True)
    sign = 1 if higher else -1
    beaten = [
        any(
            c <= costs[i] and sign * v >= sign * values[i] and (c, v) != points[i]
            for c, v in points
        )
        for i in range(len(points))
    ]
    front = pareto(costs, values, higher)
    assert {points[i] for i in front} == {p for p, b in zip(points, beaten, strict=True) if not b}
    assert [costs[i] for i in front] == sorted({costs[i] for i in front})


#: one quality and one cost
SOME = [column for column in COLUMNS if column.name in ("wer", "seconds")]
#: texts that matplotlib would read as mathematics, the first two with errors
MATH = ("$$", r"$\frac$", "$a$")


def test_dollars_in_policies_and_tokens_do_not_break_figures(tmp_path):
    policies = ("full", *(f"mine:{text}" for text in MATH))
    rows = [
        {"policy": policy}
        | {f"{c.name}{end}": 1.0 + i for c in SOME for end in ("", "_low", "_high")}
        for i, policy in enumerate(policies)
    ]
    records = [replace(RECORD, policy=policy) for policy in policies]
    words = [["$$", "", r"$\frac$", "", "", ""]] * len(records)
    with figures():
        for name, figure in (
            ("quality", quality_figure(rows, SOME)),
            ("depths", depth_figure(records, words, 20)),
        ):
            save(figure, tmp_path, name)
            drawn = (tmp_path / f"{name}.svg").read_text()
            assert all(f"mine:{text}" in drawn for text in MATH)
    # outside of `figures` too
    depth_figure(records, words, 20).canvas.draw()
    quality_figure(rows, SOME).canvas.draw()


def test_fonts_of_saved_figures_are_truetype(tmp_path):
    with figures(), plt.rc_context({"pdf.compression": 0}):
        save(depth_figure([RECORD], [["a"] * 6], 20), tmp_path, "depths")
    written = (tmp_path / "depths.pdf").read_bytes()
    assert b"/Type3" not in written
    assert b"/TrueType" in written or b"/CIDFontType2" in written


def test_a_sweep_has_a_marker_per_policy():
    rows = [
        {"policy": f"static@{depth}"}
        | {f"{c.name}{end}": 1.0 + depth for c in SOME for end in ("", "_low", "_high")}
        for depth in (10, 12, 14, 16)
    ]
    figure = quality_figure(rows, SOME)
    markers = [drawn.lines[0] for drawn in figure.axes[0].containers]
    looks = {(line.get_color(), line.get_marker()) for line in markers}
    assert len(looks) == len(rows)
    plt.close(figure)


def test_labels_of_tokens_do_not_overlap():
    record = replace(RECORD, tokens=[1] * 60, depths=[20] * 60, modalities=([0] * 4 + [1] * 16) * 3)
    words = (["elephants", "and", "also", "crocodiles"] + [""] * 16) * 3
    with figures():
        figure = depth_figure([record] * 2, [words, [*words[:20], *["x" * 30] * 40]], 20)
        figure.canvas.draw()
        for ax in figure.axes:
            boxes = [t.get_window_extent() for t in ax.texts if t.get_text() != record.policy]
            assert len(boxes) > 1
            for one, other in pairwise(sorted(boxes, key=lambda box: box.x0)):
                assert one.x1 <= other.x0
            assert all(box.x1 <= ax.get_window_extent().x1 + 1 for box in boxes)
        plt.close(figure)


def test_the_summary_shows_differences_and_the_margin():
    rows = []
    for i, policy in enumerate(("full", "static@16", "$odd")):
        row = {"policy": policy, "speedup": 1 + 0.1 * i, "speedup_low": 1.0, "speedup_high": 1.3}
        rows.append(row | {"wer_diff": 0.01 * i, "wer_diff_low": -0.02, "wer_diff_high": 0.03})
    rows[0] |= {"wer_diff_low": None, "wer_diff_high": None}
    figure = summary_figure(rows, margin=1.5)
    (ax,) = figure.axes
    points = [tuple(container[0].get_xydata()[0]) for container in ax.containers]
    np.testing.assert_allclose(points, [(1, 0), (1.1, 1), (1.2, 2)])
    segments = ax.containers[1][2][1].get_segments()
    np.testing.assert_allclose(segments, [[(1.1, -2), (1.1, 3)]])
    band = next(p for p in ax.patches)
    assert (band.get_y(), band.get_height()) == (-1.5, 3.0)
    figure.canvas.draw()  # a dollar sign does not start a formula
    plt.close(figure)
