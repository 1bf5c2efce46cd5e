"""Speech units and text tokens as sequences: repetition, diversity and predictability."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eepolicy import Document, EepolicyError, TokenLayout
from eepolicy.analysis.stats.bootstrap import Interval
from eepolicy.analysis.stats.clustered import as_columns
from eepolicy.analysis.studies.base import Measure, Study, Workspace
from eepolicy.analysis.style import COLOURS, outside_legend
from eepolicy.analysis.tables import markdown_table


@dataclass(frozen=True)
class SequenceMeasure(Measure):
    """A statistic of a sequence.

    Attributes:
        exact: a count without an interval.
    """

    exact: bool = False


MEASURES = (
    SequenceMeasure("documents", "replies", digits=0, exact=True),
    SequenceMeasure("tokens", "tokens", digits=0, exact=True),
    SequenceMeasure("types", "types (distinct tokens)", digits=0),
    SequenceMeasure("type_token", "type-token ratio"),
    SequenceMeasure("once", "types that occur once", "%", 100.0, 1),
    SequenceMeasure("unigram", "unigram entropy (Miller-Madow)", "bits"),
    SequenceMeasure("conditional", "bigram conditional entropy (Miller-Madow)", "bits"),
    SequenceMeasure("shuffled", "bigram conditional entropy of the shuffled tokens", "bits"),
    SequenceMeasure("repeats", "tokens that repeat the previous token", "%", 100.0, 1),
    SequenceMeasure("run", "mean run length of one token"),
    SequenceMeasure("zipf", "slope of log frequency against log rank"),
)


@dataclass(frozen=True, eq=False)
class SequenceStatistics(Study):
    """Statistics of text and of speech, on the same number of tokens of each.

    Entropies and numbers of types depend on the number of tokens.  Both modalities are therefore
    cut to the same number, document by document in random order.

    Attributes:
        statistics: modality -> measure -> estimate and jackknife interval over documents.
        growth: modality -> number of tokens and of types among them, (points, 2).
        frequencies: modality -> counts of the types in descending order, (types,).
    """

    statistics: dict[str, dict[str, Interval[float]]]
    growth: dict[str, NDArray[np.int64]]
    frequencies: dict[str, NDArray[np.int64]]

    name: ClassVar[str] = "sequences"
    title: ClassVar[str] = "Units and text as sequences"
    help: ClassVar[str] = "repetition, diversity and entropy of units and of text tokens"

    @classmethod
    def run(cls, workspace: Workspace) -> SequenceStatistics:
        """Measure the full-depth replies."""
        return sequence_statistics(by_modality(workspace.model.layout, workspace.replies))

    def table(self) -> str:
        """Markdown, one row for each statistic."""
        rows = [
            [measure.heading, *(self._cell(m, measure) for m in self.statistics)]
            for measure in MEASURES
        ]
        return markdown_table(["statistic", *self.statistics], rows)

    def _cell(self, modality: str, measure: SequenceMeasure) -> str:
        interval = self.statistics[modality][measure.name]
        value, low, high = (
            f"{measure.scale * x:.{measure.digits}f}"
            for x in (interval.value, interval.low, interval.high)
        )
        return value if measure.exact else f"{value} [{low}, {high}]"

    def to_pandas(self) -> pd.DataFrame:
        """One row for each statistic: `text`, `text_low`, `text_high`, and so on."""
        rows = [
            {"statistic": measure.name}
            | as_columns({m: values[measure.name] for m, values in self.statistics.items()})
            for measure in MEASURES
        ]
        return pd.DataFrame(rows)

    def figure(self) -> Figure:
        """Growth of types with tokens, and frequency against rank."""
        figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
        for modality, points in self.growth.items():
            left.plot(*points.T, color=COLOURS[modality], label=modality)
            counts = self.frequencies[modality]
            ranks = np.arange(1, len(counts) + 1)
            right.loglog(ranks, counts, color=COLOURS[modality], label=modality)
        left.set(xlabel="tokens", ylabel="types (distinct tokens)")
        right.set(xlabel="rank of the type", ylabel="frequency, tokens")
        outside_legend(figure, left)
        return figure


def jackknife(value: float, without: Sequence[float]) -> Interval[float]:
    """A 95 % jackknife interval.

    The bootstrap is biased here: a document that is drawn twice adds no new types.

    Args:
        value: statistic of all documents.
        without: statistic without each document in turn, (documents,).
    """
    each = np.array(without)
    if len(each) < 2:
        return Interval(value, float("nan"), float("nan"))
    error = np.sqrt((len(each) - 1) * ((each - each.mean()) ** 2).mean())
    return Interval(value, float(value - 1.96 * error), float(value + 1.96 * error))


def sequence_statistics(
    documents: Mapping[str, Sequence[Sequence[int]]], seed: int = 0
) -> SequenceStatistics:
    """Compare sequences of two modalities.

    Args:
        documents: modality -> ids of each document, in order.
        seed: seed of the order of documents.

    Raises:
        EepolicyError: a modality has no tokens.
    """
    rng = np.random.default_rng(seed)
    smallest = min(sum(map(len, each)) for each in documents.values())
    if not smallest:
        raise EepolicyError("each modality needs tokens to be compared; one has none")
    result = SequenceStatistics({}, {}, {})
    for modality, each in documents.items():
        cut = cut_to([each[i] for i in rng.permutation(len(each))], smallest)
        # one order of all tokens, so that samples differ by the document alone
        keys = [rng.random(len(document)).tolist() for document in cut]
        values = describe(cut, keys)
        rest = range(len(cut)) if len(cut) > 1 else ()
        without = [describe(cut[:i] + cut[i + 1 :], keys[:i] + keys[i + 1 :]) for i in rest]
        result.statistics[modality] = {
            m.name: jackknife(values[m.name], [w[m.name] for w in without]) for m in MEASURES
        }
        tokens = [token for document in cut for token in document]
        result.growth[modality] = type_growth(tokens)
        result.frequencies[modality] = np.array(sorted(Counter(tokens).values(), reverse=True))
    return result


def by_modality(layout: TokenLayout, replies: Sequence[Document]) -> dict[str, list[list[int]]]:
    """Text ids without special tokens, and speech units, of each reply."""
    ids = [document.reply for document in replies]
    return {
        "text": [layout.text_ids(i).tolist() for i in ids],
        "speech": [layout.units(i).tolist() for i in ids],
    }


def cut_to(documents: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """The first documents with a number of tokens in all; the last one is cut.

    Example:
        >>> cut_to([[1, 2, 3], [4, 5], [6]], 4)
        [[1, 2, 3], [4]]
    """
    kept: list[list[int]] = []
    left = tokens
    for document in documents:
        if left <= 0:
            break
        kept.append(list(document[:left]))
        left -= len(kept[-1])
    return kept


def describe(
    documents: Sequence[Sequence[int]], keys: Sequence[Sequence[float]]
) -> dict[str, float]:
    """The statistics of some documents, see `MEASURES`; no pair crosses a document border.

    Args:
        documents: ids of each document.
        keys: a number for each id; shuffled tokens are in the order of their numbers.
    """
    tokens = [t for d in documents for t in d]
    counts = np.array(sorted(Counter(tokens).values(), reverse=True), float)
    pairs = [pair for d in documents for pair in pairwise(d)]
    repeats = sum(a == b for a, b in pairs)
    runs = len(tokens) - repeats
    places = [key for d in keys for key in d]
    shuffled = [token for _, token in sorted(zip(places, tokens, strict=True))]
    return {
        "documents": float(len(documents)),
        "tokens": float(len(tokens)),
        "types": float(len(counts)),
        "type_token": len(counts) / len(tokens),
        "once": float((counts == 1).mean()),
        "unigram": entropy_bits(Counter(tokens)),
        "conditional": conditional_bits(pairs),
        "shuffled": conditional_bits(list(pairwise(shuffled))[: len(pairs)]),
        "repeats": repeats / max(1, len(pairs)),
        "run": len(tokens) / runs,
        "zipf": zipf_slope(counts),
    }


def conditional_bits(pairs: Sequence[tuple[int, int]]) -> float:
    """Entropy of the second element of pairs given the first, in bits."""
    return entropy_bits(Counter(pairs)) - entropy_bits(Counter(a for a, _ in pairs))


def entropy_bits(counts: Counter[Any]) -> float:
    """Entropy in bits with the Miller-Madow correction, (types - 1) / (2 tokens) nats."""
    array = np.array(list(counts.values()), float)
    if not len(array):
        return 0.0
    p = array / array.sum()
    nats = -(p * np.log(p)).sum() + (len(array) - 1) / (2 * array.sum())
    return float(nats / np.log(2))


def zipf_slope(counts: NDArray[np.float64]) -> float:
    """Slope of log frequency against log rank of the types that occur at least twice.

    Args:
        counts: (types,).

    Returns:
        The slope; nan for fewer than three such types.
    """
    frequent = np.sort(counts[counts >= 2])[::-1]
    if len(frequent) < 3:
        return float("nan")
    return float(np.polyfit(np.log(np.arange(1, len(frequent) + 1)), np.log(frequent), 1)[0])


def type_growth(tokens: Sequence[int], points: int = 60) -> NDArray[np.int64]:
    """Number of types among the first tokens, at evenly spaced points.

    Args:
        tokens: (tokens,).
        points: maximum number of points.

    Returns:
        Numbers of tokens and of types, (points, 2).
    """
    seen: set[int] = set()
    types = []
    for token in tokens:
        seen.add(token)
        types.append(len(seen))
    at = np.unique(np.linspace(1, len(tokens), min(points, len(tokens))).round().astype(int))
    return np.stack([at, np.array(types)[at - 1]], 1)
