"""The gallery has every figure, its lines run, and its figures follow the rules of all figures."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from gallery_example import small_world, write_bench, write_report
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import eepolicy.analysis
from eepolicy.analysis.evaluation.load import load_comparison
from eepolicy.analysis.studies import STUDIES, heads, layers, lenses
from eepolicy.analysis.style import COLOURS, OTHER_COLOURS, figures
from eepolicy.analysis.timing.figure import IDEAL, MEASURED, ROOFLINE
from tools import gallery
from tools.gallery_entries import INTRODUCTION, SECTIONS, Drawing

ROOT = Path(__file__).parents[3]
ENTRIES = [entry for section in SECTIONS for entry in section.drawings]
#: studies whose figures are tested in other files, on simulated data
ELSEWHERE = {"text_in_speech", "safe_exits", "heard_drift"}
#: modules whose functions draw parts of figures
PARTS = {"eepolicy.analysis.style", "eepolicy.analysis.studies.base"}
#: the palette of Okabe and Ito
OKABE_ITO = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"}
ALLOWED = OKABE_ITO | {c.lower() for c in (*OTHER_COLOURS, *COLOURS.values())}
ALLOWED |= {c.lower() for c in (MEASURED, IDEAL, ROOFLINE)}
#: a quantity with a unit, a count, or one that has none
LABEL = re.compile(
    r"layers|nats|%|share|points|, ms|ms a token|seconds|×|tokens|log10|calls a token|1 to 5"
    r"|position|token that follows|units from|rank|token of the reply|words|number"
    r"|probability|margin|agreement|cosine|confidence|calibration error|AUC|acoustic distance"
)


def blocks(text: str) -> str:
    """The Python of a text."""
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


def is_drawing(name: str, function: object) -> bool:
    """Whether a public function draws: it gives a figure, takes axes, or is called so."""
    if name.startswith("_") or not inspect.isfunction(function):
        return False
    signature = inspect.signature(function)
    axes = any(str(p.annotation) in ("Axes", str(Axes)) for p in signature.parameters.values())
    return axes or str(signature.return_annotation) in ("Figure", str(Figure)) or name == "draw"


def drawings() -> set[str]:
    """Full names of all public functions and methods that draw."""
    packages = pkgutil.walk_packages(eepolicy.analysis.__path__, "eepolicy.analysis.")
    modules = [m.name for m in packages if not m.name.endswith("__main__")]
    full_names = set()
    for name in {*modules, "eepolicy.probing.plot"} - PARTS:
        module = importlib.import_module(name)
        for holder in (module, *(c for _, c in inspect.getmembers(module, inspect.isclass))):
            for each, function in vars(holder).items():
                if is_drawing(each, function) and function.__module__ == name:
                    full_names.add(f"{name}.{function.__qualname__}")
    return full_names


def test_every_figure_is_in_the_gallery():
    shown = {name for entry in ENTRIES for name in entry.draws}
    assert len(drawings()) > 15
    assert drawings() - shown == set()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.title)
def test_the_lines_name_what_they_draw(entry):
    for name in entry.draws:
        if "output_html" not in name:
            assert re.search(rf"\b{name.rpartition('.')[2]}\(", "\n".join(entry.code)), name


def test_the_page_is_up_to_date():
    assert gallery.PAGE.read_text() == gallery.page()
    assert "gallery.md" in (ROOT / "mkdocs.yml").read_text()


def test_pictures_exist_and_those_of_the_gallery_are_small():
    for entry in ENTRIES:
        assert not entry.picture or (ROOT / "docs" / entry.picture).is_file()
    sizes = {file.name: file.stat().st_size for file in gallery.PICTURES.iterdir()}
    assert {Path(e.picture).name for e in ENTRIES if "gallery/" in e.picture} == {*sizes}
    assert max(sizes.values()) <= 60_000


class Drawn(dict):
    """Figures by title.

    Attributes:
        folder: folder of the made-up report.
    """

    folder: Path


#: by title, the study of a figure
MEASURED_STUDIES: dict = {}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """By title: the figure that the lines of an entry draw, with small data."""
    folder = tmp_path_factory.mktemp("gallery")
    write_report(folder / "report")
    write_bench(folder / "bench.json")
    space: dict = {}
    shown = Drawn()
    shown.folder = folder
    with small_world(folder), figures():
        exec(blocks(INTRODUCTION), space)
        for section in SECTIONS:
            exec("\n".join(section.code), space)
            for entry in (e for e in section.drawings if e in DRAWN or "output" in e.draws[0]):
                exec("\n".join(entry.code), space)
                shown[entry.title] = space["figure"]
                MEASURED_STUDIES[entry.title] = space.get("study")
                if isinstance(space["figure"], Figure):
                    space["figure"].canvas.draw()
        assert (folder / "bench.svg").stat().st_size > 1000
        yield shown
        plt.close("all")


NOT_RUN = {cls.title for cls in STUDIES if cls.name in ELSEWHERE - {"text_in_speech"}}
DRAWN = [e for e in ENTRIES if "output_html" not in e.draws[0] and e.title not in NOT_RUN]


@pytest.fixture(params=[pytest.param(e, marks=pytest.mark.slow, id=e.title) for e in DRAWN])
def entry(request) -> Drawing:
    return request.param


@pytest.fixture
def figure(entry, drawn) -> Figure:
    return drawn[entry.title]


def panels(figure: Figure) -> list[Axes]:
    """The axes with data, without colour bars."""
    return [ax for ax in figure.axes if ax.axison and ax.get_label() != "<colorbar>"]


def points(ax: Axes) -> np.ndarray:
    """Data in pixels: (points, 2)."""
    every = [line.get_transform().transform(line.get_xydata()) for line in ax.get_lines()]
    every += [c.get_offset_transform().transform(c.get_offsets()) for c in ax.collections]
    every += [patch.get_window_extent().corners() for patch in ax.patches]
    return np.concatenate([each for each in every if len(each)] or [np.empty((0, 2))])


def test_axes_have_labels_with_units(figure):
    assert panels(figure)
    for ax in panels(figure):
        for label in (ax.get_xlabel(), ax.get_ylabel()):
            names = [t.get_text() for t in ax.get_yticklabels()]
            shared = figure.get_supylabel() if label == ax.get_ylabel() else ""
            text = label or shared
            if not text and any(re.search("[a-z]", name) for name in names):
                continue  # the ticks name the rows
            assert LABEL.search(text) or _labelled_by_a_neighbour(figure, ax), (label, names)


def _labelled_by_a_neighbour(figure: Figure, ax: Axes) -> bool:
    """Whether axes with the same scale, in the same row or column, have the label."""
    return any(
        other is not ax
        and (other.get_xlim() == ax.get_xlim() or other.get_ylim() == ax.get_ylim())
        and (other.get_ylabel() or other.get_xlabel())
        for other in panels(figure)
    )


def test_no_legend_covers_data(figure):
    legends = [legend for legend in (*figure.legends, *(a.get_legend() for a in figure.axes))]
    for legend in legends:
        if legend is not None:
            box = legend.get_window_extent()
            for ax in panels(figure):
                inside = [p for p in points(ax) if box.contains(*p)]
                assert not inside, (legend.get_texts(), inside[:3])


def test_no_two_entries_of_a_legend_look_or_read_the_same(figure):
    for legend in (*figure.legends, *(a.get_legend() for a in figure.axes)):
        if legend is not None:
            names = [text.get_text() for text in legend.get_texts()]
            assert len(set(names)) == len(names) > 0


def test_tick_labels_do_not_overlap(figure):
    for ax in panels(figure):
        labels = [t for t in ax.get_xticklabels() if t.get_text() and t.get_visible()]
        boxes = [
            t.get_window_extent()
            for t in labels
            if ax.get_xlim()[0] <= t.get_position()[0] <= ax.get_xlim()[1]
        ]
        for one, other in pairwise(boxes):
            assert one.x1 <= other.x0 + 0.5


def test_colours_are_of_the_palette(figure, entry):
    allowed = ALLOWED
    if "acceptance" in entry.draws[0]:  # rules have shades of one map, from all to exact
        allowed = allowed | {to_hex(shade) for shade in colormaps["cividis"](range(256))}
    for ax in panels(figure):
        lines = {to_hex(line.get_color()) for line in ax.get_lines()}
        grey = {c for c in lines if len({c[1:3], c[3:5], c[5:7]}) == 1}
        assert lines - grey <= allowed


def test_text_and_speech_have_their_colours(figure):
    """In a figure with text and speech, nothing else has these colours."""
    for ax in panels(figure):
        for line in ax.get_lines():
            label = str(line.get_label())
            for modality, colour in COLOURS.items():
                if label.startswith(modality):
                    assert to_hex(line.get_color()) == colour.lower()


def marks(ax: Axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By label: x and y of each line and each row of points with bars."""
    lines = [(str(line.get_label()), line) for line in ax.get_lines()]
    lines += [(str(c.get_label()), c.lines[0]) for c in ax.containers if hasattr(c, "lines")]
    return {
        label: tuple(np.asarray(data, float) for data in line.get_data())
        for label, line in lines
        if not label.startswith("_")
    }


def assert_drawn(ax: Axes, label: str, x, y) -> None:
    expected = np.asarray([x, y], float)
    np.testing.assert_allclose(marks(ax)[label], expected, rtol=1e-9)


def of(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows with these values."""
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def heads_values(study, axes):
    for ax, measure in zip(axes, heads.MEASURES, strict=True):
        for modality in COLOURS:
            rows = of(study.to_pandas(), measure=measure.name, modality=modality)
            for part, name in (("lens", "lens"), ("heads", "heads")):
                y = measure.scale * rows[part]
                assert_drawn(ax, f"{modality}, {name}", rows.depth, y)


def layers_values(study, axes):
    drawn = [m.name for m in layers.MEASURES if m.drawn and m.name in study.levels]
    for ax, measure in zip(axes, drawn, strict=False):
        for modality in COLOURS:
            assert_drawn(ax, modality, study.depths, study.levels[measure][modality].value)
    for modality, saturation in study.saturation.items():
        share = [(saturation <= depth).mean() for depth in study.depths]
        assert_drawn(axes[len(drawn)], modality, study.depths, share)


def positions_values(study, axes):
    for ax, column in zip(axes, ("entropy", "agreement"), strict=True):
        for modality in COLOURS:
            rows = of(study.to_pandas(), modality=modality)
            assert_drawn(ax, modality, rows.position, rows[column])


def calibration_values(study, axes):
    for ax, column in zip(axes[1:], ("ece", "auc"), strict=True):
        for modality in COLOURS:
            rows = of(study.to_pandas(), modality=modality)
            assert_drawn(ax, modality, rows.depth, rows[column])
    curves = [study.curves[m][3] for m in study.curves]  # depth 4 of 6 is nearest to 0.7
    for collection, curve in zip(axes[0].collections, curves, strict=True):
        np.testing.assert_allclose(collection.get_offsets(), curve[curve[:, 2] > 0, :2])


def sequences_values(study, axes):
    for modality in COLOURS:
        assert_drawn(axes[0], modality, *study.growth[modality].T)
        counts = study.frequencies[modality]
        assert_drawn(axes[1], modality, np.arange(1, len(counts) + 1), counts)


def drift_values(study, axes):
    policies = list(dict.fromkeys(policy for policy, _ in study.runs))
    for ax, policy in zip(axes, policies, strict=False):
        assert ax.get_title() == policy
        for fill in ("catch_up", "propagate", "mask"):
            rows = study.by("phase", "kl", policy, fill)
            np.testing.assert_allclose(marks(ax)[fill][1], rows.value[rows.index < 7])
        # the grey bands are the refreshes, and no more than the chunk has
        centres = [p.get_x() + p.get_width() / 2 for p in ax.patches]
        speech = study.speech(policy, "catch_up")
        refreshes = {
            int(p) for p, part in speech.groupby("phase") if part.since_refresh.eq(0).mean() > 0.5
        }
        assert centres == sorted(refreshes & set(range(7)))


def fixed_depth_values(study, axes):
    frame = study.to_pandas()
    for ax, measure in zip(axes, study.measures, strict=True):
        (container,) = ax.containers
        points = np.asarray([frame.depth, frame[measure.name]], float)
        np.testing.assert_allclose(np.asarray(container.lines[0].get_data(), float), points)
        bars = container.lines[2][0].get_segments()
        ends = np.array([bar[:, 1] for bar in bars])
        lows = frame[[f"{measure.name}_low", f"{measure.name}_high"]]
        np.testing.assert_allclose(ends, lows.to_numpy(float), rtol=1e-9, atol=1e-9)


def lenses_values(study, axes):
    for ax, measure in zip(axes, lenses.MEASURES, strict=True):
        for lens in study.rows.lens.unique():
            rows = of(study.to_pandas(), lens=lens, modality="speech")
            assert_drawn(ax, lens, rows.depth, rows[measure.name])


def acceptance_values(study, axes):
    frame = study.to_pandas().set_index("accept")
    for ax, measure in zip(axes, ("wer", "edit_share"), strict=True):
        assert {*marks(ax)} == {*frame.index}
        for accept, row in frame.iterrows():
            assert_drawn(ax, accept, [row.layer_calls], [row[measure]])


def search_values(study, axes):
    for ax, measure in zip(axes, ("wer_loss", "accuracy_loss"), strict=True):
        for row, line in zip(study.tried.itertuples(), ax.get_lines(), strict=True):
            assert_drawn(ax, row.policy, [row.calls], [100 * getattr(row, measure)])
            assert (line.get_markerfacecolor() != "none") == row.passed
    assert set(study.tried.passed) == {True, False}


VALUES = {
    "heads": heads_values,
    "layers": layers_values,
    "positions": positions_values,
    "calibration": calibration_values,
    "sequences": sequences_values,
    "drift": drift_values,
    "fixed_depth": fixed_depth_values,
    "lenses": lenses_values,
    "acceptance": acceptance_values,
    "policy_search": search_values,
}


@pytest.mark.slow
def test_every_study_is_drawn_from_its_table(drawn):
    names = {cls.title: cls.name for cls in STUDIES}
    assert {*VALUES} == {*names.values()} - ELSEWHERE
    for title, name in names.items():
        if name in VALUES:
            VALUES[name](MEASURED_STUDIES[title], panels(drawn[title]))


@pytest.mark.slow
def test_qualities_and_costs_are_those_of_the_table(drawn):
    rows = load_comparison(drawn.folder / "report").table()
    (ax,) = drawn["One quality against one cost"].axes
    for row in rows:
        assert_drawn(ax, row["policy"], [row["seconds"]], [100 * row["wer"]])
    shown = marks(drawn["Loss against speed-up"].axes[0])
    assert {*shown} == {row["policy"] for row in rows}


@pytest.mark.slow
def test_a_reply_is_displayed(drawn):
    assert "<svg" in drawn["A reply"]._repr_html_()
