"""The hooked model: owns the layer loop of a stock Hugging Face causal language model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eepolicy.cache import LayeredCache
from eepolicy.errors import EepolicyError
from eepolicy.heads.base import ExitHead
from eepolicy.heads.lens import LogitLens
from eepolicy.modality import TokenLayout
from eepolicy.model.adapters import SLIDING, Parts, Rotation, parts_of
from eepolicy.policies import ExitPolicy, FullDepth

if TYPE_CHECKING:
    from eepolicy.decode.loop import Output
    from eepolicy.speech.units import Units

#: Largest difference from the stock logits at which a model is taken for the same one, as a share
#: of their spread.  Measured on ten families on a CPU: 0.0, since the loop makes the same calls;
#: the room is for devices whose kernels do not repeat.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-5, torch.bfloat16: 1e-1, torch.float16: 2e-2}


class HookedModel:
    """A stock model whose layers are called one by one, as deep as a policy says.

    The model's own code is neither edited nor patched: it stays usable by itself.

    Args:
        model: a decoder-only causal language model of a family that has an adapter.
        layout: its vocabulary and chunks; decoding and probing need it.
        tokenizer: for prompts given as text.
        heads: reads tokens out at depths below full; the plain logit lens where none is given.
        vocoder: turns speech units into sound.
        parts: an adapter's, for a family that has none.

    Raises:
        EepolicyError: the family has no adapter, or the layer loop does not give the stock logits.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layout: TokenLayout | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        heads: ExitHead | None = None,
        vocoder: Units | None = None,
        parts: Parts | None = None,
    ) -> None:
        self.model = model.eval()
        self.parts = parts or parts_of(model)
        self.layout = layout
        self.tokenizer = tokenizer
        self.vocoder = vocoder
        self.lens = LogitLens(self.parts.norm, self.parts.head)
        self.heads = heads or self.lens
        self._check_parity()

    def __repr__(self) -> str:
        config = self.model.config
        return (
            f"HookedModel({config.model_type}, {self.depth} layers, width {config.hidden_size}, "
            f"vocabulary {config.vocab_size}, heads {self.heads!r})"
        )

    @property
    def depth(self) -> int:
        """Number of decoder layers: full depth."""
        return len(self.parts.layers)

    def new_cache(self, capacity: int) -> LayeredCache:
        """An empty cache for `capacity` positions."""
        return LayeredCache(self.depth, capacity)

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        """The first layer's input: ids (1, tokens) from position `start` on -> (..., width)."""
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
        return self.parts.embed(ids, positions)

    def rotations(self, tokens: int) -> dict[str, Rotation]:
        """Cosines and sines of the positions from 0, (1, tokens, d) each, by kind of attention."""
        if self.parts.rotary is None:
            return {}
        positions = torch.arange(tokens, device=self.model.device)[None]
        like = torch.empty(0, dtype=self.model.dtype, device=self.model.device)
        kinds = set(self.parts.attention)
        return {kind: self.parts.rotary(like, positions, kind) for kind in kinds}

    def block_masks(self, tokens: int, start: int) -> dict[str, Tensor | None]:
        """Which positions each of a block attends to, by kind of attention.

        A block behind cached positions is causal from the lower right corner, and a sliding layer
        sees a window of it.  One token alone that sees everything takes no mask.

        Returns:
            (1, 1, tokens, start + tokens) each, of bool for sdpa and additive for eager attention.
        """
        return {kind: self._block_mask(kind, tokens, start) for kind in set(self.parts.attention)}

    def _block_mask(self, kind: str, tokens: int, start: int) -> Tensor | None:
        end = start + tokens
        window = self.parts.window if kind == SLIDING else None
        if tokens == 1 and (window is None or end <= window):
            return None
        seen = torch.ones((tokens, end), dtype=torch.bool, device=self.model.device).tril(start)
        if window is not None:
            seen = seen.triu(start - window + 1)
        if self.model.config._attn_implementation == "eager":
            least = torch.finfo(self.model.dtype).min
            return torch.zeros_like(seen, dtype=self.model.dtype).masked_fill(~seen, least)[
                None, None
            ]
        return seen[None, None]

    def run_layer(
        self,
        index: int,
        block: Tensor,
        rotations: dict[str, Rotation],
        masks: dict[str, Tensor | None],
        start: int = 0,
        cache: LayeredCache | None = None,
    ) -> Tensor:
        """Run one layer on a block of positions that follow what the cache holds of it.

        Args:
            index: the layer, from 0.
            block: (1, tokens, width).
            rotations: from `rotations`, for all positions.
            masks: from `block_masks`.
            start: position of the block's first token.
            cache: keys and values of the positions before it.

        Returns:
            (1, tokens, width).
        """
        end, kind = start + block.shape[1], self.parts.attention[index]
        arguments: dict[str, Any] = {}
        if rotations:
            cos, sin = rotations[kind]
            arguments["position_embeddings"] = (cos[:, start:end], sin[:, start:end])
        out = self.parts.layers[index](
            block,
            attention_mask=masks[kind],
            past_key_values=cache,
            use_cache=cache is not None,
            **arguments,
        )
        return out[0] if isinstance(out, tuple) else out

    def hidden_states(self, ids: Tensor) -> Iterator[Tensor]:
        """The hidden state after each layer, before any norm, one by one.

        Args:
            ids: (1, tokens).

        Yields:
            (1, tokens, width), depth 1 first.
        """
        block, rotations = self.embed(ids), self.rotations(ids.shape[1])
        masks = self.block_masks(ids.shape[1], 0)
        for index in range(self.depth):
            block = self.run_layer(index, block, rotations, masks)
            yield block

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        """What is read out of hidden states at a depth: (..., width) -> (..., vocabulary).

        At full depth this is the model's own norm and head, below it the exit head.
        """
        head = self.lens if depth == self.depth else self.heads
        return head.logits(hidden, depth)

    def encode(self, prompt: str | Tensor) -> Tensor:
        """The ids of a prompt: (tokens,).

        Args:
            prompt: a question in text, or ids (tokens,) or (1, tokens).

        Raises:
            EepolicyError: text without a tokenizer, more than one row, ids outside the vocabulary.
        """
        if isinstance(prompt, str):
            if self.tokenizer is None or self.layout is None:
                raise EepolicyError("a prompt in text needs a model with tokenizer and layout")
            text = self.tokenizer(prompt, add_special_tokens=False).input_ids
            return torch.tensor([*self.layout.before_prompt, *text, *self.layout.after_prompt])
        ids = prompt[0] if prompt.ndim == 2 and len(prompt) == 1 else prompt
        if ids.ndim != 1 or ids.numel() == 0:
            raise EepolicyError(f"a prompt is one row of ids, (tokens,); got {tuple(prompt.shape)}")
        vocabulary = self.model.config.vocab_size
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise EepolicyError(
                f"ids are 0 to {vocabulary - 1}; got {int(ids.min())} to {int(ids.max())}"
            )
        return ids

    def generate(
        self,
        prompt: str | Tensor,
        policy: ExitPolicy | str | None = None,
        max_new_tokens: int = 400,
        **sampling: Any,
    ) -> Output:
        """Answer a prompt, each position as deep as the policy says.

        Args:
            prompt: a question in text, or ids (tokens,).
            policy: a policy or its spec string; full depth where none is given.
            max_new_tokens: at most so many, the end mark included.
            **sampling: `temperature`, `top_p`, `seed`; without them decoding is greedy.

        Returns:
            Tokens, text, speech and trace.

        Raises:
            EepolicyError: a prompt or policy that does not fit the model.

        Example:
            >>> model = eepolicy.load("pocket")
            >>> model.generate("What color is snow?", "spark:triple@14").text
            'Snow is white.'
        """
        from eepolicy.decode.loop import decode
        from eepolicy.decode.sampling import Sampler

        return decode(
            self,
            self.encode(prompt),
            FullDepth() if policy is None else policy,
            max_new_tokens,
            Sampler(**sampling),
        )

    def unwrap(self) -> PreTrainedModel:
        """The stock model, which was never changed but for its evaluation mode."""
        return self.model

    @torch.no_grad()
    def _check_parity(self) -> None:
        vocabulary, device = self.model.config.vocab_size, self.model.device
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(vocabulary, (1, 8), generator=generator).to(device)
        stock = self.model(ids).logits
        *_, last = self.hidden_states(ids)
        ours = self.lens.logits(last, self.depth)
        error = ((ours - stock).abs().max() / stock.std()).item()
        tolerance = TOLERANCE.get(self.model.dtype, 0.0)
        if not error <= tolerance:
            raise EepolicyError(
                f"the layer loop differs from the stock {type(self.model).__name__} by {error:.1e} "
                f"of its logits' spread (tolerance {tolerance:.0e}): "
                "the adapter of its family does not fit"
            )
