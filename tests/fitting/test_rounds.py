"""Fitting in rounds: own replies, their labels, the steps, and how a stopped fit continues."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from allocation import Peak
from conftest import LAYOUT, layers_of, plain_lens, tiny
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import eepolicy
from eepolicy import Document, EepolicyError, HookedModel, Modality, probe
from eepolicy.fitting import FitConfig, FitResult, Questions, Reports, fit_rounds, fitting_memory
from eepolicy.fitting import stage as stage_module
from eepolicy.fitting.batch_gradients import evaluate
from eepolicy.fitting.depth_rounds import DepthRounds
from eepolicy.fitting.estimate import Work
from eepolicy.fitting.gradients import frozen
from eepolicy.fitting.replies import Exits, Generation, replies_with
from eepolicy.fitting.stage import Schedule, StageFit
from eepolicy.fitting.states import StateStore
from eepolicy.heads import KINDS, FittedHead, load_heads
from eepolicy.testing.multimodal import small_multimodal

CONFIG = FitConfig(
    kind="branch",
    num_layers=1,
    depths=(2,),
    on="speech",
    epochs=2,
    rounds=2,
    round_epochs=2,
    learning_rate=2e-3,
    round_learning_rate=2e-3,
    batch_replies=4,
)
NEW = 12
GENERATION = Generation(max_new_tokens=NEW, batch=8)


def prompts(count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 8, (count,), generator=generator).tolist()
    return [torch.randint(60, (n,), generator=generator) for n in lengths]


def questions() -> Questions:
    return Questions(prompts(16, 1), prompts(6, 2))


def model_of(family: str = "llama", dtype: torch.dtype = torch.float32) -> HookedModel:
    return HookedModel(tiny(family, dtype=dtype), layout=LAYOUT)


def full_depth(model: HookedModel, some: Iterable[Tensor], new_tokens: int = NEW) -> list[Document]:
    outputs = model.generate([*some], max_new_tokens=new_tokens)
    return [Document(torch.cat([o.prompt, o.tokens]), len(o.prompt)) for o in outputs]


def moved(model: HookedModel, kind: str, depth: int = 2, layers: int = 1) -> FittedHead:
    """A head with weights that differ from its initial ones, in float32."""
    heads = KINDS.get(kind).untrained(model.lens, (depth,), width=32, rank=4, num_layers=layers)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in heads.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return heads


def lines_of(file: Path) -> list[tuple[list[int], list[int]]]:
    _, *rows = (json.loads(line) for line in file.read_text().splitlines())
    return [(tokens[:n], tokens[n:]) for n, tokens in rows]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2"])
@pytest.mark.parametrize("whole", [True, False])
def test_stored_states_are_those_of_the_stock_model(hooked, tmp_path, whole):
    """Exit depth and labels: padded batches against one reply at a time in the stock model."""
    documents = full_depth(hooked, prompts(7, 3))
    store = StateStore(tmp_path, 2, "speech", whole, torch.float32)
    left = tmp_path / ".000003.safetensors.0123abcd.part"  # by a process that was killed
    left.mkdir()
    store.write(hooked, documents, 3)
    assert not left.exists()
    documents.sort(key=lambda d: len(d.tokens))
    assert len(store.files) == 3
    start = 0
    for file in store.files:
        batch = store.read(file, hooked.device, torch.float32)
        states, last = [], []
        for document in documents[start : start + len(batch.lengths)]:
            stock = hooked.model(document.tokens[None], output_hidden_states=True)
            labels = document.labels(LAYOUT, 6)
            at = torch.from_numpy(labels[0][labels[3] == Modality.SPEECH])
            hidden = stock.hidden_states[2][0]
            states.append(hidden if whole else hidden[at])
            last.append(stock.logits[0, at])
        start += len(batch.lengths)
        torch.testing.assert_close(batch.states, torch.cat(states), atol=2e-5, rtol=1e-4)
        logits = plain_lens(hooked.model, batch.last)
        torch.testing.assert_close(logits, torch.cat(last), atol=2e-5, rtol=1e-4)
    assert start == len(documents)


@dataclass(frozen=True)
class Fit:
    """A fit, and the files that it wrote."""

    model: HookedModel
    folder: Path
    result: FitResult


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Fit:
    """A fit that was never stopped."""
    model, folder = model_of(), tmp_path_factory.mktemp("whole")
    result = fit_rounds(model, questions(), CONFIG, folder, generation=GENERATION)
    return Fit(model, folder, result)


def test_own_replies_come_from_the_exiting_model(whole):
    model = whole.model
    assert model.heads is model.lens  # as before
    differ = 0
    for number in (1, 2):
        before = whole.folder / f"depth-2/round-{number - 1}/heads.safetensors"
        exiting = HookedModel(model.model, layout=LAYOUT)
        exiting.heads = load_heads(before, exiting.lens, model.model)
        rows = lines_of(whole.folder / f"depth-2/round-{number}/own.jsonl")
        chosen = questions().train[:8] if number == 1 else questions().train[8:]
        assert sorted(p for p, _ in rows) == sorted(p.tolist() for p in chosen)
        for prompt, reply in rows:
            own = exiting.generate(torch.tensor(prompt), "static@2", max_new_tokens=NEW)
            assert reply == own.tokens.tolist()
            full = model.generate(torch.tensor(prompt), max_new_tokens=NEW)
            differ += reply != full.tokens.tolist()
    assert differ


def test_the_figures_of_a_round_are_those_of_a_probe(whole):
    model, result = whole.model, whole.result
    row = result.notes["rounds"][-1]
    assert [r["round"] for r in result.notes["rounds"]] == [0, 1, 2]
    assert row["own_replies"] == 16
    own = lines_of(whole.folder / "depth-2/round-2/held_out_own.jsonl")
    replies = {
        "": full_depth(model, questions().held_out),
        "_own": [Document(torch.tensor([*p, *r]), len(p)) for p, r in own],
    }
    for suffix, documents in replies.items():
        probed = probe(model, documents, heads=result.heads, statistics=["kl", "top1"])
        probed = probed[probed.modality == Modality.SPEECH]
        assert row[f"kl{suffix}"] == pytest.approx(probed.kl[0].mean(), rel=1e-4)
        assert row[f"agreement{suffix}"] == pytest.approx(probed.agreement[0].mean(), abs=1e-6)


def naive_gradient(
    model: HookedModel, heads: FittedHead, documents: list[Document], depth: int
) -> list[Tensor]:
    """Mean cross-entropy over the speech positions, a reply at a time, by autograd alone."""
    losses = []
    for document in documents:
        stock = model.model(document.tokens[None], output_hidden_states=True)
        labels = document.labels(LAYOUT, 6)
        at = torch.from_numpy(labels[0][labels[3] == Modality.SPEECH])
        hidden = stock.hidden_states[depth].detach()
        hidden = model.branch_states(hidden, depth, heads)[0, at]
        target = stock.logits[0, at].detach().softmax(-1)
        losses.append(-(target * heads.logits(hidden, depth).log_softmax(-1)).sum(-1))
    return torch.autograd.grad(torch.cat(losses).mean(), [*heads.parameters()])


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("kind", ["branch", "tuned"])
def test_a_step_has_the_gradient_of_the_naive_loss(hooked, kind, tmp_path):
    """In chunks of positions and in groups of replies, with padding."""
    documents = full_depth(hooked, prompts(7, 3))
    heads = moved(hooked, kind, layers=2).requires_grad_()
    store = StateStore(tmp_path, 2, "speech", kind == "branch", torch.float32)
    store.write(hooked, documents, 7)
    config = dataclasses.replace(CONFIG, kind=kind, chunk=5, padded_positions=40)
    fit = StageFit(hooked, heads, config, Schedule(1, 1e-3, 0), tmp_path / "c", {})
    batch = store.read(store.files[0], hooked.device, torch.float32)
    assert len(batch.split(40)) > 2
    fit.optimizer.step = lambda: None
    fit.optimizer.zero_grad = lambda: None
    expected = naive_gradient(hooked, heads, documents, 2)
    norm = torch.cat([g.flatten() for g in expected]).norm()
    with frozen(hooked.model):
        fit._step(batch)
    clip = min(1.0, stage_module.MAX_NORM / float(norm))
    for parameter, gradient in zip(heads.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * clip, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("branch", torch.float32),
        ("tuned", torch.bfloat16),
        pytest.param("tuned", torch.float32, marks=pytest.mark.slow),
        pytest.param("branch", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_products_in_bfloat16(kind, dtype, tmp_path):
    """By option, and for a model in bfloat16; the weights of the head stay in float32."""
    model = HookedModel(tiny("llama", dtype=dtype), layout=LAYOUT)
    config = dataclasses.replace(CONFIG, kind=kind, rounds=1)
    if dtype == torch.float32:
        config = dataclasses.replace(config, precision="bfloat16")
    result = fit_rounds(model, questions(), config, tmp_path / "low", generation=GENERATION)
    assert {p.dtype for p in result.heads.parameters()} == {dtype}
    plain = dataclasses.replace(config, precision="float32")
    exact = fit_rounds(model_of(), questions(), plain, tmp_path / "exact", generation=GENERATION)
    kl, expected = (r.notes["rounds"][1]["kl"] for r in (result, exact))
    assert kl == pytest.approx(expected, rel=0.3)


def test_rounds_lower_the_loss_and_leave_the_model_unchanged(tmp_path):
    model = model_of()
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    config = dataclasses.replace(CONFIG, epochs=12, round_epochs=12)
    result = fit_rounds(model, questions(), config, tmp_path, generation=GENERATION)
    assert all(torch.equal(before[name], p) for name, p in model.model.named_parameters())
    assert all(p.requires_grad and p.grad is None for p in model.model.parameters())
    store = StateStore(tmp_path / "depth-2/full", 2, "speech", True)
    plain = KINDS.get("branch").untrained(model.lens, (2,), num_layers=1)
    assert (
        evaluate(model, result.heads, store, CONFIG)["kl"]
        < 0.8 * evaluate(model, plain, store, CONFIG)["kl"]
    )


class Stop(Exception):
    pass


def stopping(label: str, after: int) -> Reports:
    """Reports that stop at an item of the progress with a label."""

    def progress(name: str):
        def wrapped(items: Iterable[object]) -> Iterator[object]:
            for i, item in enumerate(items):
                if name.endswith(label) and i == after:
                    raise Stop
                yield item

        return wrapped

    return Reports(progress=progress)


@pytest.mark.parametrize(
    ("label", "after"),
    [
        pytest.param("replies full", 2, marks=pytest.mark.slow),
        ("states full", 1),
        ("steps of round 0", 3),
        ("replies own", 1),
        pytest.param("states round-1/own", 1, marks=pytest.mark.slow),
        ("steps of round 2", 2),
        pytest.param("replies held_out_own", 1, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_fit_continues_to_the_same_weights(label, after, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(stage_module, "CHECKPOINT_STEPS", 1)
    arguments = (questions(), CONFIG, tmp_path)
    small = dataclasses.replace(GENERATION, batch=4)  # so that a fit can stop between two batches
    with pytest.raises(Stop):
        fit_rounds(model_of(), *arguments, generation=small, reports=stopping(label, after))
    again = fit_rounds(model_of(), *arguments, generation=small)
    weights, expected = (fit.heads.state_dict() for fit in (again, whole.result))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_rounds_can_be_added_and_other_options_are_refused(whole, tmp_path):
    fewer = dataclasses.replace(CONFIG, rounds=1)
    fit_rounds(model_of(), questions(), fewer, tmp_path, generation=GENERATION)
    first = (tmp_path / "depth-2/round-1/heads.safetensors").stat().st_mtime_ns
    more = fit_rounds(model_of(), questions(), CONFIG, tmp_path, generation=GENERATION)
    assert (tmp_path / "depth-2/round-1/heads.safetensors").stat().st_mtime_ns == first
    weights, expected = (fit.heads.state_dict() for fit in (more, whole.result))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    for other in (
        dataclasses.replace(CONFIG, mix=0.2),
        dataclasses.replace(CONFIG, policy="static@3"),
    ):
        with pytest.raises(EepolicyError, match="belongs to a fit with another fitting"):
            fit_rounds(model_of(), questions(), other, tmp_path, generation=GENERATION)
    with pytest.raises(EepolicyError, match="belongs to a fit with another dtype"):
        fit_rounds(
            model_of(dtype=torch.bfloat16), questions(), CONFIG, tmp_path, generation=GENERATION
        )
    with pytest.raises(EepolicyError, match="belongs to a fit with another model"):
        fit_rounds(model_of("qwen2"), questions(), CONFIG, tmp_path, generation=GENERATION)
    fewer_questions = Questions(questions().train[:8], questions().held_out)
    with pytest.raises(EepolicyError, match="belongs to a fit with another questions"):
        fit_rounds(model_of(), fewer_questions, CONFIG, tmp_path, generation=GENERATION)


def test_a_fit_that_starts_from_heads_goes_to_the_rounds(tmp_path):
    model = model_of()
    start = moved(model, "branch")
    figures = []
    result = fit_rounds(
        model,
        questions(),
        dataclasses.replace(CONFIG, rounds=1, mix=0.25),
        tmp_path,
        start=start,
        generation=GENERATION,
        reports=Reports(measure=lambda _, replies: {"count": figures.append(1) or len(replies)}),
    )
    assert [row["epochs"] for row in result.notes["rounds"]] == [0, 2]
    assert [row["count"] for row in result.notes["rounds"]] == [6, 6]
    stored = load_heads(tmp_path / "depth-2/round-0/heads.safetensors", model.lens, model.model)
    for name, weight in stored.state_dict().items():
        torch.testing.assert_close(weight, start.state_dict()[name].half().float())
    # 8 own replies, and a quarter of the replies at full depth
    assert len(lines_of(tmp_path / "full-1.jsonl")) == 3
    assert not (tmp_path / "full.jsonl").exists()


@pytest.mark.parametrize(
    "kind", ["tuned", pytest.param("linear", marks=pytest.mark.exhaustive), "low-rank"]
)
def test_heads_without_layers_are_fitted_in_rounds(kind, tmp_path):
    config = dataclasses.replace(CONFIG, kind=kind, rank=4, depths=(2, 4), rounds=1, loss="top:5")
    result = fit_rounds(model_of(), questions(), config, tmp_path, generation=GENERATION)
    assert result.heads.depths == (2, 4)
    assert result.notes["policy"] == ["speech=static@2", "speech=static@4"]
    assert [(r["depth"], r["round"]) for r in result.notes["rounds"]] == [
        (2, 0), (2, 1), (4, 0), (4, 1)
    ]  # fmt: skip
    # only the states of the chosen positions are stored
    store = StateStore(tmp_path / "depth-4/full", 4, "speech", False)
    batch = store.read(store.files[0], torch.device("cpu"), torch.float32)
    assert len(batch.states) == len(batch.last) < len(batch.chosen)


def test_a_branch_of_a_multimodal_model(tmp_path):
    """Its sizes are those of its decoder's config."""
    model = eepolicy.wrap(small_multimodal("Qwen2Audio", torch.float32))
    config = dataclasses.replace(CONFIG, depths=(1,), on="text", epochs=1, rounds=0)
    few = Questions(prompts(4, 1), prompts(2, 2))
    lines = []
    reports = Reports(lines.append)
    result = fit_rounds(model, few, config, tmp_path, generation=GENERATION, reports=reports)
    assert result.heads.depths == (1,)
    assert "estimate" in lines[0]


@pytest.mark.parametrize("held_out", [True, False])
def test_replies_without_a_position_to_fit_on_are_refused(held_out, tmp_path, monkeypatch):
    """Before the replies to fit on are generated, if the held-out ones have none."""
    model = HookedModel(tiny("llama"))  # without a layout, all tokens are text
    if not held_out:
        monkeypatch.setattr(DepthRounds, "_estimate", lambda *_: "estimate")
    with pytest.raises(EepolicyError, match="replies to fit on" if not held_out else "held-out"):
        fit_rounds(model, questions(), CONFIG, tmp_path, generation=GENERATION)
    assert (tmp_path / "full.jsonl").exists() != held_out
    assert not (tmp_path / "depth-2/round-0/heads.safetensors").exists()


@pytest.mark.parametrize(("kind", "named"), [("tuned", "tuned;"), ("branch", "branch with 1 lay")])
def test_heads_of_another_kind_to_start_from_are_refused(kind, named, tmp_path):
    model = model_of()
    other = "branch" if kind == "tuned" else "tuned"
    config = dataclasses.replace(CONFIG, kind=other, num_layers=1)
    with pytest.raises(EepolicyError, match=f"to start from is {named}"):
        fit_rounds(
            model, questions(), config, tmp_path, start=moved(model, kind), generation=GENERATION
        )


def test_replies_with_other_heads_are_not_mixed(tmp_path):
    model = model_of()
    some = prompts(3, 4)
    file = tmp_path / "own.jsonl"
    replies_with(model, some, Exits("static@2", digest="a"), GENERATION, file)
    for other in (Exits("static@3", digest="a"), Exits("static@2", digest="b"), Exits()):
        with pytest.raises(EepolicyError, match="give another file"):
            replies_with(model, some, other, GENERATION, file)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"depths": None}, "takes depths"),
        ({"depths": (6,)}, "rising depths from 1 to 5"),
        ({"rounds": -1}, "rounds: expected 0 or more"),
        ({"num_layers": 0}, "num_layers: expected 1 or more"),
        ({"mix": 1.0}, "mix: expected less than 1"),
        ({"part": 0}, "part: expected greater than 0"),
        ({"round_learning_rate": None}, "round_learning_rate: expected a valid number"),
        ({"precision": "float16"}, "precision is float32 or bfloat16"),
        ({"policy": 6}, "policy: expected a valid string"),
    ],
)
def test_wrong_options_are_refused(wrong, match, tmp_path):
    def fitting() -> None:
        config = dataclasses.replace(CONFIG, **wrong)
        fit_rounds(model_of(), questions(), config, tmp_path, generation=GENERATION)

    with pytest.raises(EepolicyError, match=match):
        fitting()


def test_the_learning_rate_rises_and_falls():
    schedule = Schedule(1, 1e-3, 0)
    rates = [schedule.rate_at(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-3 / 50 * 1)
    assert max(rates) == rates[49]
    assert rates[49] == pytest.approx(1e-3 * (1 - 49 / 1000))
    assert rates[-1] == pytest.approx(1e-3 * 0.02)


@pytest.mark.parametrize("kind", ["branch", "tuned"])
@pytest.mark.parametrize("from_heads", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_estimate_of_the_size_is_that_of_the_files(kind, from_heads, tmp_path):
    """The first line, before anything but the held-out replies is written."""
    lines: list[str] = []
    seen: list[int] = []

    def line(text: str) -> None:
        lines.append(text)
        seen.append(len(list(tmp_path.glob("full*.jsonl"))))

    model = model_of()
    start = moved(model, kind) if from_heads else None
    config = dataclasses.replace(CONFIG, kind=kind, mix=0.5)
    some, reports = Questions(prompts(30, 1), prompts(16, 2)), Reports(line)
    fit_rounds(model, some, config, tmp_path, start=start, generation=GENERATION, reports=reports)
    [estimate] = [text for text in lines if "estimate" in text]
    assert lines[0] == estimate
    assert seen[0] == 0
    assert "replies less than a minute" in estimate
    held_out = StateStore(tmp_path / "depth-2/held-out", 2, "speech", kind == "branch")
    batches = [held_out.read(f, torch.device("cpu"), torch.float32) for f in held_out.files]
    documents = full_depth(model, some.held_out)
    chosen = sum(len(batch.last) for batch in batches)
    work = Work.of(config, 30, documents, chosen, width=32, has_base=not from_heads)
    files = [f for f in tmp_path.glob("depth-2/**/*.safetensors") if f.name[0] == "0"]
    stored = sum(
        2 * batch[name].numel() for f in files if f.parent.name != "held-out"
        for batch in [load_file(f)] for name in ("states", "last")
    )  # fmt: skip
    assert work.bytes == pytest.approx(stored, rel=0.2)
    assert f"{work.bytes / 1e9:.2f} GB" in estimate


def test_a_question_returns_after_all_others():
    some = questions()
    firsts = [len(some.of_round(n, 0.4)) for n in (1, 2, 3)]
    assert firsts == [6, 6, 6]
    joined = [id(p) for n in (1, 2, 3) for p in some.of_round(n, 0.4)]
    assert joined[:16] == [id(p) for p in some.train]
    assert joined[16:] == joined[:2]


def test_the_layers_of_a_branch_are_copies(tmp_path):
    """A guard of the tests above: a branch shares no weight with the model."""
    model = model_of()
    own = {id(p) for p in moved(model, "branch").at(2).layers.parameters()}
    assert not own & {id(p) for p in layers_of(model.model).parameters()}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(
    ("width", "intermediate", "vocabulary"), [(16, 16, 4000), (64, 192, 200), (32, 256, 100)]
)
def test_a_branch_is_fitted_within_the_computed_memory(
    layers, width, intermediate, vocabulary, tmp_path
):
    """Where logits are large, where activations are, and where the feed-forward block is wide."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=4,
        num_attention_heads=2,
    )
    model = HookedModel(LlamaForCausalLM(shape))
    documents = [Document(torch.randint(vocabulary, (64,)), 4) for _ in range(8)]
    config = FitConfig(
        "branch", num_layers=layers, depths=(2,), chunk=64, batch_replies=8, padded_positions=256
    )
    store = StateStore(tmp_path, 2, "both", True)
    store.write(model, documents, 8)
    parameters = sum(p.numel() for p in layers_of(model.model)[0].parameters())
    with Peak() as measured:
        heads = KINDS.get("branch").untrained(model.lens, (2,), num_layers=layers)
        fit = StageFit(model, heads, config, Schedule(2, 1e-3, 0), tmp_path / "c", {})
        fit.run([(store, store.files[0])])
    bound = fitting_memory(
        config,
        width=width,
        vocabulary=vocabulary,
        full_depth=4,
        longest=64,
        layer_weights=parameters,
    )
    assert measured.peak < sum(bound.values())
    assert measured.peak > 0.3 * sum(bound.values())
