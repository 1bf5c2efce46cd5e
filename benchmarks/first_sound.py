"""Time to the first sound: a stream against a whole reply.

    python -m benchmarks.first_sound [--questions 12] [--threads 1] [--write PAGE]

Each question is answered by each policy in both ways, in turns.  A stream gives its first piece of
sound as soon as the vocoder has enough units; without a stream, sound comes after the whole reply.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import eepolicy
from eepolicy.analysis.tables import MISSING, markdown_table
from eepolicy.io import write_text

POLICIES = ("full", "spark:triple@14", "static@6")
CHUNKS = (2, 8, 16)  # units


def measure(
    model: eepolicy.HookedModel, policy: str, question: str, chunks: tuple[int, ...]
) -> list[float]:
    """Seconds of one question.

    Returns:
        Seconds to the whole sound without a stream; then, for each chunk, seconds to the first
        piece, seconds to the last one, and the longest silence that a listener would hear.
    """
    began = time.perf_counter()
    model.generate(question, policy).audio  # noqa: B018  computed on access
    row = [time.perf_counter() - began]
    for chunk in chunks:
        stream = model.stream_audio(question, policy, chunk=chunk)
        began, heard, silence, first = time.perf_counter(), 0.0, 0.0, 0.0
        for piece in stream:
            now = time.perf_counter() - began
            first = first or now
            # the player has `heard` seconds of sound since the first piece
            silence = max(silence, now - first - heard)
            heard += len(piece) / stream.sampling_rate
        row += [first, time.perf_counter() - began, silence]
    return row


def cell(seconds: NDArray[np.float64]) -> str:
    """The median in milliseconds, and the range of nine in ten questions."""
    low, middle, high = np.percentile(1000 * seconds, (5, 50, 95))
    return f"{middle:.0f} [{low:.0f}, {high:.0f}]"


def page(values: dict[str, NDArray[np.float64]], questions: int, threads: int) -> str:
    """The page: a table for each policy.

    Args:
        values: for each policy (questions, 1 + 3 * chunks) seconds.
        questions: number of questions.
        threads: CPU threads.
    """
    lines = [
        "# Time to the first sound",
        "",
        f"Pocket model, {questions} held-out questions, {threads} thread(s), not compiled, torch "
        f"{torch.__version__}. Milliseconds from the call of `generate` or `stream_audio`: median "
        "and, in brackets, the range of nine in ten questions. *Silence*: the longest wait of a "
        "listener after the first piece of sound.",
        "",
        f"    python -m benchmarks.first_sound --questions {questions} --threads {threads}",
        "",
    ]
    cells = []
    for policy, seconds in values.items():
        cells.append(
            [f"`{policy}`", "no stream", cell(seconds[:, 0]), cell(seconds[:, 0]), MISSING]
        )
        for i, chunk in enumerate(CHUNKS):
            first, last, silence = seconds[:, 1 + 3 * i : 4 + 3 * i].T
            row = [f"`{policy}`", f"{chunk} units", cell(first), cell(last), cell(silence)]
            cells.append(row)
    headings = ["policy", "chunk", "first sound, ms", "whole sound, ms", "silence, ms"]
    return "\n".join([*lines, markdown_table(headings, cells)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="page to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = eepolicy.load("pocket")
    questions = [p["question"] for p in eepolicy.held_out()[: args.questions]]
    rows: dict[str, list[list[float]]] = {policy: [] for policy in POLICIES}
    for policy in POLICIES:
        measure(model, policy, questions[0], CHUNKS)  # not counted
    for question in tqdm(questions):
        for policy in POLICIES:
            rows[policy].append(measure(model, policy, question, CHUNKS))
    text = page({k: np.array(v) for k, v in rows.items()}, args.questions, args.threads)
    print(text)
    if args.write:
        write_text(args.write, text)


if __name__ == "__main__":
    main()
