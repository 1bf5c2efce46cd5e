"""Random configurations of `generate`, and slow references for them that use the stock model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eepolicy import EarlyExitConfig, EepolicyError, HookedModel, custom_generate, early_exit
from eepolicy.decode.acceptance import ACCEPTANCE_RULES
from eepolicy.decode.fills import FILLS
from eepolicy.policies import FullDepth
from eepolicy.prompts import pad_left
from eepolicy.testing.acceptance import RandomCodebook
from eepolicy.testing.models import LAYOUT, random_model
from eepolicy.testing.sizes import VOCAB, sized_config
from eepolicy.testing.steps import equip
from eepolicy.trace import Trace

#: ways to call `generate`; the last two are for stock models
ENTRANCES = ("list", "ids", "dict", "early_exit", "custom_generate")
#: policies by spec string; {a} and {b} are depths, a < b; {x} is a number from 0
#: to 1, {e} one from 0 to 4, and {m} a mean depth
POLICIES = (
    "full",
    "both=static@{a}",
    "text=static@{a}",
    "spark:even@{a}",
    "spark:odd@{b}",
    "spark:triple@{a}",
    "both=entropy<{e}@[{a},{b}]",
    "both=entropy<{e}@{a}",
    "both=confidence>{x}@[{a},{b}]",
    "both=confidence>{x}@{a}",
    "both=margin>{x}@{a}",
    "both=saturation>{x}@{a}",
    "both=patience:2@{a}",
    "both=random:{m}@{a}",
    "both=oracle@{a}",
    "text=static@{b},speech=spark:odd@{a}",
    "both=draft:3@{a}",
    "both=predictor>{x}@{a}",
    "both=dynamic-draft@[{a},{b}]",
    "both=drift>{x}@{a}",
)
#: policies that need more than a stock model, or a layout with speech
HOOKED_ONLY = ("spark", "predictor", "dynamic-draft", "drift")
#: options of the stock `generate`
PROCESSORS: tuple[dict[str, Any], ...] = (
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[7], [9, 12]]},
    {"suppress_tokens": [20, 21, 33]},
    {"begin_suppress_tokens": [5, 6, 40]},
    {"sequence_bias": [[[11], 2.0], [[30, 31], -3.0]]},
    {"min_new_tokens": 4},
    {"min_length": 12},
    {"exponential_decay_length_penalty": (3, 1.2)},
    {"forced_eos_token_id": 4},
)
SAMPLERS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.7},
    {"temperature": 1.4, "top_k": 9},
    {"top_p": 0.8},
    {"min_p": 0.05, "temperature": 1.2},
    {"typical_p": 0.9},
    {"temperature": 0.9, "num_return_sequences": 2},
)


#: other values of fields of the config, where a family has the field
CHANGES: dict[str, tuple[Any, ...]] = {
    "num_key_value_heads": (1, 2, 4),
    "sliding_window": (3, 5, 9),
    "tie_word_embeddings": (True, False),
    "hidden_act": ("silu", "gelu", "relu"),
    "attention_bias": (True, False),
    "num_experts_per_tok": (1, 2, 3),
    "rope_theta": (100.0, 1e4),
}
#: fields that these families cannot change, or not alone; the cache of Moshi's stock `generate` has
#: a window, and its attention has none
FIXED = {
    "dbrx": "tie_word_embeddings",
    "diffllama": "num_key_value_heads",
    "internlm3": "attention_bias",
    "mimo_v2_flash": "num_key_value_heads",
    "moshi": "sliding_window",
}
#: names of acceptance rules and fills; entry points are read once
RULES = tuple(ACCEPTANCE_RULES.get(name).example for name in ACCEPTANCE_RULES.names())
FILL_NAMES = FILLS.names()


@dataclass(frozen=True)
class Case:
    """A model, prompts, and options of one call.

    Attributes:
        family: model type.
        layers: number of layers.
        changes: fields of the config.
        seed: seed of the weights, and of sampling.
        dtype: dtype of the weights.
        prompts: ids of each prompt.
        entrance: one of `ENTRANCES`.
        config: options of early exit, as arguments.
        options: options of the stock `generate`.
    """

    family: str
    layers: int
    changes: dict[str, Any]
    seed: int
    dtype: torch.dtype
    prompts: tuple[tuple[int, ...], ...]
    entrance: str
    config: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))

    @property
    def exits(self) -> EarlyExitConfig:
        """Options of early exit."""
        return EarlyExitConfig(**self.config)

    @property
    def is_sampled(self) -> bool:
        """Whether tokens are sampled."""
        return bool(self.options.get("do_sample"))

    @property
    def is_lossless(self) -> bool:
        """Whether replies are those of the stock `generate`."""
        return isinstance(self.exits.policy, FullDepth) or self.exits.accept.name == "exact"


@dataclass(frozen=True)
class Reply:
    """Tokens of a reply and their trace."""

    tokens: list[int]
    trace: Trace


def draw(number: int, families: list[str]) -> Case:
    """The case of a number; the families take turns."""
    chance = random.Random(number)
    family = families[number % len(families)]
    known = vars(sized_config(family, 3))
    layers = chance.choice((3, 4, 5)) if "layer_types" not in known else 3
    fixed = {FIXED.get(family)}
    if "qk_rope_head_dim" in known:  # latent attention has as many keys as queries
        fixed.add("num_key_value_heads")
    changes = {
        name: chance.choice(values)
        for name, values in CHANGES.items()
        if known.get(name) is not None and name not in fixed and chance.random() < 0.3
    }
    lengths = [chance.randint(1, 12) for _ in range(chance.randint(1, 4))]
    prompts = tuple(tuple(chance.choices(range(5, VOCAB), k=n)) for n in lengths)
    entrance, options = chance.choice(ENTRANCES), dict(chance.choice(({}, *PROCESSORS)))
    if chance.random() < 0.3:
        options |= chance.choice(PROCESSORS)
    config = _draw_exits(chance, layers, hooked=entrance in ENTRANCES[:3])
    dtype = chance.choices((torch.float64, torch.float32, torch.bfloat16), (6, 2, 1))[0]
    if dtype == torch.bfloat16:  # compared where the choice of a token is known up to rounding
        options, exact = {}, {"fill": "catch_up", "accept": "exact", "rebatch": "never"}
        config = {"policy": f"both=static@{layers - 1}", "max_pending": 3} | exact
    elif chance.random() < 0.1:
        config = {"policy": "full"}
        options |= {"do_sample": True} | chance.choice(SAMPLERS)
    options["max_new_tokens"] = chance.randint(3, 16)
    return Case(family, layers, changes, number, dtype, prompts, entrance, config, options)


def _draw_exits(chance: random.Random, layers: int, hooked: bool) -> dict[str, Any]:
    """Arguments of `EarlyExitConfig` that go together."""
    while True:
        a, b = sorted(chance.sample(range(1, layers), 2))
        spec = chance.choice(("full", *POLICIES))
        if not hooked and any(name in spec for name in HOOKED_ONLY):
            continue
        x, e = round(chance.random() ** 2, 3), round(4 * chance.random(), 3)
        config: dict[str, Any] = {
            "policy": spec.format(a=a, b=b, x=x, e=e, m=(a + layers) / 2),
            "fill": chance.choice(("catch_up", "catch_up", "catch_up", *FILL_NAMES)),
            "accept": chance.choice(("all", "all", "all", "exact", "exact", *RULES)),
            "max_pending": chance.choice((None, None, 1, 3)),
            "rebatch": chance.choice(("never", "never", "always", 0.5)),
        }
        try:
            exits = EarlyExitConfig(**config)
            exits.accept.bind(LAYOUT, RandomCodebook() if hooked else None)
        except EepolicyError:
            continue
        return config


def stock_model(case: Case) -> PreTrainedModel:
    """The random stock model of a case.

    Masks of padding overflow in float64 without sdpa.  In half precision, rounding changes which
    experts a token gets, so that models with experts stay in single precision.
    """
    config = sized_config(case.family, case.layers, **case.changes)
    model = random_model(config, case.seed, torch.float32)
    narrow = model.config._attn_implementation == "eager" or case.family == "xglm"
    stays = any("expert" in name for name, _ in model.named_modules())
    if (narrow and case.dtype == torch.float64) or (stays and case.dtype == torch.bfloat16):
        return model
    return model.to(case.dtype)


def hooked_model(model: PreTrainedModel) -> HookedModel:
    """The model with a layout of text and speech, and with what any policy may ask for."""
    hooked = HookedModel(model, layout=LAYOUT, vocoder=RandomCodebook())
    equip(hooked, FullDepth())
    return hooked


def padded(case: Case) -> dict[str, Tensor]:
    """Ids and mask of the prompts, as a tokenizer gives them: (rows, tokens) each."""
    ids, mask = pad_left([torch.tensor(p) for p in case.prompts], 0)
    return {"input_ids": ids, "attention_mask": mask.long()}


def stock_replies(case: Case, model: PreTrainedModel) -> list[list[int]]:
    """Replies of the stock `generate`, up to their end token."""
    inputs = padded(case)
    options = {"do_sample": False, "pad_token_id": 0} | case.options
    torch.manual_seed(case.seed)
    with torch.no_grad():
        rows = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: row.index(LAYOUT.end) + 1] if LAYOUT.end in row else row for row in rows]


def replies(case: Case, model: PreTrainedModel, hooked: HookedModel) -> list[Reply]:
    """Replies with early exit, through the entrance of the case."""
    inputs = padded(case)
    torch.manual_seed(case.seed)
    if case.entrance in ENTRANCES[:3]:
        prompt: Any = [torch.tensor(p) for p in case.prompts]
        more: dict[str, Any] = {}
        if case.entrance == "ids":
            prompt, more = inputs["input_ids"], {"attention_mask": inputs["attention_mask"]}
        elif case.entrance == "dict":
            prompt = inputs
        outs = hooked.generate(prompt, config=case.exits, **more, **case.options)
        outs = outs if isinstance(outs, list) else [outs]
        return [Reply(out.tokens.tolist(), out.trace) for out in outs]
    options = {"do_sample": False, "pad_token_id": 0} | case.options
    options["return_dict_in_generate"] = True
    if case.entrance == "early_exit":
        with early_exit(None, model, config=case.exits, layout=LAYOUT):
            out = model.generate(**inputs, **options)
    else:
        method = custom_generate(config=case.exits, layout=LAYOUT)
        out = model.generate(**inputs, custom_generate=method, **options)
    rows = out.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    return [Reply(row[: len(t)], t) for row, t in zip(rows, out.traces, strict=True)]


@contextmanager
def truncated(model: PreTrainedModel, depth: int) -> Iterator[PreTrainedModel]:
    """The stock model with its first layers only; its logits are the logit lens of the last one."""
    name, layers = next(
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    )
    owner, _, attribute = name.rpartition(".")
    parent, config = model.get_submodule(owner), model.config
    before = config.num_hidden_layers
    setattr(parent, attribute, nn.ModuleList(list(layers)[:depth]))
    config.num_hidden_layers = depth
    try:
        yield model
    finally:
        setattr(parent, attribute, layers)
        config.num_hidden_layers = before


def readouts(model: PreTrainedModel, ids: list[int], num_tokens: int, depth: int) -> Tensor:
    """Logits at a depth from which the last tokens of a sequence are chosen: (tokens, vocab)."""
    with truncated(model, depth), torch.no_grad():
        logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return logits[-num_tokens - 1 : -1]


def chosen_token(case: Case, model: PreTrainedModel, prefix: list[int], depth: int) -> int:
    """The token that the stock `generate` of the truncated model chooses after a prefix."""
    options = {**case.options, "max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
    ids = torch.tensor([prefix])
    with truncated(model, depth), torch.no_grad():
        tokens = model.generate(
            ids, attention_mask=torch.ones_like(ids), use_cache=False, **options
        )
    return int(tokens[0, -1])
