"""A model of the Language Model Evaluation Harness that exits early.

`eepolicy lm-eval` registers it under the name `eepolicy`.  Releases that read the entry point group
`lm_eval.models` find it themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm

from eepolicy.decode.acceptance import Acceptance
from eepolicy.decode.config import EarlyExitConfig
from eepolicy.decode.fills import KVFill
from eepolicy.decode.output import Output
from eepolicy.errors import EepolicyError
from eepolicy.harness.stop import StopTexts
from eepolicy.harness.tally import DepthTally
from eepolicy.harness.teacher_forcing import check_scorable, forced_scores
from eepolicy.loading.auto import load
from eepolicy.policies import ExitPolicy, FullDepth
from eepolicy.prompts import pad_left

#: arguments of the harness's own model class that have the same meaning here
HARNESS_ARGUMENTS = (
    *("add_bos_token", "batch_size", "chat_template_args", "enable_thinking", "logits_cache"),
    *("max_batch_size", "max_length", "prefix_token_id", "softmax_dtype", "think_end_token"),
    "truncation",
)
#: arguments of `eepolicy.load` and of `from_pretrained`
LOAD_ARGUMENTS = ("attn_implementation", "card", "device_map", "heads", "threads")
#: arguments of `EarlyExitConfig`
EXIT_ARGUMENTS = ("policy", "fill", "accept", "max_pending", "rebatch", "compile")
#: acceptance rules with the distribution of the full model
LOSSLESS = ("exact", "sampling", "block")
DTYPES = ("float32", "bfloat16", "float16")


class EarlyExitLM(HFLM):  # type: ignore[misc]  # the harness has no types
    """A Hugging Face model that decodes with early exit.

    Tokenisation, batches, chat templates and tasks are those of the harness's own class `hf`.
    Replies come from `HookedModel.generate`.  Log-likelihoods are those of the full model for the
    policy `full`, and for the lossless acceptance rules.  For another policy, each token of a
    continuation is scored at the depth where the policy would exit if it decoded this
    continuation; see `forced_scores`.

    A context of a speech model is a question, which gets the model's own prompt format.  Its
    reply is the text of the spoken reply.

    Args:
        pretrained: model for `eepolicy.load`.
        dtype: dtype of the weights: float32, bfloat16 or float16.
        device: device of the model; default: a CUDA device if there is one.
        **arguments: the arguments in `EXIT_ARGUMENTS`, `LOAD_ARGUMENTS` and `HARNESS_ARGUMENTS`.

    Raises:
        EepolicyError: an unknown argument, or a policy or model that cannot be used.
    """

    def __init__(
        self,
        pretrained: str = "pocket",
        dtype: str = "float32",
        device: str | None = None,
        **arguments: Any,
    ) -> None:
        known = {"pretrained", "dtype", "device"}
        known |= {*EXIT_ARGUMENTS, *LOAD_ARGUMENTS, *HARNESS_ARGUMENTS}
        if unknown := sorted({*arguments} - known):
            raise EepolicyError(
                f"--model_args has {', '.join(unknown)}; the model takes {', '.join(sorted(known))}"
            )
        if dtype not in DTYPES:
            raise EepolicyError(f"dtype is {', '.join(DTYPES)}; got {dtype!r}")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.config_exit = EarlyExitConfig(**_chosen(arguments, EXIT_ARGUMENTS))
        options = _chosen(arguments, LOAD_ARGUMENTS)
        self.hooked = load(pretrained, getattr(torch, dtype), **options)
        if "device_map" not in options:
            try:
                self.hooked.to(device)
            except (RuntimeError, AssertionError) as error:
                reason = str(error).split("\n")[0]
                raise EepolicyError(f"the device {device!r} cannot be used: {reason}") from error
        self.config_exit.validate(self.hooked.depth, self.hooked.layout, self.hooked.vocoder)
        self.tally = DepthTally()
        super().__init__(
            self.hooked.model,
            tokenizer=self.hooked.tokenizer,
            **_chosen(arguments, HARNESS_ARGUMENTS),
        )
        if not Path(pretrained).exists() and pretrained != "pocket":
            self.pretrained = pretrained  # an id on the Hub, whose revision the results name

    def _model_generate(
        self,
        context: Tensor,
        max_length: int,
        stop: list[str],
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Prompts and replies, (rows, tokens), padded with the padding token on both sides."""
        if not options.get("temperature"):  # the harness writes 0 for greedy decoding
            options.pop("temperature", None)
            options.setdefault("do_sample", False)
        mask = torch.ones_like(context) if attention_mask is None else attention_mask
        prompts = [row[kept.bool()] for row, kept in zip(context, mask, strict=True)]
        outputs: list[Output] = self.hooked.generate(
            prompts,
            config=self.config_exit,
            max_new_tokens=max_length - context.shape[1],
            stopping_criteria=[StopTexts(stop, self.tokenizer, max(map(len, prompts)))],
            **options,
        )
        replies = []
        for output in outputs:
            self.tally.add_reply(output.trace)
            ids = output.tokens
            replies.append(self.hooked.layout.text_ids(ids) if self._speaks else ids)
        width = max(map(len, replies))
        padding = self.tokenizer.pad_token_id
        rows = [torch.nn.functional.pad(r, (0, width - len(r)), value=padding) for r in replies]
        return torch.cat([context, torch.stack(rows).to(context.device)], 1)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is the greedy reply."""
        if self._speaks:
            raise EepolicyError(
                "log-likelihoods are defined for text models: a speech model's reply alternates "
                "between text and speech; use tasks that generate"
            )
        if self._is_full:
            answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(
                requests, disable_tqdm=disable_tqdm, override_bs=override_bs
            )
            self.tally.add_scores([self.hooked.depth] * sum(len(r[2]) for r in requests))
            return answers
        check_scorable(self.config_exit)
        size = override_bs or self.batch_size
        if size == "auto":
            size = self._detect_batch_size()
        # neighbours of one length need little padding; the longest come first, as they take most
        order = sorted(range(len(requests)), key=lambda i: -sum(map(len, requests[i][1:])))
        scored: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0) as bar:
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                scores = self._score([requests[i][1:] for i in chosen])
                for index, answer in zip(chosen, scores, strict=True):
                    scored[index], key = answer, requests[index][0]
                    if key is not None:  # parts of a long text have none
                        self.cache_hook.add_partial("loglikelihood", key, answer)
                bar.update(len(chosen))
        return [scored[index] for index in range(len(requests))]

    def _score(self, replies: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Scores of continuations of contexts, as one batch."""
        room = self.max_length + 1
        sequences = [torch.tensor((c + r)[-room:], device=self.device) for c, r in replies]
        lengths = [len(continuation) for _, continuation in replies]
        policy, answers = self.config_exit.policy, []
        every = forced_scores(self.hooked, self.hooked.layout, policy, sequences, lengths)
        for ids, length, scores in zip(sequences, lengths, every, strict=True):
            self.tally.add_scores(scores.depth)
            following = ids[-length:]
            logits = scores.logits.log_softmax(-1, dtype=self.softmax_dtype)
            chosen = logits.gather(1, following[:, None])
            answers.append((float(chosen.sum()), bool((logits.argmax(-1) == following).all())))
        return answers

    def tok_batch_encode(
        self, strings: list[str], *arguments: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Ids and attention mask of contexts: (rows, tokens) each."""
        if not self._speaks:
            ids, mask = super().tok_batch_encode(strings, *arguments, **options)
            return ids, mask
        prompts = [self.hooked.encode(text) for text in strings]
        longest, limit = max(map(len, prompts)), options.get("left_truncate_len")
        if limit is not None and longest > limit:
            raise EepolicyError(
                f"a question has {longest} tokens, and the model has room for {limit} beside the "
                "reply: lower max_gen_toks, or shorten the question"
            )
        return pad_left(prompts, self.tokenizer.pad_token_id)

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        """The text of a token or of a reply."""
        text: str = super().tok_decode(tokens, skip_special_tokens)
        return text.strip() if self._speaks else text  # as in `Output.text`

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results about the model, with the depths so far."""
        info: dict[str, Any] = super().get_model_info() | {
            "policy": _name(self.config_exit.policy),
            "fill": _name(self.config_exit.fill),
            "accept": _name(self.config_exit.accept),
            "exits": self.tally.to_dict(self.hooked.depth),
        }
        logging.getLogger(__name__).info("%s: %s", info["policy"], info["exits"])
        return info

    @property
    def _is_full(self) -> bool:
        """Whether a reply has the distribution of the full model."""
        config = self.config_exit
        return isinstance(config.policy, FullDepth) or config.accept.name in LOSSLESS

    @property
    def _speaks(self) -> bool:
        return self.hooked.layout.has_speech


def _chosen(arguments: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: arguments[name] for name in names if arguments.get(name) is not None}


def _name(plugin: ExitPolicy | KVFill | Acceptance) -> str:
    """The spec string of a plug-in; of one without spec strings, its representation."""
    try:
        return plugin.spec
    except EepolicyError:
        return repr(plugin)
