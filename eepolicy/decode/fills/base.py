"""What becomes of the keys and values above an exit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

from eepolicy.arguments import checked
from eepolicy.decode.block import Block
from eepolicy.plugin_files import is_file_spec, load_plugin
from eepolicy.registry import Declared, Registry


class FillBatch(Protocol):
    """What a fill may use of a `Batch`."""

    @property
    def full_depth(self) -> int:
        """Number of layers of the model."""

    @property
    def max_pending(self) -> int:
        """Largest number of pending positions of a row."""

    def num_pending(self, row: int) -> int:
        """Number of positions of a row that have not run all layers."""

    def run(self, block: Block, depth: int) -> None:
        """Run a block up to a depth, together with pending columns on the way."""

    def defer(self, block: Block) -> None:
        """Keep the columns of a block pending at its depth."""

    def store_kv(self, block: Block, first: int, stop: int) -> None:
        """Layers `first` to `stop` store keys and values of a block's newest column."""

    def mask_out(self, block: Block, depth: int) -> None:
        """Later positions do not attend to a block's newest column in the layers above `depth`."""

    def mark_computed(self, block: Block) -> None:
        """The columns of a block need none of the layers above it."""


class KVFill(Declared, ABC):
    """Treats the keys and values that an exited position lacks in the layers above its exit.

    A fill is a frozen object without state; one instance serves many batches.  Subclass it to add
    a fill; register it with `FILLS.register` to give it a spec string.

    Examples:
        >>> from eepolicy.decode.fills import KVFill
        >>> class HalfMask(KVFill):
        ...     def on_exit(self, batch, block):
        ...         middle = (block.depth + batch.full_depth) // 2
        ...         batch.store_kv(block, block.depth, middle)
        ...         batch.mask_out(block, middle)
        ...         batch.mark_computed(block)
        >>> model = eepolicy.load("pocket")
        >>> model.generate("What color is snow?", "static@14", fill=HalfMask()).ended
        True
    """

    #: whether exited positions stay pending, so that the cache becomes the full model's
    defers: ClassVar[bool] = False

    @abstractmethod
    def on_exit(self, batch: FillBatch, block: Block) -> None:
        """Treat the layers above `block.depth` for the newest column of each row of a block.

        Use `batch.run` and `batch.defer`; or `batch.store_kv` and `batch.mask_out`, followed by
        `batch.mark_computed`.

        Args:
            batch: batch that decodes.
            block: rows that exit, after `block.depth` layers.
        """


FILLS: Registry[KVFill] = Registry(kind="fill", group="eepolicy.fills")


@checked()
def parse_fill(spec: str) -> KVFill:
    """Build a fill from its spec string.

    Raises:
        EepolicyError: no fill has this name; the message lists the fills.

    Examples:
        >>> from eepolicy.decode.fills import parse_fill
        >>> parse_fill("catch_up")
        CatchUp()
    """
    if is_file_spec(spec):
        return load_plugin(spec, KVFill, "fill")  # type: ignore[type-abstract]
    return FILLS.create(spec.strip())
