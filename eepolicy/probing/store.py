"""Storage of readouts while a probe runs: in memory, or in a folder from which it can resume."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eepolicy.errors import EepolicyError
from eepolicy.folder_lock import LOCK
from eepolicy.formats import parse
from eepolicy.io import as_json, make_folder, read_json, write_json
from eepolicy.probing.documents import LABELS
from eepolicy.probing.formats import ProbeIdentity, ProbeProgress

#: arrays by name, (readouts, ...) each
Columns = dict[str, NDArray[Any]]

#: file that says how many readouts of a folder are complete
PROGRESS = "probe.json"


class MemoryStore:
    """Keeps columns in memory.

    Attributes:
        documents: number of documents that were stored before: none.
    """

    documents = 0

    def __init__(self) -> None:
        self.parts: list[Columns] = []

    def skip(self, tokens: NDArray[np.int64], prompt: int, extra: bytes = b"") -> bool:
        """Whether a document is already stored: never."""
        return False

    def finish(self) -> None:
        """End the probe."""

    def add(self, columns: Columns) -> None:
        """Add the readouts of one document, (readouts, ...) each."""
        self.parts.append(columns)

    def columns(self) -> Columns:
        """All readouts, in the order of the documents."""
        return {name: np.concatenate([p[name] for p in self.parts]) for name in self.parts[0]}


class FolderStore:
    """Appends columns to `.npy` files, one document at a time.

    After each document, `probe.json` states the number of complete readouts.  A stopped probe
    resumes after the last complete document and overwrites what the files contain beyond it.

    Args:
        path: new or empty folder, or the folder of the same probe.
        identity: everything that the numbers depend on, as JSON types.

    Raises:
        EepolicyError: the folder contains something else.
    """

    def __init__(self, path: str | Path, identity: dict[str, Any]) -> None:
        self.path = Path(path)
        self.progress: dict[str, Any] = {
            "identity": as_json(identity),
            "documents": 0,
            "readouts": 0,
            "seen": "",
        }
        self._count, self._digest = 0, ""
        make_folder(self.path)
        if (self.path / PROGRESS).exists():
            stored = read_progress(self.path)
            for name, value in self.progress["identity"].items():
                if stored["identity"].get(name) != value:
                    raise EepolicyError(
                        f"{self.path} contains a probe with another {name}: "
                        f"{stored['identity'].get(name)!r}, not {value!r}; choose another folder"
                    )
            self.progress = stored
        elif any(file.name != LOCK for file in self.path.iterdir()):
            raise EepolicyError(
                f"{self.path} contains files but no probe; choose a new or empty folder"
            )
        else:
            self._write_progress()

    @property
    def documents(self) -> int:
        """Number of stored documents."""
        return int(self.progress["documents"])

    def skip(self, tokens: NDArray[np.int64], prompt: int, extra: bytes = b"") -> bool:
        """Whether a document is already stored.

        Args:
            tokens: (tokens,) ids of the document.
            prompt: length of its prompt.
            extra: what else was given with the document.

        Raises:
            EepolicyError: the folder was begun with other documents.
        """
        chained = f"{self._digest} {prompt} ".encode() + tokens.tobytes() + extra
        self._digest = hashlib.sha256(chained).hexdigest()
        if self._count == self.progress["documents"]:
            return False
        self._count += 1
        if self._count == self.progress["documents"] and self._digest != self.progress["seen"]:
            raise self._mismatch("other documents, or the same in another order")
        return True

    def finish(self) -> None:
        """End the probe.

        Raises:
            EepolicyError: the folder contains more documents than were given.
        """
        if self._count < self.progress["documents"]:
            raise self._mismatch(
                f"{self.progress['documents']} documents, and {self._count} were given"
            )

    def add(self, columns: Columns) -> None:
        """Add the readouts of one document, (readouts, ...) each."""
        complete = self.progress["readouts"]
        for name, new in columns.items():
            _append(self.path / f"{name}.npy", np.ascontiguousarray(new), complete)
        self.progress["readouts"] = complete + len(next(iter(columns.values())))
        self.progress["documents"] += 1
        self.progress["seen"] = self._digest
        self._count += 1
        self._write_progress()

    def columns(self) -> Columns:
        """All readouts, memory-mapped."""
        return read_columns(self.path)

    def _mismatch(self, what: str) -> EepolicyError:
        return EepolicyError(f"{self.path} was begun with {what}; choose another folder")

    def _write_progress(self) -> None:
        write_json(self.path / PROGRESS, self.progress)


def read_progress(path: Path) -> dict[str, Any]:
    """Read `probe.json`.

    Raises:
        EepolicyError: it is missing or damaged.
    """
    file = path / PROGRESS
    if not file.is_file():
        raise EepolicyError(f"{path} contains no probe: it has no {PROGRESS}")
    progress = parse(ProbeProgress, read_json(file), str(file))
    parse(ProbeIdentity, progress.identity, f"{file}, identity")
    return progress.model_dump(exclude={"version"})


def read_columns(path: Path) -> Columns:
    """Memory-map the columns of a folder, up to the last complete document.

    Raises:
        EepolicyError: a file is missing or damaged.
    """
    progress = read_progress(path)
    readouts, identity = progress["readouts"], progress["identity"]
    try:
        columns = {
            file.stem: np.load(file, mmap_mode="r")[:readouts]
            for file in path.glob("*.npy")
            if file.is_file()
        }
    except (EOFError, IndexError, OSError, ValueError) as error:
        raise EepolicyError(f"the probe in {path} cannot be read: {error}") from error
    if readouts:
        _check_columns(path, columns, identity, readouts)
    return columns


def _check_columns(path: Path, columns: Columns, identity: dict[str, Any], readouts: int) -> None:
    """Refuse columns that are missing, cut short, or of another shape or type.

    Raises:
        EepolicyError: with the file.
    """
    expected = dict.fromkeys((*LABELS, "document"), 1) | dict.fromkeys(identity["statistics"], 2)
    for name, ndim in expected.items():
        if name not in columns:
            raise EepolicyError(f"the probe in {path} is damaged: {name}.npy is missing")
        column = columns[name]
        if len(column) < readouts:
            raise EepolicyError(f"the probe in {path} is damaged: {name}.npy is cut short")
        shape = (readouts, len(identity["depths"]))[:ndim]
        if column.shape != shape or column.dtype.kind not in ("iu" if ndim == 1 else "iufb"):
            raise EepolicyError(
                f"the probe in {path} is damaged: {name}.npy is {column.shape} of {column.dtype}, "
                f"not {shape} of numbers"
            )


def _append(path: Path, new: NDArray[Any], complete: int) -> None:
    """Write rows to a `.npy` file after its complete ones, and drop those beyond.

    numpy pads the header of a file, so that the first dimension can grow without a move.
    """
    if complete == 0:
        np.save(path, new)
        return
    with open(path, "r+b") as file:
        version = np.lib.format.read_magic(file)
        assert version == (1, 0)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
        file.seek(start + complete * int(np.prod(shape[1:])) * dtype.itemsize)
        file.write(new.tobytes())
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": fortran,
            "shape": (complete + len(new), *shape[1:]),
        }
        np.lib.format.write_array_header_1_0(file, header)
        assert file.tell() == start
