"""The parts of `eepolicy compare`: its questions, the models that score, and the printed table."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from eepolicy.cli.options import held_out_questions
from eepolicy.cli.progress import step_progress
from eepolicy.cli.shared import command_line, out, print_warning
from eepolicy.errors import EepolicyError
from eepolicy.io import beside

if TYPE_CHECKING:
    from eepolicy.analysis.evaluation.config import RunConfig
    from eepolicy.analysis.evaluation.llm_judge import LlmJudge
    from eepolicy.analysis.evaluation.metrics import SpeechMetrics
    from eepolicy.analysis.evaluation.records import RunFolder
    from eepolicy.analysis.stats.sequential import UntilDecided
    from eepolicy.hooked import HookedModel


#: number of questions between two looks of `--until-decided`
LOOK = 50


@dataclass(frozen=True)
class MetricOptions:
    """Options of the models that score replies.

    Attributes:
        whisper: folder or name of a CTranslate2 Whisper model; None for the packaged one.
        rater: name of the MOS predictor; None for none.
        judge_url: address of the judge's endpoint; None for no judge.
        judge_model: name of the judge model.
        judge_key: key of the endpoint.
        asr_device: device of speech recognition.
        language: code of the language of the speech.
    """

    whisper: str | None = None
    rater: str | None = None
    judge_url: str | None = None
    judge_model: str = "gpt-4o-mini"
    judge_key: str | None = None
    asr_device: str = "auto"
    language: str = "en"

    @property
    def judge(self) -> LlmJudge | None:
        """The judge; None without an address."""
        from eepolicy.analysis.evaluation.llm_judge import LlmJudge

        if self.judge_url is None:
            return None
        return LlmJudge(self.judge_url, self.judge_model, self.judge_key)

    def missing(self) -> list[str]:
        """Sentences on the packages that are not installed."""
        from eepolicy.speech import asr, mos

        parts = (
            ("Speech recognition", asr.missing_asr(self.whisper)),
            ("MOS prediction", mos.missing_mos(self.rater) if self.rater else None),
        )
        return [
            f"{part} is not installed, its columns are empty: {install}"
            for part, install in parts
            if install
        ]

    @property
    def rates(self) -> bool:
        """Whether there is a rater, and its package is installed."""
        from eepolicy.speech import mos

        return self.rater is not None and not mos.missing_mos(self.rater)

    @property
    def rater_name(self) -> str:
        """Class of the rater."""
        from eepolicy.speech import mos

        return "" if self.rater is None else str(mos.RATERS[self.rater].__name__)

    def identity(self) -> dict[str, str | None]:
        """Names of the models that all records of a run share, without loading them."""
        from eepolicy.speech import asr

        name = asr.model_name(self.whisper, language=self.language)
        judge = self.judge
        return {
            "speech recognition": None if asr.missing_asr(self.whisper) else name,
            "judge": None if judge is None else repr(judge),
        }

    def load(self) -> SpeechMetrics:
        """Load the models that are installed; each process has its own."""
        from eepolicy.analysis.evaluation.metrics import SpeechMetrics
        from eepolicy.speech import asr, mos

        recognizer = None
        if not asr.missing_asr(self.whisper):
            recognizer = asr.Whisper(
                self.whisper, threads=1, device=self.asr_device, language=self.language
            )
        return SpeechMetrics(
            asr=recognizer,
            mos=mos.RATERS[self.rater]() if self.rater is not None and self.rates else None,
            judge=self.judge,
        )


@dataclass(frozen=True)
class QuestionOptions:
    """Options of the questions.

    Attributes:
        split: held-out set: `"test"` or `"dev"`.
        number: number of questions, of each task if there are tasks; None for all.
        tasks: `NAME=FILE` of each task.
        tts: command for speech synthesis; None for written questions.
        is_written: take the written questions where there is sound.
    """

    split: str
    number: int | None
    tasks: tuple[str, ...]
    tts: str | None
    is_written: bool = False

    def own(self, out_folder: Path) -> list[dict[str, Any]]:
        """Read the tasks and synthesize the questions; empty for written held-out questions.

        Args:
            out_folder: folder of the report; the sound files are in a folder beside it.
        """
        from eepolicy.analysis.evaluation.tasks import synthesized

        folder = beside(out_folder, "-questions")
        questions = read_tasks(self.tasks, self.number, folder)
        if self.is_written:
            questions = [question | {"audio": None} for question in questions]
        if self.tts is None:
            return questions
        if not questions:
            questions = held_out_questions("pocket", self.split)[: self.number]
        return synthesized(questions, self.tts, folder)


def interleaved(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first question of each task, then the second of each, and so on."""
    seen: Counter[str | None] = Counter()
    places = []
    for question in questions:
        places.append(seen[question.get("task")])
        seen[question.get("task")] += 1
    order = sorted(range(len(questions)), key=places.__getitem__)
    return [questions[i] for i in order]


def read_tasks(tasks: Sequence[str], number: int | None, sounds: Path) -> list[dict[str, Any]]:
    """Read the first questions of each task.

    Args:
        tasks: `NAME=FILE` of each task.
        number: number of questions per task; None for all.
        sounds: folder for spoken questions of data sets on the Hub.

    Raises:
        EepolicyError: a task has another form, or its file cannot be read.
    """
    from eepolicy.analysis.evaluation.tasks import read_task

    questions: list[dict[str, Any]] = []
    for task in tasks:
        name, equals, file = task.partition("=")
        if not equals:
            raise EepolicyError(f"a task is given as NAME=FILE; got {task!r}")
        known = {q["question"] for q in questions}
        own = read_task(file, name, sounds)[:number]
        new = [q for q in own if q["question"] not in known]
        if len(new) < len(own):
            print_warning(
                f"{len(own) - len(new)} questions of {name} also occur in an earlier task and "
                "are left out here"
            )
        questions += new
    return questions


def give_vocoder(
    model: HookedModel, vocoder: str | None, voice: Path | None, voice_text: str | None = None
) -> None:
    """Give a speech model the vocoder of its authors, or the codec that its card names.

    Args:
        model: model with a card.
        vocoder: folder of the vocoder's checkpoint, or an id on the Hub or `auto` for a codec; None
            to do nothing.
        voice: sound file of the speaker's voice, for Step-Audio-2-mini and models that imitate one;
            folder with the files of a voice, for Covo-Audio-Chat.
        voice_text: transcript of that file, for models that imitate one.

    Raises:
        EepolicyError: the model has another card, or a file is missing.
    """
    from eepolicy.speech.authors_vocoders import GlmVoice, StepVoice
    from eepolicy.speech.covo_voice import CovoVoice

    if vocoder is None:
        if voice is not None or voice_text is not None:
            raise EepolicyError("--voice and --voice-text need --vocoder, which imitates the voice")
        return
    if voice_text is not None and voice is None:
        raise EepolicyError("--voice-text is the transcript of a recording: give --voice")
    if model.card is not None and model.card.codec is not None:
        _give_codec(model, vocoder, voice, voice_text)
        return
    if voice_text is not None:
        raise EepolicyError("--voice-text is for models with a codec that imitate a voice")
    name = model.card.name if model.card else None
    if name == "glm-4-voice":
        if voice is not None:
            raise EepolicyError("the vocoder of glm-4-voice has one voice: leave out --voice")
        speaker: GlmVoice | StepVoice | CovoVoice = GlmVoice(Path(vocoder), str(model.device))
    elif name == "step-audio-2-mini" and voice is not None:
        speaker = StepVoice(Path(vocoder), voice, str(model.device))
    elif name == "covo-audio-chat":
        speaker = CovoVoice(Path(vocoder), voice, str(model.device))
    else:
        raise EepolicyError(
            "--vocoder is for glm-4-voice and covo-audio-chat, with --voice for step-audio-2-mini, "
            f"and for models with a codec of transformers, such as llasa; this model is "
            f"{name or 'none of them'}"
        )
    speaker.check()
    model.vocoder = speaker


def _give_codec(
    model: HookedModel, vocoder: str, voice: Path | None, voice_text: str | None
) -> None:
    """Give a model its codec, and the voice of a recording."""
    from eepolicy.loading.codecs import codec_for
    from eepolicy.prompts import Voice
    from eepolicy.speech.audio import read_wave

    codec = codec_for(model, vocoder)
    model.vocoder = codec
    if voice is not None:
        if voice_text is None:
            raise EepolicyError("--voice needs its transcript: give --voice-text")
        model.voice = Voice(voice_text, codec.encode(read_wave(voice)))


def has_compiler() -> bool:
    """Whether a C++ compiler is installed, which `--compile` needs on a CPU."""
    candidates = (os.environ.get("CXX"), "g++", "clang++")
    return any(name and shutil.which(name) for name in candidates)


def warnings_of(metrics: MetricOptions, compiled: bool | None) -> tuple[str, ...]:
    """Print and return sentences on what is not installed.

    Args:
        metrics: models that score replies.
        compiled: whether the user chose to compile; None for the default.
    """
    notes = metrics.missing()
    if compiled is None and not has_compiler():
        notes.append("No C++ compiler was found: timed layers are not compiled. Install g++.")
    for note in notes:
        print_warning(note)
    return tuple(notes)


@contextmanager
def count_usage(folder: RunFolder) -> Iterator[None]:
    """Add the CPU time of a block, of all processes, to the notes of a run.

    Args:
        folder: folder of the run, which exists at the end of the block.
    """
    from eepolicy.analysis.timing.usage import CpuUsage, UsageMeter

    with UsageMeter() as meter:
        yield
    _, notes = folder.read()
    total = CpuUsage(**notes.get("usage", {})) + meter.usage
    folder.note(usage=asdict(total), idle=round(total.idle, 4))


def until_decided_rule(first: int, total: int) -> UntilDecided:
    """Looks of `--until-decided`: after the first questions, after 50 more each, and after all.

    Args:
        first: number of questions of the first look.
        total: number of questions that there are.
    """
    from eepolicy.analysis.stats.sequential import UntilDecided

    looks = [*range(first, total, LOOK), total] if first < total else [total]
    return UntilDecided(tuple(looks))


def results_table(results: list[dict[str, Any]]) -> Table:
    """Make the table for the terminal."""
    from eepolicy.analysis.evaluation.results_files import short_table

    headings, *rows = short_table(results)
    title = f"{results[0]['prompts']} questions, 95 % intervals; all columns are in the report"
    return terminal_table(title, headings, rows)


def terminal_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Make a table for the terminal: first column left, all others right."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(headings[0], overflow="fold")
    for heading in headings[1:]:
        table.add_column(heading, justify="right", min_width=5)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def verdict_lines(results: list[dict[str, Any]]) -> list[str]:
    """A line per policy with its verdict in words."""
    return [f"{row['policy']}: {row['verdict']}" for row in results[1:]]


def run_comparison(
    model: HookedModel,
    questions: Sequence[dict[str, Any]],
    folder: RunFolder,
    config: RunConfig,
    metrics: MetricOptions,
    notes: Sequence[str],
) -> list[dict[str, Any]]:
    """Run a comparison and write its report.

    Args:
        model: model that replies.
        questions: its questions.
        folder: folder of the run.
        config: settings of the run.
        metrics: models that score replies.
        notes: sentences for the report.

    Returns:
        A row of results for each policy.
    """
    from eepolicy.analysis.evaluation.report import write_report
    from eepolicy.analysis.evaluation.run import run

    with count_usage(folder):
        comparison = run(model, questions, folder, config, metrics, step_progress)
        return write_report(model, comparison, command_line(), notes)


def print_comparison(results: list[dict[str, Any]], page: Path) -> None:
    """Print the table, the verdicts and the address of the page."""
    out.print(results_table(results))
    for line in verdict_lines(results):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    out.print(f"Open {page}", highlight=False, markup=False, soft_wrap=True)
