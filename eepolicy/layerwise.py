"""`probe`: read out every layer at every token of some texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eepolicy.arguments import checked
from eepolicy.errors import EepolicyError
from eepolicy.heads.base import ExitHead
from eepolicy.hooked import HookedModel
from eepolicy.model.threads import one_thread
from eepolicy.probing.documents import Document, Inputs, to_documents
from eepolicy.probing.plan import Depths, ProbeConfig, ProbePlan
from eepolicy.probing.result import ProbeResult
from eepolicy.probing.run import DocumentReader, run_probe
from eepolicy.probing.statistics import STATISTICS, Statistic
from eepolicy.workers import OrderedWorkers, WorkerConfig


@checked(
    "model",
    "inputs",
    "depths",
    "statistics",
    "hidden_states",
    "distributions",
    "attention_mask",
)
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
    workers: WorkerConfig | int = 0,
    load: Callable[[], HookedModel] | None = None,
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
        statistics: names from `eepolicy.probing.STATISTICS` and `Statistic` objects, such as those
            that `eepolicy.probing.given_rank` makes; by default the default ones of the library.
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
        workers: processes that help; a number for processes of this machine.  The result is that
            of one process with one thread.
        load: loads the model in a worker; without it no worker helps.  Workers must be able to
            pickle it.

    Returns:
        Labelled statistics, (depths, tokens) each.

    Raises:
        EepolicyError: inputs, depths or names that do not fit the model, no document, a folder
            that contains something else, statistics of attention with `compile`, or heads that
            workers do not have.

    Examples:
        >>> model = eepolicy.load("pocket")
        >>> out = model.generate("What color is snow?")
        >>> result = eepolicy.probe(model, out, statistics=["entropy", "top1"])
        >>> result.entropy.shape == (20, len(out.tokens))
        True
    """
    if not isinstance(model, HookedModel):
        model = HookedModel(model)
    config = ProbeConfig(depths, heads, statistics, top_k, hidden_states, distributions, dtype)
    reader = _reader(model, config, compile)
    documents = to_documents(model.encode, inputs, attention_mask)
    spread = WorkerConfig.of(workers)
    if load is None or not spread.spreads:
        result = run_probe(reader, documents, save, progress=progress)
    else:
        source = _ReaderSource.of(load, model, config, reader.plan, compile)
        with one_thread(), OrderedWorkers(spread, source, reader) as started:
            result = run_probe(reader, documents, save, started.run, progress)
    return replace(result, tokenizer=model.tokenizer)


def _reader(model: HookedModel, config: ProbeConfig, compile: bool) -> DocumentReader:
    """The reader of a model; other heads that own layers run uncompiled.

    Raises:
        EepolicyError: the options do not fit the model, or are statistics of attention with
            `compile`.
    """
    backbone = model.with_heads(config.heads)
    plan = ProbePlan.of(backbone, config)
    if compile and plan.of_attention:
        raise EepolicyError(
            f"compiled layers hide their attention, which {plan.of_attention[0].name!r} needs: "
            "probe with compile=False"
        )
    executor = model.compiled_executor() if compile and backbone is model else None
    return DocumentReader(backbone, plan, model.layout, executor)


@dataclass(frozen=True)
class _ReaderSource:
    """Makes the reader of a worker; it can be sent to other processes.

    Attributes:
        load: loads the model.
        config: options of the probe, without heads.
        is_lens: the heads are the logit lens instead of those of the model.
        compile: run compiled layers.
        identity: what the numbers of the calling process depend on.
    """

    load: Callable[[], HookedModel]
    config: ProbeConfig
    is_lens: bool
    compile: bool
    identity: dict[str, Any]

    @classmethod
    def of(
        cls,
        load: Callable[[], HookedModel],
        model: HookedModel,
        config: ProbeConfig,
        plan: ProbePlan,
        compile: bool,
    ) -> _ReaderSource:
        """The source for a probe of the calling process.

        Raises:
            EepolicyError: the heads are neither those of the model nor its lens.
        """
        heads = plan.heads
        if heads is not model.heads and heads is not model.lens:
            raise EepolicyError(
                "workers read out with the heads of the model that load makes, or with model.lens: "
                "assign other heads to model.heads, here and in load"
            )
        # statistics of the library are known by identity, so their names are sent
        statistics = [s.name if STATISTICS.get(s.name) is s else s for s in plan.statistics]
        sent = replace(config, heads=None, statistics=statistics)
        is_lens = heads is model.lens and heads is not model.heads
        return cls(load, sent, is_lens, compile, plan.identity(model, model.layout))

    def __call__(self) -> DocumentReader:
        """Load the model.

        Raises:
            EepolicyError: it is another model than that of the calling process.
        """
        torch.set_num_threads(1)  # a process per core
        model = self.load()
        heads = model.lens if self.is_lens else None
        reader = _reader(model, replace(self.config, heads=heads), self.compile)
        identity = reader.plan.identity(model, model.layout)
        differ = [name for name in identity if identity[name] != self.identity[name]]
        if differ:
            raise EepolicyError(
                f"load makes a model with another {', '.join(differ)} than the model that is "
                "probed: give a function that loads the same model with the same heads"
            )
        return reader
