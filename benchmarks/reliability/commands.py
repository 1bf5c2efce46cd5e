"""Wrong arguments of the command line."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from functools import partial

from benchmarks.reliability.cases import MAX_SECONDS, Case, legal_reason
from eepolicy.cli import main
from eepolicy.cli.shared import out
from eepolicy.errors import EepolicyError

KIND = "arguments of commands"

#: inputs that are right, with the reason
LEGAL = (
    ("generate ''", "a question may be empty"),
    ("generate 'x*y'", "a question may have any character"),
    ("compare --out ''", "the folder of the shell, which is empty here"),
    ("probe pocket *'zz'", "a text of two letters"),
    ("probe pocket '.'", "a text of one character"),
    ("probe pocket '/dev/null'", "a text, since this is no file with text"),
    ("probe pocket Hi --save *", "the folder is made"),
)

#: seconds in which lm-eval reads its thousands of task files, as it does before it knows a name
TASK_SECONDS = 60
DIGITS = "1" * 5000
#: wrong values of numbers, paths and names
NUMBERS = ("0", "-1", "2.7", "zz", "", "nan", DIGITS)
#: command lines whose last part is replaced by wrong values
REPLACED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("generate Hi --max-new-tokens", NUMBERS),
    ("generate Hi --seed", ("2.7", "zz", "", DIGITS)),
    ("generate Hi --temperature", ("-1", "0", "nan", "inf", "zz", "")),
    ("generate Hi --temperature 1 --top-p", ("-1", "2", "nan", "zz")),
    ("generate Hi --threads", ("0", "-1", "zz", DIGITS)),
    ("generate Hi --device", ("zz", "cuda", "cuda:99", "", "cpu:zz")),
    ("generate Hi --dtype", ("zz", "", "int4")),
    ("generate Hi --fill", ("zz", "", "mask:3", "5")),
    ("generate Hi --accept", ("zz", "", "top", "top:0", "top:zz", f"top:{DIGITS}")),
    ("generate Hi --policy", ("zz", "", "static", "static@0", "static@99", f"static@{DIGITS}")),
    ("generate Hi --policy", ("entropy<nan@2", "entropy<zz@2", "x.py:A", "x.py:A(", "both=")),
    ("generate Hi --heads", ("zz", "", ".", "/dev/null")),
    ("generate Hi --predictor", ("zz", "", ".", "/dev/null")),
    ("generate Hi --model", ("zz", "", ".", "/dev/null", "a/b/c/d")),
    ("generate Hi --out", ("/dev/null/a.wav", ".", "a.zz", "")),
    ("generate", ("", "\ud800", "x\x00y")),
    ("compare --prompts", NUMBERS),
    ("compare --set", ("zz", "")),
    ("compare --task", ("zz", "a=zz", "a=", "=b", "a=/dev/null", "a=.", "")),
    ("compare --tts", ("zz", "'", "a {text}", "")),
    ("compare --judge", ("zz", "", "http://")),
    ("compare --device", ("zz", "cuda", "")),
    ("compare --preset", ("zz", "")),
    ("compare", ("zz", "static@99", "full, fill=zz", "full, accept=zz", "full, zz=1", "")),
    ("compare --out", ("/dev/null", "", "/proc/zz")),
    ("compare --margin", ("zz", "wer=zz", "wer=-1", "wer=nan", "zz=1", "")),
    ("compare --seeds", NUMBERS),
    ("compare --workers", ("-1", "zz", DIGITS)),
    ("bench --batch", NUMBERS),
    ("bench --rounds", NUMBERS),
    ("bench --context", ("-1", "zz", DIGITS)),
    ("bench", ("zz", "static@99", "")),
    ("bench --device", ("zz", "cuda")),
    ("fit --depths", ("zz", "0", "99", "8,zz", "", "8,8", DIGITS)),
    ("fit --rank", NUMBERS),
    ("fit --epochs", NUMBERS),
    ("fit --loss", ("zz", "", "top", "top:0")),
    ("fit --heads", ("zz", "")),
    ("fit --on", ("zz", "")),
    ("fit --prompts", ("zz", ".", "/dev/null", "")),
    ("fit --mix", ("-1", "1", "nan", "zz")),
    ("fit --part", ("0", "2", "nan", "zz")),
    ("probe pocket", ("zz", ".", "/dev/null")),
    ("probe pocket --depths 99", ("",)),
    ("probe", ("zz", "/dev/null")),
    ("probe pocket Hi --top-k", ("-1", "zz", "999999", DIGITS)),
    ("probe pocket Hi --csv", ("/dev/null/a.csv", ".", "")),
    ("probe pocket Hi --save", ("/dev/null", "/dev/null/a", "")),
    ("stats --prompts", NUMBERS),
    ("drift --prompts", NUMBERS),
    ("drift --fill", ("zz", "")),
    ("tune --wer-loss", ("-1", "nan", "zz")),
    ("tune --confidence", ("0", "1", "2", "nan", "zz")),
    ("tune --depths", ("zz", "0", "99")),
    ("report", ("zz", ".", "/dev/null", "")),
    ("leaderboard", ("zz", ".", "/dev/null")),
    ("models check", ("zz", ".", "/dev/null")),
    ("convert zz", ("zz", ".", "/dev/null")),
    ("lm-eval --tasks", ("zz",)),
    ("fit-predictor --depths", ("zz", "0", "99", "")),
    ("zz", ("",)),
)


def cases() -> Iterator[Case]:
    """Each command line."""
    for line, values in REPLACED:
        for value in values:
            label = f"{line} {value!r:.40}"
            run = partial(_run, [*line.split(), value])
            seconds = TASK_SECONDS if line.startswith("lm-eval") else MAX_SECONDS
            yield Case(KIND, label, run, legal_reason(label, LEGAL), max_seconds=seconds)


def _run(arguments: list[str]) -> None:
    """Run a command line in this process.

    Raises:
        EepolicyError: the command failed with one sentence.
    """
    errors = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(errors))
        stack.callback(setattr, sys, "argv", sys.argv)
        sys.argv = ["eepolicy", *arguments]
        out.stderr = False
        try:
            main()
        except SystemExit as end:
            code = end.code
    if code:
        text = errors.getvalue().strip()
        if "Traceback" in text:
            raise RuntimeError(text[-200:])
        raise EepolicyError(text[-1000:])
