"""What a worker of a comparison does: decode replies, and process their speech."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.formats import RecordLine
from eepolicy.analysis.evaluation.measure import Blocks, DecodeItem, decode
from eepolicy.analysis.evaluation.metrics import MetricsSource
from eepolicy.analysis.evaluation.rows import Row, parse_row
from eepolicy.analysis.evaluation.sound import SoundItem, SoundResult, SoundStage
from eepolicy.decode.rebatch import LayerCosts
from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.speech.vocoders import Vocoder, required_vocoder
from eepolicy.workers import Workers

Item: TypeAlias = DecodeItem | SoundItem


@dataclass(frozen=True)
class Decoded:
    """The replies of an item.

    Attributes:
        item: the item.
        lines: the record of each question of its block.
    """

    item: DecodeItem
    lines: list[RecordLine]


StageResult: TypeAlias = Decoded | SoundResult
StageWorkers: TypeAlias = Workers[Item, StageResult]


class Stage:
    """Does the work of an item.  Each model is loaded at the first item that needs it.

    Args:
        decoder: makes the function that decodes an item.
        sound: makes the stage that processes speech.
    """

    def __init__(
        self,
        decoder: Callable[[], Callable[[DecodeItem], Decoded]],
        sound: Callable[[], SoundStage],
    ) -> None:
        self._make_decoder, self._make_sound = decoder, sound
        self._decoder: Callable[[DecodeItem], Decoded] | None = None
        self._sound: SoundStage | None = None

    def __call__(self, item: Item) -> StageResult:
        if isinstance(item, DecodeItem):
            self._decoder = self._decoder or self._make_decoder()
            return self._decoder(item)
        self._sound = self._sound or self._make_sound()
        return self._sound(item)


@dataclass(frozen=True)
class Decoder:
    """Decodes items.

    Attributes:
        model: model that replies.
        blocks: questions, rows and settings.
    """

    model: HookedModel
    blocks: Blocks

    def __call__(self, item: DecodeItem) -> Decoded:
        """Decode the replies of an item."""
        return Decoded(item, decode(self.model, self.blocks, item))


@dataclass(frozen=True)
class DecoderSource:
    """Makes the decoder of a worker; it can be sent to other processes.

    Attributes:
        questions: questions of the comparison.
        rows: its rows, as spec strings where they have one: a policy of a Python file is read from
            that file again.
        config: settings of the run, with `load`.
        costs: measured costs of the model's layers, on which decoding may depend.
        vocoder: vocoder of the model, which the user may have replaced after it was loaded.
    """

    questions: Sequence[Mapping[str, Any]]
    rows: Sequence[str | Row]
    config: RunConfig
    costs: Mapping[bool, LayerCosts]
    vocoder: Vocoder | None

    @classmethod
    def of(cls, blocks: Blocks, model: HookedModel) -> DecoderSource:
        """The source for a comparison, with what was measured and replaced on its model."""
        rows = [_as_text(row) for row in blocks.rows]
        costs = dict(model.measured_costs)
        return cls(blocks.questions, rows, blocks.config, costs, model.vocoder)

    def __call__(self) -> Decoder:
        """Load the model.

        Raises:
            EepolicyError: the settings do not say how.
        """
        if self.config.load is None:
            raise EepolicyError("a worker needs a function that loads the model: give load")
        torch.set_num_threads(1)  # a process per core
        model = self.config.load()
        model.measured_costs.update(self.costs)
        model.vocoder = self.vocoder
        rows = [parse_row(row) if isinstance(row, str) else row for row in self.rows]
        return Decoder(model, Blocks(self.questions, rows, self.config))


@dataclass(frozen=True)
class SoundSource:
    """Makes the stage of a worker that processes speech; it can be sent to other processes.

    Attributes:
        vocoder: turns units into sound.
        metrics: loads the models that score replies.
    """

    vocoder: Vocoder | None
    metrics: MetricsSource

    def __call__(self) -> SoundStage:
        """Load the models."""
        torch.set_num_threads(1)  # a process per core
        return SoundStage(required_vocoder(self.vocoder), self.metrics.load())


def _as_text(row: Row) -> str | Row:
    """The spec string of a row; the row itself if its policy has none."""
    try:
        _ = row.policy.spec
    except EepolicyError:
        return row
    return row.spec
