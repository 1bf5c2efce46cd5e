"""The hooked model: early-exit decoding and probing of a stock Hugging Face model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, overload

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from eepolicy.arguments import checked
from eepolicy.compile.cuda_graphs import executor_for
from eepolicy.compile.executor import CompiledExecutor
from eepolicy.decode.acceptance import Acceptance
from eepolicy.decode.config import EarlyExitConfig
from eepolicy.decode.fills import KVFill
from eepolicy.decode.measure import measure_layers
from eepolicy.decode.output import Output
from eepolicy.decode.outputs import outputs_of
from eepolicy.decode.parity import check_stock_logits
from eepolicy.decode.prompt_encoder import PromptEncoder
from eepolicy.decode.rebatch import LayerCosts
from eepolicy.decode.recorder import Recorder
from eepolicy.decode.request import Request, RequestDefaults, prepare_request
from eepolicy.decode.session import DecodeSession, Runtime
from eepolicy.errors import EepolicyError
from eepolicy.fields import Positive, with_method
from eepolicy.heads.base import ExitHead
from eepolicy.heads.weights import checked_device
from eepolicy.modality import TokenLayout
from eepolicy.model.backbone import Backbone
from eepolicy.model.families import DecoderParts
from eepolicy.policies import ExitPolicy
from eepolicy.pretrained import PretrainedHabits
from eepolicy.probing.recorded import record_plan, recorded_result
from eepolicy.prompts import Messages, Prompt, PromptBatch, PromptFormat, Voice
from eepolicy.speech.audio_prompt import AudioPrompt
from eepolicy.speech.model_card import ModelCard
from eepolicy.speech.vocoders import Vocoder
from eepolicy.streaming import AudioStream, check_stream, stream_units


class HookedModel(PretrainedHabits, Backbone):
    """A stock model that decodes with early exit and can be probed at every depth.

    The stock model is neither edited nor patched, except that it is put into evaluation mode.

    Args:
        model: decoder-only causal language model of a family with an adapter.
        layout: vocabulary and chunks of the model; default: text only.
        tokenizer: tokenizer, for prompts in text.
        heads: exit heads for depths below full depth; default: the logit lens.
        vocoder: turns speech units into sound.
        parts: parts of a model whose family has no adapter.
        card: model card with the texts around a question; default: the ids of the layout.
        audio_encoder: turns audio prompts into embeddings.

    Raises:
        EepolicyError: the family has no adapter, or the layer loop does not give the stock logits.
    """

    @checked("model", "tokenizer", "vocoder")
    def __init__(
        self,
        model: PreTrainedModel,
        layout: TokenLayout | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        heads: ExitHead | None = None,
        vocoder: Vocoder | None = None,
        parts: DecoderParts | None = None,
        card: ModelCard | None = None,
        audio_encoder: AudioPrompt | None = None,
    ) -> None:
        super().__init__(model, heads, parts)
        self.layout = layout or TokenLayout.text_only(self.vocab_size)
        self.layout.check(self.vocab_size)
        self.tokenizer = with_method(tokenizer, "tokenizer", "decode")
        self.vocoder = with_method(vocoder, "vocoder", "decode")
        self.card = card
        self.audio_encoder = audio_encoder
        #: recording whose voice a text-to-speech model imitates
        self.voice: Voice | None = None
        #: turns text into phonemes, for a model that reads them
        self.phonemizer: Callable[[str], str] | None = None
        self._executor: CompiledExecutor | None = None
        #: costs measured so far, by whether layers are compiled; a continued run restores them
        self.measured_costs: dict[bool, LayerCosts] = {}
        check_stock_logits(self)

    def __repr__(self) -> str:
        config = self.text_config
        return (
            f"HookedModel({config.model_type}, {self.depth} layers, width {config.hidden_size}, "
            f"vocabulary {config.vocab_size}, heads {self.heads!r})"
        )

    @property
    def prompt_format(self) -> PromptFormat:
        """How a question becomes ids."""
        affixes = None if self.card is None else self.card.affixes
        return PromptFormat(
            self.vocab_size, self.layout, self.tokenizer, affixes, self.voice, self.phonemizer
        )

    def encode(self, prompt: str | Messages | Tensor) -> Tensor:
        """The ids of a prompt: (tokens,).

        Args:
            prompt: a question in text, turns of a chat, or ids (tokens,) or (1, tokens).

        Raises:
            EepolicyError: text without a tokenizer, turns without a chat template, several rows, or
                ids outside the vocabulary.
        """
        return self.prompt_format.encode(prompt)

    @property
    def has_chat_template(self) -> bool:
        """Whether turns of a chat can be prompts: a text model whose tokenizer has a template."""
        return not self.layout.has_speech and bool(getattr(self.tokenizer, "chat_template", None))

    def _prompt_encoder(self) -> PromptEncoder:
        """Encodes prompts for this model."""
        pad_ids = (
            getattr(self.tokenizer, "pad_token_id", None),
            self.model.generation_config.pad_token_id,
        )
        pad_id = next((pad for pad in pad_ids if pad is not None), 0)
        return PromptEncoder(self, self.prompt_format, self.audio_encoder, pad_id)

    @overload
    def generate(
        self,
        prompt: Prompt | Mapping[str, Any] | None = None,
        policy: ExitPolicy | str | None = None,
        max_new_tokens: int | None = None,
        fill: KVFill | str | None = None,
        accept: Acceptance | str | None = None,
        **options: Any,
    ) -> Output: ...

    @overload
    def generate(
        self,
        prompt: Sequence[Prompt],
        policy: ExitPolicy | str | None = None,
        max_new_tokens: int | None = None,
        fill: KVFill | str | None = None,
        accept: Acceptance | str | None = None,
        **options: Any,
    ) -> list[Output]: ...

    @checked("prompt", "attention_mask")
    def generate(
        self,
        prompt: Prompt | Mapping[str, Any] | Sequence[Prompt] | None = None,
        policy: ExitPolicy | str | None = None,
        max_new_tokens: Positive | None = None,
        fill: KVFill | str | None = None,
        accept: Acceptance | str | None = None,
        *,
        config: EarlyExitConfig | None = None,
        max_pending: int | None = None,
        rebatch: str | float | None = None,
        restrict_vocab: bool | None = None,
        compile: bool | None = None,
        record: bool | Mapping[str, Any] | None = None,
        seed: int | Sequence[int] | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Output | list[Output]:
        """Answer one prompt or a batch, and run each position as deep as the policy says.

        Args:
            prompt: a question in text, turns of a chat (dicts with `role` and `content`), or ids
                (tokens,).  For a model with an audio encoder also audio: the path of a sound file,
                a waveform (samples,) at 16 kHz, or a pair of samples and sampling rate.  A list is
                decoded as one batch, as are ids (rows, tokens) that are padded on the left, and the
                output of a tokenizer.  The stock names of prompts, such as `input_ids` and
                `inputs_embeds`, are understood too.
            policy: exit policy or its spec string; default: full depth.
            max_new_tokens: largest number of new tokens of a reply, the end token included;
                default: the generation config's, else 400.
            fill: what becomes of the keys and values above an exit: a `KVFill` or its spec string,
                `"catch_up"` (exact, default), `"propagate"` or `"mask"`.
            accept: which tokens of early exits stay once the full model has verified them: an
                `Acceptance` or its spec string: `"all"` (SPAR-K, default), `"exact"` (lossless up
                to rounding, for greedy decoding), `"sampling"` or `"block"` (lossless up to
                rounding, for sampling), `"top:5+ratio:0.3"`, and others; see
                `eepolicy.decode.acceptance`.
            config: all options of early exit; the arguments override it.
            max_pending: largest number of pending positions, or of unverified drafts, of a row.
            rebatch: whether exited rows of a batch run on: `"never"` (default), `"always"`,
                `"auto"`, or a share; see `EarlyExitConfig`.
            restrict_vocab: where the alternation of chunks expects speech, compute the logits of
                speech ids and end tokens only.  This multiplies with fewer rows of the output
                embedding.  It changes the distribution: text cannot interrupt a speech chunk.
            compile: run the layers with code made by `torch.compile`.  The first call compiles,
                which takes seconds, or half a minute without a compile cache.  Tokens are the same,
                except for ties within rounding.  Where compilation fails, a warning gives the
                reason and the layers run uncompiled.
            record: store in `Output.record` the hidden states of every layer that runs and their
                statistics; True, or the options of `eepolicy.probe` as a dict.
            seed: seed of sampling, or one for each row.  The tokens are those of the stock
                `generate` after `torch.manual_seed(seed)`.  Default: sampling uses the global
                generator of PyTorch, as the stock `generate` does.
            attention_mask: (rows, tokens), 0 at padding, for prompts given as ids or embeddings.
                Default: pad ids are padding, unless the pad id also ends replies, as in
                transformers.
            **options: options of the stock `generate`, with its defaults: `do_sample`,
                `temperature`, `top_p`, `top_k`, `repetition_penalty`, `num_return_sequences`,
                `inputs_embeds`, `generation_config`, `logits_processor`, `stopping_criteria`,
                `stop_strings`, `streamer` and so on.  A `temperature` (or `top_p` and so on) turns
                sampling on.  A logits processor must keep no state of its own, because
                rejected drafts are removed from the ids that it gets.

        Returns:
            An `Output`, or a list of them for a list or several rows.

        Raises:
            EepolicyError: a prompt, policy or option does not fit the model, or is not supported.

        Examples:
            >>> model = eepolicy.load("pocket")
            >>> model.generate("What color is snow?", "spark:triple@14").text
            'Snow is white.'
            >>> questions = ["What color is snow?", "What is two plus three?"]
            >>> [out.ended for out in model.generate(questions, "spark:triple@14")]
            [True, True]
        """
        changes = {
            "policy": policy,
            "fill": fill,
            "accept": accept,
            "max_pending": max_pending,
            "rebatch": rebatch,
            "restrict_vocab": restrict_vocab,
            "compile": compile,
            "record": record,
            "seed": seed,
        }
        changes = {name: value for name, value in changes.items() if value is not None}
        config = (config or EarlyExitConfig()).replace(**changes)
        prompts = self._prompt_encoder().batch(prompt, attention_mask, options)
        request = self._request(prompts, max_new_tokens, options)
        outputs = self.decode(request, config)
        if any(prompts.is_audio):  # rows in text keep their ids
            rows = prompts.text_prompts(len(outputs))
            outputs = [
                out if ids is None else replace(out, prompt=ids)
                for out, ids in zip(outputs, rows, strict=True)
            ]
        return outputs[0] if prompts.is_single and len(outputs) == 1 else outputs

    @checked("prompt")
    def stream_audio(
        self,
        prompt: Prompt | Mapping[str, Any],
        policy: ExitPolicy | str | None = None,
        max_new_tokens: int | None = None,
        *,
        chunk: int | None = None,
        **options: Any,
    ) -> AudioStream[Output]:
        """Answer one prompt in speech, and return the sound while it is decoded.

        Args:
            prompt: see `generate`.
            policy: see `generate`.
            max_new_tokens: see `generate`.
            chunk: number of speech units that the vocoder gets at once.  A small number gives the
                first sound early, and a large one costs less.  Default: `stream_chunk` of the
                vocoder, or 8 for a vocoder without it.
            **options: options of `EarlyExitConfig`, except `record`, and of the stock `generate`.

        Returns:
            An iterator over pieces of sound, (samples,) at its `sampling_rate`.  Together they are
            the `audio` of `generate`, up to rounding, unless the vocoder says otherwise.

        Raises:
            EepolicyError: the vocoder cannot stream, or see `generate`.

        Examples:
            >>> model = eepolicy.load("pocket")
            >>> stream = model.stream_audio("What color is snow?", "static@6")
            >>> pieces = list(stream)
            >>> sum(map(len, pieces)) == len(stream.output.audio)
            True
        """
        names = {field.name for field in fields(EarlyExitConfig)} & options.keys()
        config = EarlyExitConfig(policy or "full", **{name: options.pop(name) for name in names})
        if config.record:
            raise EepolicyError("stream_audio keeps no record: use generate(..., record=...)")
        mask = options.pop("attention_mask", None)
        prompts = self._prompt_encoder().batch(prompt, mask, options)
        request = self._request(prompts, max_new_tokens, options)
        vocoder, chunk = check_stream(self.vocoder, len(request.prompt), chunk)
        session = self._session(request, config)

        def finish() -> Output:
            return outputs_of(session, session.replies, self.tokenizer, self.vocoder)[0]

        return stream_units(session, self.layout, vocoder, chunk, finish)

    def _request(
        self, prompts: PromptBatch, max_new_tokens: int | None, options: dict[str, Any]
    ) -> Request:
        """Prepare prompts and options of the stock `generate`."""
        ends = self.layout.ends if self.layout.has_speech else ()
        defaults = RequestDefaults(ends, max_new_tokens, self.tokenizer)
        return prepare_request(self.model, prompts, options, defaults)

    def _session(
        self, request: Request, config: EarlyExitConfig, recorder: Recorder | None = None
    ) -> DecodeSession:
        """A session that decodes a request; it has not started."""
        config = config.validate(self.depth, self.layout, self.vocoder)
        executor = self.compiled_executor() if config.compile else None
        self.check_predicted(config.policy.predicted_depths(self.depth))
        costs = self.layer_costs(executor) if config.needs_costs else None
        runtime = Runtime(executor, costs, recorder)
        return DecodeSession(self, self.layout, request, config, runtime)

    def decode(self, request: Request, config: EarlyExitConfig) -> list[Output]:
        """Decode a request that `prepare_request` made, and attach records.

        Args:
            request: prompts and options of the stock `generate`.
            config: options of early exit.

        Raises:
            EepolicyError: an option does not fit the model.
        """
        plan = record_plan(self, config.record)  # checked before any work
        recorder = None if plan is None else Recorder(len(request.prompt))
        session = self._session(request, config, recorder)
        replies = session.run()
        outputs = outputs_of(session, replies, self.tokenizer, self.vocoder)
        if recorder is None or plan is None:
            return outputs
        results = [
            recorded_result(self, out, recorder, plan, self.layout, row)
            for row, out in enumerate(outputs)
        ]
        return [
            replace(out, record=replace(result, tokenizer=self.tokenizer))
            for out, result in zip(outputs, results, strict=True)
        ]

    def to(self, device: str | torch.device) -> HookedModel:
        """Move the model, its exit heads and its audio encoder to a device."""
        self.model.to(checked_device(device))
        self._executor = None
        self.measured_costs = {}
        self.heads.to(self.device, self.model.dtype)
        for module in (self.predictor, getattr(self.audio_encoder, "encoder", None)):
            if isinstance(module, nn.Module):
                module.to(device)
        return self

    def compiled_executor(self) -> CompiledExecutor | None:
        """The executor of compiled layers; None where the model cannot be compiled."""
        if self._executor is None:
            self._executor = executor_for(self)
        return self._executor if self._executor.check() else None

    def layer_costs(self, executor: CompiledExecutor | None = None) -> LayerCosts:
        """Seconds of a layer call on this machine, measured at the first call.

        Args:
            executor: runs the layers; default: the backbone.
        """
        compiled = executor is not None
        if compiled not in self.measured_costs:
            self.measured_costs[compiled] = measure_layers(self, executor)
        return self.measured_costs[compiled]

    def unwrap(self) -> PreTrainedModel:
        """The stock model, unchanged except for its evaluation mode."""
        return self.model


#: hook a loaded model; `HookedModel.unwrap` returns it
wrap = HookedModel
