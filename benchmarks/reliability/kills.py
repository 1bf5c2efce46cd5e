"""Kill commands at random points, run them again, and count what is lost.

    python -m benchmarks.reliability.kills [COMMAND ...] [--kills 10] [--fill docs/reliability.md]

Each command runs on the pocket model, once undisturbed and then with kills, by SIGKILL and SIGTERM
in turn.  The time of a kill is drawn from the seconds of the undisturbed run.  After a kill, lines
and tables that were stored before must still be there.  A run that ends before its kill must have
the results of the undisturbed run; the next one begins in a new folder.

Commands run in processes that are forked from one with the imports, on one CPU and without a C++
compiler.  Speech recognition is replaced by a function of the sound's length, since it stores
nothing itself.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import eepolicy.cli
from benchmarks.sections import filled, section
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.tables import markdown_table
from eepolicy.errors import EepolicyError
from eepolicy.io import read_text, write_text
from eepolicy.speech import asr

SWEEP = """
models = ["pocket"]
policies = ["static@14", "spark:triple@14"]
accepts = ["all", "top:5"]
prompts = 4
max_new_tokens = 40
batch = 2
timed = 1
"""
HEADINGS = ("command", "kills", "of them SIGTERM", "lines and files that were stored", "lost")
#: name of the section of the page
SECTION = "kills"
#: folder of the scores of a search
KEEP = "keep"
#: seconds that a command has to end after SIGTERM
PATIENCE = 60


@dataclass(frozen=True)
class Command:
    """A command that stores results.

    Attributes:
        arguments: its arguments for a folder; results are written below it.
        results: reads the results of a finished run, without times.
        files: texts of files that the command reads, by name; they are written to the folder.
    """

    arguments: Callable[[Path], list[str]]
    results: Callable[[Path], Any]
    files: dict[str, str] = field(default_factory=dict)


def runs(folder: Path) -> Any:
    """Records of all comparisons below a folder; times differ from run to run."""
    paths = sorted(file.parent for file in folder.rglob("records.jsonl"))
    return [
        {
            key: [replace(record, seconds=None, ttft=None) for record in records]
            for key, records in RunFolder(path).records().items()
        }
        for path in paths
    ]


def texts(*names: str) -> Callable[[Path], Any]:
    """Reads files."""
    return lambda folder: [read_text(folder / name) for name in names]


def arrays(folder: Path) -> Any:
    """Reads the arrays of a probe."""
    return {file.name: file.read_bytes() for file in sorted((folder / "probe").glob("*.npy"))}


def weights(folder: Path) -> Any:
    """Reads fitted heads."""
    tensors = load_file(folder / "heads.safetensors")
    return {name: tensor.flatten().tolist() for name, tensor in tensors.items()}


QUESTIONS = {"questions.txt": "".join(f"What is {n} plus {n}?\n" for n in range(24))}
SHORT = ["--max-new-tokens", "24"]
#: the stand-in for speech recognition is in the process of the command alone
ALONE = ["--workers", "0"]
COMMANDS = {
    "compare": Command(
        lambda folder: [
            *["compare", "static@14", "spark:triple@14", "--prompts", "6", "--batch", "2"],
            *["--timed", "2", *SHORT, *ALONE, "--out", f"{folder}/run"],
        ],
        runs,
    ),
    "sweep": Command(
        lambda folder: ["sweep", f"{folder}/sweep.toml", *ALONE, "--out", f"{folder}/sweep"],
        lambda folder: [runs(folder)],
        {"sweep.toml": SWEEP},
    ),
    "leaderboard": Command(
        lambda folder: [
            *["leaderboard", "--run", f"{folder}/run", "--prompts", "2"],
            *[*ALONE, "--out", f"{folder}/leaderboard.md"],
        ],
        runs,
    ),
    "tune": Command(
        lambda folder: [
            *["tune", "--prompts", "10", "--check", "4", "--wer-loss", "90"],
            *["--accuracy-loss", "90", "--depths", "18,16", "--keep", f"{folder}/{KEEP}"],
            *[*ALONE, "--out", f"{folder}/table.md"],
        ],
        texts("table.md"),
    ),
    "fit": Command(
        lambda folder: [
            *["fit", "pocket", "--prompts", f"{folder}/questions.txt", "--depths", "8,12"],
            *["--epochs", "2", "--by-depth", *SHORT, "--out", f"{folder}/heads.safetensors"],
        ],
        weights,
        QUESTIONS,
    ),
    "fit --rounds": Command(
        lambda folder: [
            *["fit", "pocket", "--prompts", f"{folder}/questions.txt", "--depths", "8"],
            *["--heads", "low-rank", "--epochs", "1", "--rounds", "1", "--round-epochs", "1"],
            *[*SHORT, "--workdir", f"{folder}/work", "--out", f"{folder}/heads.safetensors"],
        ],
        weights,
        QUESTIONS,
    ),
    "probe": Command(
        lambda folder: [
            *["probe", "pocket", f"{folder}/questions.txt", "--reply"],
            *["--save", f"{folder}/probe"],
        ],
        arrays,
        QUESTIONS,
    ),
    "stats": Command(
        lambda folder: ["stats", "--prompts", "4", "--out", f"{folder}/stats"],
        texts("stats/statistics.md", "stats/replies.jsonl"),
    ),
}


@dataclass
class Tally:
    """What was tried and what was lost."""

    kills: int = 0
    terminated: int = 0
    stored: int = 0
    lost: list[str] = field(default_factory=list)

    def row(self, name: str) -> list[str]:
        counts = (self.kills, self.terminated, self.stored, len(self.lost))
        return [f"`{name}`", *(f"{count:,}" for count in counts)]


def try_command(name: str, kills: int, work: Path, seed: int = 0) -> Tally:
    """Kill a command so many times, and count what is lost.

    Args:
        name: name in `COMMANDS`.
        kills: number of kills.
        work: folder for the runs.
        seed: seed of the times.

    Raises:
        EepolicyError: the undisturbed run fails.
    """
    command, rng, tally = COMMANDS[name], random.Random(seed), Tally()
    whole, started = new_folder(command, work / "whole"), time.monotonic()
    if (code := run(command, whole)) != 0:
        log = read_text(whole.with_suffix(".log"))
        raise EepolicyError(f"{name} fails with status {code}: {log[-500:]}")
    seconds, expected = time.monotonic() - started, command.results(whole)
    number = 0
    folder, before = new_folder(command, work / "0"), dict[str, list[str]]()
    while True:
        is_last = tally.kills >= kills
        sign = signal.SIGTERM if tally.kills % 2 else signal.SIGKILL
        code = run(command, folder, None if is_last else rng.uniform(0, seconds), sign)
        if code is None:
            tally.kills += 1
            tally.terminated += sign == signal.SIGTERM
            now = stored(folder)
            tally.lost += missing(before, now)
            tally.stored += sum(map(len, before.values()))
            before = now
            continue
        if code != 0:
            log = read_text(folder.with_suffix(".log"))
            tally.lost.append(f"status {code}: {log[-300:]}")
        elif command.results(folder) != expected:
            tally.lost.append(f"{folder}: other results than without kills")
        elif counts(folder) != counts(whole):
            tally.lost.append(f"{folder}: {counts(folder)} lines, {counts(whole)} without kills")
        if is_last:
            return tally
        number += 1
        folder, before = new_folder(command, work / str(number)), {}


def new_folder(command: Command, folder: Path) -> Path:
    """A folder with the files that a command reads."""
    folder.mkdir()
    for name, text in command.files.items():
        write_text(folder / name, text)
    return folder


def stored(folder: Path) -> dict[str, list[str]]:
    """Complete lines of each file of lines, and scores of a search: they do not change again."""
    files = {}
    for file in sorted([*folder.rglob("*.jsonl"), *folder.rglob(f"{KEEP}/*.csv")]):
        if not any(part.endswith(".part") for part in file.parts):
            text = file.read_text(encoding="utf-8")
            lines = text.split("\n")[:-1] if file.suffix == ".jsonl" else [text]
            files[str(file.relative_to(folder))] = lines
    return files


def missing(before: dict[str, list[str]], now: dict[str, list[str]]) -> list[str]:
    """Lines and tables that were stored before and are not now; a finished fit has no replies."""
    return [
        f"{name}: {line[:80]}"
        for name, lines in before.items()
        for line in lines
        if line not in now.get(name, [line])
    ]


def counts(folder: Path) -> dict[str, int]:
    """Number of lines of each file of lines: none may be doubled."""
    return {name: len(lines) for name, lines in stored(folder).items() if name.endswith(".jsonl")}


def run(
    command: Command, folder: Path, seconds: float | None = None, sign: int = signal.SIGKILL
) -> int | None:
    """Run a command in a folder, and kill it after some seconds.

    Returns:
        Its status; None if it was killed.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_child, args=(command.arguments(folder), folder.with_suffix(".log"))
    )
    process.start()
    process.join(seconds)
    if process.exitcode is not None:
        return process.exitcode
    assert process.pid is not None
    os.kill(process.pid, sign)
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join()
        return -sign  # it does not end
    return process.exitcode if process.exitcode == 0 else None


def _child(arguments: list[str], log: Path) -> None:
    """Run the command line in this process."""
    with open(log, "a", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})
    os.environ |= {"PATH": str(Path(sys.executable).parent), "CXX": ""}
    asr.missing_asr, asr.Whisper = _nothing, OneWordPerSecond  # type: ignore[assignment, misc]
    sys.argv = ["eepolicy", *arguments]
    eepolicy.cli.main()


def _nothing(*_: object) -> None:
    return None


class OneWordPerSecond:
    """Transcribes a word for each second of speech."""

    name = "a word a second"

    def __init__(self, *_: object, **options: object) -> None:
        pass

    def transcribe(self, wave: Tensor) -> str:
        return " ".join(["word"] * (1 + len(wave) // 16_000))


def merged(page: str, rows: list[list[str]]) -> str:
    """The table of a page; new rows replace those of the same name, or follow the others."""
    lines = section(page, SECTION).splitlines()[2:]
    old = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    by_name = {row[0]: row for row in [*old, *rows]}
    return markdown_table(list(HEADINGS), list(by_name.values()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*COMMANDS, []], metavar="COMMAND")
    parser.add_argument("--kills", type=int, default=10, help="kills of each command")
    parser.add_argument("--seed", type=int, default=0, help="seed of the times")
    parser.add_argument("--fill", type=Path, help="page to write the rows to")
    args = parser.parse_args()
    rows, lost = [], []
    for name in args.names or COMMANDS:
        with TemporaryDirectory() as work:
            started = time.monotonic()
            tally = try_command(name, args.kills, Path(work), args.seed)
        rows.append(tally.row(name))
        lost += [f"{name}: {what}" for what in tally.lost]
        print(" | ".join(rows[-1]), f"{time.monotonic() - started:.0f} s", flush=True)
        if args.fill:  # after each command, so that a stopped one loses nothing
            page = read_text(args.fill)
            write_text(args.fill, filled(page, SECTION, merged(page, rows)))
    print("\n".join(lost))
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
