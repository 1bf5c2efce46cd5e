"""Workers: what the interface costs, and what two workers gain.

    python -m benchmarks.workers [--questions 100] [--pairs 5] [--ray] [--only PART] [--keep FILE]
        [--write PAGE]

Three parts can run apart: `driver`, `overhead` and `comparison`.  With --keep, each measurement is
stored at once, and the same command goes on where it was stopped.  The page is printed when all
parts are there.

The *driver* is the process that hands in items and writes results.  A stub worker gives it stored
replies at once, so that only its own work is timed.  Comparisons of two workers and of one run in
turns; the single one runs on one core.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import eepolicy
from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.formats import RecordLine
from eepolicy.analysis.evaluation.measure import Blocks, DecodeItem, decode
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.evaluation.rows import parse_row
from eepolicy.analysis.evaluation.stage import Decoded, Decoder
from eepolicy.analysis.tables import markdown_table
from eepolicy.errors import EepolicyError
from eepolicy.io import read_json, write_json, write_text
from eepolicy.workers import WorkerConfig, Workers

POLICIES = ("full", "static@6")
SIZES = (1, 8, 64, 512)  # workers
PARTS = ("driver", "overhead", "comparison")
STUB_ITEMS = 2000
DEFAULT_PAIRS = 5

#: a comparison that another process runs: number of questions, workers, folder
COMPARE = """
import sys
from pathlib import Path
from eepolicy import held_out, load
from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.evaluation.run import run
from eepolicy.cli.comparison import MetricOptions
from benchmarks.workers import POLICIES, load_model

if __name__ == "__main__":
    number, workers, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    config = RunConfig(POLICIES, timed=0, batch=10, workers=workers, load=load_model)
    run(load_model(), held_out("test")[:number], RunFolder(Path(folder)), config, MetricOptions())
"""


def load_model() -> eepolicy.HookedModel:
    """The pocket model, for one thread."""
    return eepolicy.load("pocket", threads=1)


def blocks(questions: int, batch: int) -> Blocks:
    """Items of a comparison."""
    config = RunConfig(POLICIES, batch=batch, timed=0)
    return Blocks(eepolicy.held_out("test")[:questions], [*map(parse_row, POLICIES)], config)


def make_stub(lines: list[RecordLine]) -> Callable[[DecodeItem], Decoded]:
    """Make a worker's function that gives stored replies."""
    return lambda item: Decoded(item, lines)


def driver_rate(config: WorkerConfig, lines: list[RecordLine]) -> float:
    """Replies per second that the driver takes from stub workers and writes to a folder."""
    with (
        tempfile.TemporaryDirectory() as folder,
        config.start(partial(make_stub, lines)) as workers,
    ):
        run_folder = RunFolder(Path(folder))
        workers.submit(DecodeItem(-1, "full", 0))
        while len(workers):  # the worker has started
            list(workers.completed())
        began = time.perf_counter()
        for block in range(STUB_ITEMS // len(lines)):
            workers.submit(DecodeItem(block, "full", 0))
        for _ in range(STUB_ITEMS // len(lines)):
            run_folder.append(_next(workers).lines)
        return STUB_ITEMS / (time.perf_counter() - began)


def _next(workers: Workers[DecodeItem, Decoded]) -> Decoded:
    """The next result of a worker; the driver does not help."""
    while True:
        for result in workers.completed():
            return result
        time.sleep(1e-4)


def make_decoder(items: Blocks) -> Decoder:
    """Make the decoder of a worker."""
    return Decoder(load_model(), items)


def overhead(items: Blocks, pairs: int) -> Iterator[tuple[float, float]]:
    """Time of items on one worker over their time in this process, and replies per second.

    The same items run in turns, and the other process waits.

    Yields:
        Both of each pair.
    """
    model = load_model()
    with WorkerConfig(1).start(partial(make_decoder, items)) as workers:
        for number in tqdm(range(-1, pairs), "pairs of one worker"):  # the first pair warms up
            began = time.perf_counter()
            for item in items.items():
                decode(model, items, item)
            direct = time.perf_counter() - began
            for item in items.items():
                workers.submit(item)
            for _ in items.items():
                _next(workers)
            if number >= 0:
                spread_out = time.perf_counter() - began - direct
                yield spread_out / direct, len(items.items()) * items.config.batch / direct


def comparison_seconds(questions: int, workers: int, one_core: bool) -> float:
    """Seconds of a comparison in a process of its own, with recognition."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "run_comparison.py"
        write_text(script, COMPARE)
        arguments = [sys.executable, str(script), str(questions), str(workers), f"{folder}/run"]
        pin: Callable[[], None] | None = partial(os.sched_setaffinity, 0, {0})
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
        began = time.perf_counter()
        subprocess.run(arguments, check=True, env=environment, preexec_fn=pin if one_core else None)
        return time.perf_counter() - began


def spread(values: list[float], digits: int = 2) -> str:
    """Median and range."""
    middle = f"{np.median(values):.{digits}f}"
    return f"{middle} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


@dataclass
class Measurements:
    """What was measured so far.

    Attributes:
        questions: number of questions of a comparison.
        rates: replies per second of the driver: backend, replies in a result, rate.
        ratios: time on one worker over time in the driver's process, of each pair.
        worker_rates: replies per second of a worker that decodes, of each pair.
        gains: time of one worker on one core over time of two workers on two cores, of each pair.
    """

    questions: int
    rates: list[tuple[str, int, float]] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    worker_rates: list[float] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path | None, questions: int) -> Measurements:
        """Those of a file; none if there is no file."""
        if file is None or not file.exists():
            return cls(questions)
        stored = cls(**read_json(file))
        if stored.questions != questions:
            raise EepolicyError(
                f"{file} has comparisons of {stored.questions} questions, not {questions}; give "
                "another file to --keep"
            )
        return stored

    def run(self, args: argparse.Namespace) -> None:
        """Measure what is missing of the chosen parts, and store each measurement."""
        single = blocks(min(20, args.questions), 10)
        if "driver" in args.only:
            lines = decode(load_model(), single, single.items()[0])
            backends = {"processes": WorkerConfig(1)}
            backends |= {"Ray": WorkerConfig(1, ray="local")} if args.ray else {}
            known = {(name, size) for name, size, _ in self.rates}
            for name, config in backends.items():
                for size in {1, len(lines)} - {size for own, size in known if own == name}:
                    self.rates.append((name, size, driver_rate(config, lines[:size])))
                    self.store(args.keep)
        if "overhead" in args.only and len(self.ratios) < args.pairs:
            for ratio, rate in overhead(single, args.pairs - len(self.ratios)):
                self.ratios.append(ratio)
                self.worker_rates.append(rate)
                self.store(args.keep)
        if "comparison" in args.only:
            for _ in tqdm(range(len(self.gains), args.pairs), "pairs of comparisons"):
                one = comparison_seconds(args.questions, 0, one_core=True)
                self.gains.append(one / comparison_seconds(args.questions, 1, one_core=False))
                self.store(args.keep)

    def store(self, file: Path | None) -> None:
        """Write to a file, if there is one."""
        if file is not None:
            write_json(file, asdict(self))

    @property
    def is_whole(self) -> bool:
        """Whether all parts are there."""
        return bool(self.rates and self.ratios and self.gains)


def page(args: argparse.Namespace, measured: Measurements) -> str:
    """The page.

    Args:
        args: arguments of the command.
        measured: all measurements.
    """
    worker_rate = float(np.median(measured.worker_rates))
    command = "".join(
        [
            f"    python -m benchmarks.workers --questions {args.questions} --pairs {args.pairs}",
            " --ray" if args.ray else "",
        ]
    )
    # ten replies in a result, with as many questions
    driver = max(rate for name, _, rate in measured.rates if name == "processes")
    rows = ", ".join(f"`{policy}`" for policy in POLICIES)
    timed = [
        [
            "decoding on one worker, over decoding in the process of the command",
            spread(measured.ratios, 3),
        ],
        [
            f"{args.questions} questions with recognition: one process on one core, over two "
            "processes on two cores",
            spread(measured.gains),
        ],
    ]
    handled = [[name, str(size), f"{rate:.0f}"] for name, size, rate in sorted(measured.rates)]
    estimated = [
        [
            str(size),
            f"{min(size * worker_rate, driver):.0f}",
            f"{min(1, size * worker_rate / driver):.0%}",
        ]
        for size in SIZES
    ]
    headings = ["workers", "estimate: replies per second", "share of the driver's time"]
    return f"""# Workers

Pocket model, rows {rows}, not compiled, torch {torch.__version__}, {os.cpu_count()} cores.

{command}

## Cost and gain

Ratios of times: the median of {len(measured.gains)} pairs that ran in turns, and in brackets their
range.

{markdown_table(["time", "ratio"], timed)}

## What the driver handles

The driver takes {STUB_ITEMS} stored replies from a stub worker. It writes each result to disk
before the next one.

{markdown_table(["backend", "replies in a result", "replies per second"], handled)}

## Estimate: many workers

A worker decodes {worker_rate:.2f} replies per second here. The estimate is this rate times the
number of workers, at most the {driver:.0f} replies per second of the driver with ten replies in a
result. The driver is what saturates first. Speech, network and shared memory bandwidth are not part
of it.

{markdown_table(headings, estimated)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=100, help="of each comparison")
    parser.add_argument("--pairs", type=int, default=DEFAULT_PAIRS, help="pairs of timings")
    parser.add_argument("--ray", action="store_true", help="also time the driver with Ray")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure; all by default"
    )
    parser.add_argument(
        "--keep", type=Path, help="JSON file of measurements, from which a stopped run goes on"
    )
    parser.add_argument("--write", type=Path, help="write the page to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    measured = Measurements.read(args.keep, args.questions)
    measured.run(args)
    if not measured.is_whole:
        print(f"measured so far: {asdict(measured)}")
        return
    text = page(args, measured)
    print(text)
    if args.write:
        write_text(args.write, text)


if __name__ == "__main__":
    main()
