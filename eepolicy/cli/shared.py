"""What the commands share: the application, options, consoles, progress."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eepolicy.errors import EepolicyError

if TYPE_CHECKING:
    import torch

    from eepolicy.hooked import HookedModel

T = TypeVar("T")

app = typer.Typer(
    help="Early exit for language models that speak.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
# a table that is piped is as wide as it needs to be
out = Console(width=None if sys.stdout.isatty() else 140)
err = Console(stderr=True)

ModelOption = Annotated[
    str, typer.Option(help="'pocket', a folder, or the id of a causal language model on the Hub")
]
FillOption = Annotated[
    str, typer.Option(help="keys and values above an exit: catch_up, propagate, mask")
]
AcceptOption = Annotated[
    str, typer.Option(help="tokens read out early, once caught up: all, exact, ratio:0.3 ...")
]
ThreadsOption = Annotated[
    int, typer.Option(help="CPU threads; for the pocket model one is fastest", min=1)
]
CompileOption = Annotated[
    bool,
    typer.Option("--compile", help="compile what is computed first: seconds once, then faster"),
]
RestrictVocabOption = Annotated[
    bool, typer.Option("--restrict-vocab", help="read speech out over its own ids alone: cheaper")
]


def _leave_stdout(as_json: bool) -> bool:
    """With --json stdout is the document's alone: what is said to people goes to stderr."""
    out.stderr = as_json
    return as_json


JsonOption = Annotated[
    bool, typer.Option("--json", callback=_leave_stdout, help="for machines: JSON on stdout")
]
DtypeOption = Annotated[str, typer.Option(help="of the weights: float32, bfloat16 or float16")]


def torch_dtype(name: str) -> torch.dtype:
    """The kind of numbers that a name stands for.

    Raises:
        EepolicyError: none of those that models are loaded in.
    """
    import torch

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in kinds:
        raise EepolicyError(f"--dtype is {', '.join(kinds)}; got {name!r}")
    return kinds[name]


def load(model: str, **options: Any) -> HookedModel:
    """Load a model without the bar that transformers shows."""
    from transformers.utils import logging

    import eepolicy

    logging.disable_progress_bar()  # loading takes a second
    return eepolicy.load(model, **options)


def progress(
    what: str, detail: Callable[[Any], str] = lambda _: ""
) -> Callable[[Iterable[T]], Iterator[T]]:
    """Wraps items with a bar that shows the time left, and vanishes when it is piped.

    Args:
        what: the items are.
        detail: shown of the one at hand.
    """

    def shown(items: Iterable[T]) -> Iterator[T]:
        known = list(items)
        bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=err,
            transient=True,
        )
        with bar:
            task = bar.add_task(what, total=len(known), detail="")
            for item in known:
                bar.update(task, detail=detail(item))
                yield item
                bar.advance(task)

    return shown


def tell(document: Any) -> None:
    """The result for machines, as one line on stdout; what is not finite becomes null.

    Args:
        document: of what JSON has, numbers of numpy, paths, and tables, a record a row.
    """
    written = json.dumps(document, default=_plain)
    print(json.dumps(json.loads(written, parse_constant=lambda _: None)))


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict("records")
    return value.item() if hasattr(value, "item") else os.fspath(value)


def say(sentence: str) -> None:
    """An error, as one sentence."""
    err.print(f"eepolicy: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)


def hint(sentence: str) -> None:
    """What is worth knowing and no error."""
    err.print(sentence, style="yellow", highlight=False, markup=False, soft_wrap=True)


def note(sentence: str) -> None:
    """What was done, beside the result."""
    out.print(sentence, style="dim", highlight=False, markup=False, soft_wrap=True)


def numbers(written: str, what: str = "depths", like: str = "4,8,12") -> list[int]:
    """Depths, or other numbers, as they are written on the command line."""
    try:
        return [int(n) for n in written.split(",")]
    except ValueError:
        raise EepolicyError(f"{what} are numbers such as {like}; got {written!r}") from None
