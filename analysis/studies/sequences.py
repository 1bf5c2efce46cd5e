"""Speech units and text tokens as sequences: how they repeat, spread, and foretell each other."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eepolicy import Document, TokenLayout
from eepolicy.analysis.stats.bootstrap import Interval
from eepolicy.analysis.stats.clustered import as_columns
from eepolicy.analysis.style import COLOURS

#: figure of a sequence: how it is called in a table
FIGURES = {
    "documents": "replies",
    "tokens": "tokens",
    "types": "types (different tokens)",
    "type_token": "types a token",
    "once": "types that occur once, %",
    "unigram": "entropy of a token, bits (Miller-Madow)",
    "conditional": "entropy given the one before, bits (Miller-Madow)",
    "shuffled": "the same with the tokens shuffled: what too few of them leave of it",
    "repeats": "tokens that repeat the one before, %",
    "run": "mean run of one token",
    "zipf": "slope of log frequency on log rank",
}
PERCENT = ("once", "repeats")
COUNTS = ("documents", "tokens", "types")


@dataclass(frozen=True, eq=False)
class Sequences:
    """Figures of text and of speech, on equally many tokens of each.

    Entropies grow and types thin out with the number of tokens, so both modalities are cut to the
    same number, document by document in a drawn order.

    Attributes:
        figures: modality: figure: estimate and jackknife interval over
            documents.
        growth: modality: (points, 2) tokens seen and types among them.
        frequencies: modality: (types,) counts, falling.
    """

    figures: dict[str, dict[str, Interval]]
    growth: dict[str, NDArray[np.int64]]
    frequencies: dict[str, NDArray[np.int64]]

    def table(self) -> str:
        """Markdown, a line a figure."""
        names = list(self.figures)
        lines = [f"| figure | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
        for figure, label in FIGURES.items():
            scale, digits = (100.0, 1) if figure in PERCENT else (1.0, 2)
            digits = 0 if figure in COUNTS else digits
            cells = []
            for name in names:
                found = self.figures[name][figure]
                value, low, high = (scale * x for x in (found.value, found.low, found.high))
                interval = (
                    f" [{low:.{digits}f}, {high:.{digits}f}]" if figure not in COUNTS[:2] else ""
                )
                cells.append(f"{value:.{digits}f}{interval}")
            lines.append(f"| {label} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def to_pandas(self) -> pd.DataFrame:
        """A row a figure, see `FIGURES`: `text`, `text_low`, `text_high`, and so on."""
        rows = [
            {"figure": figure}
            | as_columns({name: all_of[figure] for name, all_of in self.figures.items()})
            for figure in FIGURES
        ]
        return pd.DataFrame(rows)

    def figure(self) -> Figure:
        """How types grow with tokens, and frequency against rank."""
        figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
        for name, points in self.growth.items():
            left.plot(*points.T, color=COLOURS[name], label=name)
            counts = self.frequencies[name]
            right.loglog(np.arange(1, len(counts) + 1), counts, color=COLOURS[name], label=name)
        left.set(xlabel="tokens", ylabel="types among them")
        right.set(xlabel="rank of the type", ylabel="how often it occurs")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        return figure


def jackknife(value: float, without: Sequence[float]) -> Interval:
    """A 95 % interval from what a figure is without each document in turn.

    A bootstrap would not do: documents that are drawn twice bring no new types.

    Args:
        value: with all documents.
        without: (documents,) without each one.
    """
    each = np.array(without)
    if len(each) < 2:
        return Interval(value, float("nan"), float("nan"))
    error = np.sqrt((len(each) - 1) * ((each - each.mean()) ** 2).mean())
    return Interval(value, float(value - 1.96 * error), float(value + 1.96 * error))


def sequence_statistics(
    documents: Mapping[str, Sequence[Sequence[int]]], seed: int = 0
) -> Sequences:
    """Compare sequences of two kinds.

    Args:
        documents: modality: the ids of each document, in order.
        seed: of the order.

    Raises:
        ValueError: a modality without tokens.
    """
    rng = np.random.default_rng(seed)
    most = min(sum(map(len, each)) for each in documents.values())
    if not most:
        raise ValueError("each modality needs tokens to be compared")
    figures: dict[str, dict[str, Interval]] = {}
    growth, frequencies = {}, {}
    for name, each in documents.items():
        cut = cut_to([each[i] for i in rng.permutation(len(each))], most)
        values = describe(cut)
        rest = range(len(cut)) if len(cut) > 1 else ()
        without = [describe(cut[:i] + cut[i + 1 :]) for i in rest]
        figures[name] = {
            figure: jackknife(values[figure], [w[figure] for w in without]) for figure in FIGURES
        }
        growth[name] = type_growth([token for document in cut for token in document])
        counts = Counter(token for document in cut for token in document)
        frequencies[name] = np.array(sorted(counts.values(), reverse=True))
    return Sequences(figures, growth, frequencies)


def by_modality(layout: TokenLayout, replies: Sequence[Document]) -> dict[str, list[list[int]]]:
    """Text without its marks, and speech units, of each reply."""
    ids = [document.reply for document in replies]
    return {
        "text": [layout.text_ids(i).tolist() for i in ids],
        "speech": [layout.units(i).tolist() for i in ids],
    }


def cut_to(documents: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """The first documents that hold so many tokens, the last of them cut."""
    kept: list[list[int]] = []
    left = tokens
    for document in documents:
        if left <= 0:
            break
        kept.append(list(document[:left]))
        left -= len(kept[-1])
    return kept


def describe(documents: Sequence[Sequence[int]]) -> dict[str, float]:
    """The figures of some documents, see `FIGURES`; nothing is counted across their borders."""
    tokens = [t for d in documents for t in d]
    counts = np.array(sorted(Counter(tokens).values(), reverse=True), float)
    pairs = [pair for d in documents for pair in pairwise(d)]
    repeats = sum(a == b for a, b in pairs)
    runs = len(tokens) - repeats
    mixed = random.Random(0).sample(tokens, len(tokens))
    return {
        "documents": float(len(documents)),
        "tokens": float(len(tokens)),
        "types": float(len(counts)),
        "type_token": len(counts) / len(tokens),
        "once": float((counts == 1).mean()),
        "unigram": entropy_bits(Counter(tokens)),
        "conditional": conditional_bits(pairs),
        "shuffled": conditional_bits(list(pairwise(mixed))[: len(pairs)]),
        "repeats": repeats / max(1, len(pairs)),
        "run": len(tokens) / runs,
        "zipf": zipf_slope(counts),
    }


def conditional_bits(pairs: Sequence[tuple[int, int]]) -> float:
    """Entropy of the second of pairs given the first, in bits."""
    return entropy_bits(Counter(pairs)) - entropy_bits(Counter(a for a, _ in pairs))


def entropy_bits(counts: Counter[Any]) -> float:
    """Entropy in bits with Miller and Madow's correction, (types - 1) / (2 tokens) nats."""
    array = np.array(list(counts.values()), float)
    if not len(array):
        return 0.0
    p = array / array.sum()
    nats = -(p * np.log(p)).sum() + (len(array) - 1) / (2 * array.sum())
    return float(nats / np.log(2))


def zipf_slope(counts: NDArray[np.float64]) -> float:
    """Slope of log frequency on log rank, of types that occur twice at least; nan for too few."""
    often = np.sort(counts[counts >= 2])[::-1]
    if len(often) < 3:
        return float("nan")
    return float(np.polyfit(np.log(np.arange(1, len(often) + 1)), np.log(often), 1)[0])


def type_growth(tokens: Sequence[int], points: int = 60) -> NDArray[np.int64]:
    """Types among the first tokens: (points, 2), tokens and types."""
    seen: set[int] = set()
    types = []
    for token in tokens:
        seen.add(token)
        types.append(len(seen))
    at = np.unique(np.linspace(1, len(tokens), min(points, len(tokens))).round().astype(int))
    return np.stack([at, np.array(types)[at - 1]], 1)
