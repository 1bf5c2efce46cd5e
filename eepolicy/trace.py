"""What decoding records of every generated position."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from eepolicy.errors import EepolicyError
from eepolicy.modality import Modality

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Trace:
    """One entry for every generated token, in order.

    Attributes:
        token: (tokens,) id.
        modality: (tokens,) of the place, as the alternation has it, see `Modality`.
        chunk: (tokens,) number of the chunk, from 0.
        phase: (tokens,) place in the chunk, from 0.
        depth: (tokens,) after which the token was read out (of the oracle: could have been).
        since_refresh: (tokens,) positions since the last one at full depth, 0 at full depth.
        readouts: (tokens,) head evaluations paid, that of the exit included.
        layer_calls: (tokens,) calls of a layer, each on one position or a block of several.
        layer_positions: (tokens,) positions through layers, those that were caught up included.
        filled: (tokens,) layers that stored keys and values alone, see `eepolicy.Fill`.
        draft_status: (tokens,) 0: not judged; 1: read out early, judged and kept; 2: in place of a
            rejected one, whose costs it bears.  See `eepolicy.decode.acceptance`.
        full_depth: layers of the model.
        prefill_layer_calls: calls of a layer for the prompt alone, not counted above; 0 where it
            went along with the first token, or was nothing but it.  Its positions are not counted
            above either way.
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
    draft_status: NDArray[np.int64]
    full_depth: int
    prefill_layer_calls: int

    def __len__(self) -> int:
        return len(self.token)

    def __repr__(self) -> str:
        names = [m.name.lower() for m in Modality]
        counts = " + ".join(f"{(self.modality == Modality[n.upper()]).sum()} {n}" for n in names)
        depths = " and ".join(f"{self.mean_depth(n):.2f}" for n in names)
        return f"Trace({counts} tokens, mean depth {depths} of {self.full_depth})"

    def mean_depth(self, modality: str) -> float:
        """Depth at which tokens of a modality were read out, on average; nan where there is none.

        Args:
            modality: `"text"` or `"speech"`.

        Raises:
            EepolicyError: another modality.
        """
        if modality.upper() not in Modality.__members__:
            raise EepolicyError(f"a modality is 'text' or 'speech'; got {modality!r}")
        depths = self.depth[self.modality == Modality[modality.upper()]]
        return float(depths.mean()) if len(depths) else float("nan")

    def __getitem__(self, which: slice | NDArray[np.bool_]) -> Trace:
        """Some of the tokens: a slice of them, or (tokens,) of bool.

        Examples:
            >>> trace = eepolicy.load("pocket").generate("What color is snow?").trace
            >>> set(trace[trace.modality == eepolicy.Modality.TEXT].depth.tolist())
            {20}
        """
        return replace(self, **{name: column[which] for name, column in self._columns().items()})

    def to_pandas(self) -> pd.DataFrame:
        """One row a token, one column an attribute; the modality as `text` or `speech`."""
        import pandas as pd

        names = np.array([m.name.lower() for m in Modality])
        return pd.DataFrame(self._columns() | {"modality": names[self.modality]})

    def save(self, path: str | Path) -> None:
        """Write the trace: columns as safetensors, what is one number as JSON in its header."""
        path = Path(path)
        part = path.with_name(f"{path.name}.part")
        rest = {"full_depth": self.full_depth, "prefill_layer_calls": self.prefill_layer_calls}
        # safetensors writes memory as it lies: columns of a table must be laid out one by one
        columns = {name: np.ascontiguousarray(c) for name, c in self._columns().items()}
        save_file(columns, part, {"trace": json.dumps(rest)})
        part.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace that `save` wrote.

        Raises:
            EepolicyError: the file is no trace.
        """
        try:
            with safe_open(path, "np") as file:
                rest = json.loads(file.metadata()["trace"])
                return cls(**{name: file.get_tensor(name) for name in file.keys()}, **rest)  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise EepolicyError(f"{path} is no trace: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The trace as plain JSON types."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Trace:
        """The trace that `to_dict` wrote."""
        read: dict[str, Any] = {
            k: np.array(v, np.int64) if isinstance(v, list) else v for k, v in plain.items()
        }
        return cls(**read)

    def _columns(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}

    @classmethod
    def from_rows(
        cls, rows: Sequence[Sequence[int]], full_depth: int, prefill_layer_calls: int
    ) -> Trace:
        """A trace from one tuple a token, in the order of the attributes."""
        names = [f.name for f in fields(cls)][:-2]
        columns = np.array(rows, np.int64).reshape(-1, len(names)).T
        return cls(
            **dict(zip(names, columns, strict=True)),
            full_depth=full_depth,
            prefill_layer_calls=prefill_layer_calls,
        )
