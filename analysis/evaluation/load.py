"""Read the folder of a comparison, without its model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from eepolicy.analysis.evaluation.columns import COLUMNS, Column
from eepolicy.analysis.evaluation.default_policies import FULL
from eepolicy.analysis.evaluation.formats import RecordLine
from eepolicy.analysis.evaluation.records import FILES, RunFolder, question_key
from eepolicy.analysis.evaluation.table import Comparison
from eepolicy.analysis.evaluation.verdict import Margins
from eepolicy.analysis.stats.sequential import UntilDecided
from eepolicy.errors import EepolicyError
from eepolicy.formats import Positive, SamplingOption, parse


class MarginNotes(BaseModel):
    """The margins in the notes of a run: see `Margins`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    wer: float = Margins.wer
    accuracy: float = Margins.accuracy
    mos: float = Margins.mos


class RunIdentity(BaseModel):
    """The settings of a run that tables mention: see `identity` and `RunConfig.to_dict`.

    Attributes:
        model: fingerprint of the model.
        card: name of its card; None without one.
        heads: the exit heads in words.
        numbers: data type and device.
        threads: number of CPU threads.
        versions: version of each package.
        decoding: options of early exit that all rows share.
        sampling: sampling options.
        batch: number of questions that were decoded together.
        compile_timed: whether the layers of timed replies were compiled.
    """

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: dict[str, Any] = {}
    card: str | None = None
    heads: str = ""
    numbers: str = ""
    threads: Positive = 1
    versions: dict[str, str] = {}
    decoding: dict[str, Any] = {}
    sampling: dict[str, SamplingOption] = {}
    batch: Positive | None = None
    compile_timed: bool = False


class RunNotes(BaseModel):
    """The notes of a run that its table depends on.

    Attributes:
        rows: spec strings of the rows; empty if the run has not noted them.
        margins: largest losses that count as not worse.
        looks: numbers of questions of `UntilDecided`; None if their number was stated before.
        compared: `question_key` of each question of the last call; empty if it is not noted.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    rows: list[str] = []
    margins: MarginNotes = MarginNotes()
    looks: list[int] | None = None
    compared: list[str] = []


def load_comparison(folder: str | Path, columns: Sequence[Column] = COLUMNS) -> Comparison:
    """Read a comparison from its run folder.

    No policy is built, so no Python file of the folder's author is run.

    Args:
        folder: folder of a run, finished or not.
        columns: columns of the table.

    Returns:
        The comparison, with full depth as its first row.

    Raises:
        EepolicyError: the folder is not of a run, a file has another form, or there is no reply at
            full depth yet.
    """
    folder = Path(folder)
    run_folder = RunFolder(folder)
    answered = dict.fromkeys(line.policy for line in run_folder.lines(RecordLine))
    if not answered or not (folder / "run.json").is_file():
        raise EepolicyError(
            f"{folder} contains no records of a comparison: give the --out folder of "
            "'eepolicy compare'"
        )
    _check_replies(run_folder, read_identity(run_folder))
    notes = parse(RunNotes, run_folder.read()[1], f"{folder / 'run.json'}, notes")
    if FULL not in answered:
        raise EepolicyError(
            f"{folder} contains no reply at full depth yet: continue the comparison"
        )
    policies = dict.fromkeys((FULL, *(notes.rows or answered)))
    compared = {*notes.compared}
    return Comparison(
        tuple(policies),
        tuple(
            line.model_dump()
            for line in run_folder.questions().values()
            if not compared or question_key(line.question) in compared
        ),
        run_folder,
        tuple(columns),
        Margins(**notes.margins.model_dump()),
        UntilDecided(tuple(notes.looks)) if notes.looks else None,
    )


def _check_replies(folder: RunFolder, identity: RunIdentity) -> None:
    """Refuse replies with depths or ids that the model of the run does not have.

    Raises:
        EepolicyError: with the line, and the depths or ids of the model.
    """
    layers, vocabulary = (identity.model.get(key) for key in ("num_hidden_layers", "vocab_size"))
    for number, line in enumerate(folder.lines(RecordLine), 1):
        where = f"{folder.path / FILES[RecordLine]}, record {number}"
        if isinstance(layers, int):
            # the layers of a branch count as depth, and a branch has no more layers than the model;
            # heads of several kinds are called "FittedHead"
            has_branches = any(kind in identity.heads for kind in ("Branch", "FittedHead"))
            most = 2 * layers if has_branches else layers
            if max(line.depths, default=0) > most:
                raise EepolicyError(
                    f"{where}: depths must be 0 to {most}; got {max(line.depths)}: delete the line"
                )
        if isinstance(vocabulary, int) and max(line.tokens, default=0) >= vocabulary:
            raise EepolicyError(
                f"{where}: tokens must be 0 to {vocabulary - 1}; got {max(line.tokens)}: delete "
                "the line"
            )


def read_identity(folder: RunFolder) -> RunIdentity:
    """Read the settings of a run.

    Args:
        folder: folder of the run.

    Raises:
        EepolicyError: `run.json` cannot be read, or a setting has the wrong type.
    """
    return parse(RunIdentity, folder.read()[0], f"{folder.path / 'run.json'}, identity")
