"""The figures of the gallery: what each draws, the lines that draw it, and its picture."""

from __future__ import annotations

from dataclasses import dataclass

from eepolicy.analysis.studies import STUDIES, Study

EVALUATION = "eepolicy.analysis.evaluation.plots."
STUDY = "eepolicy.analysis.studies."
PLOTS = "eepolicy.probing.plot.Plots."
TIMING = "eepolicy.analysis.timing.figure."

INTRODUCTION = """
# Gallery

<!-- python -m tools.gallery writes this page -->

Every figure that the library draws, with the lines that draw it. Blue is text and orange is
speech in every figure by modality. Bands and bars are 95 % intervals unless the text says
otherwise. Pictures without other notice show the [pocket model](pocket-model.md); a click enlarges
them.

All blocks continue this one:

```python
from pathlib import Path

import matplotlib.pyplot as plt

import eepolicy as ee

model = ee.load("pocket")
```

`figure.savefig("name.pdf")` writes a figure. Inside `with eepolicy.analysis.style.figures():` it is
drawn with the fonts and sizes of this page.
"""


@dataclass(frozen=True)
class Drawing:
    """One entry of the gallery.

    Attributes:
        title: heading.
        text: what the figure shows.
        code: lines of Python; they assign the figure to `figure`.
        draws: full names of the functions that the lines call.
        picture: path from the folder of the docs; empty for none.
        alt: the picture in words.
    """

    title: str
    text: str
    code: tuple[str, ...]
    draws: tuple[str, ...]
    picture: str = ""
    alt: str = ""


@dataclass(frozen=True)
class Section:
    """Figures of the same data.

    Attributes:
        title: heading.
        text: where the data come from.
        code: lines that all figures of the section need.
        drawings: the figures.
    """

    title: str
    text: str
    code: tuple[str, ...]
    drawings: tuple[Drawing, ...]


PROBE = Section(
    "A probe",
    "[`ee.probe`](probing.md) reads every layer out. A figure takes axes of your own with `ax=`.",
    ('out = model.generate("What color is snow?")', "result = ee.probe(model, out)"),
    (
        Drawing(
            "Statistics by depth",
            "One panel a statistic and one line a modality: the median over tokens, and a band "
            "over the middle half of the tokens. Agreement is a share, without a band. At depths 4 "
            "and 6, the pocket model has branches.",
            ('figure = result.plot.layers("entropy", "agreement")',),
            (f"{PLOTS}layers",),
            "images/gallery/layers.svg",
            "Entropy and agreement of one reply by depth, text and speech",
        ),
        Drawing(
            "Heatmap",
            "One statistic of one document: depth upward, tokens to the right. A cell shows the "
            "most probable token of its depth, if there is room.",
            ('figure = result[:24].plot.heatmap("entropy")  # the first 24 tokens',),
            (f"{PLOTS}heatmap",),
            "images/gallery/heatmap.png",
            "Entropy of each token at each depth, with the most probable tokens",
        ),
    ),
)

COMPARISON = Section(
    "A comparison",
    "`eepolicy compare --out report` measures the policies and draws these figures into the "
    "folder `report`. These lines draw them from the folder.",
    (
        "from eepolicy.analysis.evaluation.load import load_comparison",
        "",
        'comparison = load_comparison(Path("report"))',
        "rows = comparison.table()",
        "replies = list(comparison.answered().values())  # by question, policy and seed",
    ),
    (
        Drawing(
            "Loss against speed-up",
            "The difference in word error rate from full depth against the speed-up. The grey "
            "band is the margin of “not worse”.",
            (
                "from eepolicy.analysis.evaluation.plots import summary_figure",
                "",
                "figure = summary_figure(rows, comparison.margins.wer)",
            ),
            (f"{EVALUATION}summary_figure",),
            "images/summary.png",
            "Word error rate against speed-up, with intervals and the margin",
        ),
        Drawing(
            "Quality against cost",
            "Every measured quality against every measured cost. The dotted line is the Pareto "
            "front.",
            (
                "from eepolicy.analysis.evaluation.plots import quality_figure",
                "",
                "figure = quality_figure(rows)",
            ),
            (f"{EVALUATION}quality_figure",),
            "images/quality.png",
            "Four qualities against speech depth and seconds",
        ),
        Drawing(
            "One quality against one cost",
            "One panel of the figure above, on axes of your own. It has no legend.",
            (
                "from eepolicy.analysis.evaluation.columns import COLUMNS",
                "from eepolicy.analysis.evaluation.plots import quality_against_cost",
                "",
                "column = {each.name: each for each in COLUMNS}",
                "figure, ax = plt.subplots()",
                'quality_against_cost(rows, column["wer"], column["seconds"], ax)',
            ),
            (f"{EVALUATION}quality_against_cost",),
        ),
        Drawing(
            "Agreement by depth",
            "How often each depth has the most likely token of the last layer.",
            (
                "from eepolicy.analysis.evaluation.plots import agreement_figure",
                "from eepolicy.analysis.evaluation.report import agreement_curves",
                "",
                "full = [by_policy[0][0] for by_policy in replies[:24]]",
                "figure = agreement_figure(agreement_curves(model, full), len(full))",
            ),
            (f"{EVALUATION}agreement_figure",),
            "images/agreement.png",
            "Agreement with the last layer by depth, text above speech, branches as stars",
        ),
        Drawing(
            "Depth of each token",
            "The replies of all policies to one question, with the words of the text over their "
            "tokens.",
            (
                "from eepolicy.analysis.evaluation.plots import depth_figure",
                "",
                "records = [by_seed[0] for by_seed in replies[0]]",
                "words = [",
                "    [",
                '        "" if modality else model.tokenizer.decode([token])',
                "        for token, modality in zip(record.tokens, record.modalities)",
                "    ]",
                "    for record in records",
                "]",
                "figure = depth_figure(records, words, model.depth)",
            ),
            (f"{EVALUATION}depth_figure",),
            "images/gallery/depths.svg",
            "Depth of each token of the replies of three policies to one question",
        ),
    ),
)


def study(
    cls: type[Study],
    text: str,
    alt: str,
    *more: str,
    picture: str = "",
    draws: tuple[str, ...] = (),
) -> Drawing:
    """The entry of a study.

    Args:
        cls: class of the study.
        text: what the figure shows.
        alt: the picture in words.
        *more: further lines, which use `study`.
        picture: path from the folder of the docs; that of the findings if empty.
        draws: names of its further drawing methods that the lines call.
    """
    stem = cls.name.replace("_", "-")
    return Drawing(
        cls.title,
        text,
        (
            f"from eepolicy.analysis.studies import {cls.__name__}",
            "",
            f"study = {cls.__name__}.run(workspace)",
            "figure = study.figure()",
            *more,
        ),
        tuple(f"{cls.__module__}.{cls.__name__}.{method}" for method in ("figure", *draws)),
        picture or f"findings/generated/{stem}.svg",
        alt,
    )


BY_NAME = {cls.name: cls for cls in STUDIES}
OWN_AXES = "own, ax = plt.subplots()"

STUDY_SECTION = Section(
    "Studies",
    "A [study](findings/index.md) measures the replies to the questions of a workspace and stores "
    "what it measured in the folder. `table()` and `to_pandas()` have the same numbers.",
    (
        "from eepolicy.analysis.studies import Workspace",
        "",
        'workspace = Workspace.open(model, ee.held_out("test")[:200], Path("work/findings"))',
    ),
    (
        study(
            BY_NAME["heads"],
            "Agreement, KL and entropy by depth. Dashed lines are the logit lens, solid lines the "
            "fitted heads.",
            "Agreement, KL and entropy by depth of the logit lens and the fitted heads",
        ),
        study(
            BY_NAME["layers"],
            "Statistics of text and speech by depth, means over tokens. The last panel is the "
            "share of tokens whose most likely token no longer changes. One panel can be drawn on "
            "axes of your own.",
            "Nine panels by depth; text has lower entropy than speech at every layer",
            OWN_AXES,
            'study.draw(ax, "entropy")  # or study.draw_saturation(ax)',
            draws=("draw", "draw_saturation"),
        ),
        study(
            BY_NAME["positions"],
            "Entropy at full depth, and agreement of one depth with it, by position in the chunk.",
            "Entropy and agreement by position in the chunk",
        ),
        study(
            BY_NAME["calibration"],
            "Agreement against confidence at one depth, and calibration error and AUC by depth.",
            "Reliability at one depth; calibration error and AUC by depth",
            OWN_AXES,
            "study.draw(ax, depth=int(study.depths[-1]))",
            draws=("draw",),
        ),
        study(
            BY_NAME["sequences"],
            "Number of types among the first tokens, and frequency of the types by rank.",
            "Types among the first tokens; frequency by rank",
        ),
        study(
            BY_NAME["drift"],
            "Divergence from the full model by position in the speech chunk, for schedules and "
            "fills. Refreshes at full depth are shaded.",
            "Divergence by phase in the speech chunk, for three fills and four schedules",
            OWN_AXES,
            'study.draw(ax, study.runs[0][0], "kl")',
            draws=("draw",),
        ),
        study(
            BY_NAME["fixed_depth"],
            "Agreement, acoustic distance, word error rate and rating if every unit is read out at "
            "one depth.",
            "Agreement, distance, word error rate and rating by depth",
        ),
        study(
            BY_NAME["text_in_speech"],
            "When the text of a word is readable at its units, by depth and time, and what an exit "
            "at each depth does to the word.",
            "Share of units at which a word is readable; substituted and deleted words",
        ),
        study(
            BY_NAME["lenses"],
            "Agreement with the last layer and KL from it on speech, by depth, for each lens.",
            "Agreement and KL by depth for four lenses and the branches",
        ),
        study(
            BY_NAME["safe_exits"],
            "What one exit changes in each acoustic context, what predicts that a word changes, "
            "and word errors against layer calls of policies made from it.",
            "Outcomes by acoustic context; AUC of predictors; word errors against layer calls",
        ),
        study(
            BY_NAME["heard_drift"],
            "Words, sound and pitch that differ from full depth, by second of the reply, and word "
            "errors against layer calls.",
            "Differences from full depth by second; word errors against layer calls",
        ),
        study(
            BY_NAME["acceptance"],
            "Word error rate, and units that differ from full depth, against layer calls a token.",
            "Word error rate and edited units against layer calls a token",
        ),
        study(
            BY_NAME["policy_search"],
            "Losses of the tested policies against layer calls a token. Filled marks passed the "
            "test.",
            "Losses of word error rate and accuracy against layer calls a token",
            picture="images/gallery/policy-search.svg",
        ),
    ),
)

TIMING_SECTION = Section(
    "Timings",
    "`eepolicy bench --out page.md` writes a page with this figure, and `--json` prints its "
    "records.",
    (
        "import json",
        "",
        'records = json.loads(Path("bench.json").read_text())["results"]  # eepolicy bench --json',
    ),
    (
        Drawing(
            "Time of each decoding method",
            "Measured time a token with quartiles, the ideal time, and the roofline. `draw` writes "
            "several tables to a file, and `milliseconds` draws one on axes of your own.",
            (
                "from eepolicy.analysis.timing.figure import draw, milliseconds",
                "",
                'draw({"Batch 1": records}, Path("bench.svg"))',
                "figure, ax = plt.subplots()",
                "milliseconds(records, ax)",
            ),
            (f"{TIMING}draw", f"{TIMING}milliseconds"),
            "benchmarks/images/batch-32.svg",
            "Milliseconds a token of each decoding method",
        ),
    ),
)

NOTEBOOK_SECTION = Section(
    "In notebooks",
    "A notebook shows a reply with its text, a player, and a bar for each token. A probe shows its "
    "averages and a heatmap. The report page of a comparison has an interactive figure.",
    (),
    (
        Drawing(
            "A reply",
            "One bar for each token, as high as its depth.",
            (
                'out = model.generate("What color is snow?", "spark:triple@14")',
                "figure = out  # the last line of a cell displays it",
            ),
            ("eepolicy.decode.output_html.depth_strip",),
            "images/gallery/reply.svg",
            "A bar for each token of a reply, in the colour of its modality",
        ),
    ),
)

SECTIONS = (PROBE, COMPARISON, STUDY_SECTION, TIMING_SECTION, NOTEBOOK_SECTION)
