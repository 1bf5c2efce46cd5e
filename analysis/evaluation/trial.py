"""Speeds of this machine from a short trial, for the estimate of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.measure import prompt_of
from eepolicy.analysis.evaluation.metrics import SpeechMetrics
from eepolicy.analysis.evaluation.preflight import REPLIES, first_units, tone
from eepolicy.analysis.evaluation.rows import parse_row
from eepolicy.analysis.evaluation.table2_estimate import A100, DECODING_SHARE, Machine
from eepolicy.analysis.evaluation.table2_sizes import ModelSize
from eepolicy.hooked import HookedModel
from eepolicy.speech.vocoders import decode_at

#: new tokens of the trial batch
TOKENS = 24
#: rows of the square matrices whose product is timed
SIDE = 1024


@dataclass(frozen=True)
class Trial:
    """What a trial measured.

    Attributes:
        machine: the machine, with the bandwidth at which decoding has the measured speed.
        step_seconds: seconds of a decoding step of the batch.
        reply_seconds: seconds of each part for the speech of a reply, or a request of the judge.
    """

    machine: Machine
    step_seconds: float
    reply_seconds: Mapping[str, float]


def try_out(
    model: HookedModel,
    metrics: SpeechMetrics,
    questions: Sequence[Mapping[str, Any]],
    config: RunConfig,
    seconds: float,
) -> Trial:
    """Decode a batch for some tokens, and process the speech of one reply.

    Args:
        model: model that replies.
        metrics: what scores replies; `preflight` has tried it.
        questions: questions of the run; the first batch is decoded.
        config: settings of the run.
        seconds: seconds of speech of a reply.
    """
    batch = [prompt_of(question) for question in questions[: config.batch]]
    options = config.generate_options(parse_row("full")) | {"seed": [0] * len(batch)}
    options["max_new_tokens"] = TOKENS
    for _ in range(2):  # the first call makes kernels
        outputs = model.generate(batch, **options)
    steps = max(len(output.tokens) for output in outputs) - 1
    step = (outputs[0].seconds - outputs[0].ttft) / max(1, steps)
    size = ModelSize.of(model)
    read = size.layers * size.layer_bytes + size.head_bytes
    return Trial(
        replace(
            A100,
            name="this machine, by the trial",
            bytes_per_second=read / step / DECODING_SHARE,
            flops=_flops(model.device, model.model.dtype),
            float32_flops=_flops(model.device, torch.float32),
        ),
        step,
        _reply_seconds(model, metrics, seconds),
    )


def _reply_seconds(model: HookedModel, metrics: SpeechMetrics, seconds: float) -> dict[str, float]:
    """Seconds of each part for the speech of one reply."""
    made: dict[str, float] = {}
    wave = tone(seconds)
    vocoder, asr, mos, judge = model.vocoder, metrics.asr, metrics.mos, metrics.judge
    if vocoder is not None:
        units = first_units(model, seconds)
        made["vocoder"], wave = _timed(lambda: decode_at(vocoder, units))
        if asr is not None:
            made["recognition"], _ = _timed(lambda: asr.transcribe(wave))
        if mos is not None:
            made["rating"], _ = _timed(lambda: mos.rate(wave))
    if judge is not None:
        question, reply = REPLIES[0]
        made["judge"], _ = _timed(lambda: judge.judge(question, reply, is_transcript=False))
    return made


def _timed(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def _flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square product."""
    square = torch.randn(SIDE, SIDE, device=device).to(dtype)

    def multiply() -> None:
        for _ in range(4):
            square @ square
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    multiply()
    seconds, _ = _timed(multiply)
    return 4 * 2 * SIDE**3 / seconds
