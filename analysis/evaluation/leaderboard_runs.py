"""The run folders of a leaderboard, and what is known about each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from eepolicy.analysis.evaluation import columns
from eepolicy.analysis.evaluation.columns import Column
from eepolicy.analysis.evaluation.conditions import conditions
from eepolicy.analysis.evaluation.load import RunIdentity, load_comparison, read_identity
from eepolicy.analysis.evaluation.table import Comparison
from eepolicy.analysis.tables import MISSING
from eepolicy.errors import EepolicyError
from eepolicy.heads.files import read_notes
from eepolicy.loading.pocket import pocket_folder

#: cost of a row without regard to the length of its replies
CALLS = Column(
    "calls_per_token", "layer calls a token", lambda r: r.layer_calls, lambda r: len(r.tokens)
)
#: columns of the leaderboard
COLUMNS = (*columns.COLUMNS, CALLS)


@dataclass(frozen=True)
class BoardRun:
    """A run on the leaderboard.

    Attributes:
        name: name of its folder; no two runs of a leaderboard have the same.
        comparison: the comparison in the folder.
    """

    name: str
    comparison: Comparison = field(repr=False)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of the table, full depth first."""
        return self.comparison.table()

    @cached_property
    def identity(self) -> RunIdentity:
        """Settings that all records of the run share."""
        return read_identity(self.comparison.folder)

    @property
    def model(self) -> str:
        """The model in words: its card or type, layers, and a hash of its weights."""
        fingerprint = self.identity.model
        name = self.identity.card or fingerprint.get("model_type", "unknown")
        if fingerprint == read_notes(pocket_folder() / "heads.safetensors")["model"]:
            name = "pocket"
        layers, weights = fingerprint.get("num_hidden_layers"), fingerprint.get("weights")
        parts = [name, f"{layers} layers" if layers else None, weights]
        return ", ".join(str(part) for part in parts if part)

    @property
    def heads(self) -> str:
        """The exit heads in words."""
        return self.identity.heads or MISSING

    @property
    def computed_with(self) -> str:
        """Data type, device and version of torch in words."""
        torch = self.identity.versions.get("torch")
        parts = (self.identity.numbers.removeprefix("torch."), f"torch {torch}" if torch else "")
        return ", ".join(filter(None, parts)) or MISSING

    @property
    def conditions(self) -> str:
        """Sentences on how quality and time were measured."""
        return conditions(self.comparison.folder)

    @property
    def questions(self) -> frozenset[str]:
        """The questions of the run."""
        return frozenset(q["question"] for q in self.comparison.questions)

    @property
    def number(self) -> str:
        """Number of questions that every row has answered, and of all if they are more."""
        answered, known = self.rows[0]["prompts"], len(self.questions)
        return str(answered) if answered == known else f"{answered} of {known}"


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """List run folders: those given, and those directly in a given folder.

    Args:
        paths: run folders, and folders of run folders.

    Raises:
        EepolicyError: a folder is missing, or is neither.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise EepolicyError(f"there is no folder {path}: give folders of 'eepolicy compare'")
        inner = [path] if _is_run(path) else sorted(p for p in path.iterdir() if _is_run(p))
        if not inner:
            raise EepolicyError(
                f"neither {path} nor a folder in it has the run.json of a comparison: give "
                "folders of 'eepolicy compare'"
            )
        for folder in inner:
            folders.setdefault(folder.resolve(), folder)
    return list(folders.values())


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file()


def read_runs(paths: Sequence[Path]) -> list[BoardRun]:
    """Read the runs of a leaderboard.

    Args:
        paths: run folders, and folders of run folders.

    Raises:
        EepolicyError: a folder cannot be read, or has no question that every row has answered.
    """
    folders = run_folders(paths)
    names = [folder.resolve().name for folder in folders]
    runs: list[BoardRun] = []
    for folder, name in zip(folders, names, strict=True):
        if names.count(name) > 1:
            name = f"{folder.resolve().parent.name}/{name}"
        run = BoardRun(name, load_comparison(folder, COLUMNS))
        if any(run.name == other.name for other in runs):
            raise EepolicyError(f"two folders have the name {name}: rename one of them")
        runs.append(run)
    return runs
