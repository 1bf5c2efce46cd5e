"""Text inside speech: at which depth the text token of the spoken word is readable.

*Interleaved Speech Language Models Latently Work In Text* (arXiv 2606.22473) reads the logit lens
at speech positions.  This study adds controls, and what an exit at each depth does to the word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from eepolicy import ProbeResult, TokenLayout, probe
from eepolicy.analysis.stats.bootstrap import Floats, Interval, Intervals, mean_differences, means
from eepolicy.analysis.stats.clustered import as_columns, from_columns, sums
from eepolicy.analysis.studies.base import Study, Workspace, progress_bar
from eepolicy.analysis.studies.spoken_words import (
    PARTS,
    THIRDS,
    TOKENS,
    K,
    align_replies,
    exit_depths,
    hits,
    parts_of_speech,
    read_out,
    readouts_at,
    statistics,
    with_given,
    word_errors_at,
)
from eepolicy.analysis.style import outside_legend
from eepolicy.analysis.tables import markdown_table
from eepolicy.speech.asr import Whisper

#: units before and after the start of a word in the figure
BEFORE, AFTER = 8, 12
#: fewest words of which the figure shows a mean
MIN_WORDS = 50
#: colour, line and label of each of `TOKENS`
_LINES = {
    "spoken": ("#009E73", "-", "the word being spoken"),
    "next": ("#E69F00", "--", "the next word"),
    "previous": ("#56B4E9", "-.", "the word before"),
    "further": ("#CC79A7", (0, (5, 1, 1, 1, 1, 1)), "a further word of the {}"),
    "other": ("#777777", ":", "a word of another {}"),
}
#: columns of the table of exits
_EXIT_COLUMNS = {
    "readable": "readable words",
    "substituted": "substituted words",
    "excess": "over full depth",
    "deleted": "deleted words",
    "if_readable": "substituted, of readable",
    "if_not": "substituted, of others",
    "difference": "difference",
}


@dataclass(frozen=True, eq=False)
class TextInSpeech(Study):
    """Readability of words at the positions of their units, and what an exit does to them.

    Attributes:
        depths: (depths,) rising, full depth last.
        positions: one row for each unit that belongs to a word: `document`, `word` (number in the
            reply), `third` (of the word), `part` (of the speech), `since` (units since the
            word began) and `until` (units until the next word begins; nan if none does).
        ranks: rank of each of `TOKENS` among the text ids, (depths, positions), -1 for none.
        all_ranks: rank of the spoken word's token among all ids, (depths, positions).
        text_mass: probability of all text ids, (depths, positions).
        exits: one row for each word and exit depth: `depth`, `document`, `word`, `substituted`,
            `deleted`, and `readable` at one of its units at that depth (nan for words of several
            tokens).  It is empty if no exit was measured.
        counts: numbers of replies, words, words of one token, and their units.
        source: what the words are spoken in, for headings and labels.
    """

    depths: NDArray[np.int64]
    positions: pd.DataFrame
    ranks: Mapping[str, NDArray[np.int64]]
    all_ranks: NDArray[np.int64]
    text_mass: NDArray[np.float32]
    exits: pd.DataFrame
    counts: Mapping[str, int]
    source: str = "reply"

    name: ClassVar[str] = "text_in_speech"
    title: ClassVar[str] = "Text inside speech"
    help: ClassVar[str] = "depth at which the spoken word is readable as text, and exits there"
    needs_asr: ClassVar[bool] = True
    measured_time: ClassVar[str] = "about half an hour on a busy machine"

    @classmethod
    def run(cls, workspace: Workspace) -> TextInSpeech:
        """Align the words of the full-depth replies, probe them, and read them out early."""
        model, replies, asr = workspace.model, workspace.replies, Whisper()
        words = workspace.stored(
            "text-in-speech-words",
            lambda: align_replies(model, replies, asr, progress_bar("word times")),
        )
        exits = exit_depths(model)
        documents, positions = with_given(model, replies, words)
        result = probe(
            model,
            documents,
            heads=model.lens,
            statistics=statistics(),
            hidden_states=exits,
            save=workspace.folder / "text-in-speech-probe",
            progress=progress_bar("layers"),
        )

        def measure(index: int) -> pd.DataFrame:
            units = read_out(model, result, positions, index)
            return word_errors_at(model, words, units, asr)

        errors = {
            depth: workspace.stored(f"text-in-speech-exit-{depth}", partial(measure, index))
            for index, depth in enumerate(exits)
        }
        return text_in_speech(model.layout, result, positions, words, errors)

    def level(self, tokens: str, where: NDArray[np.bool_] | None = None) -> Intervals:
        """Recall@10 among the text ids by depth, (depths,), intervals over replies.

        Args:
            tokens: one of `TOKENS`.
            where: (positions,) positions that count; None for all.
        """
        return means(*self._sums(tokens, where))

    def gain(self, tokens: str, control: str, where: NDArray[np.bool_] | None = None) -> Intervals:
        """Recall of one set of tokens minus that of another, at the same positions: (depths,)."""
        both = (self.ranks[tokens][0] >= 0) & (self.ranks[control][0] >= 0)
        both = both if where is None else both & where
        return mean_differences(self._sums(tokens, both), self._sums(control, both))

    def _sums(self, tokens: str, where: NDArray[np.bool_] | None) -> tuple[Floats, Floats]:
        readable = hits(self.ranks[tokens])
        if where is not None:
            readable = np.where(where, readable, np.nan)
        return sums(readable, self.positions.document.to_numpy())

    def _among_all(self) -> Intervals:
        """Recall of the spoken word's token among all ids: (depths,)."""
        return means(*sums(hits(self.all_ranks), self.positions.document.to_numpy()))

    def _mass(self) -> Intervals:
        """Mean probability of all text ids: (depths,)."""
        return means(*sums(self.text_mass, self.positions.document.to_numpy()))

    def onset(self, tokens_before: str = "next", tokens_after: str = "spoken") -> pd.DataFrame:
        """Recall by depth and time from the start of a word: (depths, units from the start).

        Before the start, it is the token of the next word; after it, that of the spoken word.
        Cells of fewer than `MIN_WORDS` words are nan.
        """
        columns = {}
        for offset in range(-BEFORE, AFTER):
            before = offset < 0
            at = self.positions.until == -offset if before else self.positions.since == offset
            ranks = self.ranks[tokens_before if before else tokens_after][:, at.to_numpy()]
            known = ranks[:, ranks[0] >= 0]
            columns[offset] = (known <= K).mean(1) if known.shape[1] >= MIN_WORDS else np.nan
        return pd.DataFrame(columns, index=pd.Index(self.depths, name="depth"))

    def exit_rates(self) -> pd.DataFrame:
        """One row for each exit depth: rates of words in per cent, with `..._low` and `..._high`.

        `readable`, `substituted`, `deleted`; `excess` (substituted minus that of full depth);
        `if_readable` and `if_not` (substituted, of the words that are readable at this depth or
        not) and their `difference`.
        """
        rates = self._exit_rates()
        return pd.DataFrame([{"depth": depth} | as_columns(row) for depth, row in rates.items()])

    def _exit_rates(self) -> dict[int, dict[str, Interval[Any]]]:
        """The rates of `exit_rates`, in per cent, by depth and name."""
        rates = {}
        full = self._errors(self.exits.depth.max(), "substituted")
        for depth in sorted(self.exits.depth.unique()):
            here = self._errors(depth, "substituted")
            readable, unreadable = (self._errors(depth, "substituted", state) for state in (1, 0))
            intervals = {
                "readable": means(*self._errors(depth, "readable")),
                "substituted": means(*here),
                "deleted": means(*self._errors(depth, "deleted")),
                "excess": mean_differences(here, full),
                "if_readable": means(*readable),
                "if_not": means(*unreadable),
                "difference": mean_differences(readable, unreadable),
            }
            rates[int(depth)] = {name: each.scaled(100) for name, each in intervals.items()}
        return rates

    def _errors(
        self, depth: int, column: str, readable: int | None = None
    ) -> tuple[Floats, Floats]:
        """Sums and numbers of the words of each reply at an exit depth."""
        rows = self.exits[self.exits.depth == depth]
        values = rows[column].to_numpy(float)
        if readable is not None:
            values = np.where(rows.readable == readable, values, np.nan)
        return sums(values, rows.document.to_numpy())

    def to_pandas(self) -> pd.DataFrame:
        """One row for each depth: recall of each of `TOKENS` and gains, with their intervals."""
        columns = {tokens: self.level(tokens) for tokens in TOKENS}
        columns |= {f"over_{c}": self.gain("spoken", c) for c in TOKENS[1:]}
        columns |= {"among_all": self._among_all(), "text_mass": self._mass()}
        rows = [
            {"depth": int(depth)} | as_columns({name: c[i] for name, c in columns.items()})
            for i, depth in enumerate(self.depths)
        ]
        return pd.DataFrame(rows)

    def table(self) -> str:
        """Four Markdown tables: recall by depth, third of the word and part of the reply; exits."""
        counts = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        exits = [self._exits()] if len(self.exits) else []
        return "\n\n".join([f"{counts}.", self._depths(), *self._groups(), *exits])

    def _depths(self) -> str:
        columns = {self._label(tokens): self.level(tokens) for tokens in _LINES}
        for control in ("other", "further", "next"):
            columns[f"spoken minus {control}"] = self.gain("spoken", control)
        columns["spoken, among all ids"] = self._among_all()
        columns["probability of text"] = self._mass()
        return f"Recall@{K} among the text ids at speech positions, %:\n\n" + markdown_table(
            ["depth", *columns],
            [
                [str(depth), *(c[i].text(1, 100) for c in columns.values())]
                for i, depth in enumerate(self.depths)
            ],
        )

    def _label(self, tokens: str) -> str:
        return _LINES[tokens][-1].format(self.source)

    def _groups(self) -> Iterable[str]:
        shown = sorted({max(1, round(len(self.depths) * q / 5)) - 1 for q in range(1, 6)})
        kinds = {
            "third": ("third of the word", THIRDS),
            "part": (f"part of the {self.source}", PARTS),
        }
        for column, (heading, names) in kinds.items():
            groups = [name for name in names if (self.positions[column] == name).any()]
            if not groups:
                continue
            gains = [
                self.gain("spoken", "other", (self.positions[column] == g).to_numpy())
                for g in groups
            ]
            rows = [
                [group, *(gain[i].text(1, 100) for i in shown)]
                for group, gain in zip(groups, gains, strict=True)
            ]
            headings = [heading, *(f"depth {self.depths[i]}" for i in shown)]
            title = f"Spoken word minus word of another {self.source}, by {heading}, %:"
            yield f"{title}\n\n{markdown_table(headings, rows)}"

    def _exits(self) -> str:
        rows = [
            [str(depth), *(row[name].text(1) for name in _EXIT_COLUMNS)]
            for depth, row in self._exit_rates().items()
        ]
        return "Every unit read out at one depth, % of words:\n\n" + markdown_table(
            ["depth", *_EXIT_COLUMNS.values()], rows
        )

    def figure(self) -> Figure:
        """Readability around the start of a word, by kind of word, and word errors by exit depth.

        All panels share the vertical axis, the depth.  The last one is left out without exits.
        """
        widths = (2.2, 1.3, 1.1) if len(self.exits) else (2.2, 1.3)
        figure, axes = plt.subplots(
            1,
            len(widths),
            figsize=(10, 4.2),
            sharey=True,
            layout="constrained",
            width_ratios=widths,
        )
        self._draw_onset(figure, axes[0])
        self._draw_levels(axes[1])
        if len(self.exits):
            self._draw_exits(axes[2])
        for ax in axes:
            ax.tick_params(labelleft=True)
            ax.set_ylabel("depth, layers")
        outside_legend(figure, *axes[1:], loc="outside lower center", ncols=4)
        return figure

    def _draw_onset(self, figure: Figure, ax: Axes) -> None:
        ax.set_title("When a word is readable as text", loc="left", fontsize=9)
        values = 100 * self.onset().dropna(axis=1, how="all")
        if values.empty:
            ax.set_xlabel(f"fewer than {MIN_WORDS} words at every unit")
            return
        edges = (values.columns[0] - 0.5, values.columns[-1] + 0.5)
        image = ax.imshow(
            values.to_numpy(),
            origin="lower",
            aspect="auto",
            extent=(*edges, self.depths[0] - 0.5, self.depths[-1] + 0.5),
            cmap="cividis",
            vmin=0,
            interpolation="nearest",
        )
        ax.axvline(-0.5, color="white", lw=1.2, ls="--")
        ax.text(-0.2, self.depths[0], "the word starts", color="white", fontsize=8, va="center")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("units from the start of a word")
        figure.colorbar(image, ax=ax, label=f"readable (rank ≤ {K} of the text ids), %", pad=0.01)

    def _draw_levels(self, ax: Axes) -> None:
        for tokens, (colour, style, _) in _LINES.items():
            level, label = self.level(tokens).scaled(100), self._label(tokens)
            ax.fill_betweenx(self.depths, level.low, level.high, color=colour, alpha=0.2, lw=0)
            ax.plot(level.value, self.depths, linestyle=style, color=colour, label=label)
        ax.set(xlabel="readable at a unit, %", xlim=(0, None))
        ax.set_title("Which word is readable", loc="left", fontsize=9)

    def _draw_exits(self, ax: Axes) -> None:
        frame = self.exit_rates()
        for name, colour, marker, label in (
            ("substituted", "#000000", "o", "substituted words"),
            ("deleted", "#777777", "s", "deleted words"),
        ):
            rates = from_columns(frame, name)
            ax.errorbar(
                rates.value,
                frame.depth,
                xerr=rates.bars,
                color=colour,
                marker=marker,
                ms=4,
                label=label,
            )
        ax.set(xlabel="words, %", xlim=(0, None))
        ax.set_title("After an exit at this depth", loc="left", fontsize=9)


def text_in_speech(
    layout: TokenLayout,
    result: ProbeResult,
    positions: pd.DataFrame,
    words: pd.DataFrame,
    errors: Mapping[int, pd.DataFrame],
) -> TextInSpeech:
    """Join what was measured.

    Args:
        layout: chunks of the model.
        result: probe with the ranks of `TOKENS`.
        positions: rows of `with_given`.
        words: rows of `align_replies`.
        errors: rows of `word_errors_at` by exit depth; empty if no exit was measured.
    """
    at = readouts_at(result, positions)
    positions = positions.assign(part=parts_of_speech(result, layout)[at])
    inside = (positions.word >= 0).to_numpy()
    at, positions = at[inside], positions[inside].reset_index(drop=True)
    ranks = {name: getattr(result, f"text_rank_{name}")[:, at] for name in TOKENS}
    rows = []
    for depth, table in errors.items():
        own = pd.Series(hits(ranks["spoken"][list(result.depths).index(depth)]), name="readable")
        readable = own.groupby([positions.document, positions.word]).max().reset_index()
        rows.append(table.merge(readable, how="left").assign(depth=depth))
    single_words = words[words.token >= 0]
    counts = {
        "replies": words.document.nunique(),
        "words": len(words),
        "words of one token": len(single_words),
        "units of these words": int((ranks["spoken"][0] >= 0).sum()),
    }
    return TextInSpeech(
        result.depths,
        positions,
        ranks,
        result.rank_spoken[:, at],
        result.text_mass[:, at],
        pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(),
        counts,
    )
