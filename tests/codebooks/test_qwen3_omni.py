"""The talker of Qwen3-Omni: full depth equals the stock model, and exits equal a plain loop."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from eepolicy import EepolicyError
from eepolicy.codebooks import Code2WavVocoder, HookedCodebookModel, talker_inputs
from eepolicy.testing.codebooks import TALKER_CODEBOOKS, random_qwen3_omni

pytestmark = pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with")
FRAMES = 6
#: a question, its answer's start, and options of the whole model
QUESTION = dict(
    input_ids=torch.tensor([[60, 41, 3, 7, 9, 61, 60, 40, 2]]),
    thinker_max_new_tokens=4,
    talker_do_sample=False,
    talker_max_new_tokens=FRAMES + 1,
)


@pytest.fixture(scope="module")
def whole():
    return random_qwen3_omni()


@pytest.fixture(scope="module")
def talker(whole):
    return HookedCodebookModel(whole.talker)


@pytest.fixture(scope="module")
def prompts():
    """Two prompts of different lengths, and three frames of text."""
    generator = torch.Generator().manual_seed(0)

    def states(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "inputs_embeds": states(2, 6, 32),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6]),
        "trailing_text_hidden": states(2, 3, 32),
        "tts_pad_embed": states(1, 1, 32).expand(2, -1, -1),
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(repetition_penalty=1.3),
        dict(do_sample=True, temperature=0.9, repetition_penalty=1.1),
    ],
)
def test_full_depth_equals_the_stock_generate(whole, talker, prompts, options):
    """The stock talker does not compute the codes of its last frame."""
    options = options | dict(max_new_tokens=FRAMES, eos_token_id=2000)
    torch.manual_seed(1)
    stock = whole.talker.generate(
        **prompts, output_hidden_states=True, return_dict_in_generate=True, **options
    )
    frames = torch.stack([each[-1] for each in stock.hidden_states if each[-1] is not None], 1)
    torch.manual_seed(1)
    outputs = talker.generate(prompts, **options)
    for out, codes, first in zip(outputs, frames, stock.sequences, strict=True):
        assert out.codes[:-1].tolist() == codes.tolist()
        assert out.codes[:, 0].tolist() == first.tolist()


@torch.no_grad()
def plain_reply(talker, prompt, frames, depth, depth_of_code, count):
    """Decode greedily with stock forward passes over all positions; missing codes are as before."""
    inner, predictor = talker.model, talker.code_predictor
    embeddings = [inner.codec_embedding, *predictor.model.codec_embedding]
    inputs, previous, reply = prompt["inputs_embeds"], [-1] * TALKER_CODEBOOKS, []
    for number in range(frames):
        hidden = inner(inputs_embeds=inputs, output_hidden_states=True).hidden_states
        full = depth == len(hidden) - 1
        state = hidden[depth][0, -1] if full else inner.norm(hidden[depth][0, -1])
        codes = [int(talker.codec_head(state).argmax())]
        for codebook in range(1, count):
            known = [embed(torch.tensor(code)) for embed, code in zip(embeddings, codes)]  # noqa: B905
            states = predictor.model(
                inputs_embeds=torch.stack([state, *known])[None], output_hidden_states=True
            ).hidden_states
            at = depth_of_code(codebook)
            last = states[at][0, -1]
            last = last if at == len(states) - 1 else predictor.model.norm(last)
            codes.append(int(predictor.lm_head[codebook - 1](last).argmax()))
        codes += previous[count:]
        previous = codes
        reply.append(codes)
        present = [(e, c) for e, c in zip(embeddings, codes, strict=True) if c >= 0]
        total = sum(embed(torch.tensor(code)) for embed, code in present)
        text = prompt["trailing_text_hidden"]
        text = text[:, number] if number < text.shape[1] else prompt["tts_pad_embed"][:, 0]
        inputs = torch.cat([inputs, (total + text)[:, None]], 1)
    return reply


@pytest.mark.parametrize(
    ("policies", "depth", "depth_of_code", "count"),
    [
        (("static@2", "static@1"), 2, lambda codebook: 1, 4),
        (("full", "spark:even@2"), 4, lambda codebook: 3 if codebook % 2 else 2, 3),
    ],
)
def test_exits_equal_a_plain_loop(whole, talker, prompts, policies, depth, depth_of_code, count):
    prompt = {name: value[1:] for name, value in prompts.items()}
    expected = plain_reply(whole.talker, prompt, FRAMES, depth, depth_of_code, count)
    options = dict(missing="previous", max_new_tokens=FRAMES, eos_token_id=2000)
    out = talker.generate(prompt, *policies, count, **options)
    assert out.codes.tolist() == expected
    batch = talker.generate(prompts, *policies, count, **options)
    assert batch[1].codes.tolist() == expected


def test_the_end_code_ends_a_reply_before_its_frame(whole, talker, prompts):
    free = talker.generate(prompts, max_new_tokens=FRAMES, eos_token_id=2000)[0].codes[:, 0]
    end = int(free[2])
    stock = whole.talker.generate(
        **prompts,
        max_new_tokens=FRAMES,
        eos_token_id=end,
        output_hidden_states=True,
        return_dict_in_generate=True,
    ).sequences
    out = talker.generate(prompts, max_new_tokens=FRAMES, eos_token_id=end)[0]
    assert out.ended
    assert out.codes[-1].tolist() == [end, -1, -1, -1]
    assert out.codes[:, 0].tolist() == stock[0, : len(out.codes)].tolist()
    assert out.trace.num_codebooks[-1] == 1


def test_the_whole_model_gives_the_same_sound(whole, talker):
    _, expected = whole.generate(**QUESTION)
    prompt = talker_inputs(whole, **QUESTION)
    talker.vocoder = Code2WavVocoder(whole.code2wav)
    out = talker.generate(prompt)
    assert not out.ended
    # the stock model does not compute the last frame
    wave = talker.vocoder.decode(out.codes[:-1])
    torch.testing.assert_close(wave, expected[0, 0])
    assert len(out.audio) > len(wave)
    some = talker.generate(prompt, codebooks=2)
    with pytest.raises(EepolicyError, match="needs all codes of a frame"):
        _ = some.audio
    shown = some._repr_html_()
    assert "the sound cannot be shown: this vocoder needs all codes of a frame" in shown
    assert f"depth {talker.backbone.depth} of {talker.backbone.depth}" in shown
    assert len(talker.generate(prompt, codebooks=2, missing="code:3").audio) == len(out.audio)


def test_prompts_and_options_that_do_not_fit_are_refused(whole, talker, prompts):
    with pytest.raises(EepolicyError, match=r"what talker_inputs\(model"):
        talker.generate({"inputs_embeds": prompts["inputs_embeds"]})
    for options, message in (
        (dict(num_beams=2), "beam search is not supported"),
        (dict(depth_decoder_num_beams=2), "beam search is not supported"),
        (dict(max_time=9.0), "MaxTimeCriteria is not supported with several codebooks"),
        (dict(generation_config=GenerationConfig(guidance_scale=2.0)), "guidance_scale is not"),
    ):
        with pytest.raises(EepolicyError, match=message):
            talker.generate(prompts, **options)
    with pytest.raises(EepolicyError, match="has no talker"):
        talker_inputs(whole.thinker, **QUESTION)
