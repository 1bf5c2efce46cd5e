"""A hooked model whose positions are frames of several codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from eepolicy.arguments import checked
from eepolicy.codebooks.adapter import adapter_of
from eepolicy.codebooks.config import CHANGES, CodebookConfig
from eepolicy.codebooks.costs import flops, measured_costs
from eepolicy.codebooks.depth_heads import check_maps
from eepolicy.codebooks.executor import CodebookExecutor
from eepolicy.codebooks.executors import CompiledLayers, FrameRuntime
from eepolicy.codebooks.frames import code_layout
from eepolicy.codebooks.inputs import FrameInput, is_list, stock_inputs
from eepolicy.codebooks.missing import MissingCodes
from eepolicy.codebooks.output import CodebookOutput
from eepolicy.codebooks.parity import check_backbone, check_depth_decoder
from eepolicy.codebooks.policies import CodebookPolicy
from eepolicy.codebooks.probing import probe_frames, with_records
from eepolicy.codebooks.request import FrameRequest, prepare_frames
from eepolicy.codebooks.session import FrameSession
from eepolicy.codebooks.trace import CodebookCosts
from eepolicy.codebooks.vocoder import CodebookVocoder
from eepolicy.decode.fills import KVFill
from eepolicy.decode.recorder import Recorder
from eepolicy.errors import EepolicyError
from eepolicy.guard import Guard
from eepolicy.heads.base import ExitHead
from eepolicy.heads.fitted import FittedHead
from eepolicy.heads.weights import checked_device
from eepolicy.model.backbone import Backbone
from eepolicy.policies import ExitPolicy
from eepolicy.probing import ProbeResult, record_plan
from eepolicy.speech.vocoders import sampling_rate_of
from eepolicy.streaming import AudioStream, check_stream


class HookedCodebookModel:
    """A stock model with several codebooks that decodes with early exit.

    Exit policies act on the layers of the backbone, which gives the first code of a frame, and on
    those of the depth decoder, which gives the others.  A codebook policy acts on the number of
    codes of a frame.  The stock model is neither edited nor patched, except that it is put into
    evaluation mode.

    Args:
        model: a stock model with an adapter, such as `CsmForConditionalGeneration`.
        processor: processor of the model, for prompts in text.
        heads: exit heads of the backbone below full depth; default: the logit lens.
        depth_heads: tuned lenses of the depth decoder, from `eepolicy.fitting.fit_depth_decoder`;
            default: the logit lens of each codebook.

    Attributes:
        model: the stock model.
        adapter: its parts.
        backbone: layers of the backbone.
        depth_decoder: layers of the depth decoder.
        processor: processor of the model; None for none.
        vocoder: turns codes into sound; None for a model without a codec.

    Raises:
        EepolicyError: the model has no adapter, or a layer loop does not give the stock logits.

    Examples:
        >>> from eepolicy.codebooks import HookedCodebookModel
        >>> from eepolicy.testing.codebooks import random_csm
        >>> model = HookedCodebookModel(random_csm())
        >>> ids = torch.tensor([5, 9, 2])
        >>> out = model.generate(ids, "static@2", "static@1", "first:3", max_new_tokens=4)
        >>> out.trace.num_codebooks.tolist()
        [3, 3, 3, 3]
        >>> out.codes[0].tolist()[3:]  # codes that are left out
        [-1, -1]
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any = None,
        *,
        heads: ExitHead | None = None,
        depth_heads: FittedHead | None = None,
    ) -> None:
        self.adapter = adapter_of(model)
        self.backbone = Backbone(model, heads, self.adapter.backbone_parts())
        self.depth_decoder = Backbone(self.adapter.depth_model, parts=self.adapter.depth_parts())
        self.model, self.processor = self.backbone.model, processor
        self.depth_heads = depth_heads
        self.vocoder: CodebookVocoder | None = self.adapter.vocoder()
        self._compiled = CompiledLayers(self.backbone), CompiledLayers(self.depth_decoder)
        check_backbone(self.adapter, self.backbone)
        check_depth_decoder(self.adapter, self.depth_decoder, self.backbone.width)

    def __repr__(self) -> str:
        family = self.backbone.text_config.model_type
        return (
            f"HookedCodebookModel({family}, {self.backbone.depth} layers, "
            f"depth decoder of {self.depth_decoder.depth} layers, {self.num_codebooks} codebooks "
            f"of {self.backbone.vocab_size} codes)"
        )

    @property
    def num_codebooks(self) -> int:
        """Number of codes of a frame."""
        return self.adapter.num_codebooks

    @checked("prompt")
    def generate(
        self,
        prompt: FrameInput | Sequence[FrameInput] | None = None,
        policy: ExitPolicy | str | None = None,
        depth_policy: ExitPolicy | str | None = None,
        codebooks: CodebookPolicy | str | int | None = None,
        *,
        fill: KVFill | str | None = None,
        depth_fill: KVFill | str | None = None,
        missing: MissingCodes | str | None = None,
        config: CodebookConfig | None = None,
        max_pending: int | None = None,
        compile: bool | None = None,
        record: bool | Mapping[str, Any] | None = None,
        seed: int | Sequence[int] | None = None,
        **options: Any,
    ) -> CodebookOutput | list[CodebookOutput]:
        """Speak one prompt or a batch, and compute of each frame what the policies say.

        Args:
            prompt: text for the processor, ids (tokens,) or (rows, tokens), or the output of the
                processor, which may contain sound.  A list of texts or of ids is decoded as one
                batch.  The stock names work too, such as `input_ids` and `input_values`.
            policy: exit policy of the backbone or its spec string; default: full depth.
            depth_policy: exit policy of the depth decoder; default: full depth.  The chunk of its
                `Step` is the frame, and the phase is the number of the codebook.
            codebooks: codebook policy, its spec string, or a number of codebooks; default: all.
            fill: how the keys and values above an exit of the backbone are computed.
            depth_fill: the same of the depth decoder.
            missing: rule for the codes that are not computed; default: they are left out.
            config: all options of early exit; the arguments override it.
            max_pending: largest number of pending positions of a row in the backbone.
            compile: run the layers of both models with code made by `torch.compile`, as in
                `HookedModel.generate`.
            record: store in `CodebookOutput.record` the hidden states of every layer of the
                backbone that runs, and their statistics; True, or options of `probe` as a dict.
            seed: seed of sampling, or one for each row of a batch: each row is then sampled as if
                it were alone.  Default: sampling uses the global generator of PyTorch, as the stock
                `generate` does.
            **options: options of the stock `generate`, such as `max_new_tokens` (frames of a
                reply), `do_sample` and `temperature`; those of the depth decoder begin with
                `depth_decoder_`, as in transformers.

        Returns:
            A `CodebookOutput`, or a list of them for a list or several rows.

        Raises:
            EepolicyError: a prompt, policy or option does not fit the model, or is not supported.
        """
        changes = {
            "policy": policy,
            "depth_policy": depth_policy,
            "codebooks": codebooks,
            "fill": fill,
            "depth_fill": depth_fill,
            "missing": missing,
            "max_pending": max_pending,
            "compile": compile,
            "record": record,
        }
        config = (config or CodebookConfig()).replace(**changes)
        plan = record_plan(self.backbone, config.backbone.record)  # checked before any work
        request = self._request(prompt, options, seed)
        recorder = None if plan is None else Recorder(len(request.padding))
        session = self._session(request, config, recorder)
        session.run()
        outputs = [self._output(session, row) for row in range(len(session.replies))]
        if recorder is not None and plan is not None:
            outputs = with_records(self.backbone, outputs, recorder, plan)
        return outputs[0] if len(outputs) == 1 and not is_list(prompt) else outputs

    @checked("prompt")
    def stream_audio(
        self,
        prompt: FrameInput | None = None,
        policy: ExitPolicy | str | None = None,
        depth_policy: ExitPolicy | str | None = None,
        codebooks: CodebookPolicy | str | int | None = None,
        *,
        chunk: int | None = None,
        config: CodebookConfig | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> AudioStream[CodebookOutput]:
        """Speak one prompt, and return the sound while it is decoded.

        Args:
            prompt: see `generate`.
            policy: see `generate`.
            depth_policy: see `generate`.
            codebooks: see `generate`.
            chunk: number of frames that the vocoder gets at once.  A small number gives the first
                sound early, and a large one costs less.  Default: `stream_chunk` of the vocoder,
                or 8 for a vocoder without it.
            config: see `generate`.
            seed: see `generate`.
            **options: other options of `generate`, except `record`.

        Returns:
            An iterator over pieces of sound, (samples,) at its `sampling_rate`.  With the codec of
            CSM they are the `audio` of `generate`, up to rounding.

        Raises:
            EepolicyError: the vocoder cannot stream, there are several rows, or see `generate`.

        Examples:
            >>> from eepolicy.codebooks import HookedCodebookModel
            >>> from eepolicy.testing.codebooks import random_csm
            >>> model = HookedCodebookModel(random_csm())
            >>> stream = model.stream_audio(torch.tensor([5, 9, 2]), "static@2", max_new_tokens=4)
            >>> pieces = list(stream)
            >>> sum(map(len, pieces)) == len(stream.output.audio)
            True
        """
        changes = {"policy": policy, "depth_policy": depth_policy, "codebooks": codebooks}
        changes |= {name: options.pop(name) for name in CHANGES if name in options}
        config = (config or CodebookConfig()).replace(**changes)
        if config.backbone.record:
            raise EepolicyError("stream_audio keeps no record: use generate(..., record=...)")
        request = self._request(prompt, options, seed)
        vocoder, size = check_stream(self.vocoder, len(request.padding), chunk)
        session = self._session(request, config, None)
        pieces = vocoder.stream(session.chunks(size))
        return AudioStream(
            pieces, sampling_rate_of(vocoder), session.started_at, lambda: self._output(session, 0)
        )

    def _request(
        self,
        prompt: FrameInput | Sequence[FrameInput] | None,
        options: dict[str, Any],
        seed: int | Sequence[int] | None,
    ) -> FrameRequest:
        """Prepare prompts and options of the stock `generate`."""
        inputs = stock_inputs(self.adapter, self.processor, prompt)
        twice = sorted(name for name in inputs if options.get(name) is not None)
        if twice:
            raise EepolicyError(
                f"{twice[0]} is given twice, by the prompt and as an option: give one of them"
            )
        inputs = options | inputs
        with torch.no_grad():
            prompts = self.adapter.prompt(inputs)
        return prepare_frames(self.adapter, prompts, inputs, seed)

    def _session(
        self, request: FrameRequest, config: CodebookConfig, recorder: Recorder | None
    ) -> FrameSession:
        """A session that decodes a request; it has not started."""
        parts = ((self.backbone, config.backbone), (self.depth_decoder, config.depth_decoder))
        for backbone, part in parts:
            part.validate(backbone.depth, code_layout(backbone.vocab_size))
            backbone.check_predicted(part.policy.predicted_depths(backbone.depth))
        with Guard(config.codebooks, "check"):
            config.codebooks.check(self.num_codebooks)
        with Guard(config.missing, "check"):
            config.missing.check(self.depth_decoder.vocab_size)
        compiled = [
            layers.executor(part.compile)
            for layers, (_, part) in zip(self._compiled, parts, strict=True)
        ]
        depth = CodebookExecutor(
            self.depth_decoder,
            self.adapter.heads(),
            check_maps(self.depth_heads, self.depth_decoder.depth),
            compiled[1],
        )
        runtime = FrameRuntime(compiled[0], depth, recorder)
        return FrameSession(
            self.adapter, self.backbone, self.depth_decoder, request, config, runtime
        )

    def _output(self, session: FrameSession, row: int) -> CodebookOutput:
        """The output of a row of a session that has run."""
        ids = session.request.prompt.ids
        prompt = torch.zeros(0, dtype=torch.long)
        if ids is not None:
            prompt = ids[row, session.request.padding[row] :]
        return CodebookOutput(
            prompt.cpu(),
            torch.stack(session.codes[row]).cpu(),
            session.ended[row],
            session.trace(row),
            session.seconds,
            session.time_to_first_frame,
            torch.cat(session.inputs[row]),
            self.vocoder,
        )

    def probe(
        self,
        outputs: CodebookOutput | Sequence[CodebookOutput],
        *,
        save: str | Path | None = None,
        **options: Any,
    ) -> ProbeResult:
        """Read out the first codebook at every layer of the backbone, at each frame of replies.

        The backbone runs to full depth on what it read when the replies were decoded.  Below full
        depth the exit heads of the backbone read, by default the logit lens.

        Args:
            outputs: one reply or several.
            save: folder to write to; the result is then memory-mapped from there.
            **options: fields of `eepolicy.probing.ProbeConfig`, such as `depths`, `statistics` and
                `top_k`, as in `eepolicy.probe`.

        Returns:
            Labelled statistics, (depths, frames) each.  The tokens are first codes.

        Raises:
            EepolicyError: an option does not fit the model.

        Examples:
            >>> from eepolicy.codebooks import HookedCodebookModel
            >>> from eepolicy.testing.codebooks import random_csm
            >>> model = HookedCodebookModel(random_csm())
            >>> out = model.generate(torch.tensor([5, 9, 2]), max_new_tokens=4)
            >>> model.probe(out, statistics=["entropy"]).entropy.shape
            (4, 4)
        """
        replies = [outputs] if isinstance(outputs, CodebookOutput) else list(outputs)
        return probe_frames(self.backbone, replies, save, options)

    def costs(self, measured: bool = False) -> CodebookCosts:
        """What a layer call and a readout cost in both models, for `CodebookTrace.frame_costs`.

        Args:
            measured: time them on this machine; otherwise count the floating-point operations of a
                position in the products with weights.
        """
        if measured:
            return measured_costs(self.adapter, self.backbone, self.depth_decoder)
        return flops(self.backbone, self.depth_decoder)

    def to(self, device: str | torch.device) -> HookedCodebookModel:
        """Move the model and its exit heads to a device."""
        self.model.to(checked_device(device))
        for heads in (self.backbone.heads, self.depth_heads):
            if heads is not None:
                heads.to(self.backbone.device, self.model.dtype)
        for layers in self._compiled:
            layers.clear()
        return self

    def unwrap(self) -> PreTrainedModel:
        """The stock model, unchanged except for its evaluation mode."""
        return self.model
