"""Settings of a comparison, as its run folder stores them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eepolicy.analysis.evaluation.rows import Row
from eepolicy.analysis.evaluation.verdict import Margins
from eepolicy.analysis.stats.sequential import UntilDecided
from eepolicy.decode.config import EarlyExitConfig
from eepolicy.errors import EepolicyError
from eepolicy.fields import Count, Positive, check_fields
from eepolicy.formats import SamplingOption
from eepolicy.hooked import HookedModel
from eepolicy.policies import ExitPolicy
from eepolicy.workers import WorkerConfig


@dataclass(frozen=True)
class RunConfig:
    """Settings of a comparison.

    Attributes:
        policies: rows, as `parse_row` reads them, or policies; None for the default rows.
        decoding: options of early exit that all rows share; each row has its own policy.
        sampling: sampling options such as `temperature` and `top_p`; greedy decoding if empty.
        seeds: number of replies per policy and question.  They count as one reply.
        max_new_tokens: maximum number of tokens per reply.
        calibration: questions on which the thresholds of the default rows are calibrated.
        batch: number of questions that are decoded together.
        timed: number of questions that are timed, each reply alone; 0 for none.
        compile_timed: compile the layers of the timed replies.  Compiling for large batches takes
            longer than it saves on hundreds of replies, so `decoding` need not compile.
        rated: number of questions whose replies get a predicted MOS, if there is a rater.
        workers: processes for speech, which also decode if there is `load`; a number for processes
            of this machine.  With 0 this process does all the work.
        load: loads the model in a worker, which then decodes replies too; None to decode in this
            process alone.  Workers must be able to pickle it.
        margins: largest losses against full depth that count as not worse.
        looks: go on with more questions until every row is decided; None to ask all at once.

    Raises:
        EepolicyError: a number is too small, or there are several seeds without sampling.
    """

    policies: Sequence[str | ExitPolicy] | None = None
    decoding: EarlyExitConfig = field(default_factory=EarlyExitConfig)
    sampling: Mapping[str, SamplingOption] = field(default_factory=dict)
    seeds: Positive = 1
    max_new_tokens: Positive = 400
    calibration: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    batch: Positive = 50
    timed: Count = 12
    compile_timed: bool = False
    rated: Count = 24
    workers: WorkerConfig | Count = 0
    load: Callable[[], HookedModel] | None = field(default=None, repr=False)
    margins: Margins = field(default_factory=Margins)
    looks: UntilDecided | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.seeds > 1 and not self.sampling:
            raise EepolicyError(
                "greedy decoding gives the same reply for every seed; "
                f"got {self.seeds} seeds without sampling: give a temperature, or one seed"
            )

    @property
    def worker_config(self) -> WorkerConfig:
        """Where the work runs."""
        return WorkerConfig.of(self.workers)

    def generate_options(self, row: Row, timed: bool = False) -> dict[str, Any]:
        """Options of `HookedModel.generate` for the replies of a row.

        Args:
            row: the row.
            timed: whether the reply is timed.
        """
        config = row.decoding(self.decoding)
        if timed and self.compile_timed:
            config = config.replace(compile=True)
        # a model's own generation config may sample
        sampling = self.sampling or {"do_sample": False}
        return {"config": config, "max_new_tokens": self.max_new_tokens, **sampling}

    def to_dict(self) -> dict[str, Any]:
        """The settings that all records of a run share, as JSON types."""
        return {
            "decoding": self.decoding.to_dict(),
            "sampling": dict(self.sampling),
            "max_new_tokens": self.max_new_tokens,
            "batch": self.batch,
            "compile_timed": self.compile_timed,
        }
