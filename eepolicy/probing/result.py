"""What a probe gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eepolicy.modality import Modality
from eepolicy.probing.statistics import MEDIANS, STATISTICS
from eepolicy.probing.store import read_columns, read_progress

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

    from eepolicy.probing.plot import Plots

#: how tokenizers write a space, and how it is shown
_SPACES = str.maketrans("Ġ▁", "··")


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """What the layers say, at each of some depths and positions.

    A statistic is an attribute, (depths, tokens), the deepest last; `eepolicy.probing.STATISTICS`
    says what each one is: `top1`, `entropy`, `confidence`, `margin`, `rank_last`,
    `probability_last`, `rank_next`, `probability_next`, `kl`, `kl_reverse`, `js`, `cosine_last`,
    `norm_last`, `cosine_previous`, `norm_previous`.  Where a layer did not run (see
    `generate(record=True)`), it is nan, or -1.

    Attributes:
        depths: (depths,) that were read out, rising.
        columns: the arrays, by name, tokens first.
        full_depth: layers of the model.
        vocabulary: its size.
        tokenizer: shows tokens, where the model has one.
        document: (tokens,) number of the document.
        position: (tokens,) place of the readout in it.
        token: (tokens,) id that stands there.
        next: (tokens,) id that follows, -1 where nothing does.
        modality: (tokens,) of the place that follows, as the alternation has it, see `Modality`.
        chunk: (tokens,) its chunk, from 0.
        phase: (tokens,) its place in the chunk, from 0.
        depth_used: (tokens,) depth at which a decoded token was read out, else full depth.
        top_tokens: (depths, tokens, k) ids, where `top_k` was asked for; `top_probabilities` alike.
        hidden_states: (kept depths, tokens, width) after each of `hidden_depths`, where asked for.
        distributions: (kept depths, tokens, vocabulary) log-probabilities, at
            `distribution_depths`, where asked for.
    """

    depths: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]
    full_depth: int
    vocabulary: int
    hidden_depths: tuple[int, ...] = ()
    distribution_depths: tuple[int, ...] = ()
    tokenizer: PreTrainedTokenizerBase | None = None

    def __getattr__(self, name: str) -> NDArray[Any]:
        columns = self.__dict__.get("columns", {})
        if name in columns:
            column = columns[name]
            return np.moveaxis(column, 1, 0) if column.ndim > 1 else column
        if name in STATISTICS or name in ("hidden_states", "distributions", "top_tokens"):
            raise AttributeError(
                f"this probe holds no {name!r} but {', '.join(columns)}; ask probe() for it"
            )
        raise AttributeError(f"a ProbeResult has no {name!r}")

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
            f"({counts}) of {documents} document{'s' if documents > 1 else ''})"
        )

    def __str__(self) -> str:
        table = self.by_modality()
        shown = [
            name
            for name in ("agreement", "entropy", "confidence", "rank_last", "kl")
            if name in table
        ]
        some = np.unique(np.linspace(0, len(self.depths) - 1, 8).round().astype(int))
        rows = table[shown].loc[(slice(None), self.depths[some]), :]
        return f"{self!r}\n{rows.round(3).to_string()}"

    def __getitem__(self, which: slice | NDArray[Any]) -> ProbeResult:
        """Some of the tokens: a slice, (tokens,) of bool, or places.

        Examples:
            >>> model = eepolicy.load("pocket")
            >>> result = eepolicy.probe(model, model.generate("What color is snow?"))
            >>> spoken = result[result.modality == eepolicy.Modality.SPEECH]
        """
        columns = {name: column[which] for name, column in self.columns.items()}
        return replace(self, columns=columns)

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics that were measured."""
        return tuple(name for name in STATISTICS if name in self.columns)

    @property
    def agreement(self) -> NDArray[np.float64]:
        """Whether a depth names the last layer's token: (depths, tokens), nan for unknown."""
        known = (self.top1 >= 0) & (self.top1[-1] >= 0)
        return np.where(known, self.top1 == self.top1[-1], np.nan)

    @property
    def normalised_entropy(self) -> NDArray[np.float32]:
        """Entropy as a share of what a uniform distribution has: (depths, tokens)."""
        share: NDArray[np.float32] = self.entropy / np.log(self.vocabulary)
        return share

    @property
    def saturation_depth(self) -> NDArray[np.int64]:
        """The depth from where on the likeliest token stays the same: (tokens,), -1 for unknown."""
        differs = (self.top1 != self.top1[-1])[::-1]
        stays = np.where(differs.any(0), differs.argmax(0), len(self.depths))
        return np.where(self.top1[-1] >= 0, self.depths[len(self.depths) - stays], -1)

    @property
    def agreeing_depth(self) -> NDArray[np.int64]:
        """The shallowest depth whose likeliest token is the last layer's: (tokens,), or -1."""
        first = self.depths[(self.top1 == self.top1[-1]).argmax(0)]
        return np.where(self.top1[-1] >= 0, first, -1)

    @property
    def plot(self) -> Plots:
        """Pictures: `plot.layers()` and `plot.heatmap()`."""
        from eepolicy.probing.plot import Plots

        return Plots(self)

    def to_pandas(self) -> pd.DataFrame:
        """One row a depth and token, the labels and statistics as columns."""
        import pandas as pd

        depths, tokens = len(self.depths), len(self)
        names = np.array([m.name.lower() for m in Modality])
        plain = {k: c for k, c in self.columns.items() if c.ndim == 1}
        rows = {k: np.tile(c, depths) for k, c in plain.items()}
        rows |= {"modality": np.tile(names[self.modality], depths)}
        rows |= {"depth": np.repeat(self.depths, tokens)}
        rows |= {name: getattr(self, name).reshape(-1) for name in self.statistics}
        if "top1" in self.columns:
            rows["agreement"] = self.agreement.reshape(-1)
        return pd.DataFrame(rows)

    def by_modality(self) -> pd.DataFrame:
        """Means over tokens, ranks as medians, by modality and depth."""
        import pandas as pd

        parts = []
        for modality in Modality:
            some = self[self.modality == modality]
            if not len(some):
                continue
            names = [n for n in self.statistics if n != "top1"]
            values = {name: _middle(getattr(some, name), name in MEDIANS) for name in names}
            if "top1" in self.columns:
                values["agreement"] = _middle(some.agreement)
            places = [(modality.name.lower(), int(d)) for d in self.depths]
            index = pd.MultiIndex.from_tuples(places, names=["modality", "depth"])
            parts.append(pd.DataFrame(values, index))
        return pd.concat(parts)

    @cached_property
    def words(self) -> list[str]:
        """The tokens that follow, as one reads them: (tokens,)."""
        return self.named(self.next)

    def named(self, ids: NDArray[np.int64]) -> list[str]:
        """Ids (tokens,) as one reads them, numbers where there is no tokenizer."""
        known = [max(i, 0) for i in ids.tolist()]
        names = [None] * len(known)
        if self.tokenizer is not None:
            names = self.tokenizer.convert_ids_to_tokens(known)
        return [
            "?" if i < 0 else str(i) if name is None else name.translate(_SPACES)
            for i, name in zip(ids.tolist(), names, strict=True)
        ]

    @classmethod
    def load(
        cls, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> ProbeResult:
        """What `probe(save=folder)` wrote, mapped into memory; of a stopped run, what is whole.

        Args:
            folder: that was given to `save`.
            tokenizer: to show tokens by.

        Raises:
            EepolicyError: the folder holds no probe.
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
            tokenizer=tokenizer,
        )


def _middle(values: NDArray[Any], median: bool = False) -> NDArray[np.float64]:
    """Mean or median over the tokens that have a value: (depths, tokens) -> (depths,)."""
    known = np.ma.masked_invalid(np.where(values < 0, np.nan, values) if median else values)
    middle = np.ma.median(known, axis=1) if median else known.mean(axis=1)
    filled: NDArray[np.float64] = np.ma.filled(middle.astype(float), np.nan)
    return filled
