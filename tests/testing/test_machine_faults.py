"""Faults of the machine: full disk, read-only folder, closed output, C locale, SIGTERM, exit."""

from __future__ import annotations

import errno
import io
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import LAYOUT, tiny

import eepolicy.cli
from eepolicy import EepolicyError, HookedModel
from eepolicy.cli.process import as_text, prepared_process
from eepolicy.fitting import FitConfig, fit_by_depth, generate_replies
from eepolicy.folder_lock import locked, locked_file
from eepolicy.io import append_line, make_folder, read_json, read_jsonl, write_json, write_text

CLI = [sys.executable, "-m", "eepolicy.cli"]
PROMPTS = [torch.arange(n, n + 4) for n in range(6)]
CONFIG = FitConfig("linear", depths=(1, 2), epochs=2, batch_tokens=60)


def fit(model: HookedModel, folder: Path) -> dict[str, torch.Tensor]:
    """Weights of heads that are fitted in a folder, or go on there, as by `eepolicy fit`."""
    replies = generate_replies(
        model, PROMPTS, max_new_tokens=12, batch=2, save=folder / "replies.jsonl"
    )
    result = fit_by_depth(model, replies[:4], replies[4:], CONFIG, folder / "depths")
    result.heads.save(folder / "heads.safetensors", model.model, result.notes)
    return result.heads.state_dict()


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return HookedModel(tiny("llama"), LAYOUT)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> dict[str, torch.Tensor]:
    return fit(model, tmp_path_factory.mktemp("whole"))


def check_same(weights: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == whole.keys()
    assert all(torch.equal(weights[name], whole[name]) for name in whole)


@contextmanager
def full_disk(writes: int) -> Iterator[None]:
    """The disk is full after the given number of files."""
    left, sync = [writes], os.fsync

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to write more bytes to a file; Python ignores the signal for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("ignore:the KL from the last layer fell")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda number: full_disk(2 + number), "No space left on device"),
        (lambda number: largest_file(40 * 2**number), "cannot be written: .*(File too|os error)"),
    ],
    ids=["full disk", "largest file"],
)
def test_a_fit_whose_files_cannot_be_written_goes_on(fault, message, model, whole, tmp_path):
    """Each fault gives a clear error, no part of a file remains, and the heads are the same."""
    messages: list[str] = []
    for number in range(30):
        try:
            with fault(number):
                fit(model, tmp_path)
            break
        except EepolicyError as error:
            messages.append(str(error))
        assert not [file for file in tmp_path.rglob("*") if file.name.endswith((".part", ".lock"))]
    assert 3 <= len(messages) < 30
    assert all(re.search(message, text) for text in messages), messages
    check_same(fit(model, tmp_path), whole)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be written to a folder, not even by root."""
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


WRITES: dict[str, Callable[[Path], object]] = {
    "text": lambda folder: write_text(folder / "a.txt", "new"),
    "line": lambda folder: append_line(folder / "a.jsonl", "1"),
    "folder": lambda folder: make_folder(folder / "new" / "newer"),
    "lock of a folder": lambda folder: locked(folder).__enter__(),
    "lock of a file": lambda folder: locked_file(folder / "a").__enter__(),
    "replies": lambda folder: generate_replies(
        HookedModel(tiny("llama"), LAYOUT), PROMPTS[:1], max_new_tokens=2, save=folder / "r.jsonl"
    ),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_read_only_folder_gets_a_sentence(name):
    with tempfile.TemporaryDirectory() as folder:
        with read_only(Path(folder)), pytest.raises(EepolicyError, match=r"cannot be .*: Perm"):
            WRITES[name](Path(folder))
        assert os.listdir(folder) == []
        WRITES[name](Path(folder))


@pytest.mark.parametrize("name", ["a folder", "a file"])
def test_a_lock_that_is_held_names_its_process(name, tmp_path):
    lock = locked if name == "a folder" else locked_file
    with (
        lock(tmp_path / "fit"),
        pytest.raises(EepolicyError, match=rf"works on .*fit: process {os.getpid()} on "),
        lock(tmp_path / "fit"),
    ):
        pass
    assert not list(tmp_path.rglob("*.lock"))


def test_a_second_fit_names_the_process_that_holds_the_lock(model, tmp_path):
    for held in (locked(tmp_path / "depths"), locked_file(tmp_path / "replies.jsonl")):
        with held, pytest.raises(EepolicyError, match=f"process {os.getpid()} on "):
            fit(model, tmp_path)


def test_a_closed_pipe_ends_a_command_without_a_traceback():
    """`eepolicy policies | head -1`: no traceback, and the status of Python's tools."""
    command = subprocess.Popen([*CLI, "policies"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    assert command.stderr.read() == b""
    assert command.wait() == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [
        ("| true", 1, ""),
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
        (">/dev/full", 1, "eepolicy: [Errno 28] No space left on device\n"),
    ],
)
@pytest.mark.parametrize("option", ["", "--json"])
def test_outputs_that_cannot_be_written(redirection, code, message, option):
    line = f"set -o pipefail; '{sys.executable}' -m eepolicy.cli policies {option} {redirection}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.stderr, done.returncode) == (message, code)


def test_unencodable_characters_are_escaped_in_the_output(monkeypatch):
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with prepared_process():
        print("Käse")
    stream.flush()
    assert written.getvalue() == b"K\\xe4se\n"


def test_an_argument_in_the_c_locale():
    raw = "Käse".encode().decode("ascii", "surrogateescape")
    assert as_text(raw) == as_text("Käse") == "Käse"
    assert as_text("K\udce4se") == "K\udce4se"  # no UTF-8: the prompt is refused


UNKNOWN_USER = """
import pwd, sys

def unknown(user):
    raise KeyError(user)

pwd.getpwuid = unknown
from eepolicy.cli import main

main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_the_c_locale_without_a_home(compiled, tmp_path):
    """A user without a home, an entry and a locale, as in a container."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    arguments = ["generate", "What color is snöw?", "--max-new-tokens", "2", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", UNKNOWN_USER, *arguments, *(["--compile"] if compiled else [])],
        env=kept | locale,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert '"text"' in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["fit"], ["policies"]])
def test_sigterm_ends_a_command_as_an_interrupt_does(arguments, monkeypatch, run, tmp_path):
    """Locks and open files are released, and the message says whether the command continues."""

    def terminated(**options: object) -> int:
        with locked(tmp_path):
            signal.raise_signal(signal.SIGTERM)
        raise AssertionError

    monkeypatch.setattr(eepolicy.cli, "app", terminated)
    handler = signal.getsignal(signal.SIGTERM)
    _, err = run(*arguments, code=143)
    resumes = "; finished work is saved, and the same command continues"
    assert err == f"eepolicy: stopped{resumes if arguments == ['fit'] else ''}\n"
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_a_library_turns_into_another_error(number, code, monkeypatch, run):
    """pybind11 raises an ImportError if the import of its module is interrupted."""

    def imported(**options: object) -> int:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error
        raise AssertionError

    monkeypatch.setattr(eepolicy.cli, "app", imported)
    # a suite that a shell runs in the background inherits an ignored SIGINT
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _, err = run("policies", code=code)
        assert err == "eepolicy: stopped\n"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_a_command(number, code, monkeypatch, run):
    """Typer catches its exception, and returns the status of an interrupt."""

    def table(*_: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr(eepolicy.cli.policies.out, "print", table)
    monkeypatch.setattr(eepolicy.cli.policies, "print_json", table)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _, err = run("policies", "--json", code=code)
        assert err == "eepolicy: stopped\n"
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_interrupt_stays_ignored():
    """A shell lets its background commands ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with prepared_process() as received:
            signal.raise_signal(signal.SIGINT)
        assert not received
    finally:
        signal.signal(signal.SIGINT, before)


EXIT = """
import json, sys, threading, time
from eepolicy.io import append_line, write_json

def write():
    for number in range(10**9):
        write_json(sys.argv[1] + "/a.json", [number] * 1000)
        append_line(sys.argv[1] + "/a.jsonl", json.dumps([number] * 1000))

threading.Thread(target=write, daemon=True).start()
time.sleep(float(sys.argv[2]))
"""


def test_an_exit_while_a_thread_writes(tmp_path):
    """The interpreter ends at any point of a write; the files stay readable."""
    for folder, seconds in (("a", 0.05), ("b", 0.08), ("c", 0.11)):
        (tmp_path / folder).mkdir()
        command = [sys.executable, "-c", EXIT, str(tmp_path / folder), str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        number = read_json(tmp_path / folder / "a.json")[0]
        rows = read_jsonl(tmp_path / folder / "a.jsonl")
        assert [row[0] for row in rows] == list(range(len(rows)))
        assert len(rows) <= number + 1
        append_line(tmp_path / folder / "a.jsonl", "[-1]")
        write_json(tmp_path / folder / "a.json", [])
        assert read_jsonl(tmp_path / folder / "a.jsonl") == [*rows, [-1]]


def test_a_lock_removes_what_a_killed_process_left(tmp_path):
    """Unfinished files of the locked folder or file, and no others."""
    unfinished = [".run.json.0123abcd.part", ".heads.checkpoint.89abcdef.part"]
    kept = [".run.json.part", "run.json.0123abcd.part", ".heads2.safetensors"]
    others = ".heads.2.safetensors.0123abcd.part"  # files of another process
    unfinished.append(others)
    for name in [*unfinished, *kept]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").touch()
    with locked_file(tmp_path / "heads.1.safetensors"):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted([*unfinished, *kept])
    with locked_file(tmp_path / "heads.2.safetensors"):
        pass
    unfinished.remove(others)
    assert sorted(os.listdir(tmp_path)) == sorted([*unfinished, *kept])
    with locked_file(tmp_path / "heads.safetensors"):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted([unfinished[0], *kept])
    with locked(tmp_path):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
