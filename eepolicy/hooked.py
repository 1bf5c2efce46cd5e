"""The hooked model: early-exit decoding and probing of a stock Hugging Face model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eepolicy.compile.cuda_graphs import CudaGraphExecutor
from eepolicy.compile.executor import CompiledExecutor
from eepolicy.decode.acceptance import Acceptance
from eepolicy.decode.config import EarlyExitConfig
from eepolicy.decode.fills import KVFill
from eepolicy.decode.measure import measure_layers
from eepolicy.decode.output import Output
from eepolicy.decode.parity import check_stock_logits
from eepolicy.decode.prompt_encoder import PromptEncoder
from eepolicy.decode.rebatch import LayerCosts
from eepolicy.decode.recorder import Recorder
from eepolicy.decode.reply import Reply
from eepolicy.decode.request import Request, RequestDefaults, prepare_request
from eepolicy.decode.session import DecodeSession, Runtime
from eepolicy.errors import EepolicyError
from eepolicy.heads.base import ExitHead
from eepolicy.modality import TokenLayout
from eepolicy.model.backbone import Backbone
from eepolicy.model.families import DecoderParts
from eepolicy.policies import ExitPolicy
from eepolicy.probing.documents import Document, Inputs, to_documents
from eepolicy.probing.plan import Depths, ProbeConfig, ProbePlan
from eepolicy.probing.recorded import record_plan, recorded_result
from eepolicy.probing.result import ProbeResult
from eepolicy.probing.run import run_probe
from eepolicy.probing.statistics import Statistic
from eepolicy.prompts import Prompt, PromptFormat
from eepolicy.speech.audio_prompt import AudioPrompt
from eepolicy.speech.model_card import ModelCard
from eepolicy.speech.vocoders import Vocoder


class HookedModel(Backbone):
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
        self.layout = layout or TokenLayout.text_only(model.config.vocab_size)
        self.tokenizer = tokenizer
        self.vocoder = vocoder
        self.card = card
        self.audio_encoder = audio_encoder
        self._executor: tuple[CompiledExecutor, bool] | None = None
        #: costs measured so far, by whether layers are compiled; a continued run restores them
        self.measured_costs: dict[bool, LayerCosts] = {}
        check_stock_logits(self)

    def __repr__(self) -> str:
        config = self.model.config
        return (
            f"HookedModel({config.model_type}, {self.depth} layers, width {config.hidden_size}, "
            f"vocabulary {config.vocab_size}, heads {self.heads!r})"
        )

    @property
    def prompt_format(self) -> PromptFormat:
        """How a question becomes ids."""
        affixes = None
        if self.card is not None:
            affixes = self.card.affixes
        return PromptFormat(self.vocab_size, self.layout, self.tokenizer, affixes)

    def encode(self, prompt: str | Tensor) -> Tensor:
        """The ids of a prompt: (tokens,).

        Args:
            prompt: a question in text, or ids (tokens,) or (1, tokens).

        Raises:
            EepolicyError: text without a tokenizer, several rows, or ids outside the vocabulary.
        """
        return self.prompt_format.encode(prompt)

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
        prompt: Prompt | None = None,
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

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt] | None = None,
        policy: ExitPolicy | str | None = None,
        max_new_tokens: int | None = None,
        fill: KVFill | str | None = None,
        accept: Acceptance | str | None = None,
        *,
        config: EarlyExitConfig | None = None,
        max_pending: int | None = None,
        rebatch: str | float | None = None,
        restrict_vocab: bool | None = None,
        compile: bool | None = None,
        record: bool | Mapping[str, Any] | None = None,
        seed: int | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Output | list[Output]:
        """Answer one prompt or a batch, and run each position as deep as the policy says.

        Args:
            prompt: a question in text, or ids (tokens,).  For a model with an audio encoder also
                audio: the path of a sound file, or a waveform (samples,) at 16 kHz.  A list is
                decoded as one batch, as are ids (rows, tokens) that are padded on the left.
            policy: exit policy or its spec string; default: full depth.
            max_new_tokens: largest number of new tokens of a reply, the end token included;
                default: the generation config's, else 400.
            fill: what becomes of the keys and values above an exit: a `KVFill` or its spec string,
                `"catch_up"` (exact, default), `"propagate"` or `"mask"`.
            accept: which tokens of early exits stay once the full model has verified them: an
                `Acceptance` or its spec string, `"all"` (SPAR-K, default), `"exact"` (lossless,
                greedy), `"sampling"` or `"block"` (lossless), `"top:5+ratio:0.3"`, and others; see
                `eepolicy.decode.acceptance`.
            config: all options of early exit; the arguments override it.
            max_pending: largest number of pending positions, or of unverified drafts, of a row.
            rebatch: whether exited rows of a batch run on: `"never"` (default), `"always"`,
                `"auto"`, or a share; see `EarlyExitConfig`.
            restrict_vocab: read speech out over the speech ids and end tokens only, where the
                alternation of chunks expects speech.  This costs fewer rows of the output
                embedding.  It changes the distribution: text cannot interrupt a speech chunk.
            compile: run the layers with code made by `torch.compile`.  The first call compiles,
                which takes seconds, or half a minute without a compile cache.  Tokens are the same,
                except for ties within rounding.  Where compilation fails, a warning gives the
                reason and the layers run uncompiled.  Afterwards, change weights in place only.
            record: store in `Output.record` the hidden states of every layer that runs and their
                statistics; True, or the options of `eepolicy.probe` as a dict.
            seed: seed of sampling; default 0.  On a CPU the stock `generate` samples the same
                tokens after `torch.manual_seed(seed)`.
            attention_mask: (rows, tokens), 0 at padding, for prompts given as ids or embeddings.
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
        ends = self.layout.ends if self.layout.has_speech else ()
        defaults = RequestDefaults(ends, max_new_tokens, self.tokenizer)
        request = prepare_request(self.model, prompts, options, defaults)
        outputs = self._decode(request, config)
        if prompts.ids is not None and any(prompts.is_audio):  # rows in text keep their prompt
            times = len(outputs) // len(prompts.is_audio)
            outputs = [
                out
                if prompts.is_audio[i // times]
                else replace(out, prompt=prompts.text_prompt(i // times))
                for i, out in enumerate(outputs)
            ]
        return outputs[0] if prompts.is_single and len(outputs) == 1 else outputs

    def _decode(self, request: Request, config: EarlyExitConfig) -> list[Output]:
        """Decode a request and attach records."""
        config = config.validate(self.depth, self.layout, self.vocoder)
        plan = record_plan(self, config.record)  # checked before any work
        executor = self.compiled_executor() if config.compile else None
        self.check_predicted(config.policy.predicted_depths(self.depth))
        costs = self.layer_costs(executor) if config.needs_costs else None
        recorder = None if plan is None else Recorder(len(request.prompt))
        runtime = Runtime(executor, costs, recorder)
        session = DecodeSession(self, self.layout, request, config, runtime)
        replies = session.run()
        seconds = session.seconds
        prompts = [ids[n:].cpu() for ids, n in zip(request.ids, request.padding, strict=True)]
        if request.prompt.is_floating_point():  # ids do not describe embeddings
            prompts = [ids[:0] for ids in prompts]
        outputs = [
            self._output(prompt, reply, session, seconds)
            for prompt, reply in zip(prompts, replies, strict=True)
        ]
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

    def _output(
        self, prompt: Tensor, reply: Reply, session: DecodeSession, seconds: float
    ) -> Output:
        """The output of one row."""
        ids, text = torch.tensor(reply.tokens), None
        if self.tokenizer is not None:
            text_ids = self.layout.text_ids(ids[:-1] if reply.ended else ids)
            text = self.tokenizer.decode(text_ids).strip()
        return Output(
            prompt=prompt,
            tokens=ids,
            text=text,
            units=self.layout.units(ids),
            ended=reply.ended,
            trace=session.trace(reply),
            seconds=seconds,
            ttft=session.ttft,
            vocoder=self.vocoder,
        )

    def to(self, device: str | torch.device) -> HookedModel:
        """Move the model, its exit heads and its audio encoder to a device."""
        self.model.to(device)
        self._executor = None
        self.measured_costs = {}
        self.heads.to(self.model.device, self.model.dtype)
        for module in (self.predictor, getattr(self.audio_encoder, "encoder", None)):
            if isinstance(module, nn.Module):
                module.to(device)
        return self

    def compiled_executor(self) -> CompiledExecutor | None:
        """The executor of compiled layers; None where the model cannot be compiled."""
        if self._executor is None:
            on_cuda = self.model.device.type == "cuda"
            executor = (CudaGraphExecutor if on_cuda else CompiledExecutor)(self)
            self._executor = executor, executor.check()
        executor, is_correct = self._executor
        return executor if is_correct else None

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


def probe(
    model: HookedModel | PreTrainedModel,
    inputs: Inputs,
    *,
    depths: Depths = None,
    heads: ExitHead | None = None,
    statistics: Iterable[str | Statistic] | None = None,
    top_k: int = 0,
    hidden_states: Depths = None,
    distributions: Depths = None,
    dtype: torch.dtype = torch.float32,
    attention_mask: Tensor | None = None,
    save: str | Path | None = None,
    compile: bool = False,
    progress: Callable[[Iterator[Document]], Iterable[Document]] = iter,
) -> ProbeResult:
    """Read out every layer at every token of some documents, in one pass for each document.

    Memory contains the keys and values of one document, the logits of a few positions, and the
    statistics.  With `save` the statistics go to disk, and a stopped run resumes from there.

    Args:
        model: model to probe; a stock model is wrapped first.
        inputs: text, ids (tokens,) or (rows, tokens), the output of a tokenizer or of `generate`,
            a `Document`, or any iterable of these.  In a generated reply, each token is read out
            at the position that predicts it.  Other inputs are read out at every position.
        depths: depths to read out, or `"all"`.  By default all, or those at which the heads were
            fitted.  Full depth is always added.
        heads: exit heads; by default the model's own.  `model.lens` is the logit lens.
        statistics: names from `eepolicy.probing.STATISTICS` and `Statistic` objects; by default
            all names.
        top_k: number of most probable tokens to keep.
        hidden_states: depths whose hidden states are kept, or `"all"`.
        distributions: depths whose log-probabilities over the vocabulary are kept, or `"all"`.
        dtype: type in which hidden states and distributions are kept: float16 (up to 65,504),
            float32 or float64.
        attention_mask: (rows, tokens) of padded ids, 0 for padding.
        save: folder to write to; the result is then memory-mapped from there.
        compile: run the layers and statistics by `torch.compile`.  Compiling takes seconds at the
            first call.  The numbers are the same up to rounding.  Your own statistics run
            uncompiled, as do branches that are not the model's own.
        progress: wraps the iterator of documents, to show a progress bar.

    Returns:
        Labelled statistics, (depths, tokens) each.

    Raises:
        EepolicyError: inputs, depths or names that do not fit the model, no document, or a folder
            that contains something else.

    Examples:
        >>> model = eepolicy.load("pocket")
        >>> out = model.generate("What color is snow?")
        >>> result = eepolicy.probe(model, out, statistics=["entropy", "top1"])
        >>> result.entropy.shape == (20, len(out.tokens))
        True
    """
    if isinstance(model, PreTrainedModel):
        model = HookedModel(model)
    if not isinstance(model, HookedModel):
        raise EepolicyError(f"probe takes a HookedModel or a transformers model; got {model!r}")
    config = ProbeConfig(depths, heads, statistics, top_k, hidden_states, distributions, dtype)
    backbone = model.with_heads(heads)
    plan = ProbePlan.of(backbone, config)
    documents = progress(to_documents(model.encode, inputs, attention_mask))
    executor = model.compiled_executor() if compile and backbone is model else None
    result = run_probe(backbone, documents, plan, model.layout, save, executor)
    return replace(result, tokenizer=model.tokenizer)
