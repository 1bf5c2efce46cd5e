"""Compiled layers against the stock layers."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import DECODINGS, FAMILIES, LAYERS, LAYOUT, assert_same_replies, tiny
from transformers.models.llama.modeling_llama import LlamaMLP

from eepolicy import EepolicyError, ExitPolicy, HookedModel
from eepolicy.decode.batch import Batch
from eepolicy.decode.batch_options import BatchOptions
from eepolicy.decode.fills import Propagate
from eepolicy.heads import KINDS, FittedHead, LinearHead, TunedLens
from eepolicy.policies import Step

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
    # warnings of the compiler about its own code
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

# Hidden states here are up to 30; the largest difference over 300 random cases was 2.1e-5, from
# sums in another order.
TOLERANCE = 2e-4

QUESTION = torch.tensor([5, 33, 21, 8])
ONE = [QUESTION]
RAGGED = [QUESTION, torch.tensor([7, 8]), torch.tensor([1, 2, 3, 9, 5, 6, 7])]


@pytest.fixture(scope="module")
def llama() -> HookedModel:
    return HookedModel(tiny("llama"), layout=LAYOUT)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kernels(model: HookedModel) -> int:
    made = model.compiled_executor()
    assert made is not None
    return made.kernels


# without hypothesis, which traces every line, those of the compiler too
@torch.no_grad()
@pytest.mark.parametrize(
    "seed",
    [
        0,
        *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4)),
        *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(4, 12)),
    ],
)
def test_blocks_equal_those_of_the_stock_layers(llama, seed):
    """Prompts with random padding, then blocks of random width, of all rows or some of them."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rows = 1 + seed % 4
    padding = [draw.randint(0, 3) for _ in range(rows)]
    stock = Batch(llama, padding, 40)
    ours = Batch(llama, padding, 40, executor=llama.compiled_executor())
    prompt = torch.randint(60, (rows, 6), generator=generator)
    for batch in (stock, ours):
        batch.prefill(prompt)
    for _ in range(draw.randint(1, 3)):
        tokens = torch.randint(60, (rows, draw.randint(1, 4)), generator=generator)
        for batch in (stock, ours):
            batch.run(batch.begin_block(tokens), LAYERS)
    some = sorted(draw.sample(range(rows), draw.randint(1, rows)))
    depth = draw.randint(1, LAYERS)
    blocks = []
    for batch in (stock, ours):
        block = batch.begin_step(tokens[:, :1], list(range(rows)))
        batch.run(block, depth)
        block = block.select(some)
        batch.run(block, LAYERS)
        blocks.append(block.hidden)
    torch.testing.assert_close(blocks[1], blocks[0], rtol=0, atol=TOLERANCE)
    for layer in range(LAYERS):
        left, right = (b.cache.layer(layer, b.columns) for b in (ours, stock))
        torch.testing.assert_close(left, right, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "prompts",
    [pytest.param(ONE, id="one"), pytest.param(RAGGED, marks=pytest.mark.slow, id="ragged")],
)
@pytest.mark.parametrize(("policy", "options"), DECODINGS, ids=str)
def test_replies_equal_those_of_the_stock_layers(llama, prompts, policy, options):
    plain = llama.generate(prompts, policy, max_new_tokens=16, **options)
    ours = llama.generate(prompts, policy, max_new_tokens=16, compile=True, **options)
    assert_same_replies(ours, plain)
    made = llama.compiled_executor()
    assert made is not None
    assert not made._broken


@torch.no_grad()
def test_fills_skip_the_rest_of_a_layer(llama, monkeypatch):
    """Keys and values equal those of the stock layers, which are not called."""
    stored = []
    compiled = llama.compiled_executor()
    for number, layers in enumerate((None, compiled, compiled)):
        batch = Batch(llama, [0, 2], 9, BatchOptions(Propagate()), executor=layers)
        batch.prefill(torch.arange(14).reshape(2, 7))
        if number == 2:  # the kernels exist: they were made from the code of the layers
            monkeypatch.setattr(HookedModel, "fill_layer", None)
            for layer in llama.parts.layers[2:]:
                monkeypatch.setattr(layer, "forward", None)
        for token in (8, 9):
            block = batch.begin_step(torch.tensor([[token], [30 + token]]), [0, 1])
            batch.run(block, 2)
            batch.exit(block)
        stored.append([batch.cache.layer(i, 9) for i in range(LAYERS)])
    for plain, *both in zip(*stored, strict=True):
        for ours in both:
            torch.testing.assert_close(ours, plain, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_fills_and_blocks_of_rows_that_are_not_consecutive(llama):
    """Gathered rows, before and after the batch has grown and has lost a row."""
    batches = []
    for layers in (None, llama.compiled_executor()):
        batch = Batch(llama, [0, 2, 1, 0], 9, BatchOptions(Propagate()), executor=layers)
        batch.prefill(torch.arange(24).reshape(4, 6))
        rows = [0, 1, 2, 3]
        for step in range(9):
            if step == 5:
                rows = [0, 1, 3]
                batch.retire(rows, {})
            block = batch.begin_step(torch.tensor([[7 + step], [3], [20], [41]])[: len(rows)], rows)
            batch.run(block, 2)
            batch.exit(block.select([0, 2]))
            block = block.select([i for i in range(len(rows)) if i not in (0, 2)])
            batch.run(block, LAYERS)
        batches.append(batch)
    assert batches[0].capacity > 9
    for layer in range(LAYERS):
        plain, ours = (b.cache.layer(layer, b.columns) for b in batches)
        torch.testing.assert_close(ours, plain, rtol=0, atol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize(("columns", "padding"), [(12, 1), (12, 0), (3, 0), (5, 0)])
def test_a_block_after_a_prompt_of_its_width(llama, columns, padding):
    """One kernel serves both where both have a mask, though the prompt has no stored columns."""
    prompt = torch.randint(60, (1, 2 * columns), generator=torch.Generator().manual_seed(1))
    states = []
    for layers in (None, llama.compiled_executor()):
        batch = Batch(llama, [padding], 24, executor=layers)
        for tokens in prompt.split(columns, 1):
            block = batch.begin_block(tokens)
            batch.run(block, LAYERS)
        states.append(block.hidden)
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=TOLERANCE)


def test_compiled_layers_are_recorded(llama):
    plain, ours = (
        llama.generate(QUESTION, "spark:triple@2", 15, record=True, compile=on).record
        for on in (False, True)
    )
    for left, right in zip(ours.hidden_states, plain.hidden_states, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(left.copy()), torch.from_numpy(right.copy()), rtol=0, atol=1e-2
        )


def test_kernels_are_few_and_made_once():
    """Other prompts, lengths, depths and policies use the same kernels."""
    model = HookedModel(tiny("llama", 1), layout=LAYOUT)
    model.generate(QUESTION, "spark:triple@3", 20, compile=True)
    other = torch.tensor([9, 7, 6, 5, 4, 3, 2])
    model.generate(other, "static@4", 30, compile=True)  # a whole chunk is pending: many rows
    made = kernels(model)
    # layers: one column, three, eight, others up to eight, a prompt, as many columns after others,
    # more; the head: one row or several
    assert 3 <= made <= 9
    for policy in ("spark:even@2", "static@4", "both=entropy<2@1"):
        for prompt in (QUESTION, other):
            model.generate(prompt, policy, 20, compile=True)
    assert kernels(model) == made
    assert not model.compiled_executor()._kernels._refused


@pytest.mark.slow
def test_a_growing_reply_needs_no_further_calls_of_the_compiler():
    """The mask of each refresh has another width, and each prompt another storage offset."""
    model = HookedModel(tiny("llama", 11), layout=LAYOUT)
    options = {"min_new_tokens": 20, "compile": True}
    model.generate(QUESTION, "spark:triple@2", 20, **options)
    calls = model.compiled_executor()._kernels._calls
    known = len(calls)
    options["min_new_tokens"] = 70  # a larger capacity, and so larger strides
    ours = model.generate(QUESTION, "spark:triple@2", 70, **options)
    assert len(calls) == known
    plain = model.generate(QUESTION, "spark:triple@2", 70, **options | {"compile": False})
    assert ours.tokens.tolist() == plain.tokens.tolist()
    for rows in (1, 4, 5):  # five are padded to eight
        model.generate([QUESTION] * rows, "static@2", 40, compile=True)
    model.generate(RAGGED, ByRow(1), 40, fill="propagate", compile=True)
    assert None not in calls.values()


@pytest.mark.slow
@torch.no_grad()
def test_gathered_rows_need_no_further_calls_of_the_compiler():
    model = HookedModel(tiny("llama", 12), layout=LAYOUT)
    layers = model.compiled_executor()
    batch = Batch(model, [0] * 3, 40, executor=layers)
    batch.prefill(torch.arange(18).reshape(3, 6))
    for step in range(20):
        block = batch.begin_step(torch.tensor([[step], [5]]), [0, 2])
        batch.run(block, LAYERS)
        if step == 0:
            known = len(layers._kernels._calls)
    assert len(layers._kernels._calls) == known


class ByRow(ExitPolicy):
    """Rows exit at different depths in each step, which leaves blocks of all widths pending."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def depths(self, step: Step) -> torch.Tensor:
        draw = random.Random(self.seed + int(step.position[0]))
        return torch.tensor([draw.randint(1, LAYERS) for _ in step.position])


@pytest.mark.slow
def test_varying_rows_need_few_kernels_and_print_nothing(capfd):
    model = HookedModel(tiny("llama", 5), layout=LAYOUT)
    for seed in range(3):
        policy = ByRow(seed)
        plain, ours = (
            model.generate(RAGGED, policy, 25, min_new_tokens=25, compile=on)
            for on in (False, True)
        )
        assert [o.tokens.tolist() for o in ours] == [o.tokens.tolist() for o in plain]
    # with ragged blocks: one for each small shape of a layer, eight for many rows, and the heads
    assert kernels(model) <= 26
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("rows", [6, 9])
def test_a_kernel_made_for_equal_rows_and_columns_serves_unequal_ones(rows):
    """The kernel is made where the numbers are equal, and used where they are not."""
    model = HookedModel(tiny("llama", 7), layout=LAYOUT)
    prompts = torch.randint(1, 60, (rows, rows), generator=torch.Generator().manual_seed(rows))
    plain, ours = (
        model.generate(prompts, "full", 12, min_new_tokens=12, compile=on) for on in (False, True)
    )
    assert [o.tokens.tolist() for o in ours] == [o.tokens.tolist() for o in plain]


def test_prompts_of_any_length_run_compiled(llama, monkeypatch):
    prompts = [torch.arange(5, 5 + tokens) % 60 for tokens in (20, 33, 47)]
    plain = [llama.generate(prompt, "full", 9) for prompt in prompts]
    for prompt in prompts[:2]:  # up to `MAX_ROWS` columns, and more
        llama.generate(prompt, "full", 9, compile=True)
    before = kernels(llama)
    monkeypatch.setattr(HookedModel, "run_layer", None)
    ours = [llama.generate(prompt, "full", 9, compile=True) for prompt in prompts]
    assert [o.tokens.tolist() for o in ours] == [o.tokens.tolist() for o in plain]
    assert kernels(llama) == before


def test_a_hook_that_is_added_after_the_first_call_runs(llama):
    """Layers without a hook stay compiled; see `test_changes_compiled.py` for other changes."""
    plain = llama.generate(QUESTION, "full", 9, compile=True)
    layer = llama.parts.layers[1]
    hook = layer.register_forward_hook(lambda module, args, out: out + 1.5)
    try:
        with pytest.warns(UserWarning, match="layer 2 runs uncompiled, with the same tokens"):
            ours = llama.generate(QUESTION, "full", 9, compile=True)
        expected = llama.generate(QUESTION, "full", 9)
    finally:
        hook.remove()
    assert ours.tokens.tolist() == expected.tokens.tolist() != plain.tokens.tolist()
    again = llama.generate(QUESTION, "full", 9, compile=True)
    assert again.tokens.tolist() == plain.tokens.tolist()


@pytest.mark.slow
def test_a_layer_of_another_structure_gets_its_own_kernel():
    stock = tiny("llama", 2)
    stock.model.layers[3].mlp.act_fn = torch.nn.Tanh()
    model = HookedModel(stock, layout=LAYOUT)
    ours, plain = (model.generate(QUESTION, "full", 20, compile=on) for on in (True, False))
    assert ours.tokens.tolist() == plain.tokens.tolist()
    assert len({*model.compiled_executor().table.templates}) == 2


def test_a_stock_model_that_has_returned_hidden_states_compiles():
    """It then has hooks, which the compiler cannot trace."""
    stock = tiny("llama", 16)
    stock(QUESTION[None], output_hidden_states=True, output_attentions=False)
    model = HookedModel(stock, layout=LAYOUT)
    ours, plain = (model.generate(QUESTION, "spark:even@2", 9, compile=on) for on in (True, False))
    assert ours.tokens.tolist() == plain.tokens.tolist()
    assert not model.compiled_executor()._broken


class Scale:
    """A setting that the structure of a layer does not describe: an object of a user's class."""

    factor = 1.0


class ScaledMLP(LlamaMLP):
    def forward(self, x):
        return self.scale.factor * super().forward(x)


def test_a_layer_that_computes_something_else_is_detected():
    """Its types, settings and tensors are those of the other layers."""
    stock = tiny("llama", 3)
    for layer in stock.model.layers:
        layer.mlp.__class__, layer.mlp.scale = ScaledMLP, Scale()
    stock.model.layers[4].mlp.scale.factor = 2.0
    model = HookedModel(stock, layout=LAYOUT)
    with pytest.warns(UserWarning, match="layer 5 differs by"):
        ours = model.generate(QUESTION, "full", 20, compile=True)
    assert ours.tokens.tolist() == model.generate(QUESTION, "full", 20).tokens.tolist()


def test_keys_that_change_when_they_are_repeated_are_detected(monkeypatch):
    """A refresh uses the keys from before the repetition, and so needs it to change nothing."""
    from transformers.integrations import sdpa_attention

    model, repeat = HookedModel(tiny("llama", 13), layout=LAYOUT), sdpa_attention.repeat_kv
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda keys, times: 2 * repeat(keys, times))
    with pytest.warns(UserWarning, match="layer 1 differs by"):
        assert model.compiled_executor() is None


#: kinds of heads that are compared in each run: a map before the lens, and layers before it
FAST_KINDS = ("tuned", "branch")


@torch.no_grad()
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(None, marks=pytest.mark.exhaustive),  # others read out the last layer too
        *(
            pytest.param(kind, marks=() if kind in FAST_KINDS else pytest.mark.slow)
            for kind in KINDS.names()
        ),
    ],
)
def test_readouts_equal_those_of_the_heads(kind):
    model, depths = HookedModel(tiny("llama", 14), layout=LAYOUT), (1, 2, 5)
    if kind:
        depths = tuple(d for d in KINDS.get(kind).default_depths(LAYERS) if d in (0, 1, 2, 5))
        heads = KINDS.get(kind).untrained(model.lens, depths, width=32, rank=3)
        for i, parameter in enumerate(heads.parameters()):
            parameter += numbers(*parameter.shape, seed=i) / 10
        model.heads = heads
    layers = model.compiled_executor()
    before = layers.kernels
    for rows in (1, 6, 7, 9):
        for depth in (*depths, LAYERS):
            hidden = 3 * numbers(rows, 32, seed=depth)
            for over in ((), ((3, 4), (20, 60))):
                ours, plain = (m.logits(hidden, depth, over) for m in (layers, model))
                torch.testing.assert_close(ours, plain, rtol=0, atol=TOLERANCE)
    # one row and up to eight, all ids and some; the last layer has separate kernels, but a branch
    # and a drafter end in a norm and an output embedding as it does
    own = kind is not None and kind not in ("branch", "drafter")
    assert layers.kernels - before == (8 if own else 4)


def test_heads_of_other_ids_are_refused_when_compiled(llama, monkeypatch):
    heads = FittedHead({3: LinearHead(llama.lens, llama.lens.head.weight[:40])})
    monkeypatch.setattr(llama, "heads", heads)
    with pytest.raises(EepolicyError, match="reads out 40 of 60 tokens"):
        llama.generate(QUESTION, "both=static@3", 5, compile=True)


@torch.no_grad()
def test_replaced_heads_are_compiled_again(llama, monkeypatch):
    layers, hidden = llama.compiled_executor(), numbers(1, 32)
    for seed in (1, 2):
        heads = TunedLens.untrained(llama.lens, (3,), width=32)
        heads.at(3).bias += numbers(32, seed=seed)
        monkeypatch.setattr(llama, "heads", heads)
        ours, plain = (m.logits(hidden, 3) for m in (layers, llama))
        torch.testing.assert_close(ours, plain, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_a_head_whose_precision_changes_in_place_is_compiled_again(llama, monkeypatch):
    monkeypatch.setattr(llama, "heads", TunedLens.untrained(llama.lens, (3,), width=32))
    llama.heads.at(3).bias += numbers(32)
    layers, hidden = llama.compiled_executor(), numbers(1, 32)
    for change in (lambda heads: heads, torch.nn.Module.half, torch.nn.Module.float):
        change(llama.heads)
        ours, plain = (m.logits(hidden, 3) for m in (layers, llama))
        torch.testing.assert_close(ours, plain, rtol=0, atol=TOLERANCE)


@pytest.mark.slow
def test_without_a_compiler_one_line_gives_the_reason(tmp_path):
    command = [sys.executable, "-m", "eepolicy.cli", "generate", "What color is snow?"]
    hidden = os.environ | {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([*command, "--compile"], env=hidden, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "Snow is white."
    assert done.stderr.count("compile=True has no effect") == 1


#: families without an operation of their own: biases and norms of queries are those of GPT-2 and
#: Gemma 3, windows those of Phi 3, and the other tests here compile Llama
PLAIN_FAMILIES = ("llama", "qwen2", "qwen3", "mistral")


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=pytest.mark.exhaustive if name in PLAIN_FAMILIES else ())
        for name in FAMILIES
    ],
)
@pytest.mark.parametrize(
    "prompts",
    [
        pytest.param(ONE, marks=pytest.mark.slow, id="one"),
        pytest.param(RAGGED, marks=pytest.mark.exhaustive, id="ragged"),
    ],
)
def test_every_family(family, prompts):
    model = HookedModel(tiny(family), layout=LAYOUT)
    for policy in ("full", "spark:triple@2", "both=entropy<2@2"):
        plain, ours = (model.generate(prompts, policy, 25, compile=on) for on in (False, True))
        assert [o.tokens.tolist() for o in ours] == [o.tokens.tolist() for o in plain]
    assert kernels(model) > 0
