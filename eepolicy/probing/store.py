"""Where readouts are kept while a probe runs: in memory, or in a folder that can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eepolicy.errors import EepolicyError

Columns = dict[str, NDArray[Any]]

#: the file that says how far a folder's probe is
PROGRESS = "probe.json"


class Memory:
    """Keeps columns in memory."""

    def __init__(self) -> None:
        self.parts: list[Columns] = []

    def skip(self, tokens: NDArray[np.int64], prompt: int) -> bool:
        """Whether a document has been done: never."""
        return False

    def finish(self) -> None:
        """All documents have been given."""

    def add(self, columns: Columns) -> None:
        """The readouts of one document, (readouts, ...) each."""
        self.parts.append(columns)

    def columns(self) -> Columns:
        """Everything that was added, documents one behind the other."""
        return {name: np.concatenate([p[name] for p in self.parts]) for name in self.parts[0]}


class Folder:
    """Appends columns to `.npy` files, a document at a time.

    After each document, `probe.json` says how many readouts are whole.  A run that was stopped is
    taken up behind the last whole document; what lies behind it in the files is cut off.

    Args:
        path: a new or empty folder, or one of a probe of the same kind.
        identity: what the readouts depend on, as JSON.

    Raises:
        EepolicyError: the folder holds something else.
    """

    def __init__(self, path: str | Path, identity: dict[str, Any]) -> None:
        self.path = Path(path)
        self.state: dict[str, Any] = {
            "identity": json.loads(json.dumps(identity)),
            "documents": 0,
            "readouts": 0,
            "seen": "",
        }
        self._given, self._seen = 0, ""
        self.path.mkdir(parents=True, exist_ok=True)
        if (self.path / PROGRESS).exists():
            found = read_progress(self.path)
            for name, value in self.state["identity"].items():
                if found["identity"].get(name) != value:
                    raise EepolicyError(
                        f"{self.path} holds a probe with another {name}: "
                        f"{found['identity'].get(name)!r}, not {value!r}; take another folder"
                    )
            self.state = found
        elif any(self.path.iterdir()):
            raise EepolicyError(f"{self.path} holds files that are no probe; take another folder")
        else:
            self._write()

    def skip(self, tokens: NDArray[np.int64], prompt: int) -> bool:
        """Whether a document, by its ids (tokens,) and how many are its prompt, was done before.

        Raises:
            EepolicyError: the folder was begun with other documents.
        """
        told = f"{self._seen} {prompt} ".encode() + tokens.tobytes()
        self._seen = hashlib.sha256(told).hexdigest()
        if self._given == self.state["documents"]:
            return False
        self._given += 1
        if self._given == self.state["documents"] and self._seen != self.state["seen"]:
            raise self._other("other documents, or these in another order")
        return True

    def finish(self) -> None:
        """All documents have been given.

        Raises:
            EepolicyError: the folder holds more.
        """
        if self._given < self.state["documents"]:
            raise self._other(f"{self.state['documents']} documents, and {self._given} were given")

    def _other(self, what: str) -> EepolicyError:
        return EepolicyError(f"{self.path} was begun with {what}; take another folder")

    def add(self, columns: Columns) -> None:
        """The readouts of one document, (readouts, ...) each."""
        before = self.state["readouts"]
        for name, new in columns.items():
            _append(self.path / f"{name}.npy", np.ascontiguousarray(new), before)
        self.state["readouts"] = before + len(next(iter(columns.values())))
        self.state["documents"] += 1
        self.state["seen"] = self._seen
        self._given += 1
        self._write()

    def _write(self) -> None:
        part = self.path / f"{PROGRESS}.part"
        with open(part, "w") as file:
            file.write(json.dumps(self.state))
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path / PROGRESS)

    def columns(self) -> Columns:
        """Everything that was added, mapped into memory."""
        return read_columns(self.path)


def read_progress(path: Path) -> dict[str, Any]:
    """What `probe.json` says.

    Raises:
        EepolicyError: there is none that can be read.
    """
    try:
        found: dict[str, Any] = json.loads((path / PROGRESS).read_text())
        if not {"identity", "documents", "readouts", "seen"} <= found.keys():
            raise ValueError(f"{PROGRESS} is of another kind")
        return found
    except (OSError, ValueError, AttributeError) as error:
        raise EepolicyError(f"{path} holds no probe: {error}") from error


def read_columns(path: Path) -> Columns:
    """The columns of a folder, mapped into memory, up to the last whole document.

    Raises:
        EepolicyError: a file is missing or damaged.
    """
    readouts = read_progress(path)["readouts"]
    try:
        found = {file.stem: np.load(file, mmap_mode="r")[:readouts] for file in path.glob("*.npy")}
    except (OSError, ValueError) as error:
        raise EepolicyError(f"the probe in {path} cannot be read: {error}") from error
    short = [name for name, column in found.items() if len(column) < readouts]
    if short:
        raise EepolicyError(f"the probe in {path} is damaged: {short[0]}.npy is cut short")
    return found


def _append(path: Path, new: NDArray[Any], before: int) -> None:
    """Append rows to a `.npy` file behind its first `before` ones.

    numpy leaves room in the header for the first axis to grow.
    """
    if before == 0:
        np.save(path, new)
        return
    with open(path, "r+b") as file:
        version = np.lib.format.read_magic(file)
        assert version == (1, 0)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
        file.seek(start + before * int(np.prod(shape[1:])) * dtype.itemsize)
        file.write(new.tobytes())
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": fortran,
            "shape": (before + len(new), *shape[1:]),
        }
        np.lib.format.write_array_header_1_0(file, header)
        assert file.tell() == start
