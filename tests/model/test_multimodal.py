"""The decoder inside a multimodal model, against the stock model."""

from __future__ import annotations

import pytest
import torch

import eepolicy
from eepolicy import EepolicyError
from eepolicy.model.multimodal import prompt_embeddings
from eepolicy.testing.families import check_generate
from eepolicy.testing.multimodal import AUDIO, BEGIN, IMAGE, MULTIMODAL, small_multimodal

#: those that the fast tests cover: sound with plain positions, positions in three dimensions
REPRESENTATIVE = ("Qwen2Audio", "Qwen2VL")


def check_text(name):
    stock = small_multimodal(name, torch.float64)
    if stock.config.get_text_config()._attn_implementation == "eager":
        stock.float()
    check_generate(name, eepolicy.wrap(stock))


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_prompts_in_text(name):
    check_text(name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sorted(set(MULTIMODAL) - set(REPRESENTATIVE)))
def test_prompts_in_text_of_every_model(name):
    check_text(name)


def prompt(token, count, before=(), **inputs):
    """Two rows of text around audio or images, the second one padded."""
    media = [*before, *[token] * count]
    rows = [[1, 7, *media, 12, 2], [0, 0, 9, *media, 8]]
    ids = torch.tensor(rows)
    return dict(input_ids=ids, attention_mask=(ids != 0).long(), **inputs)


def sound(frames=40):
    return torch.randn(2, 8, frames, generator=torch.Generator().manual_seed(1))


def pixels(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


FRAMES = torch.ones(2, 40, dtype=torch.long)
PROMPTS = {
    "Qwen2Audio": lambda: prompt(AUDIO, 10, input_features=sound(), feature_attention_mask=FRAMES),
    "Qwen2_5OmniThinker": lambda: prompt(
        AUDIO, 10, input_features=sound(), feature_attention_mask=FRAMES
    ),
    "Voxtral": lambda: prompt(AUDIO, 5, input_features=sound()),
    "Llava": lambda: prompt(IMAGE, 4, pixel_values=pixels(2, 3, 28, 28)),
}


def check_media(name):
    stock, inputs = small_multimodal(name), PROMPTS[name]()
    model = eepolicy.wrap(stock)
    options = dict(do_sample=False, max_new_tokens=8, pad_token_id=0)
    expected = stock.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()
    with eepolicy.early_exit("text=static@1", stock, accept="exact"):
        inside = stock.generate(**inputs, **options)
    method = eepolicy.custom_generate("full")
    for rows in (inside, stock.generate(**inputs, **options, custom_generate=method)):
        assert rows[:, inputs["input_ids"].shape[1] :].tolist() == expected
    for reply, row in zip(model.generate(inputs, **options), expected, strict=True):
        assert reply.tokens.tolist() == row[: len(reply.tokens)]
    embeddings = prompt_embeddings(stock, **inputs)
    # the embeddings are not those of the placeholders
    assert (embeddings != model.parts.embed(inputs["input_ids"])).any()
    for policy, accept in (("full", "all"), ("text=static@1", "exact")):
        replies = model.generate(
            inputs_embeds=embeddings,
            attention_mask=inputs["attention_mask"],
            policy=policy,
            accept=accept,
            max_new_tokens=8,
        )
        for reply, row in zip(replies, expected, strict=True):
            tokens = reply.tokens.tolist()
            assert tokens + [0] * (len(row) - len(tokens)) == row


def test_prompts_with_sound():
    check_media("Qwen2Audio")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sorted(set(PROMPTS) - {"Qwen2Audio"}))
def test_prompts_with_sound_or_images_of_every_model(name):
    check_media(name)


def test_images_with_multidimensional_positions_are_refused():
    stock = small_multimodal("Qwen2VL")
    inputs = prompt(
        IMAGE,
        4,
        before=[BEGIN],
        pixel_values=pixels(32, 3 * 2 * 14 * 14),
        image_grid_thw=torch.tensor([[1, 4, 4], [1, 4, 4]]),
    )
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    with pytest.raises(EepolicyError, match="positions in several dimensions"):
        prompt_embeddings(stock, **inputs)
    with pytest.raises(EepolicyError, match="positions in several dimensions"):
        eepolicy.wrap(stock).generate(**inputs, max_new_tokens=4)


def test_images_that_attend_to_later_positions_are_refused():
    inputs = prompt(IMAGE, 4, pixel_values=pixels(2, 3, 28, 28))
    inputs["token_type_ids"] = (inputs["input_ids"] == IMAGE).long()
    with pytest.raises(EepolicyError, match="attend to later positions"):
        prompt_embeddings(small_multimodal("Gemma3"), **inputs)
