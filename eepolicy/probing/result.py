"""The result of a probe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from eepolicy.arguments import checked
from eepolicy.errors import EepolicyError
from eepolicy.fields import with_method
from eepolicy.modality import Modality
from eepolicy.model.backbone import Backbone
from eepolicy.probing.documents import LABELS
from eepolicy.probing.plan import ProbePlan
from eepolicy.probing.plot import Plots
from eepolicy.probing.result_html import result_html
from eepolicy.probing.statistics import STATISTICS, Statistic, settling
from eepolicy.probing.statistics.flips import PATIENCE, flips_after_settling
from eepolicy.probing.store import read_columns, read_progress

if TYPE_CHECKING:
    import pandas as pd

#: columns that are no statistics
OTHER_COLUMNS = frozenset(
    (*LABELS, "document", "top_tokens", "top_probabilities", "hidden_states", "distributions")
)
#: how tokenizers write a space, and how it is shown
_SPACES = str.maketrans("Ġ▁", "··")


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """Statistics of readouts at some depths and positions.

    A statistic is an attribute, (depths, tokens), the deepest last.  `STATISTICS` describes those
    of the library.  The default ones are `top1`, `entropy`, `confidence`, `margin`, `rank_last`,
    `probability_last`, `rank_next`, `probability_next`, `kl`, `kl_reverse`, `js`, `cosine_last`,
    `norm_last`, `cosine_previous` and `norm_previous`.  Where a layer did not run (see
    `generate(record=True)`), the value is nan, or -1 for integers.

    Attributes:
        depths: (depths,) depths of the readouts, rising.
        columns: arrays by name, tokens first.
        full_depth: number of layers of the model.
        vocabulary: size of the vocabulary.
        hidden_depths: depths of `hidden_states`.
        distribution_depths: depths of `distributions`.
        tokenizer: shows tokens; None shows ids.
        definitions: the user's statistics among the columns.
        document: (tokens,) number of the document.
        position: (tokens,) position of the readout in the document.
        token: (tokens,) id at the position.
        next: (tokens,) id that follows, -1 where none does.
        modality: (tokens,) modality of the next position, see `Document.labels` and `Modality`.
        chunk: (tokens,) number of its chunk, from 0.
        phase: (tokens,) its index in the chunk, from 0.
        depth_used: (tokens,) depth at which decoding read the token out; full depth otherwise.
        top_tokens: (depths, tokens, k) ids of the most probable tokens, with `top_k`.
        top_probabilities: (depths, tokens, k) their probabilities.
        hidden_states: (hidden depths, tokens, width), if they were kept.
        distributions: (distribution depths, tokens, vocabulary) log-probabilities, if kept.
    """

    depths: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]
    full_depth: int
    vocabulary: int
    hidden_depths: tuple[int, ...] = ()
    distribution_depths: tuple[int, ...] = ()
    tokenizer: PreTrainedTokenizerBase | None = None
    definitions: tuple[Statistic, ...] = ()

    @classmethod
    def of(
        cls, backbone: Backbone, plan: ProbePlan, columns: dict[str, NDArray[Any]]
    ) -> ProbeResult:
        """The columns that a plan made of a model."""
        return cls(
            np.array(plan.depths),
            columns,
            backbone.depth,
            backbone.vocab_size,
            plan.hidden_states,
            plan.distributions,
            definitions=_of_users(plan.statistics),
        )

    @classmethod
    @checked("tokenizer")
    def load(
        cls,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        statistics: Iterable[Statistic] = (),
    ) -> ProbeResult:
        """Memory-map a folder that `probe(save=...)` wrote.

        Of a stopped probe, the complete documents are read.

        Args:
            folder: folder of the probe.
            tokenizer: shows tokens; None shows ids.
            statistics: the user's statistics of the probe.  Without them their columns are read
                too, and tables and plots know only their names.

        Raises:
            EepolicyError: the folder contains no probe, or a damaged one.
        """
        folder = Path(folder)
        identity = read_progress(folder)["identity"]
        return cls(
            depths=np.array(identity["depths"]),
            columns=read_columns(folder),
            full_depth=identity["model"]["num_hidden_layers"],
            vocabulary=identity["model"]["vocab_size"],
            hidden_depths=tuple(identity["hidden_states"]),
            distribution_depths=tuple(identity["distributions"]),
            tokenizer=with_method(tokenizer, "tokenizer", "decode"),
            definitions=_of_users(statistics),
        )

    def __getattr__(self, name: str) -> NDArray[Any]:
        columns = self.__dict__.get("columns", {})
        if name in columns:
            column = columns[name]
            return np.moveaxis(column, 1, 0) if column.ndim > 1 else column
        if name in STATISTICS or name in OTHER_COLUMNS:
            raise AttributeError(
                f"this probe has no {name!r}, only {', '.join(columns)}: request it from probe()"
            )
        raise AttributeError(f"a ProbeResult has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.columns]

    def __len__(self) -> int:
        return len(self.columns["token"])

    def __repr__(self) -> str:
        documents = len(np.unique(self.document))
        counts = ", ".join(
            f"{(self.modality == m).sum()} {m.name.lower()}"
            for m in Modality
            if (self.modality == m).any()
        )
        return (
            f"ProbeResult({len(self.depths)} of {self.full_depth} depths, {len(self)} tokens "
            f"({counts}) of {documents} document{'s' if documents != 1 else ''})"
        )

    def __str__(self) -> str:
        return f"{self!r}\n{self.summary().round(3).to_string()}"

    def _repr_html_(self) -> str:
        """The result in a notebook: averages by depth, and a heatmap of the first document."""
        return result_html(self)

    def __getitem__(self, which: slice | NDArray[Any]) -> ProbeResult:
        """The result of some tokens.

        Args:
            which: a slice, a mask (tokens,) of bool, or indices.

        Examples:
            >>> model = eepolicy.load("pocket")
            >>> result = eepolicy.probe(model, model.generate("What color is snow?"))
            >>> speech = result[result.modality == eepolicy.Modality.SPEECH]
        """
        columns = {name: column[which] for name, column in self.columns.items()}
        return replace(self, columns=columns)

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics among the columns, those of the library first."""
        defined = dict.fromkeys((*STATISTICS, *(s.name for s in self.definitions)))
        others = sorted({*self.columns} - OTHER_COLUMNS - {*defined})
        return (*(name for name in defined if name in self.columns), *others)

    @property
    def agreement(self) -> NDArray[np.float64]:
        """Whether the top token equals the last layer's: (depths, tokens), nan if unknown."""
        known = (self.top1 >= 0) & (self.top1[-1] >= 0)
        return np.where(known, self.top1 == self.top1[-1], np.nan)

    @property
    def normalised_entropy(self) -> NDArray[np.float32]:
        """Entropy divided by that of the uniform distribution: (depths, tokens), 0 to 1."""
        share: NDArray[np.float32] = self.entropy / np.log(self.vocabulary)
        return share

    @property
    def saturation_depth(self) -> NDArray[np.int64]:
        """Shallowest depth from which the top token stays the same: (tokens,), -1 if unknown."""
        differs = (self.top1 != self.top1[-1])[::-1]
        stays = np.where(differs.any(0), differs.argmax(0), len(self.depths))
        return np.where(self.top1[-1] >= 0, self.depths[len(self.depths) - stays], -1)

    @property
    def agreeing_depth(self) -> NDArray[np.int64]:
        """Shallowest depth with the last layer's top token: (tokens,), -1 if unknown."""
        first = self.depths[(self.top1 == self.top1[-1]).argmax(0)]
        return np.where(self.top1[-1] >= 0, first, -1)

    def settling_depth(self, threshold: float = settling.THRESHOLD) -> NDArray[np.int64]:
        """Shallowest depth with a distribution close to the last layer's: (tokens,).

        Args:
            threshold: bound of the Jensen-Shannon divergence `js`, nats.
        """
        return settling.settling_depth(self.js, self.depths, threshold)

    def deep_thinking_ratio(
        self, threshold: float = settling.THRESHOLD, share: float = settling.SHARE
    ) -> float:
        """Share of the tokens that settle in the last layers (arXiv 2602.13517).

        Args:
            threshold: see `settling_depth`.
            share: share of full depth from which a depth counts as late.

        Examples:
            >>> model = eepolicy.load("pocket")
            >>> result = eepolicy.probe(model, model.generate("What color is snow?"))
            >>> 0 <= result[result.modality == eepolicy.Modality.SPEECH].deep_thinking_ratio() <= 1
            True
        """
        return settling.deep_thinking_ratio(self.settling_depth(threshold), self.full_depth, share)

    def flips(self, patience: int = PATIENCE) -> NDArray[np.bool_]:
        """Whether the top token changes at a depth although it had settled: (depths, tokens).

        Args:
            patience: number of depths with the same top token after which it counts as settled.
        """
        return flips_after_settling(self.top1, patience)

    @property
    def plot(self) -> Plots:
        """Figures: `plot.layers()` and `plot.heatmap()`."""
        return Plots(self)

    def definition(self, name: str) -> Statistic | None:
        """The statistic of a column; None if it is a user's and was not given to `load`."""
        return {s.name: s for s in self.definitions}.get(name, STATISTICS.get(name))

    def to_pandas(self) -> pd.DataFrame:
        """A table with one row per depth and token; columns are labels and statistics."""
        import pandas as pd

        depths, tokens = len(self.depths), len(self)
        names = np.array([m.name.lower() for m in Modality])
        labels = {k: c for k, c in self.columns.items() if c.ndim == 1}
        rows = {k: np.tile(c, depths) for k, c in labels.items()}
        rows |= {"modality": np.tile(names[self.modality], depths)}
        rows |= {"depth": np.repeat(self.depths, tokens)}
        rows |= {name: getattr(self, name).reshape(-1) for name in self.statistics}
        if "top1" in self.columns:
            rows["agreement"] = self.agreement.reshape(-1)
        return pd.DataFrame(rows)

    def by_modality(self) -> pd.DataFrame:
        """Averages over tokens by modality and depth: means, of ranks medians."""
        import pandas as pd

        labels, parts = ["modality", "depth"], []
        for modality in Modality:
            some = self[self.modality == modality]
            if not len(some):
                continue
            values = {}
            for name in self.statistics:
                definition = self.definition(name)
                average = "mean" if definition is None else definition.average
                if average != "none":
                    values[name] = _average(getattr(some, name), average == "median")
            if "top1" in self.columns:
                values["agreement"] = _average(some.agreement)
            keys = [(modality.name.lower(), int(d)) for d in self.depths]
            index = pd.MultiIndex.from_tuples(keys, names=labels)
            parts.append(pd.DataFrame(values, index))
        if not parts:  # no token
            return pd.DataFrame(index=pd.MultiIndex.from_tuples([], names=labels))
        return pd.concat(parts)

    def summary(self) -> pd.DataFrame:
        """The main averages of `by_modality`, at up to eight depths."""
        table = self.by_modality()
        names = ("agreement", "entropy", "confidence", "rank_last", "kl")
        shown = [name for name in names if name in table]
        some = np.unique(np.linspace(0, len(self.depths) - 1, 8).round().astype(int))
        return table.loc[table.index.isin(self.depths[some], level="depth"), shown]

    @cached_property
    def words(self) -> list[str]:
        """The tokens that follow, in readable form: (tokens,)."""
        return self.named(self.next)

    @checked()
    def named(self, ids: NDArray[np.int64]) -> list[str]:
        """Ids (tokens,) in readable form: tokens, or numbers without a tokenizer."""
        if ids.dtype.kind not in "iu":
            raise EepolicyError(f"ids are integers; got {ids!r:.80}")
        known = [max(i, 0) for i in ids.tolist()]
        names = [None] * len(known)
        if self.tokenizer is not None:
            names = self.tokenizer.convert_ids_to_tokens(known)
        return [
            "?" if i < 0 else str(i) if name is None else name.translate(_SPACES)
            for i, name in zip(ids.tolist(), names, strict=True)
        ]


def _of_users(statistics: Iterable[Statistic]) -> tuple[Statistic, ...]:
    statistics = tuple(statistics)
    wrong = [s for s in statistics if not isinstance(s, Statistic)]
    if wrong:
        raise EepolicyError(f"statistics are Statistic objects; got {wrong[0]!r:.80}")
    return tuple(s for s in statistics if s is not STATISTICS.get(s.name))


def _average(values: NDArray[Any], median: bool = False) -> NDArray[np.float64]:
    """Mean or median over the tokens with a value: (depths, tokens) -> (depths,)."""
    if values.dtype.kind == "i":
        values = np.where(values < 0, np.nan, values)
    known = np.ma.masked_invalid(values)
    average = np.ma.median(known, axis=1) if median else known.mean(axis=1)
    filled: NDArray[np.float64] = np.ma.filled(average.astype(float), np.nan)
    return filled
