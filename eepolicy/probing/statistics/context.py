"""Intermediate values that statistics share.  Each is computed once and never overwritten."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.modality import TokenLayout
from eepolicy.probing.statistics.buffers import Lease
from eepolicy.probing.statistics.extras import Extras
from eepolicy.probing.statistics.last_layer import MIN_LOG, LastLayer, dot


@dataclass(frozen=True, eq=False)
class LogitContext:
    """Logits of some rows at one depth, and values derived from them.

    Each property is computed at its first use.  All tensors are read-only: several statistics use
    them.

    Attributes:
        logits: (rows, vocabulary) float32 or float64.
        top1: (rows,) ids of the most probable tokens.
        next: (rows,) ids of the tokens that follow.  Where none follows the id is 0; `probe`
            replaces the value of the statistic.
        last_layer: the last layer's distributions of the same rows, if known; see `last`.
        lease: buffers for the large intermediate values; None allocates them.
        extras: what some statistics read besides; None for nothing.
    """

    logits: Tensor
    top1: Tensor
    next: Tensor
    last_layer: LastLayer | None = None
    lease: Lease | None = None
    extras: Extras | None = None
    _values: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _versions: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    @property
    def last(self) -> LastLayer:
        """The last layer's distributions.

        Raises:
            EepolicyError: they are not known here.
        """
        if self.last_layer is None:
            raise EepolicyError(
                "the last layer is known only to statistics that compare with it: declare "
                'Statistic(compares_with="last")'
            )
        return self.last_layer

    @property
    def deeper(self) -> LastLayer:
        """The distributions at the next deeper depth of the probe.

        Raises:
            EepolicyError: they are not known here.
        """
        if self.extras is None or self.extras.deeper is None:
            raise EepolicyError(
                "the next deeper depth is known only to statistics that compare with it: declare "
                'Statistic(compares_with="deeper")'
            )
        return self.extras.deeper

    @property
    def shifted(self) -> Tensor:
        """Logits minus the highest logit of their row: (rows, vocabulary).

        Without the shift, an offset common to all logits would cost digits.
        """

        def compute() -> Tensor:
            highest = self.logits.gather(-1, self.top1[:, None])
            return torch.sub(self.logits, highest, out=self._out("shifted")).clamp_(min=MIN_LOG)

        return self._once("shifted", compute)

    @property
    def weights(self) -> Tensor:
        """Probabilities divided by the row's `scale`: (rows, vocabulary).

        A compiled kernel computes exponentials and their sum in one loop.  In eager mode `softmax`
        takes less time than the exponentials alone, so there the scale is 1.
        """

        def compute() -> Tensor:
            if torch.compiler.is_compiling():
                return self.shifted.exp()
            return torch.softmax(self.shifted, -1, out=self._out("weights"))

        return self._once("weights", compute)

    @property
    def scale(self) -> Tensor:
        """Factor from `weights` to probabilities: (rows,)."""

        def compute() -> Tensor:
            if torch.compiler.is_compiling():
                return 1 / self.weights.sum(-1)
            return self.logits.new_ones(len(self.logits))

        return self._once("scale", compute)

    @property
    def probabilities(self) -> Tensor:
        """(rows, vocabulary)."""
        if torch.compiler.is_compiling():
            return self.weights * self.scale[:, None]
        return self.weights

    @property
    def log_probabilities(self) -> Tensor:
        """(rows, vocabulary)."""
        return self._once("logs", lambda: self.shifted - self.log_normaliser[:, None])

    @property
    def confidence(self) -> Tensor:
        """Probability of the most probable token: (rows,)."""
        return self._once("confidence", lambda: self.probability(self.top1))

    @property
    def log_normaliser(self) -> Tensor:
        """Logarithm of the sum of exp(shifted): (rows,)."""
        return self._once("log_normaliser", lambda: -self.confidence.log())

    @property
    def entropy(self) -> Tensor:
        """-sum p log p: (rows,) nats."""

        def compute() -> Tensor:
            expected = dot(self.weights, self.shifted) * self.scale
            return self.log_normaliser - expected

        return self._once("entropy", compute)

    @property
    def mixture_entropy(self) -> Tensor:
        """Entropy of the mean of p and the last layer's distribution: (rows,) nats."""
        return self._once("mixture_entropy", lambda: self.mixture_entropy_with(self.last))

    def mixture_entropy_with(self, other: LastLayer) -> Tensor:
        """Entropy of m = (p + p') / 2, p' being another distribution: (rows,) nats."""
        # with 2m, one pass less: H(m) = log 2 - sum 2m log 2m / 2
        scale = self.scale[:, None]
        twice = torch.addcmul(other.probabilities, self.weights, scale, out=self._out("scratch"))
        twice.clamp_(min=torch.finfo(twice.dtype).tiny)
        logs = torch.log(twice, out=self._out("scratch_logs"))
        return math.log(2) - dot(twice, logs) / 2

    def probability(self, ids: Tensor) -> Tensor:
        """Probability of one token a row: ids (rows,) -> (rows,)."""
        return self.weights.gather(-1, ids[:, None])[:, 0] * self.scale

    def rank(self, ids: Tensor) -> Tensor:
        """Rank of one token a row, 1 for the most probable: ids (rows,) -> (rows,) int64."""
        return 1 + self._num_higher(self.logits.gather(-1, ids[:, None]))

    @property
    def layout(self) -> TokenLayout:
        """Which ids are text and which are speech.

        Raises:
            EepolicyError: it is not known here.
        """
        if self.extras is None or self.extras.layout is None:
            raise EepolicyError("the layout of the vocabulary is not known here")
        return self.extras.layout

    def given_rank(self, name: str, text_only: bool = False) -> Tensor:
        """Best rank of a row's given tokens: (rows,) int64, -1 for rows without any.

        Args:
            name: key of `Document.given`.
            text_only: rank among the text ids.

        Raises:
            EepolicyError: no tokens of this name are known here.
        """
        ids = None if self.extras is None else self.extras.given.get(name)
        if ids is None:
            raise EepolicyError(
                f"the given tokens {name!r} are known only to statistics that declare them: "
                f"Statistic(given={name!r})"
            )

        def compute() -> Tensor:
            logits = self.logits.gather(-1, ids.clamp(min=0))
            best = logits.masked_fill(ids < 0, -torch.inf).amax(-1, keepdim=True)
            if text_only:
                first, second = slice(*self.layout.text), slice(*self.layout.text_after)
                higher = self._num_higher(best, first) + self._num_higher(best, second)
            else:
                higher = self._num_higher(best)
            return (1 + higher).masked_fill((ids < 0).all(-1), -1)

        return self._once(f"rank of {name}, {text_only}", compute)

    def _num_higher(self, logits: Tensor, within: slice = slice(None)) -> Tensor:
        """Number of some ids with a logit above one of a row: (rows, 1) -> (rows,) int64."""
        out = self._out("scratch")
        others = self.logits[:, within]
        higher = torch.gt(others, logits, out=None if out is None else out[:, within])
        # torch sums floats five times faster than booleans; below 2^24 they are exact
        return higher.to(self.logits.dtype).sum(-1).long()

    def second_probability(self) -> Tensor:
        """Probability of the second most probable token: (rows,)."""
        out = self._out("scratch")
        others = torch.scatter(self.weights, -1, self.top1[:, None], 0.0, out=out)
        return others.amax(-1) * self.scale

    def inputs(self) -> list[Tensor]:
        """The tensors that the context was made of; the first has one row a readout."""
        last = [] if self.last_layer is None else self.last_layer.tensors()
        extras = [] if self.extras is None else self.extras.tensors()
        return [self.logits, self.top1, self.next, *last, *extras]

    def values(self) -> list[Tensor]:
        """The tensors that statistics share: inputs, and values computed so far."""
        return [*self.inputs(), *self._values.values()]

    def overwritten(self) -> list[str]:
        """Names of values that were written to after they were computed, in eager mode."""
        return [n for n, version in self._versions.items() if self._values[n]._version != version]

    def _once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """A value, computed at the first call."""
        if self.lease is not None:
            self.lease.check()
        value = self._values.get(name)
        if value is None:
            value = self._values[name] = compute()
            if not torch.compiler.is_compiling():
                self._versions[name] = value._version
        return value

    def _out(self, name: str) -> Tensor | None:
        """A buffer to write to, (rows, vocabulary); `scratch...` ones are free after each use."""
        return None if self.lease is None else self.lease.get(name, self.logits)


@dataclass(frozen=True, eq=False)
class StateContext:
    """Hidden states of some rows at one depth, before the final norm.  All are read-only.

    Attributes:
        states: (rows, width) float32 or float64.
        last_layer: (rows, width), states of the last layer, if it ran; see `last`.
        previous_layer: (rows, width), states of the layer before, if it ran; see `previous`.
    """

    states: Tensor
    last_layer: Tensor | None = None
    previous_layer: Tensor | None = None

    @property
    def last(self) -> Tensor:
        """States of the last layer: (rows, width).

        Raises:
            EepolicyError: they are not known here.
        """
        return self._known(self.last_layer, "last")

    @property
    def previous(self) -> Tensor:
        """States of the layer before, or the embedding: (rows, width).

        Raises:
            EepolicyError: they are not known here.
        """
        return self._known(self.previous_layer, "previous")

    def inputs(self) -> list[Tensor]:
        """The tensors that the context was made of; the first has one row a readout."""
        fields = (self.states, self.last_layer, self.previous_layer)
        return [tensor for tensor in fields if tensor is not None]

    def overwritten(self) -> list[str]:
        """Names of derived values that were written to: there are none."""
        return []

    def _known(self, states: Tensor | None, name: str) -> Tensor:
        if states is None:
            raise EepolicyError(
                f"the {name} layer is known only to statistics that compare with it: declare "
                f'Statistic(compares_with="{name}")'
            )
        return states
