"""The hooked model: owns the layer loop of a stock Hugging Face causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eepolicy.errors import EepolicyError
from eepolicy.heads.base import ExitHead
from eepolicy.modality import TokenLayout
from eepolicy.model.backbone import Backbone
from eepolicy.model.families import DecoderParts
from eepolicy.policies import ExitPolicy, FullDepth
from eepolicy.speech.wav import read_wave

if TYPE_CHECKING:
    from eepolicy.compile.executor import CompiledExecutor
    from eepolicy.decode.acceptance import Acceptance
    from eepolicy.decode.fills.base import Fill
    from eepolicy.decode.loop import Output
    from eepolicy.decode.rebatch import LayerCosts
    from eepolicy.loading.cards import ModelCard
    from eepolicy.speech.audio_prompt import AudioPrompt
    from eepolicy.speech.vocoder import Vocoder

#: Largest difference from the stock logits at which a model is taken for the same one, as a share
#: of their spread.  Measured on ten families on a CPU: 0.0, since the loop makes the same calls;
#: the room is for devices whose kernels do not repeat.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-5, torch.bfloat16: 1e-1, torch.float16: 2e-2}

#: How many times as far off may be what is computed in two blocks, the second masked and behind the
#: first in the cache.  Measured on the ten: 0.0, 2e-6 with Gemma 2's eager attention in float32; a
#: layer that leaves its mask out is off by several times the spread.
BEHIND = 10


class HookedModel(Backbone):
    """A stock model whose layers are called one by one, as deep as a policy says.

    The model's own code is neither edited nor patched: it stays usable by itself.

    Args:
        model: a decoder-only causal language model of a family that has an adapter.
        layout: its vocabulary and chunks; text alone where none is given.
        tokenizer: for prompts given as text.
        heads: reads tokens out at depths below full; the plain logit lens where none is given.
        vocoder: turns speech units into sound.
        card: what stands around a question in text; the layout's ids where none is given.
        audio_encoder: hears spoken prompts.
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
        vocoder: Vocoder | None = None,
        parts: DecoderParts | None = None,
        card: ModelCard | None = None,
        audio_encoder: AudioPrompt | None = None,
    ) -> None:
        super().__init__(model, heads, parts)
        self.layout = layout or TokenLayout.text_only(model.config.vocab_size)
        self.tokenizer = tokenizer
        self.vocoder = vocoder
        self.card = card
        self.audio_encoder = audio_encoder
        self._kernels: tuple[CompiledExecutor, bool] | None = None
        self._costs: dict[bool, LayerCosts] = {}
        self._check_parity()

    def __repr__(self) -> str:
        config = self.model.config
        return (
            f"HookedModel({config.model_type}, {self.depth} layers, width {config.hidden_size}, "
            f"vocabulary {config.vocab_size}, heads {self.heads!r})"
        )

    def encode(self, prompt: str | Tensor) -> Tensor:
        """The ids of a prompt: (tokens,).

        Args:
            prompt: a question in text, or ids (tokens,) or (1, tokens).

        Raises:
            EepolicyError: text without a tokenizer, more than one row, ids outside the vocabulary.
        """
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise EepolicyError("a prompt in text needs a model with a tokenizer")
            if self.card is not None:
                text = self._written(self.card.prompt_prefix + prompt + self.card.prompt_suffix)
            elif self.layout.has_speech:
                text = self._written(prompt)
                text = [*self.layout.before_prompt, *text, *self.layout.after_prompt]
            else:
                text = self.tokenizer(prompt).input_ids
            prompt = torch.tensor(text, dtype=torch.long)
        if not isinstance(prompt, Tensor) or prompt.is_floating_point():
            raise EepolicyError(f"a prompt is a question in text, or a row of ids; got {prompt!r}")
        ids = prompt[0] if prompt.ndim == 2 and len(prompt) == 1 else prompt
        if ids.ndim != 1 or ids.numel() == 0:
            raise EepolicyError(f"a prompt is one row of ids, (tokens,); got {tuple(prompt.shape)}")
        vocabulary = self.model.config.vocab_size
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise EepolicyError(
                f"ids are 0 to {vocabulary - 1}; got {int(ids.min())} to {int(ids.max())}"
            )
        return ids

    def _written(self, text: str) -> list[int]:
        """The ids of a text, with nothing around it."""
        assert self.tokenizer is not None
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    @torch.no_grad()
    def _embedded(self, prompt: str | Tensor | Path) -> tuple[Tensor, Tensor]:
        """A prompt, spoken or not, as ids (tokens,) and embeddings (tokens, width).

        The ids of what was heard only hold its place.
        """
        device = self.model.device
        if not _is_spoken(prompt):
            assert isinstance(prompt, (str, Tensor))
            ids = self.encode(prompt).to(device)
            return ids, self.parts.embed(ids[None])[0]
        if self.audio_encoder is None or self.card is None:
            raise EepolicyError(
                f"this model hears nothing: give the question in text instead of {_short(prompt)}"
            )
        wave = read_wave(prompt) if isinstance(prompt, Path) else prompt
        assert isinstance(wave, Tensor)
        inner, heard = self.audio_encoder.encode(wave)
        before, after = (
            self._written(t) for t in (self.card.prompt_prefix, self.card.prompt_suffix)
        )
        ids = torch.tensor([*before, *inner.tolist(), *after], device=device)
        embedded = self.parts.embed(ids[None])[0].clone()
        places = torch.zeros(len(ids), dtype=torch.bool, device=device)
        places[len(before) : len(before) + len(inner)] = (
            inner.to(device) == self.audio_encoder.patch
        )
        embedded[places] = heard.to(embedded)
        return ids, embedded

    @overload
    def generate(
        self,
        prompt: str | Tensor | Path | None = None,
        policy: ExitPolicy | str | None = None,
        max_new_tokens: int | None = None,
        fill: Fill | str | None = None,
        accept: Acceptance | str | None = None,
        **options: Any,
    ) -> Output: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str | Tensor | Path],
        policy: ExitPolicy | str | None = None,
        max_new_tokens: int | None = None,
        fill: Fill | str | None = None,
        accept: Acceptance | str | None = None,
        **options: Any,
    ) -> list[Output]: ...

    def generate(
        self,
        prompt: str | Tensor | Path | Sequence[str | Tensor | Path] | None = None,
        policy: ExitPolicy | str | None = None,
        max_new_tokens: int | None = None,
        fill: Fill | str | None = None,
        accept: Acceptance | str | None = None,
        *,
        attention_mask: Tensor | None = None,
        seed: int = 0,
        record: bool | dict[str, Any] = False,
        compile: bool = False,
        restrict_vocab: bool = False,
        **options: Any,
    ) -> Output | list[Output]:
        """Answer a prompt, or several side by side, each position as deep as the policy says.

        Args:
            prompt: a question in text, or ids (tokens,); to a model with an audio encoder also a spoken one, as
                the path of a sound file or a wave (samples,) at 16 kHz.  A list of them is decoded
                as one batch, as are ids (rows, tokens) that are padded on the left.
            policy: a policy or its spec string; full depth where none is given.
            max_new_tokens: at most so many a reply, the end mark included; 400 where neither it nor
                a generation config says.
            fill: what becomes of the keys and values above an exit: a `Fill` or its way,
                `"catch_up"` (exact) where none is given, `"propagate"` or `"mask"`.
            accept: what becomes of the tokens that were read out early once the full model has
                caught up: an `Acceptance` or its string, `"all"` (SPAR-K) where none is given,
                `"exact"` (lossless, greedy), `"sampling"` (lossless), `"top:5"`, `"ratio:0.3"`,
                `"acoustic:20"`.
            attention_mask: (rows, tokens) of prompts given as ids or embeddings, 0 where a row is
                padded.
            seed: of the draws; on a CPU the stock `generate` draws the same after
                `torch.manual_seed`.
            record: keep in `Output.record` what every layer that really ran said of each token,
                those of a catch-up included, and its hidden states; or a dict of what to measure
                and keep, as `eepolicy.probe` takes it.
            compile: run the layers by code that `torch.compile` makes of them at the first call,
                which takes seconds, and half a minute where nothing is on the disk yet: the
                same tokens, but for ties within rounding, in less time.  Where that cannot be, a
                warning says why, and nothing else changes.  Change weights afterwards by writing
                into them, or in another model or head.
            restrict_vocab: read speech out over the speech ids and the marks that end it alone, where the
                alternation says that speech follows: cheaper by the rest of the vocabulary, and
                another distribution, in which no text can interrupt a chunk of speech.
            **options: of the stock `generate`, with its defaults: `do_sample`, `temperature`,
                `top_p`, `top_k`, `repetition_penalty`, `num_return_sequences`, `inputs_embeds` in
                place of a prompt, `generation_config`, `logits_processor`, `stopping_criteria`,
                `stop_strings`, `streamer` and so on.  A `temperature` (`top_p`, ...) asks for
                sampling.  A logits processor must follow from the ids that it is given, as
                rejected drafts are gone from them.

        Returns:
            Tokens, text, speech and trace; a list of them for a list or several rows.

        Raises:
            EepolicyError: a prompt, policy or option that does not fit the model, or one that
                cannot be honoured, such as beams.

        Examples:
            >>> model = eepolicy.load("pocket")
            >>> model.generate("What color is snow?", "spark:triple@14").text
            'Snow is white.'
            >>> questions = ["What color is snow?", "What is two plus three?"]
            >>> [out.ended for out in model.generate(questions, "spark:triple@14")]
            [True, True]
        """
        from eepolicy.decode.acceptance import parse_acceptance
        from eepolicy.decode.fills.base import Fill
        from eepolicy.decode.loop import decode
        from eepolicy.decode.request import prepare

        ids, mask, alone, spoken = self._rows(prompt, attention_mask, options)
        if "inputs_embeds" in options:
            options["inputs_embeds"] = options["inputs_embeds"].to(self.model.device)
        end = self.layout.end if self.layout.has_speech else None
        outputs = decode(
            self,
            prepare(self.model, ids, mask, end, max_new_tokens, options, self.tokenizer),
            FullDepth() if policy is None else policy,
            Fill(fill) if isinstance(fill, str) else fill,
            parse_acceptance(accept) if isinstance(accept, str) else accept,
            seed,
            {"hidden_states": "all"} if record is True else None if record is False else record,
            self._compiled() if compile else None,
            restrict_vocab,
        )
        if ids is not None and any(spoken):  # a row that was written keeps its prompt
            times = len(outputs) // len(spoken)
            rows = [ids[i][mask[i].bool()].cpu() for i in range(len(spoken))]
            outputs = [
                o if spoken[i // times] else replace(o, prompt=rows[i // times])
                for i, o in enumerate(outputs)
            ]
        return outputs[0] if alone and len(outputs) == 1 else outputs

    def _rows(
        self,
        prompt: str | Tensor | Path | Sequence[str | Tensor | Path] | None,
        mask: Tensor | None,
        options: dict[str, Any],
    ) -> tuple[Tensor | None, Tensor, bool, list[bool]]:
        """Prompts as ids and mask, (rows, tokens) each; whether it is one; which are spoken.

        Where one of them is spoken, the embeddings of all are put into the options.
        """
        from eepolicy.decode.request import padded

        device, embedded = self.model.device, options.get("inputs_embeds")
        if (prompt is None) == (embedded is None):
            raise EepolicyError("give a prompt, or inputs_embeds in its place")
        if embedded is not None:
            width = self.model.config.hidden_size
            if embedded.ndim != 3 or embedded.shape[2] != width or not embedded.shape[1]:
                raise EepolicyError(
                    f"inputs_embeds is (rows, tokens, {width}); got {tuple(embedded.shape)}"
                )
            return None, _held(mask, embedded, device), len(embedded) == 1, []
        if isinstance(prompt, Tensor) and prompt.ndim == 2 and len(prompt):
            ids = torch.stack([self.encode(row) for row in prompt]).to(device)
            return ids, _held(mask, ids, device), len(ids) == 1, []
        if mask is not None:
            raise EepolicyError(
                "an attention mask goes with ids (rows, tokens); other prompts are padded for you"
            )
        alone = isinstance(prompt, (str, Tensor, Path))
        prompts = [prompt] if isinstance(prompt, (str, Tensor, Path)) else list(prompt or ())
        if not prompts:
            raise EepolicyError("there is no prompt")
        pad = self._pad(options.get("pad_token_id"))
        spoken = [_is_spoken(p) for p in prompts]
        if any(spoken):
            rows, states = zip(*(self._embedded(p) for p in prompts), strict=True)
            ids, mask = padded(rows, pad)
            embeds = [F.pad(s, (0, 0, ids.shape[1] - len(s), 0)) for s in states]
            options["inputs_embeds"] = torch.stack(embeds)
            return ids, mask, alone, spoken
        ids, mask = padded([self.encode(p).to(device) for p in prompts], pad)  # type: ignore[arg-type]
        return ids, mask, alone, spoken

    def _pad(self, given: int | None) -> int:
        """The id in front of the shorter prompts: nothing attends to it, but processors see it."""
        own = getattr(self.tokenizer, "pad_token_id", None)
        found = (given, own, self.model.generation_config.pad_token_id)
        return next((pad for pad in found if pad is not None), 0)

    def to(self, device: str | torch.device) -> HookedModel:
        """Move the model, its heads and its audio encoder to a device."""
        self.model.to(device)
        self._kernels = None
        self._costs = {}
        self.heads = self.heads.to(self.model)
        encoder = getattr(self.audio_encoder, "encoder", None)
        if isinstance(encoder, torch.nn.Module):
            encoder.to(device)
        return self

    def _compiled(self) -> CompiledExecutor | None:
        """The compiled layers, where the model can be compiled."""
        from eepolicy.compile.cuda_graphs import CudaGraphExecutor
        from eepolicy.compile.executor import CompiledExecutor

        if self._kernels is None:
            on_cuda = self.model.device.type == "cuda"
            made = (CudaGraphExecutor if on_cuda else CompiledExecutor)(self)
            self._kernels = made, made.check()
        made, sound = self._kernels
        return made if sound else None

    def layer_costs(self, layers: CompiledExecutor | None = None) -> LayerCosts:
        """Seconds of a layer call on this machine, measured at the first call.

        Args:
            layers: the compiled ones, where they are asked for.
        """
        from eepolicy.decode.rebatch import measure_layers

        compiled = layers is not None
        if compiled not in self._costs:
            self._costs[compiled] = measure_layers(self, layers)
        return self._costs[compiled]

    def unwrap(self) -> PreTrainedModel:
        """The stock model, which was never changed but for its evaluation mode."""
        return self.model

    @torch.no_grad()
    def _check_parity(self) -> None:
        from eepolicy.decode.batch import Batch

        vocabulary, device = self.model.config.vocab_size, self.model.device
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(vocabulary, (1, 8), generator=generator).to(device)
        stock = self.model(ids).logits
        *_, whole = self.hidden_states(ids)
        batch, behind = Batch(self, [0], ids.shape[1]), []
        for tokens in ids.split(4, 1):
            block = batch.enter_block(tokens)
            batch.run(block, self.depth)
            behind.append(block.hidden)
        exact = TOLERANCE.get(self.model.dtype, 0.0)
        for states, tolerance in ((whole, exact), (torch.cat(behind, 1), BEHIND * exact)):
            ours = self.lens.logits(states, self.depth)
            error = ((ours - stock).abs().max() / stock.std()).item()
            if not error <= tolerance:
                raise EepolicyError(
                    f"the layer loop differs from the stock {type(self.model).__name__} by "
                    f"{error:.1e} of its logits' spread (tolerance {tolerance:.0e}): "
                    "the adapter of its family does not fit"
                )


#: hook a loaded model; `HookedModel.unwrap` gives it back
wrap = HookedModel


def _is_spoken(prompt: object) -> bool:
    """Whether a prompt is a sound file or a wave."""
    wave = isinstance(prompt, Tensor) and prompt.ndim == 1 and prompt.is_floating_point()
    return wave or isinstance(prompt, Path)


def _short(prompt: object) -> str:
    return f"{tuple(prompt.shape)} samples" if isinstance(prompt, Tensor) else repr(str(prompt))


def _held(mask: Tensor | None, prompt: Tensor, device: torch.device) -> Tensor:
    """The mask, or one that holds everything: (rows, tokens)."""
    if mask is None:
        return torch.ones(prompt.shape[:2], dtype=torch.long, device=device)
    return mask.to(device)
