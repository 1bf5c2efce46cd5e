"""What all studies share: the abstract `Study`, its measures, and the workspace it runs in."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from eepolicy import Document, EepolicyError, HookedModel, ProbeResult, probe
from eepolicy.analysis.stats.bootstrap import Interval
from eepolicy.analysis.stats.clustered import ratios_by
from eepolicy.fitting.replies import generate_replies
from eepolicy.heads.fingerprint import digest, fingerprint
from eepolicy.io import read_json


@dataclass(frozen=True)
class Measure:
    """One measured quantity: how tables and figures show it.

    Attributes:
        name: key in data frames.
        label: words for a table heading or an axis.
        unit: unit after the scale; empty for none.
        scale: factor from the stored value to the unit, such as 100 for per cent.
        digits: digits after the decimal point in a table.

    Example:
        >>> Measure("wer", "WER", "%", 100).heading
        'WER, %'
    """

    name: str
    label: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 2

    @property
    def heading(self) -> str:
        """Label and unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def cell(self, interval: Interval[Any]) -> str:
        """A single estimate as a table cell."""
        return interval.text(self.digits, self.scale)


@dataclass(frozen=True)
class RatioMeasure(Measure):
    """A measure that is the sum of one column over the sum of another.

    Attributes:
        numerator: name of a column.
        denominator: name of a column.
    """

    numerator: str = ""
    denominator: str = ""

    def by(self, rows: pd.DataFrame, column: str) -> dict[Any, Interval[Any]]:
        """The measure, in its unit, for each value of a column; see `ratios_by`."""
        return ratios_by(rows, column, self.numerator, self.denominator, self.scale)

    def is_in(self, rows: pd.DataFrame) -> bool:
        """Whether any row has a value."""
        return bool(rows[self.numerator].notna().any())


M = TypeVar("M", bound=Measure)


def by_name(measures: Sequence[M], name: str) -> M:
    """The measure with a name.

    Raises:
        EepolicyError: there is none; lists the names.
    """
    for measure in measures:
        if measure.name == name:
            return measure
    names = ", ".join(m.name for m in measures)
    raise EepolicyError(f"no measure is named {name!r}; the measures are {names}")


class Study(ABC):
    """The result of one study: a table, a figure and a data frame.

    A subclass declares the class attributes, computes itself in `run`, and shows itself with the
    three other methods.  `eepolicy.analysis.studies.STUDIES` lists the built-in ones;
    `write_studies` takes others as well.

    Attributes:
        name: option of `python -m eepolicy.analysis.studies --only`, and the stem of its files.
        title: heading.
        help: one line on what the study measures.
        needs_asr: the study transcribes replies, so that it needs a speech recognition package.
        by_default: the study runs if no `--only` is given.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    help: ClassVar[str]
    needs_asr: ClassVar[bool] = False
    by_default: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def run(cls, workspace: Workspace) -> Study:
        """Measure on the model and questions of a workspace."""

    @abstractmethod
    def table(self) -> str:
        """The result as Markdown."""

    @abstractmethod
    def figure(self) -> Figure:
        """The result as a figure."""

    @abstractmethod
    def to_pandas(self) -> pd.DataFrame:
        """The result as a data frame."""


@dataclass(frozen=True)
class BatchOptions:
    """How a study decodes its questions.

    Attributes:
        size: rows in a batch.
        max_new_tokens: maximum length of a reply.
        progress: wraps the batches, to show progress.
    """

    size: int = 25
    max_new_tokens: int = 400
    progress: Callable[[Any], Any] = iter

    def starts(self, items: Sequence[Any]) -> range:
        """Index of the first item of each batch."""
        return range(0, len(items), self.size)


@dataclass(frozen=True)
class Workspace:
    """A model, its questions, and a folder that stores what was measured on them.

    A study that was stopped goes on from the stored files when it runs again.

    Attributes:
        model: model with its exit heads.
        questions: held-out questions, dicts with `question` and `keys`.
        folder: folder of the measurements; see `open`.
    """

    model: HookedModel
    questions: Sequence[Mapping[str, Any]]
    folder: Path

    @classmethod
    def open(
        cls, model: HookedModel, questions: Sequence[Mapping[str, Any]], folder: Path
    ) -> Workspace:
        """Create a folder, or open one that stores measurements of the same model and questions.

        Args:
            model: model with its exit heads.
            questions: held-out questions, dicts with `question` and `keys`.
            folder: created if it does not exist.

        Raises:
            EepolicyError: the folder stores measurements of another model, other heads or other
                questions.
        """
        text = "\n".join(q["question"] for q in questions)
        identity = {
            "model": fingerprint(model.model),
            "heads": digest(model.heads),
            "questions": f"{len(questions)} {hashlib.sha256(text.encode()).hexdigest()[:12]}",
        }
        file = folder / "study.json"
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text(json.dumps(identity))
        elif read_json(file) != identity:
            raise EepolicyError(
                f"{folder} stores measurements of another model, other heads or other questions; "
                "use another folder"
            )
        return cls(model, questions, folder)

    @property
    def texts(self) -> list[str]:
        """The questions in text."""
        return [q["question"] for q in self.questions]

    def depth(self, share: float) -> int:
        """A share of full depth, in whole layers."""
        return round(share * self.model.depth)

    @cached_property
    def replies(self) -> list[Document]:
        """The model's full-depth replies."""
        return generate_replies(
            self.model,
            self.texts,
            save=self.folder / "replies.jsonl",
            progress=progress_bar("replies"),
        )

    @cached_property
    def probed(self) -> ProbeResult:
        """The probe of the full-depth replies with the model's exit heads."""
        return probe(self.model, self.replies, save=self.folder / "probe")

    def stored(self, name: str, measure: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table of measurements: read from the folder, or measured and written there."""
        file = self.folder / f"{name}.csv"
        if not file.exists():
            part = file.with_suffix(".part")
            measure().to_csv(part, index=False)
            part.replace(file)
        return pd.read_csv(file)


def progress_bar(label: str) -> Callable[[Any], Any]:
    """A wrapper of iterables that shows a progress bar."""
    return lambda items: tqdm(items, label)
