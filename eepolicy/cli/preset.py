"""`eepolicy compare --preset spark-table2`: the paper's sixteen rows on a model's own weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eepolicy.cli.shared import hint, note, out, progress
from eepolicy.errors import EepolicyError

if TYPE_CHECKING:
    from eepolicy.analysis.evaluation.run import Judge
    from eepolicy.hooked import HookedModel

PRESETS = ("spark-table2",)


@dataclass(frozen=True)
class SpeechMetrics:
    """What listens, where it is installed."""

    asr: Any
    mos: Any


def read_tasks(tasks: Sequence[str], prompts: int) -> list[dict[str, Any]]:
    """The first questions of each task.

    Args:
        tasks: `NAME=FILE` each.
        prompts: of each task.

    Raises:
        EepolicyError: a task that is not written so, or a file that cannot be read.
    """
    from eepolicy.analysis.evaluation.tasks import read_task

    found: list[dict[str, Any]] = []
    for task in tasks:
        name, equals, file = task.partition("=")
        if not equals:
            raise EepolicyError(f"a task is given as NAME=FILE; got {task!r}")
        asked = {q["question"] for q in found}
        own = read_task(file, name)[:prompts]
        new = [q for q in own if q["question"] not in asked]
        if len(new) < len(own):
            hint(f"{len(own) - len(new)} questions of {name} are of an earlier task, left out here")
        found += new
    return found


def give_voice(model: HookedModel, vocoder: Path | None, voice: Path | None) -> None:
    """Give a model of the paper its authors' voice.

    Args:
        model: with a card.
        vocoder: folder of the vocoder's checkpoint.
        voice: sound file of the voice to speak with, for Step-Audio-2-mini.

    Raises:
        EepolicyError: a model of another kind, or no voice to speak with.
    """
    from eepolicy.speech.vocoders import GlmVoice, StepVoice

    if vocoder is None:
        return
    name = model.card.name if model.card else None
    if name == "glm-4-voice":
        model.vocoder = GlmVoice(vocoder, model.model.device.type)
    elif name == "step-audio-2-mini" and voice is not None:
        model.vocoder = StepVoice(vocoder, voice)
    else:
        raise EepolicyError(
            "--vocoder is for glm-4-voice, and with --voice for step-audio-2-mini; this model is "
            f"{name or 'neither'}"
        )


def fit_heads(
    model: HookedModel, depths: tuple[int, ...], questions: Sequence[str], file: Path
) -> None:
    """Give a model heads at some depths, from a file, or fitted and kept there.

    The paper's: a linear head a depth, by soft labels on the model's own replies.
    """
    from eepolicy.fitting import trainer as fitting
    from eepolicy.fitting.replies import generate_replies
    from eepolicy.heads import load_heads

    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        if len(questions) < 10:
            raise EepolicyError(
                f"heads are fitted on the replies to ten questions or more; got {len(questions)}: "
                "give --fit-prompts, a file with a question a line"
            )
        kept = file.with_suffix(".replies.jsonl")
        replies = generate_replies(
            model, questions, save=kept, batch=8, progress=progress("batches of replies")
        )
        judged = max(1, len(replies) // 10)
        found = fitting.fit(
            model,
            replies[judged:],
            replies[:judged],
            fitting.FitConfig(kind="linear", depths=depths),
            checkpoint=file.with_suffix(".checkpoint"),
            report=note,
            progress=progress("steps"),
        )
        found.heads.save(file, model.model, found.notes)
        for rest in (kept, file.with_suffix(".checkpoint")):
            rest.unlink(missing_ok=True)
    model.heads = load_heads(file, model.lens, model.model)


def run_table2(
    model: HookedModel,
    questions: list[dict[str, Any]],
    out_folder: Path,
    metrics: SpeechMetrics,
    judge: Judge | None,
    fit_prompts: Path | None,
    max_new_tokens: int,
    command: str,
    notes: Sequence[str],
) -> list[dict[str, Any]]:
    """Fit what heads are missing, run the rows, print and write the table beside the paper's."""
    from eepolicy.analysis.evaluation import run as comparing
    from eepolicy.analysis.evaluation import spark_table2 as table2
    from eepolicy.analysis.evaluation.records import RunFolder, write_whole
    from eepolicy.analysis.evaluation.report import write_report

    rows = table2.rows_of(model)
    unknown = sorted({q.get("task", "held-out") for q in questions} - set(table2.TASKS))
    if unknown or not questions:
        raise EepolicyError(
            f"the tasks of the table are {', '.join(table2.TASKS)}; give --task NAME=FILE of one "
            f"or more{': got ' + unknown[0] if unknown else ''}"
        )
    if model.heads is model.lens:
        asked = fit_prompts.read_text().splitlines() if fit_prompts else []
        file = out_folder.with_name(out_folder.name + "-heads.safetensors")
        fit_heads(model, table2.head_depths(rows), [q for q in asked if q.strip()], file)
    assert model.card is not None
    greedy = model.card.name in table2.GREEDY
    sampling = {} if greedy else {k: v for k, v in model.card.sampling.items() if k != "do_sample"}
    told = []
    if judge is None:
        told.append("No --judge-url: right is what holds an alias of the right answer.")
    if model.vocoder is None:
        told.append(
            "The model has no vocoder (--vocoder): nothing is heard, and judged is what it wrote."
        )
    for sentence in told:
        hint(sentence)
    folder = RunFolder(out_folder)
    ran = comparing.run(
        model,
        questions,
        folder,
        policies=[row.policy for row in rows],
        asr=metrics.asr,
        mos=metrics.mos,
        judge=judge,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        progress=progress("replies", lambda item: item[1]),
    )
    found = table2.table2(rows, questions, folder)
    write_whole(out_folder / "table2.md", found.table())
    results = write_report(model, ran, questions, folder, command, [*notes, *told])
    out.print(found.table(), highlight=False, markup=False, soft_wrap=True)
    note(f"The table is in {out_folder / 'table2.md'}, the report in {out_folder / 'index.html'}")
    return results
