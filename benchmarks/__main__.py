"""Make the pages of `docs/benchmarks` again, one after another.

    make benchmarks BENCHMARKS=FOLDER
    python -m benchmarks FOLDER [--only NAME ...] [--list]

FOLDER stores the pages that are finished, and the time of each; it must lie outside the repository.
A run that was stopped goes on with the page at which it was stopped.  Nothing else should run on
the machine meanwhile.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.pages import PAGES, SMOLLM2, Page, missing_needs
from eepolicy.errors import EepolicyError
from eepolicy.io import make_folder, read_json, write_json

ROOT = Path(__file__).parents[1]
#: by page: seconds of the last run, and its machine
TIMES = ROOT / "benchmarks" / "times.json"
#: largest number of running processes, on average over a minute, of a machine that is not busy
IDLE = 0.5


@dataclass(frozen=True)
class State:
    """The folder of a run.

    Attributes:
        folder: working directory of the commands, outside the repository.
        root: the repository, to which finished pages are copied.
        times: file of the measured times.
    """

    folder: Path
    root: Path = ROOT
    times: Path = TIMES

    def __post_init__(self) -> None:
        if self.folder.resolve().is_relative_to(self.root.resolve()):
            raise EepolicyError(
                f"{self.folder} is inside the repository: give a folder outside of it"
            )

    def note(self, page: Page) -> Path:
        """File that says that a page is finished."""
        return self.folder / "finished" / f"{page.name}.json"

    def is_finished(self, page: Page) -> bool:
        """Whether the page was made by its present commands."""
        note = self.note(page)
        return note.is_file() and read_json(note)["commands"] == [*page.commands]

    def measured(self) -> dict[str, Any]:
        """Seconds and machine of the last run, by page."""
        return dict(read_json(self.times)) if self.times.is_file() else {}

    def expected(self, page: Page) -> str:
        """The measured time of a page in words."""
        last = self.measured().get(page.name)
        if last is None:
            return "not measured"
        return f"{in_words(last['seconds'])} on {last['machine']}"

    def finish(self, page: Page, seconds: float) -> None:
        """Copy a page and its figures to the docs, and store its time."""
        made = self.folder / page.file
        shutil.copyfile(made, self.root / page.file)
        for picture in (made.parent / "images").glob("*.svg"):
            if f"images/{picture.name}" in made.read_text(encoding="utf-8"):
                shutil.copyfile(picture, self.root / "docs/benchmarks/images" / picture.name)
        last = {"seconds": round(seconds), "machine": machine()}
        times = self.measured() | {page.name: last}
        write_json(self.times, dict(sorted(times.items())), indent=1)
        write_json(self.note(page), {"commands": [*page.commands]} | last)


def machine() -> str:
    """The machine in words."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} CPUs and {device}, torch {torch.__version__}"


def in_words(seconds: float) -> str:
    """A time in seconds or minutes."""
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def arguments(command: str, peer_python: str) -> list[str]:
    """A command line for this Python.

    Args:
        command: as a user types it.
        peer_python: Python with tuned-lens; empty for none.
    """
    program, *rest = shlex.split(command)
    if program == "eepolicy":
        return [sys.executable, "-m", "eepolicy.cli", *rest]
    if "benchmarks.fitting" in rest and peer_python:
        rest += ["--peer-python", peer_python]
    return [sys.executable, *rest]


def make(page: Page, state: State, peer_python: str) -> float:
    """Run the commands of a page; returns the seconds that they took.

    Raises:
        CalledProcessError: a command fails.
    """
    paths = [str(state.root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    for folder in ("docs/benchmarks/images", "finished"):
        make_folder(state.folder / folder)
    commands = [*page.commands]
    if "smollm2" in page.needs and not (state.folder / SMOLLM2 / "config.json").is_file():
        commands.insert(0, f"python -m benchmarks.smollm2 {SMOLLM2}")
    began = time.perf_counter()
    for command in commands:
        subprocess.run(
            arguments(command, peer_python), cwd=state.folder, env=environment, check=True
        )
    return time.perf_counter() - began


def run(pages: Sequence[Page], state: State, peer_python: str = "") -> list[str]:
    """Make pages that are not finished; returns the names of those that failed.

    Args:
        pages: pages in order.
        state: folder of the run.
        peer_python: Python with tuned-lens; empty for none.
    """
    failed = []
    for number, page in enumerate(pages, 1):
        head = f"[{number}/{len(pages)}] {page.file}"
        lacking = missing_needs(page, peer_python)
        if state.is_finished(page):
            print(f"{head}: finished before", flush=True)
        elif lacking:
            print(f"{head}: left out, needs {'; '.join(lacking)}", flush=True)
        else:
            print(f"{head}: expected time: {state.expected(page)}", flush=True)
            try:
                seconds = make(page, state, peer_python)
            except subprocess.CalledProcessError as error:
                print(f"{head}: failed: {error}", flush=True)
                failed.append(page.name)
                continue
            state.finish(page, seconds)
            print(f"{head}: {in_words(seconds)}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of the run, outside the repository")
    names = [page.name for page in PAGES]
    parser.add_argument("--only", nargs="+", choices=names, help="pages to make")
    parser.add_argument("--list", action="store_true", help="list the pages and run nothing")
    parser.add_argument("--peer-python", default="", help="Python with tuned-lens")
    args = parser.parse_args()
    state = State(args.folder.absolute())
    pages = [page for page in PAGES if not args.only or page.name in args.only]
    if args.list:
        for page in pages:
            done = "finished" if state.is_finished(page) else state.expected(page)
            print(f"{page.file}: {done}")
        return 0
    if os.getloadavg()[0] > IDLE:
        print(f"note: other processes run, load {os.getloadavg()[0]:.1f}: times are not comparable")
    try:
        failed = run(pages, state, args.peer_python)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with this page", file=sys.stderr)
        return 130
    if failed:
        print(f"failed: {', '.join(failed)}; the same command goes on with them", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
