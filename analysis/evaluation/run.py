"""Run exit policies on the same questions and store what was measured.

The comparison follows Table 2 of arXiv 2603.09215.  It adds intervals over prompts, paired
differences from full depth, layer calls and wall-clock time.  Quality and time are measured apart:
all questions are decoded in batches, and a sample of them is timed, each reply alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.default_policies import (
    FULL,
    calibration_questions,
    default_policies,
)
from eepolicy.analysis.evaluation.formats import QuestionLine
from eepolicy.analysis.evaluation.identity import identity
from eepolicy.analysis.evaluation.measure import Blocks
from eepolicy.analysis.evaluation.metrics import MetricsSource, SpeechMetrics
from eepolicy.analysis.evaluation.pipeline import Pipeline, Progress, no_progress
from eepolicy.analysis.evaluation.records import RunFolder, question_key
from eepolicy.analysis.evaluation.rows import Row, parse_row
from eepolicy.analysis.evaluation.table import Comparison
from eepolicy.decode.rebatch import LayerCosts
from eepolicy.errors import EepolicyError
from eepolicy.folder_lock import locked
from eepolicy.hooked import HookedModel
from eepolicy.plugin_files import file_digest, files_in

__all__ = ["FULL", "MetricsSource", "RunConfig", "SpeechMetrics", "run"]


def run(
    model: HookedModel,
    questions: Sequence[Mapping[str, Any]],
    folder: RunFolder,
    config: RunConfig | None = None,
    metrics: MetricsSource | None = None,
    progress: Progress = no_progress,
) -> Comparison:
    """Decode every question with every policy, and measure the replies.

    See `Pipeline` for the steps.  Everything is on disk as soon as it is measured, so that a
    stopped run continues.

    Args:
        model: model that replies.
        questions: dicts with `question`, optionally `keys` (key phrases of the right answer) and
            `audio` (file with the spoken question).
        folder: folder of the run; an unfinished run continues.
        config: settings of the run; the defaults of `RunConfig` if None.
        metrics: models that score replies; none by default.  With workers it must be possible to
            pickle it, and to import the caller's module without running the comparison.
        progress: see `Progress`.

    Returns:
        The comparison, with full depth as its first row.

    Raises:
        EepolicyError: a policy does not fit the model, a question occurs twice, or the folder
            contains another run, or another process works on it.
    """
    config, metrics = config or RunConfig(), metrics or SpeechMetrics()
    if len({q["question"] for q in questions}) < len(questions):
        raise EepolicyError("a question occurs twice: records are identified by their questions")
    spoken = next((q for q in questions if q.get("audio")), None)
    if spoken is not None and model.audio_encoder is None:
        raise EepolicyError(
            f"the question {spoken['question']!r} is spoken, and the model has no audio encoder: "
            "give written questions (--written), or load its speech tokenizer"
        )
    for row in map(parse_row, config.policies or ()):
        row.decoding(config.decoding).validate(model.depth, model.layout, model.vocoder)
        model.check_predicted(row.policy.predicted_depths(model.depth))
    shared = identity(model, config.max_new_tokens) | metrics.identity() | config.to_dict()
    if spoken is not None:  # times and scores of written questions are others
        shared["spoken questions"] = True
    with locked(folder.path):
        notes = folder.open(shared)
        stored = folder.questions()
        _check_questions(questions, stored, folder)
        folder.append([_line(q) for q in questions if q["question"] not in stored])
        rows = _rows(model, questions, folder, config, notes)
        _share_costs(model, rows, folder, config)
        looks = config.looks and list(config.looks.looks)
        spreads = config.worker_config.spreads
        folder.note(
            margins=asdict(config.margins),
            looks=looks,
            # earlier times were perhaps taken while others worked
            workers=spreads or notes.get("workers", False),
            compared=[question_key(q["question"]) for q in questions],
        )
        number = len(questions) if config.looks is None else config.looks.looks[0]
        while True:
            blocks = Blocks(questions[:number], rows, config)
            Pipeline(model, blocks, folder, metrics, progress).run()
            comparison = _comparison(blocks, folder)
            following = config.looks.next_look(number) if config.looks else None
            if following is None or not any(v.status == "undecided" for v in comparison.verdicts()):
                return comparison
            number = following


def _share_costs(
    model: HookedModel, rows: Sequence[Row], folder: RunFolder, config: RunConfig
) -> None:
    """Measure the costs that decoding depends on once per folder, and restore them afterwards.

    A run that continues then decides as it did before.
    """
    decoding = config.decoding
    if not any(row.decoding(decoding).needs_costs for row in rows):
        return
    stored = dict(folder.read()[1].get("layer_costs", {}))
    for compiled in sorted({decoding.compile, decoding.compile or config.compile_timed}):
        executor = model.compiled_executor() if compiled else None
        name = "stock" if executor is None else "compiled"
        if name in stored:
            model.measured_costs[executor is not None] = LayerCosts.from_dict(stored[name])
        else:
            stored[name] = asdict(model.layer_costs(executor))
    folder.note(layer_costs=stored)


def _comparison(blocks: Blocks, folder: RunFolder) -> Comparison:
    config, policies = blocks.config, tuple(blocks.policies)
    questions, margins = tuple(blocks.questions), config.margins
    return Comparison(policies, questions, folder, margins=margins, looks=config.looks)


def _line(question: Mapping[str, Any]) -> QuestionLine:
    return QuestionLine(
        question=question["question"],
        keys=question.get("keys"),
        task=question.get("task"),
        audio=question.get("audio"),
    )


def _check_questions(
    questions: Sequence[Mapping[str, Any]], stored: Mapping[str, QuestionLine], folder: RunFolder
) -> None:
    """Check that questions with stored replies have the same answers and sounds as then.

    Raises:
        EepolicyError: one has others.
    """
    for new in map(_line, questions):
        old = stored.get(new.question, new)
        sounds = {line.audio and Path(line.audio).name for line in (old, new)}
        what = "answers" if old.keys != new.keys else "sound" if len(sounds) > 1 else None
        if what is not None:
            raise EepolicyError(
                f"{folder.path} contains replies to {new.question!r:.100} with another {what}; "
                "give another folder with --out, or remove it"
            )


def _check_calibration(
    questions: Sequence[Mapping[str, Any]], notes: Mapping[str, Any], folder: RunFolder
) -> None:
    """Check that the stored default rows were not calibrated on the questions.

    Raises:
        EepolicyError: they were.
    """
    used = {*notes.get("calibrated_on", [])}
    for question in questions:
        if question_key(question["question"]) in used:
            raise EepolicyError(
                f"{folder.path} has default policies that were calibrated on "
                f"{question['question']!r:.100}: name the policies, or give another --out folder"
            )


def _rows(
    model: HookedModel,
    questions: Sequence[Mapping[str, Any]],
    folder: RunFolder,
    config: RunConfig,
    notes: Mapping[str, Any],
) -> list[Row]:
    """The rows, full depth first; default rows are calibrated once per folder."""
    policies = config.policies or notes.get("default_rows")
    if not config.policies:
        _check_calibration(questions, notes, folder)
    if not policies:
        policies = default_policies(model, questions, config)
        used = calibration_questions(questions, config)
        folder.note(default_rows=policies, calibrated_on=[*map(question_key, used)])
    rows = {row.spec: row for row in map(parse_row, (FULL, *policies))}
    files = {
        file: file_digest(file)
        for spec, row in rows.items()
        for file in (*files_in(spec), *row.policy.files)
    }
    changed = [f for f, digest in files.items() if notes.get("files", {}).get(f, digest) != digest]
    if changed:
        raise EepolicyError(
            f"{folder.path} contains replies from before {changed[0]} changed; "
            "give another folder with --out, or remove it"
        )
    folder.note(rows=list(rows), files=notes.get("files", {}) | files)
    return list(rows.values())
