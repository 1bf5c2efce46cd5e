"""Hours and gigabytes of the paper's Table 2, estimated before a run.

All results are arithmetic on published sizes, on a machine and on assumptions.  The tables call
them estimates.  `python -m eepolicy.analysis.evaluation.table2_estimate` prints the tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from eepolicy.analysis.evaluation.spark_table2 import ROWS, Row, head_depths
from eepolicy.analysis.evaluation.table2_sizes import ModelSize, published_sizes
from eepolicy.analysis.tables import markdown_table
from eepolicy.fitting import FitConfig, fitting_memory
from eepolicy.modality import Modality
from eepolicy.policies import Step, parse_policy

#: share of the bandwidth that decoding reached on a GPU, compiled: 0.46 to 0.69 on the page
#: "Decoding at full size on a GPU"
DECODING_SHARE = 0.5
#: seconds of a layer call that is not compiled: 34.7 ms for the 40 layers of GLM-4-Voice there
EAGER_LAYER = 0.87e-3
#: share of the arithmetic of a device that fitting reaches; assumed
FITTING_SHARE = 0.4
#: length of the longest reply of a batch, by the mean length; assumed
LONGEST = 2.0
#: bytes that a step of Adam reads and writes for each weight, in float32
ADAM_BYTES = 40
HOUR = 3600


@dataclass(frozen=True)
class Machine:
    """Limits of a device.

    Attributes:
        name: name of the device.
        bytes_per_second: memory bandwidth.
        flops: floating-point operations a second in bfloat16.
        float32_flops: the same in float32.
        memory: bytes of memory.
    """

    name: str
    bytes_per_second: float
    flops: float
    float32_flops: float
    memory: float


#: A100 with 80 GB, from its data sheet
A100 = Machine("A100, 80 GB", 2.039e12, 3.12e14, 1.95e13, 80e9)


@dataclass(frozen=True)
class Load:
    """How much a run decodes.

    Attributes:
        questions: number of questions of all tasks.
        seconds: mean seconds of speech of a reply.
        max_new_tokens: largest number of tokens of a reply.
        fit_prompts: number of questions that the heads are fitted on.
        batch: questions that are decoded together.
        fit_batch: questions whose replies to fit on are decoded together.
        timed: questions that are timed.
        processes: processes that share the questions, each with a device.
        compiled: whether the layers are compiled.
        workers: processes that process speech.
    """

    questions: int = 2499
    seconds: float = 20.0
    max_new_tokens: int = 2048
    fit_prompts: int = 1000
    batch: int = 50
    fit_batch: int = 8
    timed: int = 12
    processes: int = 1
    compiled: bool = True
    workers: int = 1

    def tokens(self, size: ModelSize) -> float:
        """Mean number of tokens of a reply."""
        speech = self.seconds * size.rate
        return min(self.max_new_tokens, speech * (1 + size.text_chunk / size.speech_chunk))


@dataclass(frozen=True)
class Stage:
    """A part of a run.

    Attributes:
        name: what is done.
        hours: its hours; None if they are not known before they are measured.
        note: what the hours depend on.
    """

    name: str
    hours: float | None
    note: str


@dataclass(frozen=True)
class Estimate:
    """Hours and bytes of a run.

    Attributes:
        size: the model.
        machine: the device.
        load: how much is decoded.
        stages: the stages, in order.
        memory: bytes on the device by use, of the largest stage that has them.
        disk: bytes on the disk by use.
    """

    size: ModelSize
    machine: Machine
    load: Load
    stages: tuple[Stage, ...]
    memory: dict[str, float]
    disk: dict[str, float]

    @property
    def hours(self) -> float:
        """Hours of the stages whose hours are known."""
        return sum(stage.hours or 0 for stage in self.stages)

    def tables(self) -> str:
        """Stages, memory and disk as Markdown."""
        stages = [
            (s.name, "not known before the trial" if s.hours is None else f"{s.hours:.1f}", s.note)
            for s in self.stages
        ]
        stages.append(("together", f"{self.hours:.1f}", f"on {self.machine.name}"))
        sizes = [
            (where, use, f"{size / 1e9:.1f}")
            for where, uses in (("device", self.memory), ("disk", self.disk))
            for use, size in uses.items()
        ]
        return (
            markdown_table(["stage", "hours (estimate)", "depends on"], stages)
            + "\n\n"
            + markdown_table(["where", "what", "GB (estimate)"], sizes)
        )


def estimate(
    size: ModelSize,
    rows: Sequence[Row],
    load: Load,
    machine: Machine = A100,
    reply_seconds: Mapping[str, float] | None = None,
) -> Estimate:
    """Estimate a run of the paper's rows.

    Args:
        size: sizes of the model.
        rows: rows of the paper.
        load: how much is decoded.
        machine: the device.
        reply_seconds: seconds of the vocoder, recognition and rating for the speech of a reply, and
            of a request of the judge; None where they were not measured.
    """
    known = dict(reply_seconds or {})
    judging = known.pop("judge", None)
    tokens, depths = load.tokens(size), head_depths(rows)
    mean = f"{tokens:.0f} tokens a reply, for {load.seconds:g} s of speech (assumed)"
    decoding = sum(row_hours(size, row, load, machine) for row in rows) / load.processes
    alone = replace(load, batch=1, questions=min(load.timed, load.questions))
    timing = sum(row_hours(size, row, alone, machine) for row in rows)
    prompts = replace(load, questions=load.fit_prompts, batch=load.fit_batch)
    replies = row_hours(size, rows[0], prompts, machine)
    speech = len(rows) * load.questions * load.seconds / HOUR
    count = len(rows) * load.questions
    stages = (
        Stage("replies to fit on", replies, f"{load.fit_prompts} questions; {mean}"),
        Stage(
            "fitting",
            fit_hours(size, len(depths), load, machine),
            f"{len(depths)} depths, {FitConfig().epochs} epochs each",
        ),
        Stage(
            "decoding",
            decoding,
            f"{len(rows)} rows, {load.questions} questions, {load.batch} together"
            + (f", {load.processes} processes" if load.processes > 1 else "")
            + ("" if load.compiled else ", not compiled"),
        ),
        Stage("timing", timing, f"{alone.questions} questions, each reply alone"),
        Stage(
            "vocoder, recognition, rating",
            count * sum(known.values()) / load.workers / HOUR if known else None,
            f"{speech:.0f} hours of speech, beside the decoding"
            + (f", {load.workers} at a time" if known else ""),
        ),
        Stage(
            "judge",
            None if judging is None else count * judging / HOUR,
            f"{count} requests, if there is a judge",
        ),
    )
    return Estimate(size, machine, load, stages, memory(size, rows, load), disk(size, rows, load))


def row_hours(size: ModelSize, row: Row, load: Load, machine: Machine) -> float:
    """Hours of decoding a row.

    The weights of the layers are read once a step.  A batch runs all layers, because its rows exit
    at different steps, and lasts as long as its longest reply.
    """
    tokens, share = load.tokens(size), size.text_chunk / (size.text_chunk + size.speech_chunk)
    depth, steps = float(size.layers), tokens * load.questions
    if load.batch == 1:
        depth = share * row.text_depth + (1 - share) * row.speech_depth
    else:
        longest = min(load.max_new_tokens, LONGEST * tokens)
        steps = longest * -(-load.questions // load.batch)
    cached = load.batch * tokens / 2 * size.cache_bytes * depth
    read = depth * size.layer_bytes + readouts(size, row) * size.head_bytes + cached
    seconds = read / (machine.bytes_per_second * DECODING_SHARE)
    if not load.compiled:  # launching the kernels takes longer than running them
        seconds = max(seconds, EAGER_LAYER * depth)
    return steps * seconds / HOUR


def readouts(size: ModelSize, row: Row) -> float:
    """Mean number of readouts of a token: adaptive rows read at each depth up to the exit."""
    policy, phase = parse_policy(row.policy), torch.arange(1)
    share = size.text_chunk / (size.text_chunk + size.speech_chunk)
    total = 0.0
    for modality, part, depth in (
        (Modality.TEXT, share, row.text_depth),
        (Modality.SPEECH, 1 - share, row.speech_depth),
    ):
        step = Step(torch.full_like(phase, modality), phase, phase, phase, phase, size.layers)
        candidates = policy.candidate_depths(step)
        total += part * (1 + (max(0.0, depth - min(candidates)) if candidates else 0))
    return total


def fit_hours(size: ModelSize, depths: int, load: Load, machine: Machine) -> float:
    """Hours of fitting linear heads, one depth after another."""
    tokens, config = load.fit_prompts * load.tokens(size), FitConfig("linear")
    head = size.width * size.vocabulary
    products = (2 * size.weights + 2 * head) * tokens / machine.flops
    own = 4 * head * tokens / machine.float32_flops
    adam = tokens / config.batch_tokens * ADAM_BYTES * head / machine.bytes_per_second
    return depths * config.epochs * ((products + own) / FITTING_SHARE + adam) / HOUR


def memory(size: ModelSize, rows: Sequence[Row], load: Load) -> dict[str, float]:
    """Bytes on the device, by use."""
    depths, longest = len(head_depths(rows)), load.max_new_tokens
    head = 2.0 * size.width * size.vocabulary
    fitting = fitting_memory(
        FitConfig("linear", depths=(1,)),
        width=size.width,
        vocabulary=size.vocabulary,
        full_depth=size.layers,
        longest=longest,
    )
    return {
        "weights in bfloat16": 2.0 * size.weights,
        f"heads of {depths} depths": depths * head,
        "while decoding: keys, values and logits": load.batch
        * (longest * size.cache_bytes * size.layers + 3 * 4 * size.vocabulary),
        "while fitting: one depth": float(sum(fitting.values())),
    }


def disk(size: ModelSize, rows: Sequence[Row], load: Load) -> dict[str, float]:
    """Bytes on the disk, by use."""
    depths, head = len(head_depths(rows)), size.width * size.vocabulary
    return {
        "checkpoint of the model": 2.0 * size.weights,
        "heads, and the same while fitting": 2 * 2.0 * depths * head,
        "checkpoint of a fit, for a time": 14.0 * head,
        # FLAC takes about half of 16 bits a sample
        "speech of the replies": len(rows) * load.questions * load.seconds * size.sampling_rate,
    }


def main() -> None:
    """Print the estimates of both models."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--bandwidth", type=float, default=A100.bytes_per_second, help="bytes/s")
    parser.add_argument("--flops", type=float, default=A100.flops, help="in bfloat16, a second")
    parser.add_argument("--questions", type=int, default=Load.questions)
    parser.add_argument("--seconds", type=float, default=Load.seconds, help="speech of a reply")
    parser.add_argument("--processes", type=int, default=Load.processes)
    args = parser.parse_args()
    machine = A100
    if (args.bandwidth, args.flops) != (A100.bytes_per_second, A100.flops):
        machine = replace(
            A100, name="the given machine", bytes_per_second=args.bandwidth, flops=args.flops
        )
    load = Load(args.questions, args.seconds, processes=args.processes)
    for name, size in published_sizes().items():
        print(f"{name}\n\n{estimate(size, ROWS[name], load, machine).tables()}\n")


if __name__ == "__main__":
    main()
