"""Run exit policies on the same questions and store the records.

The comparison follows Table 2 of arXiv 2603.09215.  It adds intervals over prompts, paired
differences from full depth, layer calls and wall-clock time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.default_policies import FULL, Progress, default_policies
from eepolicy.analysis.evaluation.measure import audio_name, measure
from eepolicy.analysis.evaluation.metrics import AnswerJudge, Rater, Recognizer, SpeechMetrics
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.evaluation.table import Comparison
from eepolicy.errors import EepolicyError
from eepolicy.heads.fingerprint import digest, fingerprint
from eepolicy.hooked import HookedModel
from eepolicy.policies import parse_policy
from eepolicy.speech.audio import write_wav

__all__ = [
    "FULL",
    "AnswerJudge",
    "Rater",
    "Recognizer",
    "RunConfig",
    "SpeechMetrics",
    "identity",
    "run",
]

#: number of questions whose speech is stored for the report page
AUDIO_QUESTIONS = 12
#: maximum number of tokens of a warm-up reply
WARM_UP_TOKENS = 32


def run(
    model: HookedModel,
    questions: Sequence[Mapping[str, Any]],
    folder: RunFolder,
    config: RunConfig | None = None,
    metrics: SpeechMetrics | None = None,
    progress: Progress = iter,
) -> Comparison:
    """Decode every question with every policy and store a record of each reply.

    Policies alternate on each question, and each question starts with another policy: a change in
    the speed of the machine then affects all policies alike.  Each record is on disk before the
    next reply starts, so that a stopped run continues.

    Args:
        model: model that replies.
        questions: dicts with `question`, optionally `keys` (key phrases of the right answer) and
            `audio` (file with the spoken question).
        folder: folder of the run; an unfinished run continues.
        config: settings of the run; the defaults of `RunConfig` if None.
        metrics: models that score replies; none by default.
        progress: see `Progress`.

    Returns:
        The comparison, with full depth as its first row.

    Raises:
        EepolicyError: a policy does not fit the model, a question occurs twice, or the folder
            contains another run.
    """
    config, metrics = config or RunConfig(), metrics or SpeechMetrics()
    if len({q["question"] for q in questions}) < len(questions):
        raise EepolicyError("a question occurs twice: records are identified by their questions")
    for spec in config.policies or ():
        parse_policy(spec).check(model.depth)
    shared = identity(model, metrics.asr, metrics.mos, config.max_new_tokens) | config.to_dict()
    if metrics.judge is not None:
        shared["judge"] = repr(metrics.judge)
    notes = folder.open(shared)
    rows = _rows(model, questions, folder, config, notes, progress)
    missing = _missing_replies(rows, questions, folder, config.seeds)
    if missing:
        _warm_up(model, questions[0]["question"], rows, config)
    for i, policy, seed in progress(missing):
        audio = questions[i].get("audio")
        prompt: str | Path = Path(audio) if audio else questions[i]["question"]
        output = model.generate(
            prompt, policy, config.max_new_tokens, seed=seed, **config.generate_options
        )
        record, wave = measure(output, questions[i], policy, metrics, seed)
        if i < AUDIO_QUESTIONS and seed == 0 and wave is not None:
            write_wav(folder.audio / audio_name(record.question, policy), wave)
        folder.append(record)
    return Comparison(tuple(rows), tuple(questions), folder)


def _rows(
    model: HookedModel,
    questions: Sequence[Mapping[str, Any]],
    folder: RunFolder,
    config: RunConfig,
    notes: Mapping[str, Any],
    progress: Progress,
) -> list[str]:
    """Spec strings of the rows, full depth first; default rows are calibrated once per folder."""
    if config.policies:
        rows = [FULL, *(parse_policy(spec).spec for spec in config.policies)]
    elif "default_rows" in notes:
        rows = notes["default_rows"]
    else:
        rows = default_policies(model, questions, config.calibration, progress)
        folder.note(default_rows=rows)
    rows = list(dict.fromkeys(rows))
    folder.note(rows=rows)
    return rows


def _missing_replies(
    rows: Sequence[str],
    questions: Sequence[Mapping[str, Any]],
    folder: RunFolder,
    seeds: int,
) -> list[tuple[int, str, int]]:
    """Number of the question, policy and seed of each reply without a record, in order."""
    stored = [record for records in folder.records().values() for record in records]
    done = {(r.question, r.policy, r.seed, r.spoken) for r in stored}
    return [
        (i, policy, seed)
        for i, question in enumerate(questions)
        for seed in range(seeds)
        for policy in (rows[(i + turn) % len(rows)] for turn in range(len(rows)))
        if (question["question"], policy, seed, bool(question.get("audio"))) not in done
    ]


def _warm_up(model: HookedModel, question: str, rows: Sequence[str], config: RunConfig) -> None:
    """Decode a short reply before the timed ones; compiled policies can need different kernels."""
    for policy in rows if config.decoding.compile else rows[:1]:
        model.generate(question, policy, max_new_tokens=WARM_UP_TOKENS, **config.generate_options)


def identity(
    model: HookedModel, asr: Recognizer | None, mos: Rater | None, max_new_tokens: int
) -> dict[str, Any]:
    """Collect what all records of a run share: model, scoring models, machine and versions.

    Args:
        model: model that replies.
        asr: speech recognition.
        mos: MOS predictor.
        max_new_tokens: maximum number of tokens per reply.
    """
    return {
        "model": fingerprint(model.model),
        "numbers": f"{model.model.dtype} on {model.model.device.type}",
        "card": model.card.name if model.card else None,
        "heads": digest(model.heads),
        "units": digest(model.vocoder),
        "threads": torch.get_num_threads(),
        "speech recognition": getattr(asr, "name", type(asr).__name__) if asr else None,
        "speech rating": type(mos).__name__ if mos else None,
        "max_new_tokens": max_new_tokens,
        "versions": {p: version(p) for p in ("eepolicy", "torch", "transformers")},
    }
