"""Tables of a bench: headings, cells, and a Markdown section."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eepolicy.analysis.tables import MISSING, markdown_table

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column of a bench table.

    Attributes:
        name: key of a record.
        heading: heading with its unit.
        text: a record's value as a cell.
    """

    name: str
    heading: str
    text: Callable[[Record], str]


def _number(name: str, heading: str, digits: int = 2, scale: float = 1.0, end: str = "") -> Column:
    return Column(name, heading, lambda record: f"{scale * record[name]:.{digits}f}{end}")


def _speedup(record: Record) -> str:
    return f"{record['speedup']:.2f} [{record['speedup_low']:.2f}, {record['speedup_high']:.2f}]"


#: columns of `eepolicy bench`
COLUMNS = (
    _number("layer_calls", "layer calls a token"),
    _number("seconds", "ms a token", scale=1e3),
    Column("speedup", "speed-up over `full`, median [quartiles]", _speedup),
    _number("ideal_speedup", "ideal speed-up"),
    _number("efficiency", "efficiency"),
    _number("roofline_seconds", "roofline, ms", scale=1e3),
    _number("roofline_share", "share of the roofline", 0, 100, " %"),
    _number("ttft", "TTFT, ms", 1, 1e3),
    _number("tpot", "TPOT, ms", scale=1e3),
    _number("tpot_speedup", "TPOT speed-up"),
    _number("tpot_roofline_share", "TPOT, share of the roofline", 0, 100, " %"),
)
#: columns of comparisons with another baseline
READOUTS = _number("readouts", "head calls a token")
LAYER_CALLS, SECONDS = COLUMNS[:2]
SPEEDUP = Column("speedup", "speed-up, median [quartiles]", _speedup)

#: explanation of the columns
LEGEND = (
    "*Ideal speed-up*: time of `full` over that of the policy, if each layer call and each head "
    "call took the time measured for one position per row. The measured prefill is added to both; "
    "it gives the first token if the policy runs it at full depth. *Efficiency*: measured "
    "speed-up, a median over trials, over ideal speed-up, from mean counts; it can exceed 1. "
    "*Roofline*: the time in which the device could read the weights, keys and values that the "
    "steps need, once a step, or compute the products, whichever takes longer. *Share of the "
    "roofline*: roofline over measured time."
)
#: explanation of TTFT and TPOT
LATENCY_LEGEND = (
    "*TTFT*: time to first token, prefill included. *TPOT*: time per output token after the "
    "first, over the tokens of all rows."
)


def shown_columns(records: Sequence[Record], columns: Sequence[Column] = COLUMNS) -> list[Column]:
    """The columns in which any record has a value."""
    return [c for c in columns if not all(np.isnan(record[c.name]) for record in records)]


def cells(record: Record, columns: Iterable[Column]) -> list[str]:
    """Name and values of a contender; a dash for unknown values."""
    values = [column.text(record) for column in columns]
    return [record["decoding"], *(MISSING if "nan" in value else value for value in values)]


def section(records: Sequence[Record]) -> str:
    """Call costs and the table of one batch size, as Markdown."""
    first = records[0]
    layer, head, prefill = (1e3 * first[f"{n}_seconds"] for n in ("layer", "head", "prefill"))
    kernels = f" Kernels compiled so far: {first['kernels']}." if first["kernels"] else ""
    columns = shown_columns(records)
    rows = [[f"`{name}`", *values] for name, *values in (cells(r, columns) for r in records)]
    return (
        f"A layer call takes {layer:.3f} ms, a head call {head:.3f} ms, the prefill of a batch "
        f"{prefill:.1f} ms.{kernels}\n\n"
        + markdown_table(["decoding", *(c.heading for c in columns)], rows)
    )
