"""Files: write whole files atomically, append lines durably, and read text and JSON.

No other module writes whole files.  A reader therefore sees the old file or the new one, never a
part of one, even after a crash or on a full disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable
from io import FileIO
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from eepolicy.errors import EepolicyError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: bytes read at a time when the last line of a file is looked up
_BLOCK = 1 << 16
#: name of a temporary subfolder
_UNFINISHED = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.part")


def write_atomically(
    path: str | Path, write: Callable[[Path], None], size: int | None = None
) -> None:
    """Write a file in a temporary subfolder, sync it, and rename it.

    If writing fails, the old file stays and the temporary one is deleted.  The file mode follows
    the umask.  A symbolic link is followed.  A device or a pipe is written directly.

    Args:
        path: the file to write.
        write: a function that writes to the path that it gets.  This path has the name of `path`,
            because some writers choose the format by its suffix, or add one.
        size: number of bytes that will be written, if known.  The error for a full disk names it.

    Raises:
        EepolicyError: the file cannot be written.  The message names the file and the reason.

    Examples:
        >>> import numpy as np, os, tempfile
        >>> from eepolicy.io import write_atomically
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(f"{folder}/a.npy", lambda path: np.save(path, np.arange(3)))
        ...     os.listdir(folder)
        ['a.npy']
    """
    target = Path(os.path.realpath(path))
    folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not target.is_file():
            write(target)
            return
        folder.mkdir()
        temporary = folder / target.name
        with open(temporary, "x") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777  # 0o666 without the umask
        write(temporary)
        os.chmod(temporary, mode)  # safetensors creates files with mode 0600
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)  # before free space is measured
        raise _write_error(path, error, size) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(folder: Path, stem: str) -> None:
    """Remove what a killed process left of files that it was writing.

    The caller has the lock of these files, so that no other process writes them.

    Args:
        folder: folder of the files.
        stem: name of the files without their last suffix; empty for all files.
    """
    for path in folder.iterdir():
        match = _UNFINISHED.fullmatch(path.name)
        if match and (not stem or match["name"] == stem or match["name"].startswith(f"{stem}.")):
            shutil.rmtree(path, ignore_errors=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write bytes to a file atomically.

    Raises:
        EepolicyError: the file cannot be written.
    """

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_atomically(path, write, len(data))


def write_text(path: str | Path, text: str) -> None:
    """Write text to a file atomically, in UTF-8.

    Raises:
        EepolicyError: the file cannot be written, or the text has characters without UTF-8 form.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise EepolicyError(f"{path} cannot be written as UTF-8: {error}") from error
    write_bytes(path, data)


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Write a value as JSON atomically.

    Args:
        path: the file to write.
        value: a value of JSON types.
        indent: number of spaces per level; one line by default.

    Raises:
        EepolicyError: the file cannot be written.
    """
    write_text(path, json.dumps(value, indent=indent) + "\n")


def as_json(value: Any) -> Any:
    """A value of JSON types as a file gives it back: a tuple becomes a list, a key a text."""
    return json.loads(json.dumps(value))


def write_figure(path: str | Path, figure: Any, **options: Any) -> None:
    """Write a figure of matplotlib atomically.

    Args:
        path: the file; its suffix names the format.
        figure: the figure.
        **options: options of `savefig`.

    Raises:
        EepolicyError: the file cannot be written.
    """
    write_atomically(path, lambda temporary: figure.savefig(temporary, **options))


def make_folder(folder: str | Path) -> None:
    """Create a folder and those above it, if they do not exist.

    Raises:
        EepolicyError: the folder cannot be created.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EepolicyError(f"{folder} cannot be created: {error.strerror or error}") from error


def append_lines(path: str | Path, lines: Iterable[str]) -> None:
    """Append lines to a JSON Lines file and sync it.

    A stopped write can leave a damaged last line.  It is removed first, so that the file stays
    readable.  If appending fails, the file keeps its old length.

    Args:
        path: the file; it is created if it does not exist.
        lines: JSON texts without line ends.

    Raises:
        EepolicyError: the file cannot be written, or a line contains a line end.
    """
    lines = list(lines)
    if any("\n" in line for line in lines):
        raise EepolicyError(f"a line for {path} contains a line end: give one JSON text per line")
    data = "".join(f"{line}\n" for line in lines).encode()
    try:
        is_new = not os.path.exists(path)
        # without a buffer, whose rest would be written when the file is closed after an error
        with open(path, "a+b", buffering=0) as file:
            _repair_end(file)
            length = file.seek(0, os.SEEK_END)
            with contextlib.ExitStack() as undo:
                undo.callback(os.truncate, path, length)
                _write_all(file, data)
                os.fsync(file.fileno())
                undo.pop_all()
        if is_new:
            _sync_folder(Path(path).absolute().parent)
    except OSError as error:
        raise _write_error(path, error, len(data)) from error


def append_line(path: str | Path, line: str) -> None:
    """Append one line to a JSON Lines file: see `append_lines`."""
    append_lines(path, [line])


def read_text(path: str | Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        EepolicyError: the file cannot be read or is not UTF-8.
    """
    return _decode(path).replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: str | Path) -> list[str]:
    """Read the non-blank lines of a text file.

    Only line ends separate lines.  `str.splitlines` also splits at characters such as U+2028,
    which are part of a text.

    Raises:
        EepolicyError: the file cannot be read or is not UTF-8.
    """
    return [line for line in read_text(path).split("\n") if line.strip()]


def beside(folder: Path, suffix: str) -> Path:
    """The path beside a folder, with a suffix to its name.

    The folder of the shell, `.`, has its own name.
    """
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.parent / f"{named.name}{suffix}"


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        EepolicyError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(_decode(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, EepolicyError):
            raise
        raise EepolicyError(f"{path} cannot be read as JSON: {error}") from error


def read_toml(path: str | Path, what: str) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: the file.
        what: what the file should be, such as "a model card", for the message.

    Raises:
        EepolicyError: the file cannot be read or is not TOML.
    """
    try:
        values: dict[str, Any] = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise EepolicyError(f"{path} is not {what} in TOML: {error}") from error
    return values


def read_jsonl(path: str | Path) -> list[Any]:
    """Read the values of a JSON Lines file; a damaged last line is dropped with a warning.

    Raises:
        EepolicyError: the file cannot be read, or a line before the last one is not JSON.
    """
    return [value for _, value in read_numbered_jsonl(path)]


def read_numbered_jsonl(path: str | Path) -> list[tuple[int, Any]]:
    """Read a JSON Lines file with the number of each line, from 1: see `read_jsonl`.

    Blank lines are skipped.  The numbers serve messages about a value.

    Raises:
        EepolicyError: the file cannot be read, or a line before the last one is not JSON.
    """
    data = _read_bytes(path)
    last_end = data.rstrip(b"\n\r ").rfind(b"\n")
    lines = data.split(b"\n")
    last = data[: last_end + 1].count(b"\n")  # index of the last line that is not blank
    values: list[tuple[int, Any]] = []
    for index, line in enumerate(lines):
        try:
            text = line.decode("utf-8-sig" if index == 0 else "utf-8")
            if text.strip():
                values.append((index + 1, json.loads(text)))
        except (ValueError, RecursionError) as error:
            if index < last:
                raise EepolicyError(
                    f"{path}, line {index + 1} is not JSON: {error}; repair or delete the line"
                ) from error
            warnings.warn(
                f"{path}: the last line (line {index + 1}) is damaged and was dropped; "
                "a write was stopped",
                stacklevel=2,
            )
    return values


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise EepolicyError(f"{path} cannot be read: {error.strerror or error}") from error


def _decode(path: str | Path) -> str:
    """Text of a file in UTF-8, line ends unchanged."""
    data = _read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EepolicyError(
            f"{path} is not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}; "
            "save it as UTF-8"
        ) from error


def _write_error(path: str | Path, error: Exception, size: int | None) -> EepolicyError:
    """The error for a failed write: file, reason, and for a full disk the space."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    code = error.errno if isinstance(error, OSError) else None
    # safetensors reports errors of the system as text
    if code in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in reason:
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(Path(path).absolute().parent).free
            needed = "" if size is None else f"{_megabytes(size)} are needed, "
            reason += f" ({needed}{_megabytes(free)} are free); free some space and run it again"
    return EepolicyError(f"{path} cannot be written: {reason}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _sync_folder(folder: Path) -> None:
    """Make a rename durable.  Some file systems cannot sync folders; the rename then stands."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_all(file: FileIO, data: bytes) -> None:
    """Write bytes to a file without a buffer, which may take a part of them at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _repair_end(file: FileIO) -> None:
    """Remove a damaged last line of a JSON Lines file, or end a whole one."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    tail, start = b"", end
    while start > 0 and b"\n" not in tail.rstrip(b"\n"):
        start = max(0, start - _BLOCK)
        file.seek(start)
        tail = file.read(end - start)
    stripped = tail.rstrip(b"\n")
    line_start = stripped.rfind(b"\n") + 1
    try:
        json.loads(stripped[line_start:].decode("utf-8-sig"))
    except (ValueError, RecursionError):
        if stripped[line_start:].strip():
            file.truncate(start + line_start)
        return
    if not tail.endswith(b"\n"):
        file.seek(0, os.SEEK_END)
        _write_all(file, b"\n")
