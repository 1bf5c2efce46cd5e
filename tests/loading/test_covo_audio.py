"""Covo-Audio-Chat: a small random model in its authors' layout against a plain reference."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import write_shards
from loading.plain_speech import Plain, decoder_weights, drawer, gelu, plain_decoder, plain_mels
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

import eepolicy
from eepolicy import EepolicyError
from eepolicy.loading import card_named, save_converted
from eepolicy.loading.upstream import covo_audio
from eepolicy.loading.upstream.checkpoint import weight_files
from eepolicy.speech.covo_audio_encoder import SEGMENT

# Facts of the authors, github.com/Tencent/Covo-Audio at 710384c: configuration_covo_audio.py,
# get_dialog_prompt in modeling_covo_audio.py, example.py and token2wav/config.json.
AUTHORS = {
    "model_type": "covo_audio",
    "audio_token_index": 151671,
    "adapter_downsample": 8,
    "llm_config": {
        "vocab_size": 168055,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "use_sliding_window": False,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
    },
    "encoder_config": {
        "d_model": 1280,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "num_mel_bins": 128,
        "max_source_positions": 1500,
        "activation_function": "gelu",
        "scale_embedding": False,
    },
}
VOCODER = {
    "sample_rate": 24000,
    "token_vocab_size": 16384,
    "upsample_factor": 4,
    "upsample_rates": (5, 3, 2, 2, 2, 2),
}
SYSTEM = (
    '你是"小腾"，英文名是"Covo"，由腾讯开发的AI助手。\n'
    "1、请使用简洁、口语化的语言和用户聊天，你的态度积极、耐心，像一位值得信赖的朋友。\n"
    "2、不要使用列表或编号，避免输出网址、表情符号和复杂的公式。\n"
    "3、不评价竞争对手，不发表主观政治观点，针对色情类、政治类、恐怖类、歧视类、暴力类的用户问题，"
    "你要妥善应对潜在的安全风险，并给出幽默，情绪安抚以及安全的劝导。\n"
    "请用文本和音频进行对话，交替生成5个文本token和15个音频token，音频部分使用发音人：default_female"
)
PROMPT = (
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{{question}}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
#: ids in the authors' code and of Qwen2's tokenizer; those beside <|cAUDIO|> are assumed
SPECIAL = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|begofcAUDIO|>": 151665,
    "<|cAUDIO|>": 151666,
    "<|endofcAUDIO|>": 151667,
}
FIRST, WORDS = 151671, 168055
END, START, PATCH, STOP = 151645, 151665, 151666, 151667
WIDTH, STATE, LAYERS, BLOCKS = 32, 16, 4, 2
CONFIG = AUTHORS | {
    "llm_config": AUTHORS["llm_config"]
    | {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "encoder_config": AUTHORS["encoder_config"]
    | {
        "d_model": STATE,
        "encoder_layers": BLOCKS,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
    },
}


def weights() -> dict[str, Tensor]:
    draw = drawer()
    decoder = decoder_weights(draw, WORDS, WIDTH, LAYERS)
    made = {f"llm.{name}": value for name, value in decoder.items()}
    for name, rows, inputs in (("conv1", STATE, 128), ("conv2", STATE, STATE)):
        made[f"encoder.{name}.weight"] = draw(rows, inputs, 3)
        made[f"encoder.{name}.bias"] = draw(rows)
    made["encoder.embed_positions.weight"] = draw(1500, STATE)
    for i in range(BLOCKS):
        layer = f"encoder.layers.{i}."
        for name in ("q", "k", "v", "out"):
            made[f"{layer}self_attn.{name}_proj.weight"] = draw(STATE, STATE)
            if name != "k":
                made[f"{layer}self_attn.{name}_proj.bias"] = draw(STATE)
        for name, rows, inputs in (("fc1", 24, STATE), ("fc2", STATE, 24)):
            made[f"{layer}{name}.weight"] = draw(rows, inputs)
            made[f"{layer}{name}.bias"] = draw(rows)
    norms = [f"layers.{i}.{n}_layer_norm" for i in range(BLOCKS) for n in ("self_attn", "final")]
    for norm in (*norms, "layer_norm"):
        made[f"encoder.{norm}.weight"] = draw(STATE, about=1.0)
        made[f"encoder.{norm}.bias"] = draw(STATE)
    for i, width in enumerate((STATE, STATE, WIDTH)):
        layer = f"audio_adapter.downsample_layers.{i}."
        made |= {
            layer + "conv1d.weight": draw(STATE, STATE, 3),
            layer + "conv1d.bias": draw(STATE),
            layer + "linear1.weight": draw(2048, STATE),
            layer + "linear1.bias": draw(2048),
            layer + "linear2.weight": draw(width, 2048, scale=0.02),
            layer + "linear2.bias": draw(width),
        }
    return made


def plain_audio_encoder(w: dict[str, Tensor], mels: Tensor) -> Tensor:
    """What the decoder is given for a spectrum (128, 3000), written with loops."""
    plain = Plain(w)
    x = plain.conv(gelu(plain.conv(mels, "encoder.conv1", 1)), "encoder.conv2", 2)
    x = gelu(x).T + w["encoder.embed_positions.weight"]
    for i in range(BLOCKS):
        layer = f"encoder.layers.{i}"
        names = [f"{layer}.self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
        h = plain.norm(x, f"{layer}.self_attn_layer_norm")
        x = x + plain.attend(h, names, torch.zeros(len(x), dtype=torch.bool))
        h = gelu(plain.linear(plain.norm(x, f"{layer}.final_layer_norm"), f"{layer}.fc1"))
        x = x + plain.linear(h, f"{layer}.fc2")
    x = plain.norm(x, "encoder.layer_norm")
    for i in range(3):
        layer = f"audio_adapter.downsample_layers.{i}"
        x = plain.conv(x.T, f"{layer}.conv1d", 2).T.clamp(min=0)
        x = plain.linear(plain.linear(x, f"{layer}.linear1").clamp(min=0), f"{layer}.linear2")
    return x


def plain_ids(text: str) -> list[int]:
    """The ids of the tokenizer that `write` makes: special tokens, and bytes."""
    parts = re.split("(" + "|".join(map(re.escape, SPECIAL)) + ")", text)
    return [i for part in parts for i in ([SPECIAL[part]] if part in SPECIAL else part.encode())]


def number_of_patches(samples: int) -> int:
    """As the authors count them: frames of 10 ms, made even, and halved four times."""
    frames = samples // 160
    frames += frames % 2
    for _ in range(4):
        frames = (frames + 1) // 2
    return frames


def write(folder: Path, tensors: dict[str, Tensor], config: dict) -> None:
    """A checkpoint folder as the authors publish theirs, in two shards."""
    write_shards(folder, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    alphabet = {char: byte for byte, char in bytes_to_unicode().items()}
    tokenizer = Tokenizer(models.BPE(alphabet | SPECIAL, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def tensors():
    return weights()


@pytest.fixture(scope="module")
def original(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("covo")
    write(folder, tensors, CONFIG)
    return folder


@pytest.fixture(scope="module")
def model(original):
    return eepolicy.load(str(original))


def noise(samples: int) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))


def test_the_card_has_the_facts_of_the_authors():
    card = card_named("covo-audio-chat")
    assert card.model_type == AUTHORS["model_type"]
    assert card.unit == AUTHORS["audio_token_index"]
    assert card.unit + card.num_codes == AUTHORS["llm_config"]["vocab_size"]
    assert card.num_codes == VOCODER["token_vocab_size"]
    samples = VOCODER["upsample_factor"] * np.prod(VOCODER["upsample_rates"])
    assert card.rate == VOCODER["sample_rate"] / samples
    assert card.prompt_prefix + "{question}" + card.prompt_suffix == PROMPT
    chunks = re.search(r"交替生成(\d+)个文本token和(\d+)个音频token", SYSTEM)
    assert (card.text_chunk, card.speech_chunk) == (int(chunks[1]), int(chunks[2]))
    assert (card.end, card.other_ends) == ("<|im_end|>", ())
    assert card.sampling == {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 50} | {
        "repetition_penalty": 1.05,
        "windowed_repetition_penalty": {"penalty": 1.05, "window": 8},
    }


def test_sizes_of_the_real_model():
    """From the authors' config, against arithmetic: numbers of weights."""
    with torch.device("meta"):
        whole = covo_audio.native(AUTHORS).make()
    count = {
        name: sum(p.numel() for p in part.parameters()) for name, part in whole.named_children()
    }
    attention = 2 * 3584 * 3584 + 3584 + 2 * (3584 * 512 + 512)
    layer = attention + 3 * 3584 * 18_944 + 2 * 3584
    assert count["llm"] == 28 * layer + 2 * 168_055 * 3584 + 3584
    block = 12 * 1280 * 1280 + (3 + 4 + 1) * 1280 + 4 * 1280
    convolutions = 128 * 1280 * 3 + 1280 + 3 * 1280 * 1280 + 1280
    assert count["encoder"] == 32 * block + convolutions + 1500 * 1280 + 2 * 1280
    halving = 3 * 1280 * 1280 + 1280 + 1280 * 2048 + 2048
    assert count["audio_adapter"] == 3 * halving + 2 * (2048 * 1280 + 1280) + 2048 * 3584 + 3584


def test_the_logits_equal_those_of_the_reference(model, tensors):
    assert type(model.model).__name__ == "Qwen2ForCausalLM"
    ids = torch.randint(WORDS, (15,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model.model(ids[None]).logits[0]
    decoder = {name.removeprefix("llm."): value for name, value in tensors.items()}
    expected = plain_decoder(decoder, decoder["model.embed_tokens.weight"][ids], LAYERS)
    # measured 8e-6 on logits of spread 1.3
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [160, 2_600, 80_079, SEGMENT + 8_000])
def test_the_audio_encoder_equals_the_reference(model, tensors, samples):
    wave = noise(samples)
    encoder = model.audio_encoder.encoder
    pieces = []
    for piece in wave[: samples // 160 * 160].split(SEGMENT):
        mels = encoder.mels(piece)
        padded = np.pad(piece.numpy(), (0, SEGMENT - len(piece)))
        # measured 9e-6: transformers computes in float32
        np.testing.assert_allclose(mels, plain_mels(padded), rtol=0, atol=1e-4)
        pieces.append(plain_audio_encoder(tensors, mels))
    assert {len(piece) for piece in pieces} == {188}
    [states] = encoder.encode(wave)
    expected = torch.cat(pieces)[: number_of_patches(samples)]
    # measured 6e-7 on values of spread 0.3
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)


def test_the_prompt(model):
    question = "Hi? 你好"
    assert model.encode(question).tolist() == plain_ids(PROMPT.format(question=question))
    layout = model.layout
    assert (layout.text_chunk, layout.speech_chunk, layout.num_codes) == (5, 15, 16_384)
    assert (layout.text, layout.speech, layout.ends) == ((0, FIRST), (FIRST, WORDS), (END,))
    reply = torch.tensor([72, FIRST, WORDS - 1, END])
    assert layout.units(reply).tolist() == [0, 16_383]
    assert layout.text_ids(reply).tolist() == [72]


class PlainWindow(LogitsProcessor):
    """The windowed penalty, token by token."""

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for row, tokens in enumerate(ids):
            for token in set(tokens[-8:].tolist()):
                scores[row, token] *= 1.05 if scores[row, token] < 0 else 1 / 1.05
        return scores


def test_a_spoken_question_follows_the_template(model, tmp_path):
    file = tmp_path / "question.wav"
    soundfile.write(file, noise(24_050).numpy(), 16_000, subtype="FLOAT")
    [states] = model.audio_encoder.encoder.encode(noise(24_050))
    question = "<|begofcAUDIO|>" + "<|cAUDIO|>" * number_of_patches(24_050) + "<|endofcAUDIO|>"
    ids = torch.tensor(plain_ids(PROMPT.format(question=question)))
    embeddings = model.model.get_input_embeddings()(ids).clone()
    embeddings[ids == PATCH] = states
    stock = model.model.generate(
        ids[None],
        inputs_embeds=embeddings[None],
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        eos_token_id=END,
        do_sample=False,
        logits_processor=[PlainWindow()],
        repetition_penalty=1.05,
        max_new_tokens=24,
    )
    # the authors decode the first turn greedily, with the penalties of their sampling
    options = {k: v for k, v in model.card.sampling.items() if k.endswith("penalty")}
    out = model.generate(file, **options, max_new_tokens=24)
    assert out.tokens.tolist() == stock[0, -len(out.tokens) :].tolist()
    assert len(out.tokens) == 24
    both = model.generate([file, "Hi?"], "spark:triple@2", max_new_tokens=12)
    alone = [model.generate(p, "spark:triple@2", max_new_tokens=12) for p in (file, "Hi?")]
    assert [o.tokens.tolist() for o in both] == [o.tokens.tolist() for o in alone]


def test_exits_follow_the_chunks(model):
    # 5 : 15 twice, a last chunk of two text tokens, and speech up to the end
    reply = [*[65] * 5, *[FIRST] * 15] * 2 + [65, 65, *[FIRST + 9] * 20, END]
    start = len(model.encode("Hi?"))

    def only(ids: Tensor, scores: Tensor) -> Tensor:
        token = torch.tensor([reply[ids.shape[1] - start]])
        return torch.full_like(scores, -1e9).index_fill_(1, token, 0.0)

    out = model.generate("Hi?", "spark:triple@2", max_new_tokens=90, logits_processor=[only])
    assert out.tokens.tolist() == reply
    assert (out.text, len(out.units)) == ("A" * 12, 50)
    trace = out.trace
    labels = [0] * 5 + [1] * 15
    # where the text ends early, the clock expects one more text token
    assert trace.modality.tolist()[:62] == labels * 2 + [0, 0, 0] + [1] * 19
    phases = [*range(5), *range(15)]
    assert trace.phase.tolist()[:42] == phases * 2 + [0, 1]
    assert trace.chunk.tolist()[:42] == [c for c in range(4) for _ in range(15 if c % 2 else 5)] + [
        4,
        4,
    ]
    speech = trace.modality == 1
    assert ((trace.phase % 3 != 0) == (trace.depth == 2))[speech].all()
    assert (trace.depth[~speech] == LAYERS).all()
    exact = model.generate("Hi?", "static@2", max_new_tokens=20, accept="exact")
    assert exact.tokens.tolist() == model.generate("Hi?", max_new_tokens=20).tokens.tolist()


def test_short_or_misshapen_sound_is_refused(model):
    for wave, match in (
        (torch.zeros(0), r"must have shape \(samples,\)"),
        (torch.zeros(159), "159 samples at 16 kHz are too short .* give at least 0.01 s"),
    ):
        with pytest.raises(EepolicyError, match=match):
            model.generate(wave)


def test_a_converted_folder_is_the_same_model(model, tmp_path, run):
    save_converted(model, tmp_path / "converted")
    again = eepolicy.load(str(tmp_path / "converted"), device_map="cpu")
    assert (again.layout, again.card) == (model.layout, model.card)
    for prompt in ("Hi?", noise(8_000)):
        expected = model.generate(prompt, max_new_tokens=8)
        assert again.generate(prompt, max_new_tokens=8).tokens.tolist() == expected.tokens.tolist()
    out, _ = run("models", "check", str(tmp_path / "converted"))
    assert "its config has the card covo-audio-chat" in out


def linked(original: Path, folder: Path, config: dict) -> Path:
    """A folder with links to the files of another one, and another config."""
    for file in original.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("part", "change", "match"),
    [
        (
            "llm_config",
            {"hidden_size": None},
            "llm_config in config.json .* hidden_size = None; exp",
        ),
        ("llm_config", {"rope_scaling": {"factor": 2}}, "has rope_scaling = .*; only none is supp"),
        ("llm_config", {"rope_theta": "x"}, "rope_theta = 'x'; expected a number"),
        ("llm_config", {"eos_token_id": "x"}, "llm_config in config.json is refused: .*eos_tok"),
        (
            "llm_config",
            {"vocab_size": 168_000},
            r"llm\.\S+ in .*safetensors gives .* \(168055, 32\)",
        ),
        ("llm_config", None, "config.json has llm_config = None; expected keys"),
        ("encoder_config", {"num_mel_bins": 80}, "encoder_config .* num_mel_bins = 80; only 128"),
        ("encoder_config", {"encoder_ffn_dim": 0}, "encoder_ffn_dim = 0; expected a whole number"),
        ("adapter_downsample", 4, "adapter_downsample = 4; only 8 is supported"),
        ("audio_token_index", 151_700, "config.json has audio_token_index = 151700, and the first"),
    ],
)
def test_other_configs_are_refused(original, tmp_path, part, change, match):
    value = CONFIG[part] | change if isinstance(change, dict) else change
    with pytest.raises(EepolicyError, match=match):
        eepolicy.load(str(linked(original, tmp_path, CONFIG | {part: value})))


@pytest.mark.parametrize(
    ("what", "match"),
    [
        (
            "foreign",
            r"00002-of-00002.safetensors contains encoder.extra.weight, which the model in",
        ),
        ("partial", r"lacks 1 of .* such as audio_adapter.downsample_layers.2.conv1d.weight"),
        ("cut", "00002-of-00002.safetensors is damaged"),
        ("tokenizer", r"the tokenizer of .* has no <\|cAUDIO\|>"),
    ],
)
def test_wrong_files_are_refused(original, tmp_path, run, what, match):
    folder = linked(original, tmp_path, CONFIG)
    file = folder / (
        "tokenizer.json" if what == "tokenizer" else "model-00002-of-00002.safetensors"
    )
    data, kept = file.read_bytes(), file.resolve()
    file.unlink()
    if what == "tokenizer":
        file.write_bytes(data.replace(b"<|cAUDIO|>", b"<|sound|>"))
    elif what == "cut":
        file.write_bytes(data[:2000])
    else:
        parts = load_file(kept)
        if what == "foreign":
            parts["encoder.extra.weight"] = torch.zeros(2)
        else:
            del parts["audio_adapter.downsample_layers.2.conv1d.weight"]
        save_file(parts, file)
    with pytest.raises(EepolicyError, match=match):
        eepolicy.load(str(folder))
    _, err = run("models", "check", str(folder), code=1)
    assert re.search(match, err)


def test_shards_need_no_index(original, tmp_path):
    """The authors' code loads all safetensors files of the folder."""
    folder = linked(original, tmp_path, CONFIG)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "heads.safetensors").write_bytes(b"of another program")
    names = [file.name for file in weight_files(folder)]
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_rope_parameters_of_transformers_5_are_read(original, tmp_path, model):
    llm = {k: v for k, v in CONFIG["llm_config"].items() if not k.startswith("rope")}
    llm["rope_parameters"] = {"rope_theta": 1000000.0, "rope_type": "default"}
    native = covo_audio.native(CONFIG | {"llm_config": llm}).make()
    assert native.llm.config.rope_parameters == model.model.config.rope_parameters
    llm["rope_parameters"] = {"rope_theta": 1000000.0, "rope_type": "yarn"}
    with pytest.raises(EepolicyError, match="has rope_type = yarn; only default"):
        covo_audio.native(CONFIG | {"llm_config": llm})


def test_models_commands_describe_covo_audio(original, run, tensors):
    out, _ = run("models", "check", str(original))
    assert "covo-audio-chat in its authors' layout" in out
    assert f"{4 * sum(w.numel() for w in tensors.values()) / 1e9:.3f} GB in float32" in out
    assert "the tokenizer has all tokens of the card covo-audio-chat" in out
    out, _ = run("models", "--json")
    [card] = [card for card in json.loads(out) if card["name"] == "covo-audio-chat"]
    assert (card["text_chunk"], card["speech_chunk"]) == (5, 15)
