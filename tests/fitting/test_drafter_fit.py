"""Fitting of drafters: the unrolled loss, the figures, the file, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pytest
import torch
from allocation import Peak
from conftest import LAYOUT, layers_of, tiny
from safetensors.torch import load_file
from test_rounds import full_depth, model_of, moved, prompts, questions
from torch import Tensor

from eepolicy import Document, EepolicyError, HookedModel, Modality
from eepolicy.fitting import FitConfig, Questions, Reports, fit, fit_rounds, fitting_memory
from eepolicy.fitting.batch_gradients import add_batch_gradients, autocast, evaluate
from eepolicy.fitting.estimate import Work
from eepolicy.fitting.gradients import frozen
from eepolicy.fitting.hours import HeadSize, Machine, fitting_hours
from eepolicy.fitting.replies import Generation
from eepolicy.fitting.stage import Schedule, StageFit
from eepolicy.fitting.state_batch import StateBatch
from eepolicy.fitting.states import StateStore
from eepolicy.fitting.unroll import chains, unrolled_states
from eepolicy.heads import KINDS, FittedHead, load_heads

CONFIG = FitConfig(
    "drafter", num_layers=1, on="speech", epochs=2, learning_rate=5e-3, batch_replies=4
)
GENERATION = Generation(max_new_tokens=20, batch=8)


def last_states(model: HookedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """States after the last layer of the stock model (tokens, width), and logits."""
    seen: list[Tensor] = []

    def hook(_module, _inputs, output) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = layers_of(model.model)[-1].register_forward_hook(hook)
    with torch.no_grad():
        logits = model.model(ids[None]).logits[0]
    handle.remove()
    return seen[0].reshape(len(ids), -1), logits


def speech_positions(document: Document) -> list[int]:
    labels = document.labels(LAYOUT, 6)
    return labels[0][labels[3] == Modality.SPEECH].tolist()


def naive_steps(model: HookedModel, heads: FittedHead, ids: Tensor, steps: int) -> list[Tensor]:
    """Logits (tokens, vocabulary) of each step: position by position, without batches."""
    drafter = heads.at(0)
    previous = last_states(model, ids)[0]
    embedding = model.model.get_input_embeddings()(ids).detach()
    if model.parts.position_embedding is not None:
        embedding = embedding + model.parts.position_embedding(torch.arange(len(ids))).detach()
    logits = []
    for _ in range(steps):
        rows = []
        for position in range(len(ids)):
            zero = torch.zeros_like(previous[0])
            before = zero if position == 0 else previous[position - 1]
            normed = drafter.input_norm(before[None])[0]
            rows.append(drafter.mix.weight @ torch.cat([normed, embedding[position]]))
        previous = model.branch_states(torch.stack(rows)[None], 0, heads)[0]
        logits.append(drafter.logits(previous, 0))
    return logits


def read_all(store: StateStore) -> list[StateBatch]:
    return [store.read(file, torch.device("cpu"), torch.float32) for file in store.files]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_a_step_has_the_gradient_of_the_naive_unrolled_loss(hooked, tmp_path):
    """In chunks of positions and in groups of replies, with padding."""
    documents = full_depth(hooked, prompts(5, 3), 20)
    heads = moved(hooked, "drafter", 0, layers=2).requires_grad_()
    store = StateStore(tmp_path, 0, "speech", True, torch.float32)
    store.write(hooked, documents, 5)
    config = dataclasses.replace(CONFIG, num_layers=2, chunk=5, padded_positions=60)
    [batch] = read_all(store)
    assert len(batch.split(60)) > 2
    losses = []
    for document in documents:
        at = speech_positions(document)
        target = last_states(hooked, document.tokens)[1][at].softmax(-1)
        steps = naive_steps(hooked, heads, document.tokens, 3)
        each = [-(target * logits[at].log_softmax(-1)).sum(-1) for logits in steps]
        losses.append(each[0] + 0.8 * each[1] + 0.64 * each[2])
    expected = torch.autograd.grad(torch.cat(losses).mean(), [*heads.parameters()])
    with frozen(hooked.model):
        add_batch_gradients(hooked, heads, config, batch)
    for parameter, gradient in zip(heads.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-3)


def naive_figures(
    model: HookedModel, heads: FittedHead, documents: Iterable[Document]
) -> dict[str, float]:
    kl, equal, lengths = [], [], []
    for document in documents:
        at = speech_positions(document)
        logits = last_states(model, document.tokens)[1]
        steps = naive_steps(model, heads, document.tokens, 3)
        ok = [(step.argmax(-1) == logits.argmax(-1)).tolist() for step in steps]
        target = logits[at].softmax(-1)
        kl.append((target * (target.log() - steps[0][at].log_softmax(-1))).sum(-1))
        equal += [ok[0][position] for position in at]
        for start in at:
            if {start + 1, start + 2} <= {*at}:
                right = [ok[step][start + step] for step in range(3)]
                lengths.append(next((n for n, good in enumerate(right) if not good), 3))
    return {
        "kl": float(torch.cat(kl).mean()),
        "agreement": sum(equal) / len(equal),
        "accepted": sum(lengths) / len(lengths),
    }


def test_fitting_lowers_the_kl_and_the_file_decodes_to_the_full_model(tmp_path):
    model = model_of()
    config = dataclasses.replace(CONFIG, epochs=25)
    result = fit_rounds(model, questions(), config, tmp_path / "w", generation=GENERATION)
    [row] = result.notes["rounds"]
    assert (row["depth"], row["kind"], row["layers"], row["own_replies"]) == (0, "drafter", 1, 0)
    assert (result.notes["policy"], result.notes["fitting"]["depths"]) == ([], (0,))
    with torch.no_grad():
        figures = naive_figures(model, result.heads, full_depth(model, questions().held_out, 20))
    assert {name: row[name] for name in figures} == pytest.approx(figures, rel=1e-3)
    assert "kl_own" not in row
    store = StateStore(tmp_path / "w/depth-0/full", 0, "speech", True)
    plain = KINDS.get("drafter").untrained(model.lens, (0,), width=32, num_layers=1)
    before, after = (evaluate(model, heads, store, config) for heads in (plain, result.heads))
    assert after["kl"] < 0.7 * before["kl"]
    assert after["accepted"] > before["accepted"]

    file = tmp_path / "drafter.safetensors"
    result.heads.save(file, model.model, result.notes)
    loaded = load_heads(file, model.lens, model.model)
    assert loaded.branch_depths == (0,)
    for name, weight in loaded.state_dict().items():
        torch.testing.assert_close(weight, result.heads.state_dict()[name].half().float())
    drafting = HookedModel(model.model, layout=LAYOUT)
    drafting.heads = loaded
    drafted = 0
    for prompt in prompts(4, 9):
        full = model.generate(prompt, max_new_tokens=20)
        own = drafting.generate(prompt, "both=draft:3", max_new_tokens=20, accept="exact")
        assert own.tokens.tolist() == full.tokens.tolist()
        drafted += int((own.trace.depth == 0).sum())
    assert drafted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_in_bfloat16(dtype, tmp_path):
    """By option, and for a model in bfloat16; the residual stream stays in float32."""
    model = HookedModel(tiny("llama", dtype=dtype), layout=LAYOUT)
    config = CONFIG
    if dtype == torch.float32:
        config = dataclasses.replace(config, precision="bfloat16")
    result = fit_rounds(model, questions(), config, tmp_path / "low", generation=GENERATION)
    assert {p.dtype for p in result.heads.parameters()} == {dtype}
    exact = fit_rounds(model_of(), questions(), CONFIG, tmp_path / "b", generation=GENERATION)
    kl, expected = (r.notes["rounds"][0]["kl"] for r in (result, exact))
    assert kl == pytest.approx(expected, rel=0.05)
    store = StateStore(tmp_path / "low/depth-0/full", 0, "speech", True)
    heads = result.heads.to(torch.float32)
    [first, *_] = read_all(store)
    with autocast(model, config):
        steps = unrolled_states(model, heads, first, 2)
    assert {states.dtype for states in steps} == {torch.float32}


def test_a_fit_starts_from_a_drafter_and_continues(tmp_path):
    model = model_of()
    start = moved(model, "drafter", 0)
    some = questions()
    lines: list[str] = []
    first = fit_rounds(
        model, some, CONFIG, tmp_path, start=start, generation=GENERATION,
        reports=Reports(lines.append, measure=lambda _, replies: {"words": len(replies)}),
    )  # fmt: skip
    assert first.notes["rounds"][0]["words"] == len(some.held_out)
    assert "accepted drafts in a chain" in lines[-1]
    again = fit_rounds(model, some, CONFIG, tmp_path, start=start, generation=GENERATION)
    assert again.notes["rounds"] == first.notes["rounds"]
    other = KINDS.get("drafter").untrained(model.lens, (0,), width=32, num_layers=2)
    with pytest.raises(EepolicyError, match="drafter with 2 layers; the options say drafter"):
        fit_rounds(model, some, CONFIG, tmp_path / "b", start=other, generation=GENERATION)


def test_a_chain_ends_at_the_first_wrong_draft():
    """Against a loop, for replies of several lengths."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([2, 9, 14])
    chosen = torch.rand(25, generator=generator) < 0.8
    count = int(chosen.sum())
    right = torch.rand(3, count, generator=generator) < 0.7
    batch = StateBatch(torch.zeros(25, 1), torch.zeros(count, 1), chosen, lengths)
    index, accepted, starts = chosen.cumsum(0) - 1, 0, 0
    for begin, length in zip([0, 2, 11], lengths.tolist(), strict=True):
        for start in range(begin, begin + length - 2):
            if chosen[start : start + 3].all():
                starts += 1
                for step in range(3):
                    if not right[step, index[start + step]]:
                        break
                    accepted += 1
    assert starts > 5
    assert chains(batch, right) == (accepted, starts)


def test_the_estimated_size_is_that_of_the_files(tmp_path):
    model = model_of()
    some = Questions(prompts(24, 1), prompts(12, 2))
    fit_rounds(model, some, CONFIG, tmp_path, generation=GENERATION)
    work = Work.of(
        dataclasses.replace(CONFIG, depths=(0,)), 24, full_depth(model, some.held_out, 20), 1,
        width=32, has_base=True,
    )  # fmt: skip
    files = (tmp_path / "depth-0/full").glob("*.safetensors")
    stored = [load_file(file)["states"] for file in files]
    assert {states.dtype for states in stored} == {torch.bfloat16}
    assert work.bytes == pytest.approx(sum(2 * states.numel() for states in stored), rel=0.2)


@pytest.mark.parametrize("unroll", [1, 3])
def test_a_drafter_is_fitted_within_the_computed_memory(unroll, tmp_path):
    model = HookedModel(tiny("llama"))
    documents = [Document(torch.randint(60, (64,)), 4) for _ in range(8)]
    config = FitConfig(
        "drafter", num_layers=1, unroll=unroll, chunk=64, batch_replies=8, padded_positions=256,
        depths=(0,),
    )  # fmt: skip
    store = StateStore(tmp_path, 0, "both", True)
    store.write(model, documents, 8)
    with Peak() as measured:
        heads = KINDS.get("drafter").untrained(model.lens, (0,), width=32, num_layers=1)
        trainer = StageFit(model, heads, config, Schedule(2, 1e-3, 0), tmp_path / "c", {})
        trainer.run([(store, store.files[0])])
    bound = fitting_memory(
        config, width=32, vocabulary=60, full_depth=6, longest=64,
        layer_weights=sum(p.numel() for p in layers_of(model.model)[0].parameters()),
    )  # fmt: skip
    assert 0.3 * sum(bound.values()) < measured.peak < sum(bound.values())


def test_estimated_hours_grow_with_the_unrolled_steps():
    def hours(unroll: int) -> float:
        config = FitConfig("drafter", num_layers=1, unroll=unroll)
        size = HeadSize(8, 100, num_layers=1, layer_weights=1000)
        return fitting_hours(config, Machine(1, 1), size=size, full_depth=4, tokens=10)["fitting"]

    # a step: 6 operations a weight of the head, 4 of the output embedding
    head = 1000 + 2 * 8 + 2 * 8**2
    assert hours(3) - hours(1) == pytest.approx(2 * (6 * head + 4 * 800) * 5 * 10 / 3600)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"rounds": 1}, "leave rounds and policy out"),
        ({"policy": "static@2"}, "leave rounds and policy out"),
        ({"depths": (2,)}, "a drafter is a head at depth 0"),
        ({"unroll": 0}, "unroll: expected 1 or more"),
        ({"kind": "branch", "depths": (0,)}, "rising depths from 1 on"),
        ({"kind": "tuned", "depths": (0, 2)}, "rising depths from 1 on"),
    ],
)
def test_wrong_options_are_refused(wrong, match):
    with pytest.raises(EepolicyError, match=match):
        dataclasses.replace(CONFIG, **wrong)


@pytest.mark.parametrize("kind", ["branch", "drafter"])
def test_fit_refuses_heads_with_layers(kind):
    model = model_of()
    some = full_depth(model, prompts(2, 1), 20)
    with pytest.raises(EepolicyError, match="fit_rounds fits heads with layers"):
        fit(model, some[:1], some[1:], FitConfig(kind))
