"""What decoding records of every generated token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from eepolicy.arguments import checked
from eepolicy.errors import EepolicyError
from eepolicy.fields import Count, build, check_value
from eepolicy.formats import TraceHeader, parse
from eepolicy.io import write_atomically
from eepolicy.modality import Modality
from eepolicy.tensor_files import open_tensors

if TYPE_CHECKING:
    import pandas as pd


class DraftStatus(IntEnum):
    """What verification did with a token."""

    #: not verified: read out at full depth, or accepted without verification
    UNVERIFIED = 0
    #: drafted by an early exit, verified and accepted
    ACCEPTED = 1
    #: replaces a rejected draft, and carries the costs of all rejected drafts
    REPLACEMENT = 2


@dataclass(slots=True)
class TokenCost:
    """Computation of one token.

    Attributes:
        readouts: evaluations of an exit head or of the output embedding.
        layer_calls: calls of a layer, each on a block of one or more positions.
        layer_positions: positions that went through a layer, pending ones included.
        filled: layers that stored keys and values only.
        branch_calls: those of the layer calls that were calls of a layer of an exit head.
    """

    readouts: int = 0
    layer_calls: int = 0
    layer_positions: int = 0
    filled: int = 0
    branch_calls: int = 0

    def __add__(self, other: TokenCost) -> TokenCost:
        return TokenCost(
            self.readouts + other.readouts,
            self.layer_calls + other.layer_calls,
            self.layer_positions + other.layer_positions,
            self.filled + other.filled,
            self.branch_calls + other.branch_calls,
        )

    def __sub__(self, other: TokenCost) -> TokenCost:
        return TokenCost(
            self.readouts - other.readouts,
            self.layer_calls - other.layer_calls,
            self.layer_positions - other.layer_positions,
            self.filled - other.filled,
            self.branch_calls - other.branch_calls,
        )


@dataclass(slots=True)
class TraceEntry:
    """One token of a `Trace`; the attributes of `Trace` explain the fields."""

    token: int
    modality: int
    chunk: int
    phase: int
    depth: int
    since_refresh: int
    cost: TokenCost
    draft_status: DraftStatus = DraftStatus.UNVERIFIED


def _check_column(name: str, column: Any, tokens: int) -> None:
    """Refuse a column that is not (tokens,) of integers."""
    is_column = isinstance(column, np.ndarray) and column.ndim == 1 and column.dtype.kind in "iu"
    if not is_column or len(column) != tokens:
        raise EepolicyError(
            f"Trace: {name}: expected ({tokens},) of integers, one for each token; got "
            f"{column!r:.80}"
        )


def _column(values: list[Any]) -> Any:
    """Whole numbers as (tokens,) of int64; other lists stay as they are, and `Trace` refuses."""
    is_whole = all(type(value) is int for value in values)
    return np.array(values, np.int64) if is_whole else values


@dataclass(frozen=True, eq=False)
class Trace:
    """The tokens of a reply, in order, with their depths and costs.

    Attributes:
        token: (tokens,) id.
        modality: (tokens,) modality that the alternation of chunks expects; see `Modality`.
        chunk: (tokens,) number of the chunk, from 0.
        phase: (tokens,) index in the chunk, from 0.
        depth: (tokens,) depth at which the token was read out.  A policy with `needs_full_pass`
            records the depth that would have sufficed.
        since_refresh: (tokens,) positions since the last one at full depth; 0 at full depth.
        readouts: (tokens,) head evaluations, the one at the exit included.
        layer_calls: (tokens,) calls of a layer, each on one position or on a block of several.
        layer_positions: (tokens,) positions that went through a layer, pending ones included.
        filled: (tokens,) layers that stored keys and values only; see `eepolicy.decode.fills`.
        branch_calls: (tokens,) those of the layer calls that were calls of a layer of an exit head;
            see `eepolicy.heads.BranchHead`.
        draft_status: (tokens,) see `DraftStatus`.
        full_depth: number of layers of the model.
        prefill_layer_calls: layer calls of a separate prefill, not included above.  0 where the
            prompt runs in the same calls as the first token, or has one token.  Positions of the
            prompt are never included above.
    """

    token: NDArray[np.int64]
    modality: NDArray[np.int64]
    chunk: NDArray[np.int64]
    phase: NDArray[np.int64]
    depth: NDArray[np.int64]
    since_refresh: NDArray[np.int64]
    readouts: NDArray[np.int64]
    layer_calls: NDArray[np.int64]
    layer_positions: NDArray[np.int64]
    filled: NDArray[np.int64]
    branch_calls: NDArray[np.int64]
    draft_status: NDArray[np.int64]
    full_depth: int
    prefill_layer_calls: int

    def __post_init__(self) -> None:
        for name in ("full_depth", "prefill_layer_calls"):
            check_value(f"Trace: {name}", Count, getattr(self, name))
        for name, column in vars(self).items():
            if name not in ("full_depth", "prefill_layer_calls"):
                _check_column(name, column, np.size(self.token))

    def __len__(self) -> int:
        return len(self.token)

    def __repr__(self) -> str:
        present = [m.name.lower() for m in Modality if (self.modality == m).any()]
        counts = " + ".join(f"{(self.modality == Modality[n.upper()]).sum()} {n}" for n in present)
        depths = " and ".join(f"{self.mean_depth(n):.2f}" for n in present)
        return f"Trace({counts or 0} tokens, mean depth {depths or '-'} of {self.full_depth})"

    @checked()
    def mean_depth(self, modality: str) -> float:
        """Mean depth of the tokens of a modality, with their branch calls; nan if there are none.

        Args:
            modality: `"text"` or `"speech"`.

        Raises:
            EepolicyError: the modality is neither of these.
        """
        if modality.upper() not in Modality.__members__:
            raise EepolicyError(f"a modality is 'text' or 'speech'; got {modality!r}")
        depths = (self.depth + self.branch_calls)[self.modality == Modality[modality.upper()]]
        return float(depths.mean()) if len(depths) else float("nan")

    def __getitem__(self, which: slice | NDArray[np.bool_]) -> Trace:
        """Select tokens by a slice or a mask, (tokens,) of bool.

        Examples:
            >>> trace = eepolicy.load("pocket").generate("What color is snow?").trace
            >>> set(trace[trace.modality == eepolicy.Modality.TEXT].depth.tolist())
            {20}
        """
        return replace(self, **{name: column[which] for name, column in self._columns().items()})

    def to_pandas(self) -> pd.DataFrame:
        """A table with a row a token and a column an attribute; modality as `text` or `speech`."""
        import pandas as pd

        names = np.array([m.name.lower() for m in Modality])
        return pd.DataFrame(self._columns() | {"modality": names[self.modality]})

    def save(self, path: str | Path) -> None:
        """Write the trace: columns as safetensors, scalars as JSON in the header."""
        header = TraceHeader(
            full_depth=self.full_depth, prefill_layer_calls=self.prefill_layer_calls
        )
        metadata = {"trace": header.model_dump_json()}
        # safetensors writes memory in storage order: columns must be contiguous
        columns = {name: np.ascontiguousarray(c) for name, c in self._columns().items()}
        write_atomically(path, lambda part: save_file(columns, part, metadata))

    @classmethod
    @checked()
    def load(cls, path: str | Path) -> Trace:
        """Read a trace that `save` wrote.

        Raises:
            EepolicyError: the file is not a trace.
        """
        with open_tensors(path, "trace", "a trace", "np") as (values, file):
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = parse(TraceHeader, values, str(path))
        missing = sorted({f.name for f in fields(cls)[:-2]} ^ columns.keys())
        lengths = {column.shape for column in columns.values()}
        if missing or len(lengths) != 1 or len(next(iter(lengths))) != 1:
            raise EepolicyError(
                f"{path} is not a trace: its columns are {', '.join(sorted(columns))} with shapes "
                f"{', '.join(map(str, lengths))}; expected one value a token in each column"
            )
        return cls(**columns, **header.model_dump(exclude={"version"}))

    def to_dict(self) -> dict[str, Any]:
        """The trace as plain JSON types."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}

    @classmethod
    @checked()
    def from_dict(cls, plain: dict[str, Any]) -> Trace:
        """The trace that `to_dict` wrote."""
        return build(cls, {k: _column(v) if isinstance(v, list) else v for k, v in plain.items()})

    def _columns(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}

    @classmethod
    def from_entries(
        cls, entries: Sequence[TraceEntry], full_depth: int, prefill_layer_calls: int
    ) -> Trace:
        """Build a trace from one entry a token."""
        costs = [entry.cost for entry in entries]
        columns = {}
        for name in [f.name for f in fields(cls)][:-2]:
            rows = costs if name in TokenCost.__slots__ else entries
            columns[name] = np.array([getattr(row, name) for row in rows], np.int64)
        return cls(**columns, full_depth=full_depth, prefill_layer_calls=prefill_layer_calls)
