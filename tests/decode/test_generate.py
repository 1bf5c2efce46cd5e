"""The options of `generate`, compared with those of transformers."""

from __future__ import annotations

import pytest
import torch
from conftest import CORE_FAMILIES, FAMILIES, LAYERS, LAYOUT, tiny
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    MaxLengthCriteria,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
)
from transformers.generation.streamers import BaseStreamer

from eepolicy import EepolicyError, HookedModel

LENGTHS = (7, 3, 11, 5)
NEW = 20
BUSY = 26  # an id that the random Llama generates often


def prompts_of(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 60, (n,), generator=generator) for n in LENGTHS]


def side_by_side(prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Ids and mask, (rows, tokens) each, padded on the left."""
    width = max(map(len, prompts))
    ids = [torch.nn.functional.pad(p, (width - len(p), 0)) for p in prompts]
    mask = [torch.arange(width) >= width - len(p) for p in prompts]
    return torch.stack(ids), torch.stack(mask).long()


def up_to_end(row: list[int], ends: tuple[int, ...] = (LAYOUT.end,)) -> list[int]:
    """A stock reply without the padding after its end."""
    first = min((row.index(end) for end in ends if end in row), default=len(row))
    return row[: first + 1]


def same_as_stock(hooked: HookedModel, options: dict, ends=(LAYOUT.end,), seed: int = 0, **ours):
    """Decodes a ragged batch by both; gives our replies, all equal to the stock ones."""
    prompts = prompts_of(seed)
    ids, mask = side_by_side(prompts)
    torch.manual_seed(5)
    stock = hooked.model.generate(ids, attention_mask=mask, **_defaults(options), **options)
    outs = hooked.generate(prompts, **{**_defaults(options), "seed": 5, **options, **ours})
    expected = [up_to_end(row, ends) for row in stock[:, ids.shape[1] :].tolist()]
    assert [out.tokens.tolist() for out in outs] == expected
    return outs


def _defaults(options: dict) -> dict:
    """What the options leave open."""
    given = {} if "generation_config" in options else {"max_new_tokens": NEW, "do_sample": False}
    return {name: value for name, value in given.items() if name not in options}


class Favour(LogitsProcessor):
    """Adds to the scores of the ids that are one above the newest."""

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[torch.arange(len(scores)), (input_ids[:, -1] + 1) % scores.shape[1]] += 4.0
        return scores


class AfterTwo(StoppingCriteria):
    """Ends a reply when an id has occurred twice."""

    def __init__(self, token: int, prompt: int) -> None:
        self.token, self.prompt = token, prompt

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids[:, self.prompt :] == self.token).sum(1) >= 2


class Collect(BaseStreamer):
    """Keeps what it is given: the prompt first."""

    def __init__(self) -> None:
        self.got: list[list[int]] = []
        self.ended = False

    def put(self, value):
        self.got.append(value.flatten().tolist())

    def end(self):
        self.ended = True


@pytest.fixture
def family():
    return "llama"


PROCESSED = [
    {"repetition_penalty": 1.8},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[BUSY], [21, 22]]},
    {"min_new_tokens": 15, "eos_token_id": BUSY},
    {"suppress_tokens": [LAYOUT.end, BUSY]},
    {"logits_processor": [Favour()]},
    {"do_sample": True, "temperature": 1.4},
    {"do_sample": True, "temperature": 1.4, "top_k": 7},
    {"do_sample": True, "min_p": 0.05, "repetition_penalty": 1.3},
    {"do_sample": True, "typical_p": 0.7, "no_repeat_ngram_size": 3},
]


@pytest.mark.parametrize("options", PROCESSED, ids=lambda o: ",".join(o))
def test_processors_are_the_stock_ones(hooked, options):
    plain = hooked.generate(prompts_of(0), max_new_tokens=NEW)
    outs = same_as_stock(hooked, options, ends=(options.get("eos_token_id", LAYOUT.end),))
    assert any(a.tokens.tolist() != b.tokens.tolist() for a, b in zip(outs, plain, strict=True))


# each policy and each processor; the other combinations are exhaustive
@pytest.mark.parametrize(
    ("policy", "options"),
    [
        pytest.param(policy, options, marks=() if i == j else pytest.mark.exhaustive)
        for i, policy in enumerate(("spark:triple@2", "static@3", "entropy<3.5@2"))
        for j, options in enumerate(
            ({"repetition_penalty": 1.8}, {"no_repeat_ngram_size": 2}, PROCESSED[5])
        )
    ],
)
def test_processors_see_no_rejected_drafts(hooked, policy, options):
    """Processors see no rejected draft: `exact` stays the stock greedy reply."""
    outs = same_as_stock(hooked, options, policy=policy, accept="exact")
    assert any((out.trace.draft_status == 2).any() for out in outs)


@pytest.mark.parametrize("accept", ["all", "exact"])
def test_criteria_end_rows_where_the_stock_model_ends(hooked, accept):
    shorter = 0
    for prompt in prompts_of(0):
        plain = hooked.generate(prompt, max_new_tokens=40).tokens.tolist()
        token = max(set(plain), key=plain.count)
        options = {"stopping_criteria": [AfterTwo(token, len(prompt))], "max_new_tokens": 40}
        stock = hooked.model.generate(prompt[None], do_sample=False, **options)[0, len(prompt) :]
        policy = "full" if accept == "all" else "spark:triple@2"
        out = hooked.generate(prompt, policy, accept=accept, **options)
        assert out.tokens.tolist() == stock.tolist()
        shorter += len(stock) < len(plain)
    assert shorter >= 3


class OnCall(StoppingCriteria):
    """Ends all replies at its n-th call, as a time limit does."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, input_ids, scores, **kwargs):
        self.left -= 1
        return torch.full((len(input_ids),), self.left <= 0)


@pytest.mark.parametrize(
    "n", [*range(1, 7), *(pytest.param(n, marks=pytest.mark.exhaustive) for n in range(7, 12))]
)
def test_all_drafts_are_verified_when_a_stopping_criterion_ends_a_reply(hooked, n):
    full = hooked.generate(prompts_of(0), max_new_tokens=20)
    outs = hooked.generate(
        prompts_of(0), "spark:triple@2", 20, accept="exact", stopping_criteria=[OnCall(n)]
    )
    for out, whole in zip(outs, full, strict=True):
        assert out.tokens.tolist() == whole.tokens[: len(out.tokens)].tolist()
        early = out.trace.depth < LAYERS
        assert (out.trace.draft_status[early] == 1).all()


def test_criteria_of_the_caller_replace_those_of_the_options(hooked):
    plain = hooked.generate(prompts_of(0)[0], max_new_tokens=40).tokens.tolist()
    longest = MaxLengthCriteria(LENGTHS[0] + 5)
    out = hooked.generate(prompts_of(0)[0], stopping_criteria=[longest])
    assert out.tokens.tolist() == plain[:5]
    end = EosTokenCriteria(plain[7])
    out = hooked.generate(prompts_of(0)[0], max_new_tokens=40, stopping_criteria=[end])
    assert out.tokens.tolist() == plain[: plain.index(plain[7]) + 1]
    assert out.ended


def test_a_penalty_of_the_caller_keeps_its_prompt_ignore_length(hooked):
    prompt = prompts_of(0)[2]
    for ignored in (None, 4, len(prompt)):
        own = RepetitionPenaltyLogitsProcessor(1.8, prompt_ignore_length=ignored)
        options = {"logits_processor": [own], "max_new_tokens": 30}
        stock = hooked.model.generate(prompt[None], do_sample=False, **options)[0, len(prompt) :]
        assert hooked.generate(prompt, **options).tokens.tolist() == stock.tolist()


def test_several_end_tokens_end_replies(hooked):
    prompts = prompts_of(0)
    plain = hooked.generate(prompts, max_new_tokens=NEW)
    ends = (LAYOUT.end, int(plain[0].tokens[4]), int(plain[2].tokens[9]))
    outs = same_as_stock(hooked, {"eos_token_id": list(ends)}, ends=ends)
    assert outs[0].ended
    assert len(outs[0].tokens) <= 5


def test_several_replies_to_a_prompt(hooked):
    prompts = prompts_of(0)
    ids, mask = side_by_side(prompts)
    options = {"num_return_sequences": 3, "do_sample": True, "temperature": 1.2}
    torch.manual_seed(5)
    stock = hooked.model.generate(ids, attention_mask=mask, max_new_tokens=20, **options)
    outs = hooked.generate(prompts, max_new_tokens=20, seed=5, **options)
    assert len(outs) == 12
    expected = [up_to_end(row) for row in stock[:, ids.shape[1] :].tolist()]
    assert [out.tokens.tolist() for out in outs] == expected
    assert len(hooked.generate(prompts[0], max_new_tokens=5, **options)) == 3


@pytest.mark.parametrize(
    "family",
    [
        name if name in CORE_FAMILIES else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in FAMILIES
    ],
)
def test_prompts_may_be_embeddings(family, hooked):
    prompts = prompts_of(1)
    ids, mask = side_by_side(prompts)
    embedded = hooked.model.get_input_embeddings()(ids)
    stock = hooked.model.generate(
        inputs_embeds=embedded, attention_mask=mask, max_new_tokens=14, do_sample=False
    )
    outs = hooked.generate(inputs_embeds=embedded, attention_mask=mask, max_new_tokens=14)
    expected = [up_to_end(row) for row in stock.tolist()]
    assert [out.tokens.tolist() for out in outs] == expected
    early = {"policy": "spark:triple@2", "max_new_tokens": 14}
    exits = hooked.generate(inputs_embeds=embedded, attention_mask=mask, **early)
    again = hooked.generate(prompts, **early)
    assert [out.tokens.tolist() for out in exits] == [out.tokens.tolist() for out in again]
    alone = hooked.generate(inputs_embeds=embedded[2:3], max_new_tokens=14)
    assert alone.tokens.tolist() == expected[2]


def test_rows_of_ids_with_their_mask(hooked):
    prompts = prompts_of(2)
    ids, mask = side_by_side(prompts)
    outs = hooked.generate(ids, "static@3", attention_mask=mask, max_new_tokens=20)
    again = hooked.generate(prompts, "static@3", max_new_tokens=20)
    assert [out.tokens.tolist() for out in outs] == [out.tokens.tolist() for out in again]


def test_a_generation_config(hooked):
    config = GenerationConfig(max_new_tokens=19, repetition_penalty=1.5, eos_token_id=[BUSY, 52])
    outs = same_as_stock(
        hooked, {"generation_config": config}, ends=(BUSY, 52), max_new_tokens=None
    )
    assert {len(out.tokens) for out in outs} != {19}
    prompt = prompts_of(0)[0]
    out = hooked.generate(prompt, generation_config=GenerationConfig(max_length=len(prompt) + 6))
    assert len(out.tokens) == 6
    assert config.max_new_tokens == 19
    hooked.model.generation_config.max_new_tokens = 8
    assert len(hooked.generate(prompt).tokens) == 8


@pytest.mark.parametrize("family", ["llama"])
@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize(
    ("name", "own", "others"),
    [
        ("eos_token_id", [LAYOUT.end, BUSY], {}),
        ("repetition_penalty", 1.8, {}),
        ("suppress_tokens", [BUSY], {}),
        ("top_k", 1, {"do_sample": True}),
    ],
)
def test_none_disables_an_option_of_the_model(hooked, name, own, others, with_config):
    if with_config:
        others = {"generation_config": GenerationConfig(max_new_tokens=NEW, **others)}
    ends = () if name == "eos_token_id" else (LAYOUT.end,)
    without = same_as_stock(hooked, {name: None, **others}, ends=ends)
    setattr(hooked.model.generation_config, name, own)
    outs = same_as_stock(hooked, {name: None, **others}, ends=ends)
    assert [out.tokens.tolist() for out in outs] == [out.tokens.tolist() for out in without]
    ends = own if name == "eos_token_id" else ends
    with_own = same_as_stock(hooked, {name: own, **others}, ends=ends)
    assert [out.tokens.tolist() for out in with_own] != [out.tokens.tolist() for out in without]


@pytest.mark.parametrize("accept", ["all", "exact"])
def test_a_streamer_gets_the_tokens_that_stay(hooked, accept):
    streamer, prompt = Collect(), prompts_of(0)[0]
    out = hooked.generate(prompt, "spark:triple@2", 30, accept=accept, streamer=streamer)
    assert streamer.got == [prompt.tolist(), *([t] for t in out.tokens.tolist())]
    assert streamer.ended


def test_without_a_layout_a_model_writes_text(stock):
    plain = HookedModel(stock)
    prompt = prompts_of(0)[0]
    expected = stock.generate(prompt[None], max_new_tokens=30, do_sample=False)[0, len(prompt) :]
    assert plain.generate(prompt, max_new_tokens=30).tokens.tolist() == expected.tolist()
    out = plain.generate(prompt, "text=spark:even@2", max_new_tokens=30)
    assert out.trace.depth.tolist() == [(LAYERS, 2)[i % 2] for i in range(len(out.tokens))]
    assert out.trace.modality.sum() == 0
    with pytest.raises(EepolicyError, match="acts on speech, and this model has none"):
        plain.generate(prompt, "spark:even@2")


IDS, MASK = side_by_side(prompts_of(0))
EMBEDDED = torch.zeros(2, 3, 32)
BAD = [
    ({"num_beams": 3}, "beam search is not supported"),
    ({"num_beams": 2, "do_sample": True}, "is not supported"),
    ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search"),
    ({"assistant_model": object()}, "the model drafts with its own exits"),
    ({"assistant_early_exit": 3}, "accept='exact'"),
    ({"prompt_lookup_num_tokens": 3}, "early exits"),
    ({"guidance_scale": 1.5}, "second prompt"),
    ({"past_key_values": object()}, "pass the whole prompt"),
    ({"use_cache": False}, "pending positions need the cache"),
    ({"output_scores": True}, "eepolicy.probe"),
    ({"prefix_allowed_tokens_fn": lambda i, ids: [1]}, "use a logits processor"),
    ({"max_new_tokens": 0}, "max_new_tokens: expected 1 or more"),
    ({"temprature": 0.5}, "temprature"),
    ({"temperature": -1.0}, "expected greater than 0"),
    ({"top_k": -3}, "top_k"),
    ({"repetition_penalty": 0.0}, "expected greater than 0"),
    ({"stop_strings": ["end"]}, "stop_strings need a model with a tokenizer"),
    ({"generation_config": GenerationConfig(guidance_scale=1.5)}, "second prompt"),
    ({"generation_config": GenerationConfig(num_beams=2)}, "beam search is not supported"),
    ({"prompt": IDS, "attention_mask": MASK[:, 1:] ** 0}, "an attention mask is"),
    ({"output_attentions": True}, "attention weights are not stored"),
    ({"logits_to_keep": 3, "cu_seq_lens_q": IDS}, "cu_seq_lens_q cannot be used"),
    ({"num_return_sequences": 2}, "num_return_sequences"),
    ({"attention_mask": MASK}, "other prompts are padded here"),
    ({"streamer": Collect(), "prompt": IDS[:, 3:]}, "a streamer follows one reply; got 4 rows"),
    ({"prompt": None}, "give a prompt, or inputs_embeds"),
    ({"prompt": []}, "the list of prompts is empty"),
    ({"inputs_embeds": EMBEDDED}, "give a prompt, or inputs_embeds"),
    (
        {"prompt": None, "inputs_embeds": EMBEDDED[..., :9]},
        r"inputs_embeds is \(rows, tokens, 32\)",
    ),
    ({"prompt": IDS, "attention_mask": MASK.flip(1)}, "padded on the left"),
    ({"prompt": IDS, "attention_mask": MASK[:, 1:]}, "an attention mask is"),
    ({"prompt": IDS.float()}, "a waveform is one channel"),
    ({"prompt": IDS + 50}, "ids are 0 to 59; got"),
    ({"prompt": IDS[:, :0]}, "a prompt is one row of ids"),
    ({"prompt": "a question"}, "needs a model with a tokenizer"),
    ({"policy": 3}, "policy: expected an instance of ExitPolicy or a valid string"),
    ({"policy": "spark:triple@7"}, "depths 1 to 6"),
    ({"accept": "exact", "temperature": 0.8}, "is for greedy decoding"),
    ({"accept": "exact", "fill": "mask"}, "nothing to verify"),
    ({"accept": "perhaps"}, "is no acceptance"),
    ({"fill": "guess"}, "guess"),
]


@pytest.fixture(scope="module")
def one() -> HookedModel:
    return HookedModel(tiny("llama"), layout=LAYOUT)


@pytest.mark.parametrize(("options", "says"), BAD, ids=lambda x: ",".join(x) if x else "")
def test_unsupported_options_are_refused(one, options, says):
    with pytest.raises(EepolicyError, match=says):
        one.generate(**{"prompt": torch.tensor([5, 7, 9]), **options})
