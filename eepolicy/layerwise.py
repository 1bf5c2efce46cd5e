"""`probe`: read out every layer at every token of some texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eepolicy.heads.base import ExitHead
from eepolicy.hooked import HookedModel
from eepolicy.probing.documents import Document, Inputs, to_documents
from eepolicy.probing.plan import Depths, ProbeConfig, ProbePlan
from eepolicy.probing.result import ProbeResult
from eepolicy.probing.run import run_probe
from eepolicy.probing.statistics import Statistic


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
    if not isinstance(model, HookedModel):
        model = HookedModel(model)
    config = ProbeConfig(depths, heads, statistics, top_k, hidden_states, distributions, dtype)
    backbone = model.with_heads(heads)
    plan = ProbePlan.of(backbone, config)
    documents = progress(to_documents(model.encode, inputs, attention_mask))
    executor = model.compiled_executor() if compile and backbone is model else None
    result = run_probe(backbone, documents, plan, model.layout, save, executor)
    return replace(result, tokenizer=model.tokenizer)
