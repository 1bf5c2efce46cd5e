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

from eepolicy import Document, EepolicyError, HookedModel, ProbeResult, held_out, probe
from eepolicy.analysis.evaluation.identity import identity
from eepolicy.analysis.stats.bootstrap import Interval
from eepolicy.analysis.stats.clustered import ratios_by
from eepolicy.analysis.tables import read_table
from eepolicy.fitting.replies import generate_replies
from eepolicy.heads import ExitHead, FittedHead
from eepolicy.io import make_folder, read_json, write_json, write_text
from eepolicy.workers import WorkerConfig

#: what a measurement may differ in from those that a folder stores
RUN_OPTIONS = frozenset({"threads", "max_new_tokens", "versions"})


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
        measured_time: time of a run with 200 questions in words; empty if it was not measured.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    help: ClassVar[str]
    needs_asr: ClassVar[bool] = False
    by_default: ClassVar[bool] = True
    measured_time: ClassVar[str] = ""

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
        workers: processes that help, in the studies that spread; a number for processes of this
            machine.
        load: loads the model in a worker; without it no worker helps.  Workers must be able to
            pickle it.
    """

    size: int = 25
    max_new_tokens: int = 400
    progress: Callable[[Any], Any] = iter
    workers: WorkerConfig | int = 0
    load: Callable[[], HookedModel] | None = None

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
        cls, model: HookedModel, questions: Sequence[Mapping[str, Any]], folder: str | Path
    ) -> Workspace:
        """Create a folder, or open one that stores measurements of the same model and questions.

        Args:
            model: model with its exit heads.
            questions: held-out questions, dicts with `question` and `keys`.
            folder: created if it does not exist.

        Raises:
            EepolicyError: the folder stores measurements of another model, with other heads or
                another vocoder, or on other questions.
        """
        texts = json.dumps([[q["question"], q.get("keys")] for q in questions])
        described = identity(model, 0)
        stored: dict[str, Any] = {
            **{name: described[name] for name in described.keys() - RUN_OPTIONS},
            "layout": model.layout.to_dict(),
            "questions": f"{len(questions)} {hashlib.sha256(texts.encode()).hexdigest()[:12]}",
        }
        folder = Path(folder)
        file = folder / "study.json"
        make_folder(folder)
        if not file.exists():
            write_json(file, stored)
        elif (before := read_json(file)) != stored:
            others = sorted(n for n in {*stored, *before} if stored.get(n) != before.get(n))
            raise EepolicyError(
                f"{folder} stores measurements with another {', '.join(others)}; use another folder"
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
        return self._replies_to(self.texts, "replies")

    def development_replies(self, count: int) -> list[Document]:
        """The model's full-depth replies to the first questions of the development split.

        A file of replies has one list of questions, so each number of questions has its own file.
        """
        questions = [q["question"] for q in held_out("dev")[:count]]
        return self._replies_to(questions, f"dev-replies-{count}")

    def _replies_to(self, questions: Sequence[str], name: str) -> list[Document]:
        """Full-depth replies, stored in the folder under a name."""
        return generate_replies(
            self.model,
            questions,
            save=self.folder / f"{name}.jsonl",
            progress=progress_bar(name),
        )

    @cached_property
    def probed(self) -> ProbeResult:
        """The probe of the full-depth replies with the model's exit heads.

        Depths with a branch are left out: a branch has layers of its own, so its readout is not one
        of the state at its depth.
        """
        depths = depths_without_branch(self.model.depth, self.model.heads)
        return probe(self.model, self.replies, depths=depths, save=self.folder / "probe")

    def stored(self, name: str, measure: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table of measurements: read from the folder, or measured and written there.

        Args:
            name: name of the table; `file_stem` of it is the stem of the file.
            measure: measures the table.
        """
        file = self.folder / f"{file_stem(name)}.csv"
        if not file.exists():
            write_text(file, measure().to_csv(index=False))
        return read_table(file)


def file_stem(name: str) -> str:
    """A name as the stem of a file, such as one with a spec string.

    Example:
        >>> file_stem("heard-spark:triple@14")
        'heard-spark-triple-14'
    """
    return "".join(c if c.isalnum() else "-" for c in name)


def depths_without_branch(full_depth: int, heads: ExitHead) -> list[int]:
    """The depths at which heads read the state itself, full depth included.

    Args:
        full_depth: number of layers of the model.
        heads: its exit heads.
    """
    depths = heads.depths if isinstance(heads, FittedHead) else range(1, full_depth)
    return sorted({full_depth, *depths} - {0, *heads.branch_depths})


def progress_bar(label: str) -> Callable[[Any], Any]:
    """A wrapper of iterables that shows a progress bar."""
    return lambda items: tqdm(items, label)
