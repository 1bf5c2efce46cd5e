"""Sound, costs, prompts and refusals of models with several codebooks."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from small_processor import small_processor
from torch.utils.flop_counter import FlopCounterMode

from eepolicy import EepolicyError
from eepolicy.codebooks import (
    CodebookConfig,
    CodebookTrace,
    CodeConfidence,
    CodeEntropy,
    FirstCodebooks,
    FixedCode,
    HookedCodebookModel,
    MimiVocoder,
    parse_codebooks,
    parse_missing,
)
from eepolicy.decode.config import EarlyExitConfig
from eepolicy.testing.codebooks import random_csm
from eepolicy.testing.models import random_llama

PROMPT = torch.tensor([7, 3, 21, 9])


@pytest.fixture(scope="module")
def stock():
    return random_csm()


@pytest.fixture(scope="module")
def model(stock):
    return HookedCodebookModel(stock)


@pytest.fixture(scope="module")
def out(model):
    return model.generate(PROMPT, "static@2", "spark:odd@1", "confidence<0.3@2", max_new_tokens=6)


# sound


def codes(frames=6):
    return torch.randint(32, (frames, 5), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_whole_frames_sound_as_the_stock_codec(stock):
    expected = stock.codec_model.decode(codes().T[None]).audio_values[0, 0].float()
    assert torch.equal(MimiVocoder(stock.codec_model).decode(codes()), expected)


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 3])
def test_equal_counts_sound_as_the_stock_codec_with_fewer_codebooks(stock, count):
    some = codes()
    some[:, count:] = -1
    expected = stock.codec_model.decode(codes().T[None, :count]).audio_values[0, 0].float()
    wave = MimiVocoder(stock.codec_model).decode(some)
    torch.testing.assert_close(wave, expected)
    assert not torch.allclose(wave, MimiVocoder(stock.codec_model).decode(codes()))


@torch.no_grad()
def test_each_frame_is_the_sum_of_its_codes(stock):
    """Vectors of the codebooks, summed one by one; a special code ends the sum."""
    some, counts = codes(), [5, 2, 0, 1, 3, 5]
    for frame, count in enumerate(counts):
        some[frame, count:] = -1
    some[5, 4] = 33  # no code of the codec
    counts[5] = 4
    quantizer = stock.codec_model.quantizer
    semantic = quantizer.semantic_residual_vector_quantizer
    acoustic = quantizer.acoustic_residual_vector_quantizer
    latents = torch.zeros(1, 16, 6, dtype=torch.float64)
    for frame, count in enumerate(counts):
        if count:
            first = semantic.layers[0].codebook.embed[some[frame, 0]]
            latents[0, :, frame] += semantic.output_proj.weight[..., 0] @ first
        for i in range(1, count):
            vector = acoustic.layers[i - 1].codebook.embed[some[frame, i]]
            latents[0, :, frame] += acoustic.output_proj.weight[..., 0] @ vector
    expected = stock.codec_model.decoder(latents).audio_values[0, 0].float()
    torch.testing.assert_close(MimiVocoder(stock.codec_model).decode(some), expected)


def test_a_reply_has_sound(out):
    assert out.sampling_rate == 8000
    assert len(out.audio) == 16 * len(out.frames)
    assert out.audio.abs().max() > 0


def test_a_reply_without_frames_has_no_player(out):
    """As a reply of one stream without units."""
    assert "<audio" in out._repr_html_()
    assert "<audio" not in replace(out, codes=out.codes[:1], ended=True)._repr_html_()


def test_a_display_counts_frames_not_tokens(out):
    shown = out._repr_html_()
    assert shown.count("<title>frame ") == len(out.trace)
    assert 'aria-label="depth of each frame"' in shown
    assert "token" not in re.sub('base64,[^"]*', "", shown)


def test_no_frame_is_no_sound(stock):
    assert not len(MimiVocoder(stock.codec_model).decode(codes(0)))


# costs and traces


@torch.no_grad()
def test_flops_are_those_that_torch_counts(stock, model):
    """Of one position in stock forward passes, without the products of attention."""
    costs = model.costs()
    frame = codes(1)[None]
    with FlopCounterMode(display=False) as counter:
        stock(input_ids=frame)
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    assert products == 4 * costs.backbone_layer + costs.backbone_readout
    inner = stock.depth_decoder.model
    with FlopCounterMode(display=False) as counter:
        inner(inputs_embeds=torch.zeros(1, 1, 32, dtype=torch.float64))
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    assert products == 3 * costs.depth_layer + 2 * 32 * 24  # and the projection of the input
    assert costs.relative.backbone_layer == 1
    assert costs.relative.depth_layer == costs.depth_layer / costs.backbone_layer


def test_frame_costs_add_both_models(model, out):
    trace, costs = out.trace, model.costs()
    expected = []
    for frame in range(len(trace)):
        mine = trace.depth_decoder[trace.depth_decoder.chunk == frame]
        expected.append(
            int(trace.backbone.layer_positions[frame]) * costs.backbone_layer
            + int(trace.backbone.readouts[frame]) * costs.backbone_readout
            + int(mine.layer_positions.sum()) * costs.depth_layer
            + int(mine.readouts.sum()) * costs.depth_readout
        )
    assert trace.frame_costs(costs).tolist() == expected
    full = model.generate(PROMPT, max_new_tokens=6).trace.frame_costs(costs)
    assert full.sum() > sum(expected)


def test_measured_costs_are_seconds(model):
    costs = model.costs(measured=True)
    assert costs.unit == "seconds"
    assert min(costs.backbone_layer, costs.depth_layer, costs.depth_readout) > 0


def test_a_trace_survives_json_and_can_be_cut(out):
    plain = json.loads(json.dumps(out.trace.to_dict()))
    assert CodebookTrace.from_dict(plain).to_dict() == out.trace.to_dict()
    cut = out.trace[2:4]
    assert cut.num_codebooks.tolist() == out.trace.num_codebooks[2:4].tolist()
    assert cut.depth_layer_calls().tolist() == out.trace.depth_layer_calls()[2:4].tolist()


# prompts


def test_sound_in_a_prompt_gives_the_stock_codes(stock, model):
    """Two frames of sound, then its end; 62 and 63 are their ids."""
    ids = torch.tensor([[7, 62, 62, 63, 9, 4]])
    wave = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = {"input_ids": ids, "input_values": wave, "input_values_cutoffs": torch.tensor([[32]])}
    expected = stock.generate(**inputs, max_new_tokens=3)
    assert model.generate(inputs, max_new_tokens=3).codes.tolist() == expected[0].tolist()
    silent = model.generate(ids[0], max_new_tokens=3)
    assert silent.codes.tolist() != expected[0].tolist()


def test_text_goes_through_the_processor(stock):
    """Texts of two lengths, with the marks around them that the authors' tokenizer adds."""
    processor = small_processor()
    texts = ["[0] hello", "[0] hello you hello"]
    model = HookedCodebookModel(stock, processor)
    outputs = model.generate(texts, max_new_tokens=2)
    assert outputs[0].prompt.tolist() == [7, 2, 3, 4, 0, 8]
    inputs = processor(text=texts, add_special_tokens=True, padding=True, return_tensors="pt")
    expected = stock.generate(**inputs, max_new_tokens=2)
    assert [out.codes.tolist() for out in outputs] == expected.tolist()
    one = model.generate(texts[0], max_new_tokens=2)
    assert one.codes.tolist() == expected[0].tolist()


# refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(codebooks="first:6"), "computes 6 codebooks, but the model has 1 to 5"),
        (dict(codebooks="some:6"), "is no codebook policy"),
        (dict(codebooks=2, missing="code:34"), "codes 0 to 33"),
        (dict(policy="static@5"), "depths 1 to 4"),
        (dict(depth_policy="static@4"), "depths 1 to 3"),
        (dict(depth_policy="draft:5"), "verifies nothing"),
        (dict(policy="predictor>0.5@2"), "exit predictor"),
        (dict(repetition_penalty=1.2), "RepetitionPenaltyLogitsProcessor"),
        (dict(num_beams=2), "greedy or sampling"),
        (dict(streamer=object()), "streamer is not supported"),
        (dict(seed="x"), "seed"),
        (dict(nonsense=3), "the stock generate refuses this"),
    ],
)
def test_options_that_do_not_fit_are_refused(model, options, message):
    with pytest.raises(EepolicyError, match=message):
        model.generate(PROMPT, max_new_tokens=1, **options)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("[0]Hi", "needs the model's processor"),
        (None, "a prompt of CSM is text ids"),
        ([], "a prompt is ids"),
        (3, "a prompt is ids"),
        (torch.tensor([True, False]), "a prompt of CSM is text ids"),
        ([torch.zeros(2, 2)], "a prompt is ids"),
        (torch.tensor([64]), "text ids of CSM are 0 to 63"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(model, prompt, message):
    with pytest.raises(EepolicyError, match=message):
        model.generate(prompt, max_new_tokens=1)


@pytest.mark.parametrize(
    "part",
    [
        dict(accept="exact"),
        dict(rebatch="auto"),
        dict(rebatch="always"),
        dict(seed=3),
    ],
)
def test_options_of_one_stream_are_refused(part):
    with pytest.raises(EepolicyError, match=r"several code(book)?s"):
        CodebookConfig(depth_decoder=EarlyExitConfig(**part))


def test_a_config_of_another_type_is_refused():
    with pytest.raises(EepolicyError, match="depth_decoder"):
        CodebookConfig(depth_decoder="static@2")


def test_an_unknown_option_of_replace_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth_polcy'"):
        CodebookConfig().replace(depth_polcy="static@2")


def test_other_models_are_refused():
    with pytest.raises(EepolicyError, match=r"use eepolicy\.wrap"):
        HookedCodebookModel(random_llama().model)


def test_spec_strings_round_trip():
    for spec in ("all", "first:8", "entropy>4.0@4", "entropy<0.5", "confidence<0.05@8"):
        assert parse_codebooks(spec).spec == spec
    for spec in ("leave-out", "previous", "code:7"):
        assert parse_missing(spec).spec == spec


@pytest.mark.parametrize(
    "make",
    [
        lambda: FirstCodebooks(0),
        lambda: CodeEntropy(float("nan")),
        lambda: CodeEntropy(2.0, 0),
        lambda: CodeConfidence(0.5, comparison="="),
        lambda: FixedCode(-1),
    ],
)
def test_numbers_that_do_not_fit_are_refused(make):
    with pytest.raises(EepolicyError, match="expected"):
        make()


# probing


@torch.no_grad()
def test_a_probe_reads_the_first_codebook_at_every_layer(stock, model, out):
    result = model.probe(out, statistics=["top1", "entropy"], hidden_states=[4])
    hidden = stock.backbone_model(
        inputs_embeds=out.inputs[None], output_hidden_states=True
    ).hidden_states
    for depth in range(1, 5):
        states = hidden[depth][0, len(PROMPT) - 1 :]
        normed = states if depth == 4 else stock.backbone_model.norm(states)
        logits = stock.lm_head(normed)
        logs = logits.log_softmax(-1)
        assert result.top1[depth - 1].tolist() == logits.argmax(-1).tolist()
        entropy = -(logs.exp() * logs).sum(-1).float()
        torch.testing.assert_close(torch.tensor(result.entropy[depth - 1]), entropy)
    assert result.next.tolist() == out.codes[:, 0].tolist()
    assert result.depth_used.tolist() == [2] * len(out.codes)


def test_a_probe_of_full_depth_gives_the_codes_of_the_reply(model, tmp_path):
    outputs = model.generate([PROMPT, PROMPT[1:]], max_new_tokens=4)
    result = model.probe(outputs, depths=[2], statistics=["top1"], save=tmp_path / "probe")
    first = [code for out in outputs for code in out.codes[:, 0].tolist()]
    assert result.top1[-1].tolist() == first
    assert result.document.tolist() == [0] * 4 + [1] * 4
    with pytest.raises(EepolicyError, match="options of probe are depths"):
        model.probe(outputs, colour="red")
