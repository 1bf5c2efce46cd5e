"""Fit exit heads of models with several codebooks: of the backbone, and of the depth decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from eepolicy.arguments import checked
from eepolicy.codebooks.adapter import LEFT_OUT
from eepolicy.codebooks.depth_heads import CodebookHead
from eepolicy.codebooks.frames import code_layout
from eepolicy.codebooks.model import HookedCodebookModel
from eepolicy.codebooks.output import CodebookOutput
from eepolicy.codebooks.probing import documents_of
from eepolicy.errors import EepolicyError
from eepolicy.fitting.config import FitConfig
from eepolicy.fitting.gradients import HeadStates, Teacher, add_gradients
from eepolicy.fitting.result import FitResult
from eepolicy.fitting.trainer import Progress, Trainer, batches_of, run_fit
from eepolicy.heads.lens import LogitLens
from eepolicy.probing import Document


@checked()
def fit_backbone(
    model: HookedCodebookModel,
    train: Sequence[CodebookOutput],
    held_out: Sequence[CodebookOutput],
    config: FitConfig | None = None,
    *,
    checkpoint: str | Path | None = None,
    report: Callable[[str], None] = lambda _: None,
    progress: Progress = iter,
) -> FitResult:
    """Fit heads that read the first code out of the backbone, at each depth; see `fitting.fit`.

    Args:
        model: the model; its weights do not change.
        train: replies to fit on.
        held_out: replies on which the best weights are chosen.
        config: options; the defaults of `FitConfig` when None.
        checkpoint: file from which a stopped fit resumes.
        report: receives one line after each epoch.
        progress: wraps the batches of an epoch, to show progress.

    Raises:
        EepolicyError: there are no replies, or the options do not fit the model.

    Examples:
        >>> from eepolicy.codebooks import HookedCodebookModel
        >>> from eepolicy.fitting import FitConfig, fit_backbone
        >>> from eepolicy.testing.codebooks import random_csm
        >>> model = HookedCodebookModel(random_csm())
        >>> prompts = [torch.tensor([5, 9, 2]), torch.tensor([7, 3])]
        >>> replies = model.generate(prompts, max_new_tokens=4)
        >>> result = fit_backbone(model, replies[:1], replies[1:], FitConfig(epochs=1))
        >>> model.backbone.heads = result.heads
    """
    parts = [list(documents_of(outputs)) for outputs in _checked(train, held_out)]
    layout = code_layout(model.backbone.vocab_size)
    trainer = Trainer(model.backbone, layout, config or FitConfig(), *parts)
    return run_fit(trainer, checkpoint, report, progress)


@checked()
def fit_depth_decoder(
    model: HookedCodebookModel,
    train: Sequence[CodebookOutput],
    held_out: Sequence[CodebookOutput],
    config: FitConfig | None = None,
    *,
    checkpoint: str | Path | None = None,
    report: Callable[[str], None] = lambda _: None,
    progress: Progress = iter,
) -> FitResult:
    """Fit tuned lenses of the depth decoder: one map for each depth, shared by all codebooks.

    The metrics are means over the codes of the held-out frames.  The backbone runs at full depth
    on what it read in the replies, so replies at full depth give the states of decoding.

    Source: tuned lens, arXiv 2303.08112.

    Args:
        model: the model; its weights do not change.
        train: replies to fit on.
        held_out: replies on which the best weights are chosen.
        config: options; the defaults of `FitConfig` when None.
        checkpoint: file from which a stopped fit resumes.
        report: receives one line after each epoch.
        progress: wraps the batches of an epoch, to show progress.

    Raises:
        EepolicyError: there are no replies, or the options do not fit the model.

    Examples:
        >>> from eepolicy.codebooks import HookedCodebookModel
        >>> from eepolicy.fitting import FitConfig, fit_depth_decoder
        >>> from eepolicy.testing.codebooks import random_csm
        >>> model = HookedCodebookModel(random_csm())
        >>> prompts = [torch.tensor([5, 9, 2]), torch.tensor([7, 3])]
        >>> replies = model.generate(prompts, max_new_tokens=4)
        >>> result = fit_depth_decoder(model, replies[:1], replies[1:], FitConfig(epochs=1))
        >>> model.depth_heads = result.heads
    """
    config = config or FitConfig()
    if config.kind != "tuned":
        raise EepolicyError(
            "a depth decoder gets heads of the kind 'tuned', whose maps serve all codebooks; got "
            f"{config.kind!r}"
        )
    parts = [
        [frame for output in outputs for frame in _frames(model, output)]
        for outputs in _checked(train, held_out)
    ]
    trainer = DepthTrainer(model, config, *parts)
    return run_fit(trainer, checkpoint, report, progress)


def _checked(
    train: Sequence[CodebookOutput], held_out: Sequence[CodebookOutput]
) -> tuple[Sequence[CodebookOutput], Sequence[CodebookOutput]]:
    """Refuse missing replies, and objects of another class."""
    for outputs in (train, held_out):
        if not outputs or not all(isinstance(output, CodebookOutput) for output in outputs):
            raise EepolicyError(
                "heads are fitted on outputs of HookedCodebookModel.generate, and held-out ones; "
                f"got {outputs!r:.60}"
            )
    return train, held_out


@dataclass(frozen=True, eq=False)
class Frame(Document):
    """A frame as the depth decoder reads it.

    The tokens are a placeholder for the backbone's state, and the codes that were computed.

    Attributes:
        state: (width,), normed state of the backbone.
    """

    state: Tensor = field(default_factory=lambda: torch.zeros(0))


@torch.no_grad()
def _frames(model: HookedCodebookModel, output: CodebookOutput) -> Iterator[Frame]:
    """The frames of a reply that have several codes, with the backbone's states."""
    *_, hidden = model.backbone.hidden_states(output.inputs[None])
    states = model.backbone.parts.norm(hidden[0, -len(output.codes) :])
    counts = output.trace.num_codebooks.tolist()
    for state, codes, count in zip(states, output.codes, counts, strict=True):
        if count > 1:
            tokens = torch.cat([codes.new_tensor([LEFT_OUT]), codes[:count]])
            yield Frame(tokens, 2, state=state)


class DepthTrainer(Trainer):
    """Tuned lenses of a depth decoder under training.

    Args:
        model: the model.
        config: options, of the kind `tuned`.
        train: frames to fit on.
        held_out: frames on which the best weights are chosen.
    """

    def __init__(
        self,
        model: HookedCodebookModel,
        config: FitConfig,
        train: Sequence[Document],
        held_out: Sequence[Document],
    ) -> None:
        self.adapter = model.adapter
        norm = model.depth_decoder.parts.norm
        #: norm and output embedding of each codebook after the first
        self.lenses = [LogitLens(norm, head) for head in model.adapter.heads()]
        layout = code_layout(model.depth_decoder.vocab_size)
        super().__init__(model.depth_decoder, layout, config, train, held_out)

    def train_step(self, batch: Sequence[Document]) -> None:
        total = sum(document.span[1] - document.span[0] for document in batch)
        self._positions += total
        for lens, states in self._by_codebook(batch):
            last = states.pop(self.model.depth)
            read = [HeadStates(depth, hidden) for depth, hidden in states.items()]
            head = CodebookHead(lens, self.heads, self.model.depth)
            teacher = Teacher(lens, last.to(self.model.model.dtype), self.model.depth)
            add_gradients(head, read, teacher, self.config, total)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def evaluate(self) -> dict[str, list[float]]:
        full, depths = self.model.depth, self.heads.depths
        kl = torch.zeros(len(depths), dtype=torch.float64)
        agreement, count = torch.zeros_like(kl), 0
        for batch in batches_of(self.held_out, self.config.batch_tokens):
            for lens, states in self._by_codebook(batch):
                head = CodebookHead(lens, self.heads, full)
                target = lens.logits(states[full], full).double().log_softmax(-1)
                count += len(target)
                for i, depth in enumerate(depths):
                    logs = head.logits(states[depth], depth).double().log_softmax(-1)
                    kl[i] += (target.exp() * (target - logs)).sum().cpu()
                    agreement[i] += (target.argmax(-1) == logs.argmax(-1)).sum().cpu()
        if not count:
            raise EepolicyError("the held-out replies have no frame of several codes")
        return {"kl": (kl / count).tolist(), "agreement": (agreement / count).tolist()}

    def _by_codebook(
        self, batch: Iterable[Document]
    ) -> Iterator[tuple[LogitLens, dict[int, Tensor]]]:
        """Hidden states of some frames by codebook: its lens, and (frames, width) by depth."""
        parts: dict[int, list[dict[int, Tensor]]] = {}
        by_length: dict[int, list[Frame]] = {}
        for frame in batch:
            assert isinstance(frame, Frame)
            by_length.setdefault(len(frame.tokens), []).append(frame)
        for frames in by_length.values():
            states = self._states(frames)
            for codebook in range(1, len(frames[0].tokens) - 1):
                own = {depth: hidden[:, codebook] for depth, hidden in states.items()}
                parts.setdefault(codebook, []).append(own)
        for codebook, group in parts.items():
            depths = group[0]
            yield (
                self.lenses[codebook - 1],
                {depth: torch.cat([part[depth] for part in group]) for depth in depths},
            )

    @torch.no_grad()
    def _states(self, frames: Sequence[Frame]) -> dict[int, Tensor]:
        """Hidden states of frames of equal length: (frames, codes, width) by depth."""
        codes = torch.stack([frame.tokens[1:] for frame in frames]).to(self.model.device)
        inputs = [self.adapter.embed_state(torch.stack([frame.state for frame in frames]))]
        inputs += [self.adapter.embed_code(codes[:, i], i) for i in range(codes.shape[1] - 1)]
        wanted = {*self.heads.depths, self.model.depth}
        hidden_states = enumerate(self.model.hidden_states(torch.cat(inputs, 1)), start=1)
        return {depth: hidden for depth, hidden in hidden_states if depth in wanted}
