"""Exit heads: the lens against stock hidden states, fitting, files and fingerprints."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYERS, LAYOUT, plain_lens, tiny
from torch import nn

from eepolicy import EepolicyError, HookedModel
from eepolicy.heads import TunedLens
from eepolicy.heads.fingerprint import fingerprint
from eepolicy.heads.fit import Reply, evaluate, fit_tuned, own_replies, soft_cross_entropy
from eepolicy.probe import probe


def replies(hooked: HookedModel, count: int, seed: int) -> list[Reply]:
    found = []
    for i in range(count):
        prompt = torch.randint(60, (5,), generator=torch.Generator().manual_seed(seed + i))
        found.append(Reply(prompt, hooked.generate(prompt, max_new_tokens=30).tokens))
    return found


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


def test_probe_against_the_stock_model(stock, hooked):
    reply = replies(hooked, 1, 3)[0]
    result = probe(hooked, reply.prompt, reply.tokens)
    ids = torch.cat([reply.prompt, reply.tokens])[None]
    with torch.no_grad():
        logs = stock(ids).logits[0, len(reply.prompt) - 1 : -1].double().log_softmax(-1)
    assert result.top1.shape == (LAYERS, len(reply.tokens))
    # greedy: the last layer's likeliest token is the reply itself
    assert result.top1[-1].tolist() == reply.tokens.tolist()
    torch.testing.assert_close(
        torch.from_numpy(result.entropy[-1]).double(),
        -(logs.exp() * logs).sum(-1),
        rtol=0,
        atol=1e-4,
    )
    torch.testing.assert_close(
        torch.from_numpy(result.confidence[-1]).double(), logs.amax(-1).exp(), rtol=0, atol=1e-5
    )
    assert result.agreement()[-1].all()


def test_soft_cross_entropy_is_torchs():
    logits, target = torch.randn(2, 7, 11, generator=torch.Generator().manual_seed(0)).unbind()
    target = target.softmax(-1)
    expected = nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(soft_cross_entropy(logits, target), expected)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_fitting_helps_every_depth_and_leaves_the_model_alone(hooked):
    train, held_out = replies(hooked, 24, 100), replies(hooked, 6, 900)
    before = {n: p.clone() for n, p in hooked.model.named_parameters()}
    heads, figures = fit_tuned(hooked, train, held_out, epochs=6, learning_rate=3e-3)
    again, _ = fit_tuned(hooked, train, held_out, epochs=6, learning_rate=3e-3)
    assert all(torch.equal(before[n], p) for n, p in hooked.model.named_parameters())
    assert all(p.requires_grad for p in hooked.model.parameters())
    assert torch.equal(heads.weight, again.weight)  # a seed gives the same heads
    after, plain = figures["after"]["kl"], figures["before"]["kl"]
    assert all(a <= b for a, b in zip(after, plain, strict=True))
    assert sum(after) < 0.9 * sum(plain)
    assert evaluate(hooked, heads, held_out)["kl"] == pytest.approx(after)


def test_identity_is_the_plain_lens(hooked):
    heads = TunedLens.identity(hooked.lens, LAYERS - 1, 32)
    hidden = torch.randn(3, 32)
    assert torch.equal(heads.logits(hidden, 2), hooked.lens.logits(hidden, 2))


def test_head_files_round_trip_and_fit_one_model_only(hooked, stock, family, tmp_path):
    generator = torch.Generator().manual_seed(0)
    weight = 0.1 * torch.randn(LAYERS - 1, 32, 32, generator=generator)
    heads = TunedLens(hooked.lens, weight, torch.zeros(LAYERS - 1, 32))
    path = tmp_path / "heads.safetensors"
    heads.save(path, stock)
    again = TunedLens.load(path, hooked.lens, stock)
    torch.testing.assert_close(again.weight, heads.weight, rtol=1e-3, atol=1e-4)
    other = tiny(family, seed=9)
    with pytest.raises(EepolicyError, match=r"were fitted on a .* weights .*, this model is a"):
        TunedLens.load(path, HookedModel(other).lens, other)


def test_a_fingerprint_does_not_depend_on_precision(stock):
    half = stock.to(torch.bfloat16)
    rounded = fingerprint(half)
    assert fingerprint(half.to(torch.float32)) == rounded


def test_own_replies_are_the_models(stock):
    """Batched and padded, by the stock generate, they are what one row gives."""

    class Words:
        def __call__(self, text, add_special_tokens):
            return type("Encoding", (), {"input_ids": [5 + ord(c) % 15 for c in text]})

        def decode(self, ids):
            return ""

    hooked = HookedModel(stock, layout=LAYOUT, tokenizer=Words())
    questions = ["cat", "a horse", "it"]
    found = own_replies(hooked, questions, max_new_tokens=25, batch=3)
    for question in questions:
        prompt = hooked.encode(question)
        [reply] = [r for r in found if torch.equal(r.prompt, prompt)]
        expected = hooked.generate(prompt, max_new_tokens=25).tokens
        assert reply.tokens.tolist() == expected.tolist()
