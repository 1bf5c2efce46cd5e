"""Sweeps: comparisons of the same rows on several models and tasks, from one TOML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

from pydantic import Field

from eepolicy.analysis.evaluation.default_policies import FULL
from eepolicy.analysis.evaluation.rows import OPTIONS, parse_row
from eepolicy.errors import EepolicyError
from eepolicy.formats import FileFormat, Positive, parse
from eepolicy.io import read_toml

#: options of early exit that a row need not name
DEFAULTS = {"fill": "catch_up", "accept": "all"}

Names = Annotated[list[str], Field(min_length=1)]


class SweepFile(FileFormat):
    """A sweep: every policy with every fill and acceptance rule, on every model and task.

    Attributes:
        models: names, folders or Hub ids of the models.
        policies: spec strings; full depth is added.
        fills: spec strings of the fills.
        accepts: spec strings of the acceptance rules.
        tasks: file or Hub data set of each task, by name; the held-out questions of each model if
            empty.
        prompts: number of questions of each task.
        seeds: number of replies per policy and question; several need a temperature.
        temperature: sampling temperature; None for greedy decoding.
        top_p: nucleus sampling; None for none.
        max_new_tokens: maximum number of tokens per reply.
        dtype: data type of the weights.
        device: device of the models.
        mos: name of the MOS predictor; None for none.
        timed: number of questions that are timed.
        batch: number of questions that are decoded together.
    """

    models: Names
    policies: Names
    fills: Names = Field(default_factory=lambda: [DEFAULTS["fill"]])
    accepts: Names = Field(default_factory=lambda: [DEFAULTS["accept"]])
    tasks: dict[str, str] = Field(default_factory=dict)
    prompts: Positive = 100
    seeds: Positive = 1
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: Positive = 400
    dtype: str = "float32"
    device: str = "cpu"
    mos: str | None = None
    timed: Annotated[int, Field(ge=0)] = 12
    batch: Positive = 50

    def rows(self) -> list[str]:
        """The rows of each comparison: a policy with each fill and acceptance rule.

        A policy that names its own fill or rule, and full depth, is one row for all of them.

        Raises:
            EepolicyError: a policy, fill or rule cannot be read.
        """
        rows = []
        for row in map(parse_row, self.policies):
            for fill, accept in product(self.fills, self.accepts):
                options = {"fill": fill, "accept": accept}
                new = {name: options[name] for name in OPTIONS if options[name] != DEFAULTS[name]}
                own = "".join(f", {name}={value}" for name, value in new.items())
                is_fixed = row.own or row.spec == FULL
                rows.append(row.spec if is_fixed else parse_row(row.spec + own).spec)
        return list(dict.fromkeys(rows))

    def cells(self) -> list[Cell]:
        """The comparisons, model by model.

        Raises:
            EepolicyError: two cells would have the same folder.
        """
        tasks: Sequence[str | None] = [f"{name}={file}" for name, file in self.tasks.items()]
        cells = [Cell(model, task) for model in self.models for task in tasks or [None]]
        names = [cell.name for cell in cells]
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise EepolicyError(f"two comparisons of the sweep would have the folder {double!r}")
        return cells


@dataclass(frozen=True)
class Cell:
    """A comparison of a sweep.

    Attributes:
        model: name, folder or Hub id of the model.
        task: `NAME=FILE` of the task; None for the held-out questions of the model.
    """

    model: str
    task: str | None

    @property
    def name(self) -> str:
        """Name of its folder.

        Examples:
            >>> Cell("zai-org/glm-4-voice-9b", "trivia=trivia.jsonl").name
            'glm-4-voice-9b-trivia'
        """
        model = self.model.rstrip("/").rpartition("/")[2]
        parts = [model, *([] if self.task is None else [self.task.partition("=")[0]])]
        return re.sub(r"[^\w.-]+", "_", "-".join(parts))


def read_sweep(file: str | Path) -> SweepFile:
    """Read a sweep.

    Args:
        file: TOML file, see `SweepFile`.

    Raises:
        EepolicyError: the file cannot be read, is not TOML, or has a wrong or unknown key.
    """
    return parse(SweepFile, read_toml(file, "a sweep"), str(file))
