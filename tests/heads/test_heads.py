"""Exit heads: against the stock model, fitting, files and fingerprints."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import LAYERS, LAYOUT, plain_lens, tiny
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from eepolicy import Document, EepolicyError, HookedModel, probe
from eepolicy.fitting.losses import grad_of, loss_of, soft_cross_entropy
from eepolicy.fitting.replies import generate_replies
from eepolicy.fitting.trainer import FitConfig, fit, fitting_memory
from eepolicy.heads import LinearHead, LowRankHead, TunedLens, load_heads, read_notes
from eepolicy.heads.fingerprint import fingerprint

BELOW = tuple(range(1, LAYERS))


def replies(hooked: HookedModel, count: int, seed: int) -> list[Document]:
    found = []
    for i in range(count):
        prompt = torch.randint(60, (5,), generator=torch.Generator().manual_seed(seed + i))
        tokens = hooked.generate(prompt, max_new_tokens=30).tokens
        found.append(Document(torch.cat([prompt, tokens]), 5))
    return found


def perturbed(head):
    """The head with random parameters in place of those it starts from."""
    generator = torch.Generator().manual_seed(3)
    for each in head.parameters.values():
        for parameter in each:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return head


def test_lens_is_norm_and_head_of_stock_hidden_states(stock, hooked):
    """Layer by layer; the stock model's last hidden state is already normed."""
    ids = torch.randint(60, (1, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = stock(ids, output_hidden_states=True)
        states = list(hooked.hidden_states(ids))
        for depth in range(1, LAYERS):
            expected = plain_lens(stock, out.hidden_states[depth])
            torch.testing.assert_close(
                hooked.lens.logits(states[depth - 1], depth), expected, rtol=0, atol=1e-4
            )
        last = hooked.logits(states[-1], LAYERS)
    # measured 4e-6 on logits of spread 2
    torch.testing.assert_close(last, out.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [TunedLens, LinearHead, LowRankHead])
def test_heads_start_as_the_lens_and_are_their_formula(hooked, stock, kind):
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    head = kind.untrained(hooked.lens, BELOW, width=32, rank=4, seed=0)
    with torch.no_grad():
        lens = plain_lens(stock, hidden)
        torch.testing.assert_close(head.logits(hidden, 2), lens, rtol=0, atol=1e-5)
        own = perturbed(head).at(2)
        norm = stock.transformer.ln_f if hasattr(stock, "transformer") else stock.model.norm
        if kind is TunedLens:
            moved = hidden + hidden @ own["weight"].T + own["bias"]
            expected = plain_lens(stock, moved)
        else:
            weight = own.get("weight")
            if weight is None:
                weight = stock.lm_head.weight + own["up"] @ own["down"]
            expected = norm(hidden) @ weight.T
            cap = getattr(stock.config, "final_logit_softcapping", None)
            expected = torch.tanh(expected / cap) * cap if cap and kind is LinearHead else expected
            if cap and kind is LowRankHead:
                expected = torch.tanh(expected / cap) * cap
        found = head.logits(hidden, 2)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)  # measured 4e-6
        speech = head.restricted_to(LAYOUT.speech).logits(hidden, 2)
        torch.testing.assert_close(speech, found[:, 20:60], rtol=0, atol=1e-5)
        lens_over = hooked.lens.restricted_to(LAYOUT.speech).logits(hidden, 2)
        torch.testing.assert_close(lens_over, lens[:, 20:60], rtol=0, atol=1e-5)


def test_losses_are_torchs():
    logits, target = torch.randn(2, 7, 11, generator=torch.Generator().manual_seed(0)).unbind()
    target = target.softmax(-1)
    expected = nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(loss_of("soft", logits, target), expected)
    torch.testing.assert_close(loss_of("top:11", logits, target), expected)
    reverse = nn.functional.kl_div(
        target.log(), logits.log_softmax(-1), reduction="none", log_target=True
    )
    torch.testing.assert_close(loss_of("reverse_kl", logits, target), reverse.sum(-1))
    one = nn.functional.cross_entropy(logits, target.argmax(-1), reduction="none")
    torch.testing.assert_close(loss_of("top:1", logits, target), one)
    for wrong in ("kl", "top:0", "top:12", "top:x"):
        with pytest.raises(EepolicyError, match="a loss is"):
            loss_of(wrong, logits, target)


def test_the_gradient_of_the_papers_loss_is_that_of_the_kl():
    logits, target = torch.randn(2, 7, 11, generator=torch.Generator().manual_seed(0)).unbind()
    target, logits = target.softmax(-1), logits.requires_grad_()
    [ours] = torch.autograd.grad(soft_cross_entropy(logits, target).sum(), logits)
    kl = nn.functional.kl_div(logits.log_softmax(-1), target, reduction="sum")
    [theirs] = torch.autograd.grad(kl, logits)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["soft", "reverse_kl", "top:3"])
def test_a_slope_is_what_autograd_makes_of_the_loss(name):
    logits, target = torch.randn(2, 7, 11, generator=torch.Generator().manual_seed(0)).unbind()
    target, leaf = target.softmax(-1), logits.clone().requires_grad_()
    loss_of(name, leaf, target).sum().backward()
    torch.testing.assert_close(grad_of(name, logits, target), leaf.grad)


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "tuned"), ("gpt2", "tuned"), ("gemma2", "linear"), ("llama", "low-rank")],
)
def test_fitting_helps_every_depth_and_leaves_the_model_alone(hooked, kind, tmp_path):
    train, held_out = replies(hooked, 24, 100), replies(hooked, 6, 900)
    before = {n: p.clone() for n, p in hooked.model.named_parameters()}
    how = FitConfig(kind, rank=8, epochs=6, learning_rate=1e-2, chunk=64)
    found = fit(hooked, train, held_out, how)
    assert all(torch.equal(before[n], p) for n, p in hooked.model.named_parameters())
    assert all(p.requires_grad for p in hooked.model.parameters())
    after, plain = found.notes["after"]["kl"], found.notes["before"]["kl"]
    assert all(a <= b for a, b in zip(after, plain, strict=True))
    assert sum(after) < 0.9 * sum(plain)
    # what the notes say is what the heads do
    result = probe(hooked, held_out, heads=found.heads, statistics=["kl"])
    assert result.kl[:-1].mean(1).tolist() == pytest.approx(after, rel=0.02)  # half precision
    # a seed gives one file
    again = fit(hooked, train, held_out, how)
    files = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for heads, file in zip((found.heads, again.heads), files, strict=True):
        heads.save(file, hooked.model, found.notes)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("family", ["llama"])
def test_fitting_on_one_modality_and_some_depths(hooked):
    train, held_out = replies(hooked, 12, 100), replies(hooked, 4, 900)
    how = FitConfig(depths=(2, 4), on="speech", epochs=2, loss="top:20")
    found = fit(hooked, train, held_out, how)
    assert found.heads.depths == (2, 4)
    with pytest.raises(EepolicyError, match="no head was fitted at depth 3"):
        found.heads.logits(torch.zeros(1, 32), 3)
    hooked.heads = found.heads
    hooked.generate(train[0].tokens[:5], "static@4", max_new_tokens=8)
    with pytest.raises(EepolicyError, match="no head was fitted at depth 3"):
        hooked.generate(train[0].tokens[:5], "static@3", max_new_tokens=8)


@pytest.mark.parametrize("family", ["qwen2"])
def test_a_stopped_fit_goes_on_to_the_same_heads(hooked, tmp_path):
    train, held_out = replies(hooked, 12, 100), replies(hooked, 4, 900)
    how = FitConfig(epochs=3, batch_tokens=64)
    whole = fit(hooked, train, held_out, how)

    class Stop(Exception):
        pass

    def stopping(line: str) -> None:
        if line.startswith("epoch 2"):
            raise Stop

    file = tmp_path / "fit.checkpoint"
    with pytest.raises(Stop):
        fit(hooked, train, held_out, how, checkpoint=file, report=stopping)
    assert file.exists()
    with pytest.raises(EepolicyError, match="is of another fit"):
        fit(hooked, train, held_out, dataclasses.replace(how, seed=1), checkpoint=file)
    lines: list[str] = []
    on = fit(hooked, train, held_out, how, checkpoint=file, report=lines.append)
    assert lines[0] == "going on behind epoch 1"
    others = replies(hooked, 12, 300)
    with pytest.raises(EepolicyError, match="is of another fit"):
        fit(hooked, others, held_out, how, checkpoint=file)
    for name, each in whole.heads.parameters.items():
        for a, b in zip(each, on.heads.parameters[name], strict=True):
            assert torch.equal(a, b)
    assert whole.notes == on.notes
    file.write_text("none")
    with pytest.raises(EepolicyError, match="is no checkpoint"):
        fit(hooked, train, held_out, how, checkpoint=file)


@pytest.mark.parametrize("family", ["llama"])
@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"kind": "mlp"}, "heads are .*tuned"),
        ({"on": "song"}, "text, speech or both"),
        ({"loss": "l2"}, "a loss is"),
        ({"depths": (3, 2)}, "rising depths from 1 to 5"),
        ({"depths": (6,)}, "rising depths from 1 to 5"),
        ({"depths": ()}, "rising depths from 1 to 5"),
        ({"patience": 0}, "are 1 or more"),
    ],
)
def test_what_cannot_be_fitted_is_said(hooked, wrong, match):
    documents = replies(hooked, 2, 0)
    with pytest.raises(EepolicyError, match=match):
        fit(hooked, documents[:1], documents[1:], FitConfig(**wrong))
    with pytest.raises(EepolicyError, match="takes replies"):
        fit(hooked, [], documents)


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were alive together, of those made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        import weakref

        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.alive:
                    self.alive[key] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


@pytest.mark.parametrize("kind", ["tuned", "linear", "low-rank"])
def test_fitting_stays_within_the_memory_that_is_promised(kind):
    """On a model whose vocabulary outweighs all else, as in those that speak."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4000,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
    )
    hooked = HookedModel(LlamaForCausalLM(config))
    documents = [Document(torch.randint(4000, (64,)), 4) for _ in range(12)]
    how = FitConfig(kind, epochs=1, batch_tokens=256, chunk=64)
    with Peak() as measured:
        fit(hooked, documents[:8], documents[8:], how)
    promised = fitting_memory(how, width=16, vocabulary=4000, full_depth=4, longest=64)
    # the judging probe's own logits are bounded apart
    assert measured.peak < sum(promised.values()) + 4 * 2**24


def test_head_files_round_trip_and_fit_one_model_only(hooked, stock, family, tmp_path):
    head = perturbed(LowRankHead.untrained(hooked.lens, (1, 4), rank=3))
    path = tmp_path / "heads.safetensors"
    head.save(path, stock, {"data": "none"})
    again = load_heads(path, hooked.lens, stock)
    assert repr(again) == repr(head) == "LowRankHead(depths 1, 4)"
    for name, each in head.parameters.items():
        for a, b in zip(each, again.parameters[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert read_notes(path)["notes"] == {"data": "none"}
    other = tiny(family, seed=9)
    with pytest.raises(EepolicyError, match=r"were fitted on a .* weights .*, this model is a"):
        load_heads(path, HookedModel(other).lens, other)
    path.write_text("none")
    with pytest.raises(EepolicyError, match="is no file of heads"):
        read_notes(path)


def test_a_fingerprint_does_not_depend_on_precision(stock):
    half = stock.to(torch.bfloat16)
    rounded = fingerprint(half)
    assert fingerprint(half.to(torch.float32)) == rounded


def test_own_replies_are_the_models(stock, tmp_path):
    """Batched and padded, stopped and gone on with, they are what one row gives."""

    class Words:
        def __call__(self, text, add_special_tokens):
            return type("Encoding", (), {"input_ids": [5 + ord(c) % 15 for c in text]})

        def decode(self, ids):
            return ""

    hooked = HookedModel(stock, layout=LAYOUT, tokenizer=Words())
    questions = ["cat", "a horse", "it"]
    found = generate_replies(hooked, questions, max_new_tokens=25, batch=3)
    for question in questions:
        prompt = hooked.encode(question)
        [reply] = [r for r in found if torch.equal(r.tokens[: r.prompt], prompt)]
        expected = hooked.generate(prompt, max_new_tokens=25).tokens
        assert reply.reply.tolist() == expected.tolist()
    file = tmp_path / "replies.jsonl"
    generate_replies(hooked, questions, max_new_tokens=25, batch=1, save=file)
    file.write_bytes(file.read_bytes()[:-5])  # cut off in its last line
    again = generate_replies(hooked, questions, max_new_tokens=25, batch=1, save=file)
    assert [r.tokens.tolist() for r in again] == [r.tokens.tolist() for r in found]
    with pytest.raises(EepolicyError, match="another model, or to other questions"):
        generate_replies(hooked, questions, max_new_tokens=24, save=file)
    with pytest.raises(EepolicyError, match="to other questions"):
        generate_replies(hooked, ["dog", "a house", "is"], max_new_tokens=25, save=file)


def test_heads_go_where_their_model_goes():
    hooked = HookedModel(tiny("llama"))
    hooked.heads = LinearHead.untrained(hooked.lens, (2, 3), width=32, rank=4, seed=0)
    assert hooked.to("meta") is hooked
    held = [part for each in hooked.heads.parameters.values() for part in each]
    assert {part.device.type for part in held} == {"meta"}
    assert hooked.logits(torch.zeros(1, 32, device="meta"), 2).device.type == "meta"
    over = hooked.heads.restricted_to((0, 20)).to(
        torch.zeros(1, device="meta", dtype=torch.float16)
    )
    assert over.ids == (0, 20)
    assert over.head.parameters["weight"][0].dtype == torch.float16
