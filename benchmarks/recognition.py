"""Speech recognition: one clip a window against joined clips, and repeatability.

    python -m benchmarks.recognition [--clips 60] [--replies FILE] [--write FILE]

Replies of the pocket model are transcribed by Whisper tiny.en in several ways.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import eepolicy
from benchmarks.joined_clips import Joining, attribution_errors, transcribe_joined
from eepolicy.analysis.evaluation.scoring import normalized, word_errors
from eepolicy.analysis.tables import markdown_table
from eepolicy.speech.asr import Whisper
from eepolicy.speech.windows import SAMPLE_RATE

POLICIES = ("full", "static@10")
JOININGS = (
    Joining(0.2),
    Joining(0.5),
    Joining(1.0),
    Joining(0.5, noise=1e-3),
    Joining(0.5, words=False),
    Joining(0.5, window=10, batch_size=8),
)
#: variables that take AVX-512, and every vector instruction, from CTranslate2 and oneDNN
AVX2 = {"CT2_FORCE_CPU_ISA": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
GENERIC = {"CT2_FORCE_CPU_ISA": "GENERIC", "ONEDNN_MAX_CPU_ISA": "SSE41"}
#: name: options of `transcribe`, and the environment of its process
CHANGES: dict[str, tuple[dict[str, object], dict[str, str]]] = {
    "the same again": ({}, {}),
    "clips in reverse order": ({"reverse": True}, {}),
    "batches of 1 instead of 8": ({"batch_size": 1}, {}),
    "2 threads instead of 1": ({"threads": 2}, {}),
    "AVX2 instead of AVX-512": ({}, AVX2),
    "SSE instead of AVX-512": ({}, GENERIC),
}
TRANSCRIBE = """
import json, sys, torch
from benchmarks.recognition import transcribe
print(json.dumps(transcribe(torch.load(sys.argv[1]), **json.loads(sys.argv[2]))))
"""
Replies = list[tuple[str, torch.Tensor]]


def replies(clips: int, file: Path | None) -> dict[str, Replies]:
    """Text and speech of replies, by policy; stored in `file` if it is given."""
    if file is not None and file.exists():
        stored: dict[str, Replies] = torch.load(file)
        return {policy: each[:clips] for policy, each in stored.items()}
    model = eepolicy.load("pocket")
    questions = [q["question"] for q in eepolicy.held_out("test")[:clips]]
    batches = [questions[i : i + 8] for i in range(0, clips, 8)]
    made = {
        policy: [(str(o.text), o.audio) for batch in batches for o in model.generate(batch, policy)]
        for policy in POLICIES
    }
    if file is not None:
        torch.save(made, file)
    return made


def transcribe(
    waves: Sequence[torch.Tensor], reverse: bool = False, **options: object
) -> list[str]:
    """Transcripts in the order of `waves`, from the clips in this or the reverse order."""
    whisper = Whisper(device="cpu", **options)  # type: ignore[arg-type]
    if reverse:
        return whisper.transcribe_clips(waves[::-1])[::-1]
    return whisper.transcribe_clips(waves)


def compare(policy: str, clips: Replies) -> str:
    """Table of the ways to transcribe the replies of a policy."""
    texts, waves = [text for text, _ in clips], [wave for _, wave in clips]
    spoken = sum(map(len, waves)) / SAMPLE_RATE
    joined = Whisper(device="cpu")
    arrays = [wave.numpy() for wave in waves]
    ways: dict[str, Callable[[], list[str]]] = {
        "alone in 30 s": lambda: transcribe(waves, window=None),
        "alone in 30 s, int8": lambda: transcribe(waves, window=None, compute_type="int8"),
        "**alone in 10 s, batches of 8**": lambda: transcribe(waves),
        "alone in 10 s, batches of 1": lambda: transcribe(waves, batch_size=1),
        "alone in 10 s, batches of 8, int8": lambda: transcribe(waves, compute_type="int8"),
        "alone in 8 s, batches of 8": lambda: transcribe(waves, window=8),
        "alone in 5 s, batches of 8": lambda: transcribe(waves, window=5),
    }
    for how in JOININGS:
        ways[how.name] = lambda how=how: transcribe_joined(  # type: ignore[misc]
            joined._model, joined._tokenizer, arrays, how
        )
    rows = []
    alone: list[str] = []
    for name, way in ways.items():
        began, cpu = time.perf_counter(), time.process_time()
        heard = way()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - began
        alone = alone or heard
        counts = [word_errors(*pair) for pair in zip(texts, heard, strict=True)]
        errors, words = map(sum, zip(*counts, strict=True))
        other = sum(normalized(a) != normalized(b) for a, b in zip(alone, heard, strict=True))
        wrong, equal = attribution_errors(alone, heard)
        moved = f"{100 * wrong / equal:.1f}" if name.startswith("joined") else "0 (one clip)"
        rows.append(
            [
                name,
                f"{100 * errors / words:.1f}",
                f"{other} of {len(clips)}",
                moved,
                f"{cpu / spoken:.3f}",
                f"{wall / spoken:.3f}",
            ]
        )
        print(policy, *rows[-1], flush=True)
    header = [
        "",
        "WER, %",
        "other transcript than alone in 30 s",
        "words in another clip, %",
        "CPU seconds per second of speech",
        "wall",
    ]
    about = f"{len(clips)} replies of `{policy}`, {spoken:.0f} seconds of speech."
    return f"{about}\n\n{markdown_table(header, rows)}"


def repeat(waves: Sequence[torch.Tensor]) -> str:
    """Table of the transcripts that another order, batch size, thread or machine changes."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "waves.pt"
        torch.save(list(waves), file)

        def heard(compute: str, options: dict[str, object], env: dict[str, str]) -> list[str]:
            given = json.dumps({"compute_type": compute, **options})
            done = subprocess.run(
                [sys.executable, "-c", TRANSCRIBE, str(file), given],
                env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            texts: list[str] = json.loads(done.stdout)
            return texts

        bases = {compute: heard(compute, {}, {}) for compute in ("float32", "int8")}
        for name, (options, env) in CHANGES.items():
            row = [name]
            for compute, base in bases.items():
                texts = heard(compute, options, env)
                row.append(
                    f"{sum(a != b for a, b in zip(base, texts, strict=True))} of {len(base)}"
                )
            rows.append(row)
            print(*row, flush=True)
    return markdown_table(["", "float32", "int8"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=60, help="replies of each policy")
    parser.add_argument("--replies", type=Path, help="file that stores the replies")
    parser.add_argument("--write", type=Path, help="write the page to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    made = replies(args.clips, args.replies)
    waves = [wave for each in made.values() for _, wave in each[: args.clips // 2]]
    page = [
        "# Speech recognition",
        "",
        f"Whisper tiny.en in float32, one thread, torch {torch.__version__}. Other processes ran "
        "on the machine, so CPU seconds say more than wall-clock seconds.",
        "",
        f"    python -m benchmarks.recognition --clips {args.clips}",
        "",
        "## One clip a window, or joined clips",
        "",
        "`Whisper` transcribes a clip of up to 9 seconds in a window of 10 seconds (in bold). A "
        "transcript that repeats itself is replaced by that of 30 seconds; in windows of 8 "
        "seconds and less this happens often. Joined clips fill a window in order, and words are "
        "attributed to clips by timestamps. *Words in another clip* are those that are equal alone "
        "in 30 seconds and joined, but belong to another clip.",
        "",
        *(part for policy, each in made.items() for part in (compare(policy, each), "")),
        "## Repeatability",
        "",
        f"Transcripts that change, of {len(waves)} clips, each row in a process of its own. The "
        "last two rows restrict the instructions of the processor: they stand for other machines.",
        "",
        repeat(waves),
    ]
    if args.write:
        args.write.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
