"""Exit policies on the same questions: what they cost, what they say, what one hears.

The paper's Table 2 (arXiv 2603.09215), with intervals over prompts, paired differences to full
depth, layer calls and real seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eepolicy.analysis.evaluation.records import Record, RunFolder
from eepolicy.analysis.evaluation.scoring import is_right, word_errors
from eepolicy.analysis.evaluation.threshold_matching import matched_policy
from eepolicy.analysis.stats.bootstrap import Interval, paired_difference, ratio
from eepolicy.analysis.stats.clustered import as_columns
from eepolicy.analysis.stats.tests import prompts_needed, sign_flip
from eepolicy.decode.loop import Output
from eepolicy.errors import EepolicyError
from eepolicy.heads.fingerprint import digest, fingerprint
from eepolicy.hooked import HookedModel, probe
from eepolicy.modality import Modality
from eepolicy.policies import Confidence, Entropy, parse_policy
from eepolicy.speech.mel import SAMPLE_RATE
from eepolicy.speech.audio import write_wav

FULL = "full"
#: questions whose speech is kept for the page
HEARD_ON_PAGE = 12
#: wraps (number of the question, what is done, seed), to show how far it is
Progress = Callable[[Iterable[tuple[int, str, int]]], Iterable[tuple[int, str, int]]]
#: dev questions that thresholds are calibrated on
CALIBRATED_ON = 16


class Recognizer(Protocol):
    """Speech to text."""

    def transcribe(self, wave: Tensor) -> str: ...


class Judge(Protocol):
    """A transcript to a verdict from 0 to 1."""

    def judge(
        self, question: Mapping[str, Any], reply: str, heard: bool = True
    ) -> float | None: ...


class Rater(Protocol):
    """Speech to an estimated opinion score."""

    def rate(self, wave: Tensor) -> float: ...


def scheduled_policies(full_depth: int, mean_depth: int) -> list[str]:
    """Full depth, and the paper's schedules at one mean speech depth.

    Args:
        full_depth: layers of the model.
        mean_depth: that `even`, `odd`, `triple` and `static` are to have, over whole groups.
    """
    pair = 2 * mean_depth - full_depth
    triple = (3 * mean_depth - full_depth) // 2
    return [
        FULL,
        f"static@{mean_depth}",
        f"spark:even@{pair}",
        f"spark:odd@{pair}",
        f"spark:triple@{triple}",
        f"text=spark:even@{pair}",
    ]


def adaptive_policies(
    model: HookedModel, questions: Sequence[str], mean_depth: int, progress: Progress = iter
) -> list[str]:
    """Entropy and confidence with thresholds that give the mean depth on full-depth replies."""
    looks = tuple(range(2 * mean_depth - model.depth, model.depth, 2))
    replies = (
        model.generate(questions[i])
        for i, *_ in progress([(i, "calibration", 0) for i in range(len(questions))])
    )
    probed = probe(model, replies, statistics=("entropy", "confidence"))
    kinds: tuple[type[Entropy] | type[Confidence], ...] = (Entropy, Confidence)
    return [matched_policy(kind, probed, looks, mean_depth).spec for kind in kinds]


def measure(
    output: Output,
    question: Mapping[str, Any],
    policy: str,
    asr: Recognizer | None,
    mos: Rater | None,
    seed: int = 0,
    judge: Judge | None = None,
) -> tuple[Record, Tensor | None]:
    """The record of one reply, and its speech (samples,); None from a model without a vocoder.

    A judge is given what was heard, or the text where nothing could be.
    """
    wave = output.audio if output.model.vocoder is not None else None
    trace, text, keys = output.trace, output.text or "", question.get("keys")
    heard = asr.transcribe(wave) if asr and wave is not None else None
    errors, words = word_errors(text, heard) if heard is not None else (None, None)
    speech = trace.modality == Modality.SPEECH
    rated = mos.rate(wave) if mos and wave is not None and len(wave) else None
    record = Record(
        question=question["question"],
        policy=policy,
        text=text,
        heard=heard,
        right_text=is_right(text, keys) if keys else None,
        right_speech=is_right(heard, keys) if keys and heard is not None else None,
        errors=errors,
        words=words,
        mos=rated,
        ended=output.ended,
        seconds=output.seconds,
        speech_seconds=0.0 if wave is None else len(wave) / SAMPLE_RATE,
        text_tokens=int((~speech).sum()),
        speech_tokens=int(speech.sum()),
        text_layers=int(trace.depth[~speech].sum()),
        speech_layers=int(trace.depth[speech].sum()),
        layer_calls=int(trace.layer_calls.sum()),
        readouts=int(trace.readouts.sum()),
        tokens=output.tokens.tolist(),
        depths=trace.depth.tolist(),
        modalities=trace.modality.tolist(),
        seed=seed,
        spoken=bool(question.get("audio")),
        judged=judge.judge(question, text if heard is None else heard, heard is not None)
        if judge
        else None,
    )
    return record, wave


def audio_name(question: str, policy: str) -> str:
    """File name of a reply's speech, another one for each question and policy."""
    slug = "".join(c if c.isalnum() else "-" for c in policy).strip("-")
    return f"{hashlib.sha256(question.encode()).hexdigest()[:8]}_{slug}.wav"


def run(
    model: HookedModel,
    questions: Sequence[Mapping[str, Any]],
    folder: RunFolder,
    *,
    policies: Sequence[str] | None = None,
    calibration: Sequence[Mapping[str, Any]] = (),
    asr: Recognizer | None = None,
    mos: Rater | None = None,
    judge: Judge | None = None,
    max_new_tokens: int = 400,
    fill: str = "catch_up",
    accept: str = "all",
    sampling: Mapping[str, float] | None = None,
    seeds: int = 1,
    compile: bool = False,
    restrict_vocab: bool = False,
    progress: Progress = iter,
) -> list[str]:
    """Ask every policy every question and keep what was measured.

    Policies take turns on each question, each time another one first, so that a machine whose speed
    drifts favours none.  Every record is on disk before the next one starts.

    Args:
        model: which answers.
        questions: dicts with `question`, `keys` and, where it is asked in sound, `audio`, a file.
        folder: of the run; it goes on where it stopped.
        policies: spec strings; the default rows at 0.8 of full depth where none are given.
        calibration: questions for the thresholds of the default rows.
        asr: speech recognition; without it there are no figures on speech.
        mos: speech rating.
        judge: of the transcripts.
        max_new_tokens: most tokens of a reply.
        fill: of every policy, see `eepolicy.decode.fills.base`.
        accept: of every policy, see `eepolicy.decode.acceptance`.
        sampling: `temperature`, `top_p` and so on, see `HookedModel.generate`; greedy without.
        seeds: replies of each policy to each question; a question's replies count as one.
        compile: decode with compiled layers, made before the clock starts.
        restrict_vocab: read speech out over its own ids, see `HookedModel.generate`.
        progress: wraps what is still to be done, to show it.

    Returns:
        The spec strings of the rows, full depth first.

    Raises:
        EepolicyError: a policy that does not fit, or a folder of another run.
    """
    if len({q["question"] for q in questions}) < len(questions):
        raise EepolicyError("a question is asked twice: records are told apart by their questions")
    if seeds > 1 and not sampling:
        raise EepolicyError(
            f"greedy decoding gives one reply, whatever the seed: got {seeds} seeds and no sampling"
        )
    for spec in policies or ():
        parse_policy(spec).check(model.depth)
    options: dict[str, Any] = {"fill": fill, "accept": accept, **(sampling or {})}
    options |= {
        name: True for name, on in (("compile", compile), ("restrict_vocab", restrict_vocab)) if on
    }
    by = {} if judge is None else {"judge": repr(judge)}
    notes = folder.open(identity(model, asr, mos, max_new_tokens) | options | by)
    mean_depth = round(0.8 * model.depth)
    if policies:
        rows = [FULL, *(parse_policy(s).spec for s in policies)]
    elif "default_rows" in notes:
        rows = notes["default_rows"]
    else:
        rows = scheduled_policies(model.depth, mean_depth)
        judged = {q["question"] for q in questions}
        others = [q["question"] for q in calibration if q["question"] not in judged]
        asked = others[:CALIBRATED_ON]
        if asked:
            rows[-1:-1] = adaptive_policies(model, asked, mean_depth, progress)
        folder.note(default_rows=rows)
    rows = list(dict.fromkeys(rows))
    folder.note(rows=rows)
    kept = [r for held in folder.records().values() for r in held]
    done = {(r.question, r.policy, r.seed, r.spoken) for r in kept}
    to_do = [
        (i, rows[(i + turn) % len(rows)], seed)
        for i, question in enumerate(questions)
        for seed in range(seeds)
        for turn in range(len(rows))
        if (
            question["question"],
            rows[(i + turn) % len(rows)],
            seed,
            bool(question.get("audio")),
        )
        not in done
    ]
    if to_do:
        for policy in rows if compile else rows[:1]:  # warm up; each may need kernels of its own
            model.generate(questions[0]["question"], policy, max_new_tokens=32, **options)
    for i, policy, seed in progress(to_do):
        sound = questions[i].get("audio")
        prompt: str | Path = Path(sound) if sound else questions[i]["question"]
        output = model.generate(prompt, policy, max_new_tokens, seed=seed, **options)
        record, wave = measure(output, questions[i], policy, asr, mos, seed, judge)
        if i < HEARD_ON_PAGE and seed == 0 and wave is not None:
            write_wav(folder.audio / audio_name(record.question, policy), wave)
        folder.append(record)
    return rows


def identity(
    model: HookedModel, asr: Recognizer | None, mos: Rater | None, max_new_tokens: int
) -> dict[str, Any]:
    """What must be the same for records to belong together."""
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


@dataclass(frozen=True)
class Figure:
    """A column of the table: the sum of one thing over the sum of another, over prompts."""

    name: str
    top: Callable[[Record], float | None]
    bottom: Callable[[Record], float | None]


def _one(_: Record) -> float:
    return 1.0


FIGURES = (
    Figure("accuracy_speech", lambda r: r.right_speech, _one),
    Figure("accuracy_text", lambda r: r.right_text, _one),
    Figure("judged", lambda r: r.judged, _one),
    Figure("wer", lambda r: r.errors, lambda r: r.words),
    Figure("mos", lambda r: r.mos, _one),
    Figure("text_depth", lambda r: r.text_layers, lambda r: r.text_tokens),
    Figure("speech_depth", lambda r: r.speech_layers, lambda r: r.speech_tokens),
    Figure("layer_calls", lambda r: r.layer_calls, _one),
    Figure("seconds", lambda r: r.seconds, _one),
    Figure("ms_per_token", lambda r: 1e3 * r.seconds, lambda r: len(r.tokens)),
    Figure("repeats", lambda r: r.repeats, lambda r: max(0, r.speech_tokens - 1)),
    Figure("ended", lambda r: r.ended, _one),
)


def _columns(
    figure: Figure, records: Sequence[Sequence[Record]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Numerators and denominators (prompts,), summed over a prompt's seeds.

    A reply without the figure counts nothing.
    """
    sums = np.zeros((len(records), 2))
    for prompt, replies in enumerate(records):
        for top, bottom in ((figure.top(r), figure.bottom(r)) for r in replies):
            if top is not None and bottom is not None:
                sums[prompt] += float(top), float(bottom)
    return sums[:, 0], sums[:, 1]


def answered(
    rows: Sequence[str], questions: Sequence[Mapping[str, Any]], folder: RunFolder
) -> dict[str, list[list[Record]]]:
    """What every policy has answered, with the seeds that all have: by question, a list a policy.

    Raises:
        EepolicyError: there is no such question.
    """
    done = folder.records()
    held: dict[str, list[dict[int, Record]]] = {}
    for question in (q["question"] for q in questions):
        each = [{r.seed: r for r in done.get((question, policy), [])} for policy in rows]
        if set.intersection(*map(set, each)):
            held[question] = each
    # the seeds that all of them have, so that every question counts the same
    having = [set(by_seed) for each in held.values() for by_seed in each]
    seeds = sorted(set.intersection(*having)) if having else []
    if not seeds:
        raise EepolicyError(f"{folder.path} holds no question that every policy has answered yet")
    return {q: [[by_seed[s] for s in seeds] for by_seed in each] for q, each in held.items()}


def table(
    rows: Sequence[str], questions: Sequence[Mapping[str, Any]], folder: RunFolder
) -> list[dict[str, Any]]:
    """A row a policy: every figure with its interval and its paired difference to full depth.

    Args:
        rows: spec strings, full depth first.
        questions: that were asked; those that not every policy has answered are left out.
        folder: of the run.

    Returns:
        Dicts with `policy`, `prompts`, `seeds`, and for each figure `x`, `x_low`, `x_high`,
        `x_diff`, `x_diff_low`, `x_diff_high`, `x_p` (paired sign-flip test against full depth) and
        `x_needed` (prompts with which a difference as large is found four times of five); None
        where nothing was measured.

    Raises:
        EepolicyError: no question has been answered by every policy.
    """
    asked = list(answered(rows, questions, folder).values())
    full = [replies[0] for replies in asked]
    made = []
    for number, policy in enumerate(rows):
        records = [replies[number] for replies in asked]
        row: dict[str, Any] = {
            "policy": policy,
            "prompts": len(records),
            "seeds": len(records[0]),
        }
        for figure in FIGURES:
            (top, bottom), (top0, bottom0) = _columns(figure, records), _columns(figure, full)
            row |= _cells(figure.name, ratio(top, bottom))
            both = (bottom > 0) & (bottom0 > 0)  # the difference is on prompts that have both
            difference = paired_difference(
                (top * both, top0 * both), (bottom * both, bottom0 * both)
            )
            row |= _cells(f"{figure.name}_diff", difference)
            tested = _tested((top, bottom), (top0, bottom0)) if policy != rows[0] else (None, None)
            row |= {f"{figure.name}_p": tested[0], f"{figure.name}_needed": tested[1]}
        made.append(row)
    return made


def influences(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each prompt adds to a ratio of sums, to the first order: (prompts,), their mean is it.

    For means these are the values themselves; prompts that count nothing have nan.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        value = top.sum() / bottom.sum()
        found = value + (top - value * bottom) / bottom[bottom > 0].mean()
    return np.where(bottom > 0, found, np.nan)


def _tested(
    own: tuple[NDArray[np.float64], NDArray[np.float64]],
    full: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> tuple[float | None, float | None]:
    """P of a paired sign-flip test against full depth, and prompts that 80 % power would take."""
    both = (own[1] > 0) & (full[1] > 0)
    if not both.any():
        return None, None
    difference = influences(*(x[both] for x in own)) - influences(*(x[both] for x in full))
    needed = prompts_needed(difference)
    return float(sign_flip(difference, resamples=9999)), needed if np.isfinite(needed) else None


def _cells(name: str, interval: Interval) -> dict[str, float | None]:
    return {k: v if np.isfinite(v) else None for k, v in as_columns({name: interval}).items()}
