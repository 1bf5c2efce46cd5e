"""CSM: full depth equals the stock `generate`, and exits equal a plain loop without a cache."""

from __future__ import annotations

import random

import pytest
import torch
from naive_csm import plain_reply

from eepolicy import EepolicyError
from eepolicy.codebooks import HookedCodebookModel
from eepolicy.testing.codebooks import csm_config, random_csm

LAYERS, DEPTH_LAYERS, CODEBOOKS = 4, 3, 5
IDS = torch.tensor([[60, 60, 60, 7, 3, 21, 9], [4, 4, 50, 33, 8, 2, 17]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
PROMPTS = [IDS[0, 3:], IDS[1]]
FRAMES = 7


@pytest.fixture(scope="module")
def stock():
    return random_csm()


@pytest.fixture(scope="module")
def model(stock):
    return HookedCodebookModel(stock)


def codes_of(outputs):
    return [out.codes.tolist() for out in outputs]


def test_full_depth_equals_the_stock_generate(stock, model):
    expected = stock.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=FRAMES)
    outputs = model.generate({"input_ids": IDS, "attention_mask": MASK}, max_new_tokens=FRAMES)
    assert codes_of(outputs) == expected.tolist()
    for out in outputs:
        assert set(out.trace.backbone.depth.tolist()) == {LAYERS}
        assert set(out.trace.depth_decoder.depth.tolist()) == {DEPTH_LAYERS}
        assert out.trace.num_codebooks.tolist() == [CODEBOOKS] * FRAMES


@pytest.mark.parametrize("rows", [1, 2])
def test_sampling_equals_the_stock_generate_with_equal_seeds(stock, model, rows):
    options = dict(
        do_sample=True,
        temperature=0.9,
        top_k=20,
        depth_decoder_do_sample=True,
        depth_decoder_temperature=0.8,
    )
    inputs = {"input_ids": IDS[-rows:], "attention_mask": MASK[-rows:]}
    before = stock.depth_decoder.generation_config.to_dict()
    torch.manual_seed(3)
    ours = model.generate([*IDS[-rows:]] if rows == 1 else inputs, max_new_tokens=FRAMES, **options)
    assert stock.depth_decoder.generation_config.to_dict() == before
    seeded = model.generate(inputs, max_new_tokens=FRAMES, seed=3, **options)
    try:
        torch.manual_seed(3)
        expected = stock.generate(**inputs, max_new_tokens=FRAMES, **options)
    finally:
        stock.depth_decoder.generation_config = type(stock.generation_config).from_dict(before)
    assert codes_of(ours) == expected.tolist()
    assert codes_of(seeded if rows > 1 else [seeded]) == expected.tolist()


def test_a_seed_for_each_row_gives_the_codes_of_the_row_alone(model):
    options = dict(do_sample=True, depth_decoder_do_sample=True, max_new_tokens=4)
    together = model.generate(PROMPTS, "static@2", None, "entropy>2.4@2", seed=[5, 6], **options)
    alone = [
        model.generate(prompt, "static@2", None, "entropy>2.4@2", seed=seed, **options)
        for prompt, seed in zip(PROMPTS, (5, 6), strict=True)
    ]
    assert codes_of(together) == codes_of(alone)


def test_a_reply_ends_where_the_stock_reply_ends():
    """All codes but the last are the end code; a code that comes is chosen as it."""
    stock = random_csm(csm_config(codebooks=2))
    stock.config.codebook_eos_token_id = 99  # none has it
    free = stock.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=FRAMES)
    new = [i for i in range(1, FRAMES) if free[0, i, 0] not in free[0, :i, 0]]
    stock.config.codebook_eos_token_id = int(free[0, new[0], 0])
    expected = stock.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=FRAMES)
    outputs = HookedCodebookModel(stock).generate(PROMPTS, max_new_tokens=FRAMES)
    assert len(outputs[0].codes) == new[0] + 1
    assert outputs[0].ended
    assert len(outputs[0].frames) == new[0]
    for out, row in zip(outputs, expected, strict=True):
        assert out.codes.tolist() == row[: len(out.codes)].tolist()
        assert len(out.codes) == FRAMES or out.ended


def test_an_end_frame_is_computed_whole():
    """The number of codebooks does not change where a reply ends."""
    stock = random_csm(csm_config(codebooks=4))
    model = HookedCodebookModel(stock)
    first = model.generate(PROMPTS[1], codebooks=1, max_new_tokens=FRAMES).codes[:, 0]
    stock.config.codebook_eos_token_id = int(first[0])
    out = model.generate(PROMPTS[1], codebooks=1, max_new_tokens=FRAMES)
    assert out.trace.num_codebooks[0] > 1  # the first code may begin an end frame
    assert not out.ended


def schedule(depth, depth_decoder):
    """A chooser of fixed depths, the period of two of each model."""

    def choose(frame, codebook, logits):
        if codebook == 0:
            return depth[frame % len(depth)]
        return depth_decoder[(codebook - 1) % len(depth_decoder)]

    return choose


SCHEDULES = {
    ("static@2", "static@1"): schedule([2], [1]),
    ("spark:even@1", "spark:odd@2"): schedule([4, 1], [2, 3]),
    ("full", "spark:triple@1"): schedule([4], [3, 1, 1]),
    ("spark:triple@3", "full"): schedule([4, 3, 3], [3]),
}


@pytest.mark.parametrize("policies", SCHEDULES)
@pytest.mark.parametrize(("count", "missing"), [(5, "leave-out"), (3, "previous"), (2, "code:7")])
def test_scheduled_exits_equal_a_plain_loop(stock, model, policies, count, missing):
    rules = {
        "leave-out": lambda previous: [-1] * CODEBOOKS,
        "previous": lambda previous: previous,
        "code:7": lambda previous: [7] * CODEBOOKS,
    }
    expected = plain_reply(
        stock,
        PROMPTS[0],
        FRAMES,
        SCHEDULES[policies],
        lambda frame, known, logits: known >= count,
        rules[missing],
    )
    out = model.generate(
        PROMPTS[0], *policies, f"first:{count}", missing=missing, max_new_tokens=FRAMES
    )
    assert out.codes.tolist() == [frame.codes for frame in expected]
    depths = [depth for frame in expected for depth in frame.depths]
    assert out.trace.backbone.depth.tolist() == [frame.depths[0] for frame in expected]
    assert out.trace.depth_decoder.depth.tolist() == [
        depth for frame in expected for depth in frame.depths[1:]
    ]
    assert int(out.trace.num_codebooks.sum()) == len(depths)


def entropy(logits):
    logs = logits.log_softmax(-1)
    return float(-(logs.exp() * logs).sum())


def test_adaptive_exits_and_counts_equal_a_plain_loop(stock, model):
    def depth(frame, codebook, logits):
        if codebook == 0:
            return next((i for i in (1, 2, 3) if entropy(logits[i - 1]) < 2.5), LAYERS)
        confident = (i for i in (1, 2) if float(logits[i - 1].softmax(-1).max()) > 0.3)
        return next(confident, DEPTH_LAYERS)

    def stops(frame, known, logits):
        return known >= 2 and entropy(logits) > 2.4

    expected = plain_reply(stock, PROMPTS[1], FRAMES, depth, stops)
    out = model.generate(
        PROMPTS[1], "entropy<2.5@1", "confidence>0.3@1", "entropy>2.4@2", max_new_tokens=FRAMES
    )
    assert out.codes.tolist() == [frame.codes for frame in expected]
    assert out.trace.depth_decoder.depth.tolist() == [
        depth for frame in expected for depth in frame.depths[1:]
    ]
    assert out.trace.num_codebooks.tolist() == [len(frame.depths) for frame in expected]
    assert len(set(out.trace.num_codebooks.tolist())) > 1  # otherwise the thresholds test nothing
    assert len(set(out.trace.depth_decoder.depth.tolist())) > 1
    assert len(set(out.trace.backbone.depth.tolist())) > 1


@pytest.mark.parametrize("fill", ["catch_up", "propagate", "mask"])
@pytest.mark.parametrize(
    "policies",
    [
        ("entropy<2.5@1", "confidence>0.3@1", "entropy>2.4@2"),
        ("spark:odd@2", "spark:even@1", "confidence<0.2@3"),
    ],
)
def test_a_batch_equals_its_rows(model, policies, fill):
    options = dict(fill=fill, depth_fill=fill, missing="previous", max_new_tokens=FRAMES)
    together = model.generate(PROMPTS, *policies, **options)
    alone = [model.generate(prompt, *policies, **options) for prompt in PROMPTS]
    assert codes_of(together) == codes_of(alone)
    for one, other in zip(together, alone, strict=True):
        assert one.trace.to_dict() == other.trace.to_dict()


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(20))
def test_random_schedules_equal_a_plain_loop(seed):
    """Models, schedules, counts and prompts at random, in batches."""
    draw = random.Random(seed)
    layers, depth_layers, codebooks = draw.randint(2, 5), draw.randint(1, 4), draw.randint(2, 6)
    stock = random_csm(csm_config(layers, depth_layers, codebooks), seed)
    stock.config.codebook_eos_token_id = 99  # no reply ends
    first, other = (draw.choices("FE", k=draw.randint(1, 4)) for _ in range(2))
    exit_depth, other_depth = draw.randint(1, layers), draw.randint(1, depth_layers)
    choose = schedule(
        [layers if letter == "F" else exit_depth for letter in first],
        [depth_layers if letter == "F" else other_depth for letter in other],
    )
    count = draw.randint(1, codebooks)
    prompts = [
        torch.tensor(draw.choices(range(60), k=draw.randint(1, 7)))
        for _ in range(draw.randint(1, 3))
    ]
    outputs = HookedCodebookModel(stock).generate(
        prompts,
        f"spark:{''.join(first)}@{exit_depth}",
        f"spark:{''.join(other)}@{other_depth}",
        count,
        missing="previous",
        max_new_tokens=FRAMES,
        max_pending=draw.choice([None, 1, 2]),
    )
    for out, prompt in zip(outputs, prompts, strict=True):
        expected = plain_reply(
            stock,
            prompt,
            FRAMES,
            choose,
            lambda _, known, __: known >= count,
            lambda before: before,
        )
        assert out.codes.tolist() == [frame.codes for frame in expected]


@pytest.mark.parametrize(
    ("prompt", "options"),
    [(IDS[1], {"input_ids": IDS[:1]}), (PROMPTS, {"attention_mask": MASK})],
)
def test_a_prompt_is_given_once(model, prompt, options):
    (name,) = options
    with pytest.raises(EepolicyError, match=f"{name} is given twice"):
        model.generate(prompt, max_new_tokens=1, **options)
