"""`eepolicy compare --preset spark-table2`: the sixteen rows of the paper's Table 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eepolicy.cli.progress import progress, step_progress
from eepolicy.cli.shared import command_line, print_markdown, print_note, print_warning
from eepolicy.errors import EepolicyError
from eepolicy.io import beside, make_folder, read_lines

if TYPE_CHECKING:
    from eepolicy.analysis.evaluation.config import RunConfig
    from eepolicy.analysis.evaluation.metrics import MetricsSource
    from eepolicy.analysis.evaluation.spark_table2 import Row
    from eepolicy.analysis.evaluation.table2_estimate import Estimate
    from eepolicy.cli.workers import ModelSource
    from eepolicy.hooked import HookedModel

PRESETS = ("spark-table2",)
#: maximum number of tokens per reply in the preset
MAX_NEW_TOKENS = 2048
#: smallest number of questions to fit heads on
MIN_FIT_QUESTIONS = 10
#: questions whose replies to fit on are decoded together
FIT_BATCH = 8


def check_preset(
    preset: str | None,
    policies: Sequence[str] | None,
    is_default: bool,
    options: Mapping[str, object] | None = None,
) -> None:
    """Check that a preset exists and that no option contradicts it.

    Args:
        preset: name of the preset; None for no preset.
        policies: policies that were given.
        is_default: whether all decoding options have their defaults.
        options: values of options that are for presets, by name; None and False are not set.

    Raises:
        EepolicyError: there is no such preset, or an option contradicts it.
    """
    if preset is None:
        given = [name for name, value in (options or {}).items() if value]
        if given:
            raise EepolicyError(f"{given[0]} is for --preset")
        return
    if preset not in PRESETS:
        raise EepolicyError(f"presets are {', '.join(PRESETS)}; got {preset!r}")
    if policies:
        raise EepolicyError(f"the preset {preset} has policies of its own; give it none")
    if not is_default:
        raise EepolicyError(
            f"the preset {preset} decodes as the paper: without --fill, --accept, --temperature, "
            "--top-p, --seeds, --restrict-vocab and --until-decided"
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
        source: loads the model in workers.
    """

    model: HookedModel
    questions: Sequence[dict[str, Any]]
    out_folder: Path
    metrics: MetricsSource
    fit_prompts: Path | None
    config: RunConfig
    notes: tuple[str, ...]
    source: ModelSource

    def run(self, dry_run: bool = False) -> list[dict[str, Any]]:
        """Try all parts, fit missing heads, decode the rows, print and write the table.

        Args:
            dry_run: only try the parts and print the estimate.
        """
        from eepolicy.analysis.evaluation.records import RunFolder
        from eepolicy.analysis.evaluation.report import write_report
        from eepolicy.analysis.evaluation.run import run
        from eepolicy.analysis.evaluation.spark_table2 import rows_of, write_table2

        rows = rows_of(self.model)
        self._check_tasks()
        questions = self._fit_questions(rows)
        notes = (*self.notes, *self._limits())
        config = replace(
            self.config,
            policies=[row.policy for row in rows],
            sampling=self._sampling(),
            rated=len(self.questions),
        )
        if dry_run or self._lacks_replies(rows):
            whole = self._estimate(rows, config, len(questions))
            # the table of the run alone goes to stdout
            (print_markdown if dry_run else print_warning)(whole.tables())
            self._check_space(whole)
        if dry_run:
            return []
        if self._fit_heads(rows, questions) and config.load is not None:
            own = replace(self.source, heads=str(self._heads_file))  # workers load the same heads
            load = own.for_workers(self.model, config.worker_config, least=2)
            config = replace(config, load=load)
        comparison = run(
            self.model,
            self.questions,
            RunFolder(self.out_folder),
            config,
            self.metrics,
            step_progress,
        )
        table = write_table2(rows, comparison)
        results = write_report(self.model, comparison, command_line(), notes)
        print_markdown(table)
        print_note(
            f"The table is in {self.out_folder / 'table2.md'}, the report in "
            f"{self.out_folder / 'index.html'}"
        )
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

    def _sampling(self) -> dict[str, Any]:
        """The authors' sampling options; none for a model that the paper decodes greedily."""
        from eepolicy.analysis.evaluation.spark_table2 import GREEDY

        card = self.model.card
        if card is None or card.name in GREEDY:
            return {}
        return {name: value for name, value in card.sampling.items() if name != "do_sample"}

    def _lacks_replies(self, rows: tuple[Row, ...]) -> bool:
        from eepolicy.analysis.evaluation.formats import RecordLine
        from eepolicy.analysis.evaluation.records import RunFolder

        done = {(r.question, r.policy) for r in RunFolder(self.out_folder).lines(RecordLine)}
        return any((q["question"], row.policy) not in done for q in self.questions for row in rows)

    def _estimate(self, rows: tuple[Row, ...], config: RunConfig, fit_prompts: int) -> Estimate:
        """Try every part on little, and estimate hours and gigabytes before any work."""
        from eepolicy.analysis.evaluation.preflight import preflight
        from eepolicy.analysis.evaluation.table2_estimate import Load, estimate
        from eepolicy.analysis.evaluation.table2_sizes import ModelSize
        from eepolicy.analysis.evaluation.trial import try_out

        metrics = self.metrics.load()
        for sentence in preflight(self.model, metrics):
            print_warning(sentence)
        load = Load(
            questions=len(self.questions),
            max_new_tokens=config.max_new_tokens,
            fit_prompts=fit_prompts,
            batch=config.batch,
            fit_batch=FIT_BATCH,
            timed=config.timed,
            compiled=config.decoding.compile,
            workers=max(1, config.worker_config.processes),
        )
        trial = try_out(self.model, metrics, self.questions, config, load.seconds)
        # the trial has decoded as the run will, compiled or not
        return estimate(
            ModelSize.of(self.model),
            rows,
            replace(load, compiled=True),
            trial.machine,
            trial.reply_seconds,
        )

    def _check_space(self, whole: Estimate) -> None:
        """Warn if the estimate exceeds the free memory or the free disk."""
        from eepolicy.model.free_memory import free_disk, free_memory

        weights = sum(p.nbytes for p in self.model.model.parameters())
        needed = sum(whole.memory.values()) - weights
        free, device = free_memory(self.model.device), self.model.device
        if free is not None and needed > free:
            print_warning(
                f"Estimate: {needed / 1e9:.1f} GB are needed on {device} beside the weights, and "
                f"{free / 1e9:.1f} GB are free. Give a smaller --batch, or another device."
            )
        on_disk = sum(whole.disk.values()) - whole.disk["checkpoint of the model"]
        space = free_disk(self.out_folder)
        if on_disk > space:
            print_warning(
                f"Estimate: the run writes {on_disk / 1e9:.1f} GB, and {space / 1e9:.1f} GB are "
                f"free where {self.out_folder} is."
            )

    @property
    def _heads_file(self) -> Path:
        return beside(self.out_folder, "-heads.safetensors")

    def _fit_questions(self, rows: tuple[Row, ...]) -> list[str]:
        """Questions to fit heads on; none if there are heads.

        Raises:
            EepolicyError: there are too few, or the file of heads lacks a depth.
        """
        from eepolicy.analysis.evaluation.spark_table2 import head_depths
        from eepolicy.heads import read_notes

        if self.model.heads is not self.model.lens:
            return []
        if self._heads_file.is_file():
            lacking = sorted({*head_depths(rows)} - {*read_notes(self._heads_file)["depths"]})
            if lacking:
                raise EepolicyError(
                    f"{self._heads_file} has no head at depth {lacking[0]}: remove it, and the "
                    "heads are fitted again"
                )
            if self.fit_prompts:
                print_note(
                    f"The heads are those of {self._heads_file}, and --fit-prompts is not read: "
                    "remove the file to fit other ones"
                )
            return []
        questions = read_lines(self.fit_prompts) if self.fit_prompts else []
        if len(questions) < MIN_FIT_QUESTIONS:
            raise EepolicyError(
                f"heads are fitted on the replies to ten questions or more; got {len(questions)}: "
                "give --fit-prompts, a file with a question per line"
            )
        return questions

    def _fit_heads(self, rows: tuple[Row, ...], questions: list[str]) -> bool:
        """Give a model without heads the paper's, from their file, or fit them and save them there.

        They are linear heads, fitted with soft labels on the model's own replies, which are decoded
        as the rows are.

        Returns:
            Whether the model had no heads.
        """
        from eepolicy import fitting
        from eepolicy.analysis.evaluation.spark_table2 import head_depths
        from eepolicy.heads import load_heads

        if self.model.heads is not self.model.lens:
            return False
        file = self._heads_file
        make_folder(file.parent)
        if not file.is_file():
            replies_file, folder = file.with_suffix(".replies.jsonl"), file.with_suffix(".fit")
            replies = fitting.generate_replies(
                self.model,
                questions,
                max_new_tokens=self.config.max_new_tokens,
                batch=FIT_BATCH,
                save=replies_file,
                progress=progress("batches of replies"),
                sampling=self._sampling(),
                compile=self.config.decoding.compile,
                workers=self.config.worker_config,
                load=self.config.load,
            )
            held_out = max(1, len(replies) // 10)
            result = fitting.fit_by_depth(
                self.model,
                replies[held_out:],
                replies[:held_out],
                fitting.FitConfig(kind="linear", depths=head_depths(rows)),
                folder,
                report=print_note,
                progress=progress("steps"),
            )
            result.heads.save(file, self.model.model, result.notes)
            replies_file.unlink(missing_ok=True)
            for finished in folder.iterdir():
                finished.unlink()
            folder.rmdir()
        self.model.heads = load_heads(file, self.model.lens, self.model.model)
        return True
