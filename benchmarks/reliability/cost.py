"""Measure the cost of the checks: replies of this tree against those of an earlier commit.

    python -m benchmarks.reliability.cost COMMIT [--pairs 40] [--fill docs/reliability.md]

A process for each tree loads the pocket model and compiles it.  They take turns: in each pair both
answer the same questions, and the first one alternates.  The ratio of a pair is the time per token
of this tree over that of the commit.  The interval of the median is exact for any distribution.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.sections import filled
from eepolicy.analysis.tables import markdown_table
from eepolicy.errors import EepolicyError
from eepolicy.io import read_text, write_text

ROOT = Path(__file__).parents[2]
SERVE = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
HEADINGS = ("policy", "pairs", "ms per token before", "with the checks", "ratio", "95 % interval")
#: name of the section of the page
SECTION = "cost"


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        policies: spec strings.
        tokens: maximum number of tokens of a reply.
        compile: whether the layers are compiled.
        threads: CPU threads.
    """

    policies: Sequence[str] = ("full", "spark:triple@14")
    tokens: int = 150
    compile: bool = True
    threads: int = 1


class Process:
    """A process that replies on request, with the library of a tree.

    Args:
        tree: folder with the library.
        settings: what is measured.

    Raises:
        EepolicyError: it does not start, or imports another library.
    """

    def __init__(self, tree: Path, settings: Settings) -> None:
        script = Path(__file__).with_name("replies.py")
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(script), json.dumps(asdict(settings))],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started = self._line()
        if not Path(started).is_relative_to(tree.resolve()):
            raise EepolicyError(f"the process of {tree} imports {started}")

    def reply(self, policy: int) -> tuple[float, list[int]]:
        """Milliseconds per token and the tokens of replies with a policy."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{policy}\n")
        self._process.stdin.flush()
        milliseconds, tokens = self._line()
        return milliseconds, tokens

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _line(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EepolicyError(f"a process ended with status {self._process.wait()}")
        return json.loads(line)


@dataclass(frozen=True)
class Pair:
    """Milliseconds per token of two replies, one after the other."""

    before: float
    after: float

    @property
    def ratio(self) -> float:
        return self.after / self.before


def measure(before: Process, after: Process, policy: int, pairs: int) -> list[Pair]:
    """Time pairs of replies to the same questions.

    Args:
        before: process of the commit.
        after: process of this tree.
        policy: index of the policy.
        pairs: number of pairs.

    Raises:
        EepolicyError: the replies differ, so that their times cannot be compared.
    """
    measured = []
    for number in range(pairs):
        order = (before, after) if number % 2 else (after, before)
        replies = {id(process): process.reply(policy) for process in order}
        (old, old_tokens), (new, new_tokens) = replies[id(before)], replies[id(after)]
        if old_tokens != new_tokens:
            raise EepolicyError("the commit gives another reply; compare with a later one")
        measured.append(Pair(old, new))
    return measured


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Interval of the median between two order statistics, which has at least the level.

    Raises:
        EepolicyError: there are too few values for the level.

    Examples:
        >>> median_interval(range(1, 31))
        (10, 21)
    """
    ordered, size, outside = sorted(values), len(values), 0.0
    rank = 0  # of the lower end, from 1
    while (outside := outside + math.comb(size, rank) / 2**size) <= (1 - level) / 2:
        rank += 1
    if rank == 0:
        raise EepolicyError(f"{size} pairs are too few for an interval; measure 6 or more")
    return ordered[rank - 1], ordered[-rank]


def row(policy: str, pairs: Sequence[Pair]) -> list[str]:
    """Cells of a policy."""
    ratios = [pair.ratio for pair in pairs]
    low, high = median_interval(ratios)
    before = statistics.median(pair.before for pair in pairs)
    after = statistics.median(pair.after for pair in pairs)
    return [
        f"`{policy}`",
        str(len(pairs)),
        f"{before:.3f}",
        f"{after:.3f}",
        f"{statistics.median(ratios):.3f}",
        f"{low:.3f} to {high:.3f}",
    ]


@contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """A work tree of a commit, in a temporary folder."""
    git = ["git", "-C", str(ROOT), "worktree"]
    with TemporaryDirectory() as folder:
        tree = Path(folder).resolve() / "tree"
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def compare(commit: str, settings: Settings, pairs: int) -> str:
    """Measure both trees: a table with a row for each policy."""
    with tree_of(commit) as tree:
        before, after = Process(tree, settings), Process(ROOT, settings)
        try:
            rows = [
                row(policy, measure(before, after, index, pairs))
                for index, policy in enumerate(settings.policies)
            ]
        finally:
            before.close()
            after.close()
    how = "compiled" if settings.compile else "not compiled"
    note = (
        f"Replies of the pocket model of up to {settings.tokens} tokens, one at a time, {how}, "
        f"{settings.threads} thread(s), against commit {commit}."
    )
    return f"{markdown_table(list(HEADINGS), rows)}\n\n{note}"


def main() -> None:
    defaults = Settings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="commit without the checks, such as f4cfce1")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of replies of each policy")
    parser.add_argument("--policies", nargs="+", default=defaults.policies, help="spec strings")
    parser.add_argument("--tokens", type=int, default=defaults.tokens, help="most tokens")
    parser.add_argument("--threads", type=int, default=defaults.threads, help="CPU threads")
    parser.add_argument("--uncompiled", action="store_true", help="do not compile the layers")
    parser.add_argument("--fill", type=Path, help="page to write the table to")
    args = parser.parse_args()
    settings = Settings(args.policies, args.tokens, not args.uncompiled, args.threads)
    table = compare(args.commit, settings, args.pairs)
    print(table)
    if args.fill:
        write_text(args.fill, filled(read_text(args.fill), SECTION, table))


if __name__ == "__main__":
    main()
