"""Exits by a fitted predictor, against a plain loop; its files, messages and fit."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import eepolicy
from eepolicy import EepolicyError, HookedModel, Predictor, parse_policy
from eepolicy.fitting import PredictorConfig, fit_predictor
from eepolicy.heads import ExitPredictor, TunedLens, load_predictor, save_predictor
from eepolicy.loading.huggingface import with_heads
from eepolicy.probing import Document
from eepolicy.testing.models import PROMPTS, random_llama

DEPTH, WIDTH = 5, 32


@pytest.fixture
def model() -> HookedModel:
    return random_llama(DEPTH)


def random_predictor(hidden: int, depths=(2, 3)) -> ExitPredictor:
    predictor = ExitPredictor(depths, WIDTH, hidden)
    generator = torch.Generator().manual_seed(1)
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return predictor


def by_hand(predictor: ExitPredictor, hidden: np.ndarray, depth: int) -> np.ndarray:
    """The probability of states (rows, width), in plain numpy."""
    state = hidden.astype(np.float64)
    state = state - state.mean(-1, keepdims=True)
    state = state / np.sqrt((state**2).mean(-1, keepdims=True) + 1e-5)
    weights = [w.detach().double().numpy() for w in predictor.networks[str(depth)].parameters()]
    while weights:
        matrix, bias, *weights = weights
        state = state @ matrix.T + bias
        if weights:
            state = state / (1 + np.exp(-state))
    return 1 / (1 + np.exp(-state[:, 0]))


@pytest.mark.parametrize("hidden", [0, 6])
def test_the_probability_against_plain_numpy(hidden):
    predictor = random_predictor(hidden)
    states = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(0)) * 30 + 2
    ours = predictor.probability(states, 3)
    assert np.allclose(ours.numpy(), by_hand(predictor, states.numpy(), 3), atol=1e-5)
    assert predictor.probability(states[None], 3).shape == (1, 9)
    half = ExitPredictor([2], WIDTH, hidden).probability(states, 2)
    assert half.tolist() == [0.5] * 9  # before fitting


def test_a_whole_decode_against_a_plain_loop(model):
    """The stock model's states decide; no head is evaluated where nothing exits."""
    model.predictor = predictor = random_predictor(6)
    batch = model.generate(PROMPTS, "both=predictor>0.5@[2,3]", 24)
    stock, used = model.model, set()
    for prompt, output in zip(PROMPTS, batch, strict=True):
        ids = prompt
        for token, depth in zip(output.tokens.tolist(), output.trace.depth.tolist(), strict=True):
            with torch.no_grad():
                states = stock.model(ids[None], output_hidden_states=True).hidden_states
            chances = {d: by_hand(predictor, states[d][:, -1].numpy(), d)[0] for d in (2, 3)}
            exit_depth = next((d for d, chance in chances.items() if chance > 0.5), DEPTH)
            assert depth == exit_depth
            hidden = states[depth][0, -1]  # the last one is normalised already
            hidden = hidden if depth == DEPTH else stock.model.norm(hidden)
            assert token == int(stock.lm_head(hidden).argmax())
            ids = torch.cat([ids, torch.tensor([token])])
            used.add(depth)
        assert output.trace.readouts.tolist() == [1] * len(output.tokens)
    assert used == {2, 3, DEPTH}
    # a policy that uses the head reads out at each candidate depth
    by_head = model.generate(PROMPTS, "both=confidence>0.5@[2,3]", 24)
    assert any((out.trace.readouts > 1).any() for out in by_head)


def test_the_policy_acts_on_its_modality_only(model):
    model.predictor = random_predictor(6)
    for output in model.generate(PROMPTS, "predictor>0.0@[2,3]", 24):
        speech = output.trace.modality == eepolicy.Modality.SPEECH
        assert (output.trace.depth[speech] == 2).all()
        assert (output.trace.depth[~speech] == DEPTH).all()


def test_missing_or_mismatched_predictors_are_refused(model):
    with pytest.raises(EepolicyError, match=r"at depth 2, and this model has none: fit one with"):
        model.generate(PROMPTS, "predictor>0.5@[2,4]", 4)
    model.predictor = random_predictor(6)
    for policy in ("predictor>0.5@[2,4]", "predictor>0.5@2", "text=predictor>0.5@[4],speech=full"):
        with pytest.raises(EepolicyError, match=r"at depth 4; the depths with one are 2, 3"):
            model.generate(PROMPTS, policy, 4)
    model.predictor.heads = "LogitLens"
    model.generate(PROMPTS, "predictor>0.5@[2,3]", 4)
    model.heads = TunedLens.untrained(model.lens, [2, 3], width=WIDTH).double()
    with pytest.raises(EepolicyError, match=r"for the heads LogitLens, and this model has TunedL"):
        model.generate(PROMPTS, "predictor>0.5@[2,3]", 4)


def test_files(model, tmp_path):
    file = tmp_path / "predictor.safetensors"
    predictor = random_predictor(6)
    predictor.heads = repr(model.heads)
    save_predictor(predictor, file, model.model, {"replies": 3})
    again = load_predictor(file, model.model)
    states = torch.randn(4, WIDTH)
    for depth in (2, 3):
        assert torch.equal(again.probability(states, depth), predictor.probability(states, depth))
    assert repr(again) == repr(predictor)
    assert again.heads == predictor.heads
    assert not any(p.requires_grad for p in again.parameters())
    assert repr(with_heads(model, tmp_path).predictor) == repr(predictor)  # a model folder
    with pytest.raises(EepolicyError, match=r"was fitted on a llama of 5 layers.*fit one for it"):
        load_predictor(file, random_llama(DEPTH, seed=1).model)
    save_predictor(ExitPredictor([2], WIDTH + 1), file, model.model, {})
    with pytest.raises(EepolicyError, match=f"reads states of width {WIDTH + 1}; those of the"):
        load_predictor(file, model.model)
    other = tmp_path / "other.safetensors"
    for content in (b"", b"nothing"):
        other.write_bytes(content)
        with pytest.raises(EepolicyError, match="is not a file of an exit predictor"):
            load_predictor(other, model.model)


def test_spec_strings():
    assert parse_policy("predictor>0.9@[4,6,8]") == Predictor(0.9, (4, 6, 8))
    assert Predictor(0.9, 4).predicted_depths(7) == (4, 5, 6)
    assert Predictor(0.9, (4, 7)).predicted_depths(7) == (4,)  # full depth is read out anyway
    both = parse_policy("text=predictor>0.5@[2],speech=predictor>0.5@[3,4]")
    assert both.predicted_depths(7) == (2, 3, 4)


@pytest.fixture(scope="module")
def fitted():
    """A model, documents of it, and a fit on them."""
    model = random_llama(DEPTH)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(60, (40,), generator=generator) for _ in range(40)]
    documents = [Document(ids, 4) for ids in prompts]
    config = PredictorConfig((1, 4), hidden=16, on="both", epochs=8, batch=32)
    return model, documents, config, fit_predictor(model, documents[:30], documents[30:], config)


def test_the_measures_of_a_fit_against_plain_loops(fitted):
    model, documents, config, result = fitted
    for i, depth in enumerate(config.depths):
        agrees, chances = [], []
        for document in documents[30:]:
            with torch.no_grad():
                output = model.model(document.tokens[None], output_hidden_states=True)
                hidden = output.hidden_states[depth][0]
                ours = model.model.lm_head(model.model.model.norm(hidden)).argmax(-1)
            span = slice(*document.span)
            agrees += (ours == output.logits[0].argmax(-1))[span].tolist()
            chances += by_hand(result.predictor, hidden.numpy(), depth)[span].tolist()
        y, p = np.array(agrees), np.array(chances)
        share = y.mean()
        assert result.notes["agreement"][i] == pytest.approx(share)
        cross_entropy = -np.where(y, np.log(p), np.log(1 - p)).mean()
        assert result.notes["loss"][i] == pytest.approx(cross_entropy, abs=1e-4)
        constant = -(share * np.log(share) + (1 - share) * np.log(1 - share))
        assert result.notes["loss_of_share"][i] == pytest.approx(constant)
        above = p[y][:, None] > p[~y][None]
        ties = p[y][:, None] == p[~y][None]
        assert result.notes["auc"][i] == pytest.approx((above + ties / 2).mean(), abs=1e-3)
    assert result.predictor.heads == repr(model.heads)
    assert (result.notes["replies"], result.notes["held_out_replies"]) == (30, 10)


def test_a_fit_beats_a_constant_and_is_reproducible(fitted):
    """Better than a constant on the documents it has seen, and the same again with one seed."""
    model, documents, config, result = fitted
    again = fit_predictor(model, documents[:30], documents[30:], config)
    assert again.notes == result.notes
    longer = replace(config, epochs=30, learning_rate=5e-3)
    seen = fit_predictor(model, documents[:30], documents[:30], longer)
    for loss, constant, auc in zip(
        seen.notes["loss"], seen.notes["loss_of_share"], seen.notes["auc"], strict=True
    ):
        assert loss < 0.8 * constant
        assert auc > 0.8


def test_wrong_fit_options_are_refused(model):
    documents = [Document(prompt, 1) for prompt in PROMPTS]
    for options, sentence in (
        ({"depths": ()}, "depths: expected one or more rising depths"),
        ({"depths": (3, 2)}, "depths: expected one or more rising depths"),
        ({"depths": (2,), "epochs": 0}, "epochs: expected 1 or more; got 0"),
        ({"depths": (2,), "learning_rate": 0.0}, "learning_rate: expected greater than 0; got 0.0"),
        ({"depths": (2,), "on": "sound"}, "fitted on text, speech or both; got 'sound'"),
        ({"depths": (2, DEPTH)}, "at depths from 1 to 4"),
    ):
        with pytest.raises(EepolicyError, match=sentence):
            fit_predictor(model, documents, documents, PredictorConfig(**options))
    with pytest.raises(EepolicyError, match="got none of one"):
        fit_predictor(model, documents, [], PredictorConfig((2,)))


@pytest.mark.slow
def test_the_pocket_model_end_to_end(tmp_path, run):
    """The command writes a file; the policy then exits more often at a lower threshold."""
    file = tmp_path / "predictor.safetensors"
    questions = tmp_path / "questions.txt"
    texts = [q["question"] for q in eepolicy.held_out("dev")[:10]]
    questions.write_text("\n".join(texts))
    run(
        *("fit-predictor", "pocket", "--depths", "8,12,16", "--out", str(file)),
        *("--prompts", str(questions), "--epochs", "3", "--max-new-tokens", "80"),
    )
    arguments = ("generate", texts[0], "--policy", "predictor>0.5@[8,12,16]", "--json")
    _, err = run(*arguments, code=2)
    assert "this model has none: fit one with" in err
    out, _ = run(*arguments, "--predictor", str(file))
    assert json.loads(out)["text"]
    model = eepolicy.load("pocket")
    model.predictor = load_predictor(file, model.model)
    strict, loose = (
        model.generate(texts[:4], f"predictor>{threshold}@[8,12,16]") for threshold in (0.9, 0.5)
    )
    depths = [np.concatenate([o.trace.depth for o in each]).mean() for each in (strict, loose)]
    assert depths[1] < depths[0] <= model.depth
