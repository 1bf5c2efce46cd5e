"""Files are written whole or not at all, and read with clear errors."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from eepolicy.errors import EepolicyError
from eepolicy.io import (
    append_line,
    append_lines,
    beside,
    read_json,
    read_jsonl,
    read_lines,
    read_numbered_jsonl,
    read_text,
    write_atomically,
    write_bytes,
    write_json,
    write_text,
)


@pytest.fixture
def umask():
    """Set the umask for a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_mode_follows_the_umask(tmp_path, umask, mask, mode):
    umask(mask)
    write_text(tmp_path / "a.txt", "a")
    tensors = {"a": torch.arange(3)}
    write_atomically(tmp_path / "a.safetensors", lambda part: save_file(tensors, part))
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == mode
    assert names(tmp_path) == ["a.safetensors", "a.txt"]
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]


def test_what_is_written_is_read_back(tmp_path):
    write_bytes(tmp_path / "a.txt", b"old")
    write_text(tmp_path / "a.txt", "new ü\u2028\n")
    assert read_text(tmp_path / "a.txt") == "new ü\u2028\n"
    assert read_lines(tmp_path / "a.txt") == ["new ü\u2028"]
    write_json(tmp_path / "a.json", {"a": [1, None, "ü"]}, indent=2)
    assert read_json(tmp_path / "a.json") == {"a": [1, None, "ü"]}
    assert names(tmp_path) == ["a.json", "a.txt"]


def test_writers_that_choose_the_format_by_the_suffix(tmp_path):
    write_atomically(tmp_path / "a.npy", lambda part: np.save(part, np.arange(3)))
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2]


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "disk broken"), KeyboardInterrupt()])
def test_the_old_file_stays_when_writing_fails(tmp_path, failure):
    file = tmp_path / "a.txt"
    write_text(file, "old")

    def stop(part):
        part.write_text("half")
        raise failure

    with pytest.raises((EepolicyError, KeyboardInterrupt)) as caught:
        write_atomically(file, stop)
    if isinstance(failure, OSError):
        assert str(caught.value) == f"{file} cannot be written: disk broken"
    assert read_text(file) == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_old_file_stays_when_the_sync_fails(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "0\n")

    def fail(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(EepolicyError, match=r"No space left on device \(0.0 MB are needed, .* MB"):
        write_text(tmp_path / "a.txt", "new")
    with pytest.raises(EepolicyError, match="No space left on device"):
        append_line(tmp_path / "a.txt", "1")
    monkeypatch.undo()
    assert (read_text(tmp_path / "a.txt"), names(tmp_path)) == ("0\n", ["a.txt"])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_devices_are_written_directly():
    write_text("/dev/null", "gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(EepolicyError, match="/dev/full cannot be written: No space left on device"):
        write_text("/dev/full", "too much")


def test_links_are_followed(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    (tmp_path / "link.txt").symlink_to("a.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert read_text(tmp_path / "a.txt") == "new"


def test_paths_that_cannot_be_written_or_read(tmp_path):
    for path, reason in ((tmp_path / "no" / "a.txt", "No such file"), (tmp_path, "Is a directory")):
        for call in (lambda p: write_text(p, "a"), lambda p: append_line(p, "1")):
            with pytest.raises(EepolicyError, match=f"cannot be written: {reason}"):
                call(path)
        for read in (read_text, read_json, read_jsonl):
            with pytest.raises(EepolicyError, match=f"cannot be read: {reason}"):
                read(path)
    with pytest.raises(EepolicyError, match="cannot be written as UTF-8"):
        write_text(tmp_path / "a.txt", "\udcff")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(EepolicyError, match=r"not UTF-8 text: byte 0xe9 at offset 3; save it"):
        read_text(tmp_path / "a.txt")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(EepolicyError, match=r"a\.json cannot be read as JSON: Expecting"):
        read_json(tmp_path / "a.json")


def test_only_line_ends_separate_json_lines(tmp_path):
    file = tmp_path / "a.jsonl"
    text = "a\u2028b\u0085c"
    file.write_bytes(f'\ufeff{{"a": "{text}"}}\r\n\n[1]\n\n'.encode())
    assert read_numbered_jsonl(file) == [(1, {"a": text}), (3, [1])]
    assert read_jsonl(file) == [{"a": text}, [1]]


@pytest.mark.parametrize("damage", ['{"a": "cu', '{"a": "cu\n', "\x00\x00\x00\n", "\udcff"])
def test_a_damaged_last_line_is_dropped(tmp_path, damage):
    file = tmp_path / "a.jsonl"
    append_lines(file, ["[1]", "[2]"])
    with open(file, "a", errors="surrogateescape") as stopped:
        stopped.write(damage)
    with pytest.warns(UserWarning, match=r"the last line \(line 3\) is damaged and was dropped"):
        assert read_jsonl(file) == [[1], [2]]
    append_line(file, "[3]")
    assert file.read_text() == "[1]\n[2]\n[3]\n"


def test_a_last_line_without_an_end_is_kept(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("[1]")
    assert read_jsonl(file) == [[1]]
    append_line(file, "[2]")
    assert file.read_text() == "[1]\n[2]\n"


def test_long_lines_are_appended_to(tmp_path):
    file, long = tmp_path / "a.jsonl", json.dumps("x" * 200_000)
    append_lines(file, [long, long])
    with open(file, "a") as stopped:
        stopped.write(long[:-1])
    append_line(file, "1")
    assert [len(str(value)) for value in read_jsonl(file)] == [200_000, 200_000, 1]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("[1]\n[2\n[3]\n")
    with pytest.raises(EepolicyError, match=r"a\.jsonl, line 2 is not JSON: .*; repair or delete"):
        read_jsonl(file)
    with pytest.raises(EepolicyError, match="contains a line end"):
        append_line(file, "1\n2")


def test_a_path_beside_the_folder_of_the_shell(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert beside(Path("a/run"), "-heads") == Path("a/run-heads")
    for name in ("", ".", "../run"):
        assert beside(Path(name), "-heads").resolve() == (tmp_path / "run-heads").resolve()
