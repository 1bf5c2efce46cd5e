"""Documents to probe: token ids, and the labels of their readouts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, Union

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eepolicy.decode.output import Output
from eepolicy.errors import EepolicyError
from eepolicy.fields import Count, check_value
from eepolicy.modality import ChunkClock, TokenLayout, is_ids

#: what `probe` takes: text, ids, the output of `generate`, documents, or iterables of these
Inputs: TypeAlias = Union["str", "Tensor", "Document", "Output", "Iterable[Inputs]"]
#: turns text or ids into ids (tokens,), and raises EepolicyError for others
Encode: TypeAlias = Callable[["str | Tensor"], Tensor]

#: labels of a readout, in the order of `Document.labels`
LABELS = ("position", "token", "next", "modality", "chunk", "phase", "depth_used")


@dataclass(frozen=True, eq=False)
class Document:
    """Tokens to probe.

    A readout at position i predicts token i + 1.

    Attributes:
        tokens: (tokens,) ids.
        prompt: length of the prompt in tokens.  With a prompt, `probe` reads out once for each
            token of the reply, at the position that predicts it.  With 0 it reads out at every
            position, the last one included.
        depth: (readouts,) depths at which decoding read out the reply, if known.
        embeddings: (tokens, width), what the first layer reads instead of the ids'
            embeddings; the last position of a reply may be missing.  None for the ids.
        given: ids whose rank `given_rank` and `given_recall` read, by name: one list of ids for
            each readout, padded with -1, as (readouts,) or (readouts, ids).

    Examples:
        >>> import torch
        >>> Document(torch.arange(10), prompt=4).span
        (3, 9)
    """

    tokens: Tensor
    prompt: int = 0
    depth: NDArray[np.int64] | None = None
    embeddings: Tensor | None = None
    given: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, output: Output, given: Mapping[str, Any] | None = None) -> Document:
        """The document of a decoded reply.

        Args:
            output: output of `generate`.
            given: see `Document`.

        Raises:
            EepolicyError: the prompt was given as embeddings.
        """
        if not len(output.prompt):
            raise EepolicyError("the prompt was given as embeddings: without ids it has no probe")
        tokens = torch.cat([output.prompt, output.tokens])
        return cls(tokens, len(output.prompt), output.trace.depth, given=given or {})

    def given_ids(self, name: str, vocabulary: int) -> Tensor:
        """The given ids of a name: (readouts, ids), -1 for none.

        Args:
            name: key of `given`.
            vocabulary: size of the vocabulary.

        Raises:
            EepolicyError: there are none, or they have another shape or other ids.
        """
        if name not in self.given:
            names = ", ".join(map(repr, self.given)) or "none"
            raise EepolicyError(
                f"the document gives no tokens {name!r}, only {names}: "
                f"Document(..., given={{{name!r}: ids}})"
            )
        start, end = self.span
        try:
            ids = torch.as_tensor(np.asarray(self.given[name]))
        except (TypeError, ValueError) as error:
            raise EepolicyError(
                f"the given tokens {name!r} are no array of ids: {error}"
            ) from error
        ids = ids[:, None] if ids.ndim == 1 else ids
        if ids.ndim != 2 or len(ids) != end - start or ids.is_floating_point():
            raise EepolicyError(
                f"the given tokens {name!r} are ids of {end - start} readouts, (readouts,) or "
                f"(readouts, ids); got {tuple(ids.shape)} of {ids.dtype}"
            )
        if ids.numel() and not (ids.min() >= -1 and ids.max() < vocabulary):
            raise EepolicyError(
                f"the given tokens {name!r} are ids 0 to {vocabulary - 1}, or -1 for none; got "
                f"{int(ids.min())} to {int(ids.max())}"
            )
        return ids.long()

    def __post_init__(self) -> None:
        tokens, depth = self.tokens, self.depth
        if not isinstance(tokens, Tensor) or tokens.ndim != 1 or not is_ids(tokens):
            raise EepolicyError(f"Document: tokens: expected ids (tokens,); got {tokens!r:.80}")
        check_value("Document: prompt", Count, self.prompt)
        if depth is not None and (np.ndim(depth) != 1 or np.asarray(depth).dtype.kind not in "iu"):
            raise EepolicyError(f"Document: depth: expected depths (readouts,); got {depth!r:.80}")
        states = self.embeddings
        if states is not None and (not isinstance(states, Tensor) or states.ndim != 2):
            raise EepolicyError(
                f"Document: embeddings: expected (tokens, width); got {states!r:.80}"
            )
        if states is not None and len(tokens) - len(states) not in (0, 1 if self.prompt else 0):
            raise EepolicyError(
                f"Document: embeddings: expected a state for each of the {len(tokens)} tokens; got "
                f"{len(states)}"
            )
        if not isinstance(self.given, Mapping):
            raise EepolicyError(f"Document: given: expected ids by name; got {self.given!r:.80}")

    @property
    def span(self) -> tuple[int, int]:
        """The positions with a readout: first, and last + 1."""
        return (self.prompt - 1, len(self.tokens) - 1) if self.prompt else (0, len(self.tokens))

    @property
    def inputs(self) -> Tensor:
        """What the first layer reads: ids (tokens,), or embeddings (tokens, width)."""
        return self.tokens if self.embeddings is None else self.embeddings

    @property
    def reply(self) -> Tensor:
        """The tokens after the prompt: (tokens,)."""
        return self.tokens[self.prompt :]

    def labels(self, layout: TokenLayout, full_depth: int) -> NDArray[np.int64]:
        """Labels of the readouts: (labels, readouts), in the order of `LABELS`.

        In a reply, modality, chunk and phase follow the alternation of text and speech chunks.
        Elsewhere the modality is that of the token that follows, and a chunk is a run of tokens of
        one modality.
        """
        start, end = self.span
        ids = self.tokens.tolist()
        following = [*ids[start + 1 : end + 1], -1][: end - start]
        clock = _alternation(following, layout) if self.prompt else _runs(following, layout)
        used = self.depth if self.depth is not None else np.full(end - start, full_depth)
        columns = (range(start, end), ids[start:end], following, *zip(*clock, strict=True), used)
        return np.array(columns, np.int64).reshape(len(LABELS), -1)


def _alternation(ids: list[int], layout: TokenLayout) -> list[tuple[int, int, int]]:
    """Modality, chunk and phase at which each token of a reply was generated."""
    clock, entries = ChunkClock(layout), []
    for token in ids:
        entries.append((int(clock.modality), clock.chunk, clock.phase))
        if token not in layout.ends:
            clock.advance(token)
    return entries


def _runs(ids: list[int], layout: TokenLayout) -> list[tuple[int, int, int]]:
    """Modality of each token, number of its run, and index in the run.

    The id -1 (no token) belongs to the run before it.
    """
    entries: list[tuple[int, int, int]] = []
    for token in ids:
        before, chunk, phase = entries[-1] if entries else (-1, -1, -1)
        modality = int(layout.modality(token)) if token >= 0 else max(before, 0)
        new = modality != before
        entries.append((modality, chunk + new, 0 if new else phase + 1))
    return entries


def to_documents(
    encode: Encode, inputs: Inputs, attention_mask: Tensor | None = None
) -> Iterator[Document]:
    """Turn inputs into documents, one by one.

    Args:
        encode: turns a text into ids, and checks ids; see `HookedModel.encode`.
        inputs: see `eepolicy.probe`.
        attention_mask: (rows, tokens) of padded ids, 0 for padding.

    Yields:
        One document a text, row of ids, output or document.

    Raises:
        EepolicyError: an input of another type or without tokens, or a mask that does not fit.
    """
    if isinstance(inputs, Mapping):  # the output of a tokenizer
        if not isinstance(inputs.get("input_ids"), Tensor):
            raise EepolicyError(
                "probe reads the tensor 'input_ids' of a tokenizer's output: call the tokenizer "
                "with return_tensors='pt'"
            )
        attention_mask = inputs.get("attention_mask", attention_mask)
        inputs = inputs["input_ids"]
    if isinstance(inputs, Tensor) and inputs.ndim == 2:
        yield from _unpadded(encode, inputs, attention_mask)
        return
    if attention_mask is not None:
        raise EepolicyError("attention_mask requires ids of shape (rows, tokens)")
    if isinstance(inputs, Output):
        yield Document.of(inputs)
    elif isinstance(inputs, Document):
        if not 0 <= inputs.prompt < len(encode(inputs.tokens)):
            raise EepolicyError(
                f"the prompt of a document is shorter than its {len(inputs.tokens)} tokens; "
                f"got {inputs.prompt}"
            )
        yield inputs
    elif isinstance(inputs, (str, Tensor)):
        yield Document(encode(inputs))
    elif isinstance(inputs, Iterable):
        for each in inputs:
            yield from to_documents(encode, each)
    else:
        raise EepolicyError(
            f"probe takes text, ids, an Output, a Document, or an iterable of these; got {inputs!r}"
        )


def _unpadded(encode: Encode, ids: Tensor, attention_mask: Tensor | None) -> Iterator[Document]:
    """The rows of padded ids (rows, tokens), without the padding.

    Raises:
        EepolicyError: the mask has another shape, or a row has no tokens.
    """
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask
    if mask.shape != ids.shape:
        raise EepolicyError(
            f"attention_mask has the shape of the ids, {tuple(ids.shape)}; got {tuple(mask.shape)}"
        )
    for row, kept in zip(ids, mask, strict=True):
        yield Document(encode(row[kept.bool()]))
