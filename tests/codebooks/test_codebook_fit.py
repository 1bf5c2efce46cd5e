"""Exit heads of the backbone and of the depth decoder, against the stock models' states."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from eepolicy import EepolicyError
from eepolicy.codebooks import HookedCodebookModel
from eepolicy.fitting import FitConfig, fit_backbone, fit_depth_decoder
from eepolicy.heads import KINDS
from eepolicy.loading import load_codebooks
from eepolicy.testing.codebooks import random_csm, random_qwen3_omni

CONFIG = FitConfig(epochs=2, learning_rate=3e-3, batch_tokens=64)
FITS = (fit_backbone, fit_depth_decoder)


@pytest.fixture(scope="module")
def stock():
    return random_csm(dtype=torch.float32)


@pytest.fixture(scope="module")
def model(stock):
    return HookedCodebookModel(stock)


@pytest.fixture(scope="module")
def replies(model):
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 60, (4,), generator=generator) for _ in range(9)]
    return model.generate(prompts, max_new_tokens=6)


@pytest.fixture(scope="module")
def fits(model, replies):
    return [fit(model, replies[:6], replies[6:], CONFIG) for fit in FITS]


def kl(target, logits):
    target = target.double().log_softmax(-1)
    return float((target.exp() * (target - logits.double().log_softmax(-1))).sum(-1).mean())


@torch.no_grad()
def stock_states(stock, output):
    """Per depth of the depth decoder: states (frames, codebooks, width), by the stock model."""
    inputs = output.inputs[None]
    states = stock.backbone_model(inputs_embeds=inputs).last_hidden_state[0, -len(output.codes) :]
    codes = F.pad(output.codes[:, :-1], (1, 0))
    decoder = stock.depth_decoder
    return decoder(
        input_ids=codes, backbone_last_hidden_state=states, output_hidden_states=True
    ).hidden_states


def logits_of(stock, hidden, norm=True):
    """Logits of the codebooks after the first one: (frames, codebooks - 1, codes)."""
    normed = stock.depth_decoder.model.norm(hidden) if norm else hidden
    weight = stock.depth_decoder.codebooks_head.weight
    return torch.einsum("fcw,cwv->fcv", normed[:, 1:], weight)


@torch.no_grad()
def test_the_depth_decoder_is_measured_against_the_stock_model(stock, replies, fits):
    held_out = [stock_states(stock, output) for output in replies[6:]]
    result = fits[1]
    for i, depth in enumerate(result.heads.depths):
        # the last hidden state of transformers is normed
        last = torch.cat([logits_of(stock, states[-1], norm=False) for states in held_out])
        early = torch.cat([logits_of(stock, states[depth]) for states in held_out])
        assert result.notes["before"]["kl"][i] == pytest.approx(kl(last, early), rel=1e-4)
        agree = (last.argmax(-1) == early.argmax(-1)).double().mean()
        assert result.notes["before"]["agreement"][i] == pytest.approx(float(agree))
        maps = result.heads.at(depth)
        mapped = [logits_of(stock, maps.translate(states[depth])) for states in held_out]
        after = kl(last, torch.cat(mapped))
        # the metric is measured in float32, the weights of the result are in half precision
        assert result.notes["after"]["kl"][i] == pytest.approx(after, rel=1e-2)


@pytest.mark.parametrize("which", [0, 1])
def test_fitting_lowers_the_kl(fits, which):
    before, after = (fits[which].notes[name]["kl"] for name in ("before", "after"))
    assert sum(after) < 0.99 * sum(before)


def test_heads_are_saved_and_decode(stock, model, fits, tmp_path):
    """At depth 1, the map of depth 1 reads the second code from the stock state."""
    stock.save_pretrained(tmp_path / "csm")
    files = [tmp_path / "backbone.safetensors", tmp_path / "depth.safetensors"]
    for result, file, own in zip(fits, files, (stock, stock.depth_decoder), strict=True):
        result.heads.save(file, own, result.notes)
    loaded = load_codebooks(tmp_path / "csm", heads=files[0], depth_heads=files[1])
    prompt = torch.tensor([7, 3, 21, 9])
    out = loaded.generate(prompt, "full", "static@1", max_new_tokens=4)
    plain = model.generate(prompt, "full", "static@1", max_new_tokens=4)
    assert out.codes.tolist() != plain.codes.tolist()
    states = stock_states(stock, out)[1]
    with torch.no_grad():
        logits = logits_of(stock, loaded.depth_heads.at(1).translate(states))
    assert out.codes[:, 1].tolist() == logits[:, 0].argmax(-1).tolist()
    with pytest.raises(EepolicyError, match="were fitted on"):
        load_codebooks(tmp_path / "csm", heads=files[1])


def test_heads_of_the_talker(tmp_path):
    talker = HookedCodebookModel(random_qwen3_omni(dtype=torch.float32).talker)
    generator = torch.Generator().manual_seed(0)
    prompts = {
        "inputs_embeds": torch.randn(2, 5, 32, generator=generator),
        "attention_mask": torch.ones(2, 5, dtype=torch.long),
        "trailing_text_hidden": torch.randn(2, 2, 32, generator=generator),
        "tts_pad_embed": torch.zeros(2, 1, 32),
    }
    replies = talker.generate(prompts, max_new_tokens=4)
    for fit, own in zip(FITS, (talker.model, talker.depth_decoder.model), strict=True):
        result = fit(talker, replies[:1], replies[1:], FitConfig(epochs=1))
        result.heads.save(tmp_path / "heads.safetensors", own, result.notes)


def test_what_cannot_be_fitted_is_refused(model, replies):
    with pytest.raises(EepolicyError, match="kind 'tuned', whose maps serve all codebooks"):
        fit_depth_decoder(model, replies, replies, FitConfig("linear"))
    for fit in FITS:
        with pytest.raises(EepolicyError, match="fitted on outputs of HookedCodebookModel"):
            fit(model, replies, [])
    first = model.generate(torch.tensor([4, 5]), codebooks=1, max_new_tokens=2)
    with pytest.raises(EepolicyError, match="no frame of several codes"):
        fit_depth_decoder(model, [first], [first])


def test_heads_of_another_kind_are_refused(model):
    lens, width = model.backbone.lens, model.backbone.width
    linear = KINDS.get("linear").untrained(lens, (1,), width=width)
    message = r"(?s)tuned lenses, .* eepolicy\.fitting\.fit_depth_decoder"
    for heads in (linear, "tuned"):
        with pytest.raises(EepolicyError, match=message):
            HookedCodebookModel(model.model, depth_heads=heads).generate(
                torch.tensor([4]), max_new_tokens=1
            )
