"""`eepolicy compare --preset spark-table2`: the sixteen rows of the paper's Table 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eepolicy.cli.progress import progress, step_progress
from eepolicy.cli.shared import command_line, print_markdown, print_note, print_warning
from eepolicy.errors import EepolicyError
from eepolicy.io import read_lines

if TYPE_CHECKING:
    from eepolicy.analysis.evaluation.config import RunConfig
    from eepolicy.analysis.evaluation.metrics import MetricsSource
    from eepolicy.analysis.evaluation.spark_table2 import Row
    from eepolicy.hooked import HookedModel

PRESETS = ("spark-table2",)
#: maximum number of tokens per reply in the preset
MAX_NEW_TOKENS = 2048
#: smallest number of questions to fit heads on
MIN_FIT_QUESTIONS = 10


def check_preset(preset: str | None, policies: Sequence[str] | None, is_default: bool) -> None:
    """Check that a preset exists and that no option contradicts it.

    Args:
        preset: name of the preset; None for no preset.
        policies: policies that were given.
        is_default: whether all decoding options have their defaults.

    Raises:
        EepolicyError: there is no such preset, or an option contradicts it.
    """
    if preset is None:
        return
    if preset not in PRESETS:
        raise EepolicyError(f"presets are {', '.join(PRESETS)}; got {preset!r}")
    if policies:
        raise EepolicyError(f"the preset {preset} has policies of its own; give it none")
    if not is_default:
        raise EepolicyError(
            f"the preset {preset} decodes as the paper: without --fill, --accept, --temperature, "
            "--top-p, --seeds and --restrict-vocab"
        )


@dataclass(frozen=True)
class Table2Run:
    """A run of the paper's rows on one model.

    Attributes:
        model: model of the paper.
        questions: questions of the paper's tasks.
        out_folder: folder of the report.
        metrics: models that score replies.
        fit_prompts: file with a question per line to fit exit heads on.
        config: settings of the run; the preset sets rows and sampling.
        notes: sentences for the top of the report.
    """

    model: HookedModel
    questions: Sequence[dict[str, Any]]
    out_folder: Path
    metrics: MetricsSource
    fit_prompts: Path | None
    config: RunConfig
    notes: tuple[str, ...]

    def run(self) -> list[dict[str, Any]]:
        """Fit missing heads, decode the rows, print and write the table beside the paper's."""
        from eepolicy.analysis.evaluation.records import RunFolder
        from eepolicy.analysis.evaluation.report import write_report
        from eepolicy.analysis.evaluation.run import run
        from eepolicy.analysis.evaluation.spark_table2 import rows_of, table2
        from eepolicy.io import write_text

        rows = rows_of(self.model)
        self._check_tasks()
        self._fit_heads(rows)
        notes = (*self.notes, *self._limits())
        config = replace(
            self.config,
            policies=[row.policy for row in rows],
            sampling=self._sampling(),
            rated=len(self.questions),
        )
        comparison = run(
            self.model,
            self.questions,
            RunFolder(self.out_folder),
            config,
            self.metrics,
            step_progress,
        )
        table = table2(rows, comparison).table()
        file = self.out_folder / "table2.md"
        write_text(file, table)
        results = write_report(self.model, comparison, command_line(), notes)
        print_markdown(table)
        print_note(f"The table is in {file}, the report in {self.out_folder / 'index.html'}")
        return results

    def _check_tasks(self) -> None:
        from eepolicy.analysis.evaluation.spark_table2 import TASKS

        unknown = sorted({q.get("task", "held-out") for q in self.questions} - set(TASKS))
        if unknown or not self.questions:
            raise EepolicyError(
                f"the tasks of the table are {', '.join(TASKS)}; give --task NAME=FILE of one or "
                f"more{': got ' + unknown[0] if unknown else ''}"
            )

    def _limits(self) -> list[str]:
        """Print and return what this run cannot measure."""
        limits = []
        if self.metrics.judge is None:
            limits.append(
                "There is no --judge-url: a reply is right if it contains an alias of the right "
                "answer."
            )
        if self.model.vocoder is None:
            limits.append(
                "The model has no vocoder (--vocoder): there are no transcripts, and the scores "
                "are of the texts."
            )
        for sentence in limits:
            print_warning(sentence)
        return limits

    def _sampling(self) -> dict[str, float]:
        """The authors' sampling options; none for a model that the paper decodes greedily."""
        from eepolicy.analysis.evaluation.spark_table2 import GREEDY

        card = self.model.card
        if card is None or card.name in GREEDY:
            return {}
        return {name: value for name, value in card.sampling.items() if name != "do_sample"}

    def _fit_heads(self, rows: tuple[Row, ...]) -> None:
        from eepolicy.analysis.evaluation.spark_table2 import head_depths

        if self.model.heads is not self.model.lens:
            return
        questions = read_lines(self.fit_prompts) if self.fit_prompts else []
        file = self.out_folder.with_name(self.out_folder.name + "-heads.safetensors")
        fit_heads(self.model, head_depths(rows), questions, file)


def fit_heads(
    model: HookedModel, depths: tuple[int, ...], questions: Sequence[str], file: Path
) -> None:
    """Load heads from a file, or fit them and save them there.

    They are the paper's: a linear head per depth, fitted with soft labels on the model's replies.

    Args:
        model: model that gets the heads.
        depths: depths of the heads.
        questions: questions to fit on.
        file: file of the heads.

    Raises:
        EepolicyError: there are too few questions.
    """
    from eepolicy import fitting
    from eepolicy.heads import load_heads

    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        if len(questions) < MIN_FIT_QUESTIONS:
            raise EepolicyError(
                f"heads are fitted on the replies to ten questions or more; got {len(questions)}: "
                "give --fit-prompts, a file with a question per line"
            )
        replies_file = file.with_suffix(".replies.jsonl")
        replies = fitting.generate_replies(
            model, questions, save=replies_file, batch=8, progress=progress("batches of replies")
        )
        held_out = max(1, len(replies) // 10)
        result = fitting.fit(
            model,
            replies[held_out:],
            replies[:held_out],
            fitting.FitConfig(kind="linear", depths=depths),
            checkpoint=file.with_suffix(".checkpoint"),
            report=print_note,
            progress=progress("steps"),
        )
        result.heads.save(file, model.model, result.notes)
        for temporary in (replies_file, file.with_suffix(".checkpoint")):
            temporary.unlink(missing_ok=True)
    model.heads = load_heads(file, model.lens, model.model)
