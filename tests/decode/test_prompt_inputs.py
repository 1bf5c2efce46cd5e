"""Prompts as people pass them: all of them give the reply of the same ids."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from conftest import LAYOUT, tiny
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BatchEncoding, PreTrainedTokenizerFast

from eepolicy import EepolicyError, HookedModel

IDS = [9, 31, 12, 44, 7]
OTHER = [8, 17, 40]
TEMPLATE = (
    "<s>{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of words that puts a BOS token in front of a text, with a chat template."""
    words = {"<pad>": 0, "<s>": 1, "user": 2, "assistant": 5}
    words |= {f"w{i}": i for i in range(6, 60)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("<s>", "isolated"),
            pre_tokenizers.WhitespaceSplit(),
        ]
    )
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", padding_side="left"
    )
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture(scope="module")
def model(tokenizer):
    hooked = HookedModel(tiny("llama"), tokenizer=tokenizer)
    hooked.generation_config.update(max_new_tokens=8, pad_token_id=0, do_sample=False)
    return hooked


def stock_reply(model, ids: list[int]) -> list[int]:
    return model.model.generate(torch.tensor([ids]))[0, len(ids) :].tolist()


SINGLE = {
    "ids": torch.tensor(IDS),
    "a row": torch.tensor([IDS]),
    "a list": IDS,
    "an array": np.array(IDS),
    "a nested list": [IDS],
    "a dict": {"input_ids": torch.tensor([IDS]), "attention_mask": torch.ones(1, 5)},
    "an encoding": BatchEncoding({"input_ids": torch.tensor([IDS])}),
    "an encoding of a list": BatchEncoding({"input_ids": IDS, "attention_mask": [1] * 5}),
}


@pytest.mark.parametrize("prompt", SINGLE.values(), ids=SINGLE)
def test_one_prompt_in_all_its_forms(model, prompt):
    if isinstance(prompt, BatchEncoding) and isinstance(prompt["input_ids"], list):
        with pytest.raises(EepolicyError, match="attention mask goes with ids"):
            model.generate(prompt)
        prompt = {"input_ids": prompt["input_ids"]}
    out = model.generate(prompt)
    assert out.tokens.tolist() == stock_reply(model, IDS)
    assert out.sequences.tolist() == [IDS + out.tokens.tolist()]


@pytest.mark.parametrize("name", ["input_ids", "inputs"])
def test_prompts_are_accepted_under_stock_argument_names(model, name):
    ids = torch.tensor([IDS])
    out = model.generate(**{name: ids}, attention_mask=torch.ones_like(ids))
    assert out.tokens.tolist() == stock_reply(model, IDS)


BATCHES = {
    "lists": [IDS, OTHER],
    "arrays": [np.array(IDS), np.array(OTHER)],
    "ids": [torch.tensor(IDS), torch.tensor(OTHER)],
    "a padded encoding": {
        "input_ids": torch.tensor([IDS, [0, 0, *OTHER]]),
        "attention_mask": torch.tensor([[1] * 5, [0, 0, 1, 1, 1]]),
    },
}


@pytest.mark.parametrize("prompts", BATCHES.values(), ids=BATCHES)
def test_a_batch_in_all_its_forms(model, prompts):
    replies = [out.tokens.tolist() for out in model.generate(prompts)]
    assert replies == [stock_reply(model, IDS), stock_reply(model, OTHER)]


def test_the_output_of_the_tokenizer(model, tokenizer):
    texts = ["w9 w31 w12", "w8"]
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    encoded.pop("token_type_ids", None)
    expected = [stock_reply(model, [1, 9, 31, 12]), stock_reply(model, [1, 8])]
    assert [out.tokens.tolist() for out in model.generate(**encoded)] == expected
    assert [out.tokens.tolist() for out in model.generate(encoded)] == expected
    assert [out.tokens.tolist() for out in model.generate(texts)] == expected


MESSAGES = [{"role": "user", "content": "w9 w31"}]
RENDERED = [1, 2, 9, 31, 5]


def test_turns_of_a_chat(model, tokenizer):
    """Rendered by the template, with one BOS token."""
    assert model.encode(MESSAGES).tolist() == RENDERED
    assert model.generate(MESSAGES).tokens.tolist() == stock_reply(model, RENDERED)
    two = [MESSAGES, [{"role": "user", "content": "w8"}]]
    expected = [stock_reply(model, RENDERED), stock_reply(model, [1, 2, 8, 5])]
    assert [out.tokens.tolist() for out in model.generate(two)] == expected
    encoded = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(encoded["input_ids"]).prompt.tolist()[-4:] == RENDERED[1:]


def test_a_rendered_template_gets_one_bos(model, tokenizer):
    text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert text.startswith("<s>")
    assert model.encode(text).tolist() == RENDERED
    assert model.encode("w9").tolist() == [1, 9]


def test_a_template_without_bos_gets_none(tokenizer, monkeypatch):
    """As `apply_chat_template` of transformers does, although the tokenizer would add one."""
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE.removeprefix("<s>"))
    hooked = HookedModel(tiny("llama"), tokenizer=tokenizer)
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert hooked.encode(MESSAGES).tolist() == ids == RENDERED[1:]


def test_a_speech_model_takes_one_question(tokenizer):
    speech = HookedModel(tiny("llama"), layout=LAYOUT, tokenizer=tokenizer)
    assert speech.encode([{"role": "user", "content": "w9"}]).tolist() == [9]
    with pytest.raises(EepolicyError, match=r"takes one turn of the role 'user'.*user, user"):
        speech.encode(MESSAGES * 2)


def test_pad_ids_outside_the_vocabulary(model):
    """Lists are padded here, so no layer sees the pad id."""
    expected = [stock_reply(model, IDS), stock_reply(model, OTHER)]
    for pad in (-1, 60, 10**6):
        bare = HookedModel(model.model)
        outs = bare.generate([IDS, OTHER], pad_token_id=pad)
        assert [out.tokens.tolist() for out in outs] == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(dtype):
    hooked = HookedModel(tiny("llama"))
    options = {"max_new_tokens": 8, "do_sample": True, "seed": 3}
    rules = ("all", "sampling")
    before = [
        hooked.generate([IDS, OTHER], "text=static@3", accept=rule, **options) for rule in rules
    ]
    torch.set_default_dtype(dtype)
    try:
        after = [
            hooked.generate([IDS, OTHER], "text=static@3", accept=rule, **options) for rule in rules
        ]
    finally:
        torch.set_default_dtype(torch.float32)
    for old, new in zip(before, after, strict=True):
        assert [o.tokens.tolist() for o in old] == [o.tokens.tolist() for o in new]


def test_sampling_without_a_seed_uses_the_global_generator(model):
    """Without a seed, as in the stock generate; a seed leaves it alone."""
    options = {"do_sample": True, "max_new_tokens": 12}
    torch.manual_seed(7)
    expected = [model.model.generate(torch.tensor([IDS]), **options)[0, 5:] for _ in range(2)]
    torch.manual_seed(7)
    got = [model.generate(IDS, **options).tokens for _ in range(2)]
    assert [t.tolist() for t in got] == [t.tolist() for t in expected]
    assert got[0].tolist() != got[1].tolist()
    state = torch.get_rng_state()
    model.generate(IDS, seed=1, **options)
    model.generate(IDS, "text=static@2", rebatch="auto", **{**options, "do_sample": False})
    assert torch.equal(torch.get_rng_state(), state)


def test_a_large_max_new_tokens_costs_no_memory(model):
    """Columns are added as the reply grows."""
    shapes = []
    cache_of = model.open_cache

    def recorded(rows: int, capacity: int):
        shapes.append(capacity)
        return cache_of(rows, capacity)

    model.open_cache = recorded
    try:
        few = model.generate(IDS, max_new_tokens=6).tokens
        many = model.generate(IDS, max_new_tokens=200_000, eos_token_id=int(few[4])).tokens
    finally:
        del model.open_cache
    assert many.tolist() == few.tolist()[: len(many)]
    assert max(shapes) < 1000


def test_rows_beyond_the_positions_of_the_model(model):
    """A warning as in transformers, and none at the limit."""
    config = model.config
    before, config.max_position_embeddings = config.max_position_embeddings, len(IDS) + 3
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.generate(IDS, max_new_tokens=4)
        with pytest.warns(UserWarning, match="a row has 9 positions, and the model was made for 8"):
            model.generate([OTHER, IDS], max_new_tokens=5)
    finally:
        config.max_position_embeddings = before


BAD = [
    ({"text": "w9"}, {}, "input_ids"),
    ({}, {}, r"input_ids; got the keys \(none\)"),
    ([], {}, "the list of prompts is empty"),
    (IDS, {"input_ids": torch.tensor([IDS])}, "give one prompt"),
    (3.5, {}, "a prompt is text"),
    ([[]], {}, "a prompt"),
    ([True, False], {}, "a prompt"),
]


@pytest.mark.parametrize(("prompt", "options", "says"), BAD, ids=[says for *_, says in BAD])
def test_invalid_prompts_are_refused(model, prompt, options, says):
    with pytest.raises(EepolicyError, match=says):
        model.generate(prompt, **options)


def test_turns_without_a_template_are_refused(model):
    with pytest.raises(EepolicyError, match="chat template, and this model has none"):
        HookedModel(model.model).generate(MESSAGES)
