"""The class of a statistic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fields import check_fields

#: names of other columns and of the attributes of a `ProbeResult`
RESERVED = frozenset(
    "agreeing_depth agreement by_modality chunk columns deep_thinking_ratio definition definitions "
    "depth depth_used depths distribution_depths distributions document flips full_depth "
    "hidden_depths hidden_states load modality named next normalised_entropy of phase plot "
    "position saturation_depth settling_depth statistics summary to_pandas token tokenizer "
    "top_probabilities top_tokens vocabulary words".split()
)


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """A number that `probe` computes at each depth and token.

    `compute` is a pure function.  It takes a `LogitContext` of some rows and returns one value a
    row, (rows,).  With `of_states` it takes a `StateContext`, with `of_attention` an
    `AttentionContext`.  It must not write into the tensors of the context: they are shared with the
    other statistics.  `probe` checks both.

    Attributes:
        name: name of the column, a Python identifier.
        description: what the number says, in a few words.
        compute: the function.
        unit: unit of the values, such as `"nats"`; empty for ratios and ranks.
        compares_with: the other token or layer that `compute` needs: `"last"` (the last layer),
            `"previous"` (the layer before, with `of_states`), `"deeper"` (the next deeper depth of
            the probe), `"next"` (the token that follows) or `""`.  Without it a row gets nan, or -1
            if `integer`.
        of_states: `compute` takes a `StateContext`; the logits are not needed.
        of_attention: `compute` takes an `AttentionContext`; the logits are not needed.
        given: key of `Document.given` whose ids `compute` reads; see `given_rank`.
        by_default: `probe` computes the statistic if none is named.  The library's others need
            more time or memory, or apply to some models only.
        integer: the values are whole numbers, stored as int64.
        average: how tables and plots average over tokens.  `"median"` suits long tails, `"none"`
            suits ids.  Negative values of integer statistics count as missing.
        needs_last_logs: `compute` reads `context.last.log_probabilities`.

    Raises:
        EepolicyError: a name that is reserved or no identifier, or fields that exclude each other.

    Examples:
        >>> import eepolicy
        >>> from torch import Tensor
        >>> from eepolicy.probing import LogitContext, Statistic
        >>> def collision(context: LogitContext) -> Tensor:
        ...     return context.probabilities.square().sum(-1)
        >>> statistic = Statistic(
        ...     name="collision", description="probability of drawing a token twice",
        ...     compute=collision,
        ... )
        >>> model = eepolicy.load("pocket")
        >>> result = eepolicy.probe(model, "What color is snow?", statistics=["top1", statistic])
        >>> bool((result.collision <= 1).all())
        True
    """

    name: str
    description: str
    compute: Callable[[Any], Tensor]
    unit: str = ""
    compares_with: Literal["", "last", "previous", "deeper", "next"] = ""
    of_states: bool = False
    of_attention: bool = False
    given: str = ""
    by_default: bool = True
    integer: bool = False
    average: Literal["mean", "median", "none"] = "mean"
    needs_last_logs: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.name.isidentifier() or self.name in RESERVED:
            raise EepolicyError(
                "the name of a statistic is a Python identifier that is not used by a ProbeResult "
                f"({', '.join(sorted(RESERVED))}); got {self.name!r}"
            )
        kind = "logits"
        allowed: tuple[str, ...] = ("", "last", "deeper", "next")
        if self.of_states:
            allowed, kind = ("", "last", "previous"), "hidden states"
        if self.of_attention:
            allowed, kind = ("",), "attention"
        if self.of_states and self.of_attention:
            raise EepolicyError(f"{self.name}: give of_states or of_attention, not both")
        if self.given and kind != "logits":
            raise EepolicyError(f"{self.name}: only a statistic of logits reads given tokens")
        if self.compares_with not in allowed:
            raise EepolicyError(
                f"{self.name}: a statistic of {kind} has compares_with "
                f"{', '.join(map(repr, allowed))}; got {self.compares_with!r}"
            )

    @property
    def of_logits(self) -> bool:
        """Whether `compute` takes a `LogitContext`."""
        return not self.of_states and not self.of_attention

    @property
    def label(self) -> str:
        """Description and unit, for the axis of a plot."""
        return f"{self.description}, {self.unit}" if self.unit else self.description

    @property
    def missing(self) -> float | int:
        """The value where the statistic is not known: -1 of integers, nan otherwise."""
        return -1 if self.integer else float("nan")
