"""Training of the pocket model: batches, the fast forward pass, checkpoints."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pocket import sequences as s
from pocket import train
from pocket.network import TrainingForward, check_parity
from pocket.train import BATCH_TOKENS, BUCKET, Example, Trainer, batches, losses, padded, rate

TINY = LlamaConfig(
    vocab_size=s.VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    tie_word_embeddings=True,
)


def made(count: int) -> list[Example]:
    """Examples of many lengths; the first id of an answer is its number."""
    rng = random.Random(0)
    return [
        Example([s.QUESTION, 7, s.ANSWER], [[100 + i, *[s.UNIT_OFFSET + i] * rng.randint(1, 150)]])
        for i in range(count)
    ]


def test_padded_by_hand():
    ids, targets = padded([([5, 6, 7], [-100, 7, -100]), ([8], [9])], 3, 4)
    pad = s.PAD
    assert ids.tolist() == [[5, 6, 7, pad], [8, pad, pad, pad], [pad] * 4]
    assert targets.tolist() == [[-100, 7, -100, -100], [9, -100, -100, -100], [-100] * 4]


def test_batches_contain_each_answer_once_and_only_answers_are_targets():
    data = made(200)
    seen = []
    for ids, targets in batches(data, None):
        assert ids.shape == targets.shape
        assert ids.shape[1] % BUCKET == 0
        assert ids.numel() <= BATCH_TOKENS
        for row, target in zip(ids.tolist(), targets.tolist(), strict=True):
            answer = [t for t in target if t != -100]
            if answer:
                seen.append(answer)
                # each target is the next id; the question has no targets
                assert row[3 : 3 + len(answer)] == answer
                assert target[2 : 2 + len(answer)] == answer
    assert sorted(seen) == sorted(e.answers[0] for e in data)


def test_noise_changes_only_input_units():
    data = made(50)
    changed = total = 0
    for ids, targets in batches(data, random.Random(1)):
        for row, target in zip(ids.tolist(), targets.tolist(), strict=True):
            for token, true in zip(row[1:], target, strict=False):
                if true >= s.UNIT_OFFSET:
                    changed, total = changed + (token != true), total + 1
                elif true != -100:
                    assert token == true
    assert 0.03 < changed / total < 0.07  # NOISE is 0.05


def test_the_fast_forward_equals_the_stock_one():
    torch.manual_seed(0)
    model = LlamaForCausalLM(TINY)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.3)
    ids = torch.randint(s.VOCABULARY, (3, 17))
    assert check_parity(model, ids) < 1e-5  # measured 5e-7


def test_gradients_equal_those_of_the_stock_model():
    torch.manual_seed(0)
    model = LlamaForCausalLM(TINY)
    ids, targets = batches(made(6), None)[0]
    fast = TrainingForward(model, torch.float32, compiled=False)
    losses(fast, ids, targets)[0].mean().backward()
    fast.push_gradients()
    gradients = {n: p.grad.clone() for n, p in fast.masters.items()}
    model.zero_grad()
    logits = model(ids).logits
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=-100
    ).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    rates = [rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / train.WARM_UP)
    assert set(rates[train.WARM_UP : 350]) == {1.0}
    assert all(a > b for a, b in pairwise(rates[351:]))
    assert rates[-1] < 0.002


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "config", lambda: TINY)
    monkeypatch.setattr(
        train,
        "TrainingForward",
        lambda model, dtype, compiled: TrainingForward(model, dtype, False),
    )

    def start(steps=4, data="some data", init=None):
        return Trainer(tmp_path, steps, seed=0, data=data, init=init)

    return start


def test_a_resumed_training_equals_an_uninterrupted_one(trainer):
    parts = batches(made(60), None)[:4]
    whole, first = trainer(), trainer()
    expected = [whole.update(*part) for part in parts]
    actual = [first.update(*part) for part in parts[:2]]
    first.save()
    second = trainer()
    second.resume()
    assert second.step == 2
    actual += [second.update(*part) for part in parts[2:]]
    assert actual == expected
    assert actual[-1] < actual[0]


def test_a_checkpoint_of_another_training_is_refused(trainer):
    trainer().save()
    for other in (trainer(steps=5), trainer(data="other data")):
        with pytest.raises(RuntimeError, match="belongs to another training"):
            other.resume()


def test_a_training_that_starts_from_a_model_has_its_weights(trainer, tmp_path):
    first = trainer()
    for part in batches(made(60), None)[:2]:
        first.update(*part)
    first.model.save_pretrained(tmp_path / "first")
    second = trainer(init=tmp_path / "first")
    for name, weight in second.model.named_parameters():
        assert torch.equal(weight, dict(first.model.named_parameters())[name])
    second.save()
    with pytest.raises(RuntimeError, match="belongs to another training"):
        trainer().resume()


def test_a_text_token_has_twice_the_weight_of_a_unit(trainer):
    ids, targets = batches(made(6), None)[0]
    one = trainer()
    loss, _, target = losses(one.forward, ids, targets)
    weight = 1.0 + (target < s.UNIT_OFFSET).float()  # TEXT_WEIGHT is 2
    expected = (loss * weight).sum() / weight.sum()
    assert one.update(ids, targets) == pytest.approx(expected.item(), rel=1e-6)


def test_the_exported_model_is_a_stock_model(trainer, tmp_path):
    tokenizer = s.PreTrainedTokenizerFast(
        tokenizer_object=s.Tokenizer(s.models.BPE()), eos_token="<end>"
    )
    kept = trainer()
    kept.export(tokenizer)
    kept.export(tokenizer)  # replaces the first one
    again = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    weight = kept.model.model.layers[1].mlp.up_proj.weight
    torch.testing.assert_close(
        again.model.layers[1].mlp.up_proj.weight.float(), weight, rtol=1e-2, atol=1e-3
    )
    assert json.loads((tmp_path / "model" / "config.json").read_text())["vocab_size"] == 5120
