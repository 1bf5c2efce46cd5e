"""A lock on results, so that two processes do not do the same work twice."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from eepolicy.errors import EepolicyError
from eepolicy.io import make_folder, remove_unfinished

#: file in the folder that says who holds the lock
LOCK = ".lock"
#: options of the command line whose values no file may contain
SECRETS = frozenset({"--judge-key"})


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Lock a folder inside a `with` block.

    The system releases the lock when the process ends, however it ends.  A killed process leaves
    only the file, which is not the lock and does no harm.  Unfinished files that it leaves in the
    folder are removed.  On systems without `fcntl`, and on file systems without locks, nothing is
    locked.

    Args:
        folder: the folder; it is created if it does not exist.

    Raises:
        EepolicyError: another process holds the lock; the message says which.
    """
    folder = Path(folder)
    make_folder(folder)
    with _held(folder / LOCK, folder, "folder"):
        remove_unfinished(folder, "")
        yield


@contextmanager
def locked_file(file: str | Path) -> Iterator[None]:
    """Lock a file that is written inside a `with` block; see `locked`.

    Args:
        file: the file, which need not exist.  The lock is a file beside it.

    Raises:
        EepolicyError: another process holds the lock; the message says which.
    """
    file = Path(file)
    with _held(file.with_name(f".{file.name}{LOCK}"), file, "file"):
        remove_unfinished(file.parent, file.stem)
        yield


@contextmanager
def _held(lock: Path, path: Path, kind: str) -> Iterator[None]:
    """Hold the lock of a file or folder.

    Args:
        lock: file of the lock.
        path: what is locked, for messages.
        kind: its kind, for messages.
    """
    try:
        file = _acquire(lock, path, kind)
    except OSError as error:
        raise EepolicyError(f"{path} cannot be used: {error.strerror or error}") from error
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):
                os.unlink(lock)
            file.close()


def _acquire(path: Path, locked: Path, kind: str) -> IO[str] | None:
    """Acquire a lock: its open file, or None where the system has no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (closing it releases the lock)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(file)
            file.close()
            raise EepolicyError(
                f"another process works on {locked}: {holder}; wait for it, or give another {kind}"
            ) from error
        except OSError:  # the file system has no locks
            file.close()
            return None
        with suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                break
        file.close()  # the holder before removed the file after it was opened here
    own = {"pid": os.getpid(), "host": socket.gethostname(), "argv": without_secrets(sys.argv)}
    with suppress(OSError):  # a full disk: the lock holds without the name
        file.truncate(0)
        os.write(file.fileno(), json.dumps(own).encode())
    return file


def without_secrets(arguments: Iterable[str]) -> list[str]:
    """Arguments of a command line, with `***` in place of keys.

    Example:
        >>> without_secrets(["--judge-key", "k", "--prompts", "9", "--judge-key=k"])
        ['--judge-key', '***', '--prompts', '9', '--judge-key=***']
    """
    shown: list[str] = []
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        follows = bool(shown) and shown[-1] in SECRETS
        is_key = name in SECRETS and bool(equals)
        shown.append("***" if follows else f"{name}=***" if is_key else argument)
    return shown


def _holder(file: IO[str]) -> str:
    """Who holds a lock, in words."""
    file.seek(0)
    try:
        holder: dict[str, Any] = json.loads(file.read())
        command = " ".join(map(str, holder["argv"]))
        return f"process {holder['pid']} on {holder['host']}, {command:.100}"
    except (KeyError, TypeError, ValueError):
        return "its process is not known"
