"""Early exit inside the stock `generate`, compared with the stock model alone."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYOUT, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    TextGenerationPipeline,
    TextIteratorStreamer,
    pipeline,
)

import eepolicy
from eepolicy import EepolicyError, HookedModel, TokenLayout

PAD = 0
#: rows of 7, 3 and 5 ids, padded on the left
ROWS = ([9, 31, 12, 44, 7, 50, 22], [8, 17, 40], [33, 6, 28, 51, 11])
POLICY = "text=static@2"
TEXT = TokenLayout.text_only(60)


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, (rows, tokens) each."""
    width = max(map(len, ROWS))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in ROWS])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ROWS])


@pytest.fixture
def stock():
    """A stock model that ends a reply with id 26, which it generates often."""
    model = tiny("llama")
    model.generation_config.update(pad_token_id=PAD, eos_token_id=26, max_new_tokens=12)
    return model


#: options of a call, each as the stock model takes them
CALLS = [
    {},
    {"attention_mask": "own"},
    {"num_return_sequences": 2, "do_sample": True},
    {"do_sample": True, "temperature": 0.7, "top_k": 5},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"eos_token_id": [26, 13], "min_new_tokens": 3},
    {"max_new_tokens": None, "max_length": 11},
    {"return_dict_in_generate": True},
]


def call(model, options: dict, **more):
    ids, mask = padded()
    options = {name: mask if value == "own" else value for name, value in options.items()}
    torch.manual_seed(3)
    return model.generate(ids, **options, **more)


@pytest.mark.parametrize("options", CALLS, ids=lambda x: ",".join(x) or "none")
def test_full_depth_equals_the_stock_generate(stock, options):
    """Tokens, padding, shapes and types, through both entrances."""
    expected = call(stock, options)
    through_hook = call(stock, options, custom_generate=eepolicy.custom_generate("full"))
    with eepolicy.early_exit("full", stock):
        inside = call(stock, options)
    for got in (through_hook, inside):
        if "return_dict_in_generate" in options:
            assert [len(trace) for trace in got.traces] == [
                len(row[row != PAD]) - len(prompt)
                for row, prompt in zip(got.sequences, ROWS, strict=True)
            ]
            got = got.sequences
        else:
            assert type(got) is torch.Tensor
        assert got.tolist() == getattr(expected, "sequences", expected).tolist()


def test_exits_are_those_of_the_hooked_model(stock):
    hooked = HookedModel(stock, TEXT)
    outs = hooked.generate([torch.tensor(row) for row in ROWS], POLICY)
    with eepolicy.early_exit(POLICY, stock) as inner:
        got = call(stock, {"return_dict_in_generate": True})
    assert isinstance(inner, HookedModel)
    for out, sequence, trace in zip(outs, got.sequences, got.traces, strict=True):
        reply = sequence[max(map(len, ROWS)) :]
        assert reply[: len(out.tokens)].tolist() == out.tokens.tolist()
        assert trace.depth.tolist() == out.trace.depth.tolist() == [2] * len(out.tokens)


def test_the_mask_is_found_from_the_pad_id(stock):
    """As the stock generate does; a pad id that ends replies is no padding."""
    ids, mask = padded()
    hooked = HookedModel(stock)
    with_mask = [out.tokens.tolist() for out in hooked.generate(ids, attention_mask=mask)]
    assert [out.tokens.tolist() for out in hooked.generate(ids)] == with_mask
    stock.generation_config.eos_token_id = [26, PAD]
    without = [out.tokens.tolist() for out in hooked.generate(ids)]
    assert without != with_mask
    expected = stock.generate(ids)[:, ids.shape[1] :].tolist()
    assert [row[: len(out)] for row, out in zip(expected, without, strict=True)] == without


def test_embeddings_give_new_tokens_only(stock):
    ids, mask = padded()
    embeddings = stock.get_input_embeddings()(ids)
    expected = stock.generate(inputs_embeds=embeddings, attention_mask=mask)
    with eepolicy.early_exit("full", stock):
        got = stock.generate(inputs_embeds=embeddings, attention_mask=mask)
    hooked = stock.generate(
        inputs_embeds=embeddings,
        attention_mask=mask,
        custom_generate=eepolicy.custom_generate("full"),
    )
    assert got.tolist() == hooked.tolist() == expected.tolist()


def test_generate_is_restored(stock):
    plain = stock.generate
    with eepolicy.early_exit(POLICY, stock):
        assert stock.generate != plain
    assert stock.generate == plain
    with pytest.raises(ValueError, match="inside"), eepolicy.early_exit(POLICY, stock):
        raise ValueError("inside")
    assert stock.generate == plain
    assert "generate" not in vars(stock)
    stock.generate = own = lambda *_, **__: "mine"
    with eepolicy.early_exit(POLICY, stock):
        assert call(stock, {}).shape[0] == len(ROWS)
    assert stock.generate is own


def test_nesting_is_refused(stock):
    with eepolicy.early_exit(POLICY, stock):
        with pytest.raises(EepolicyError, match="cannot be nested"):
            eepolicy.early_exit("full", stock).__enter__()
        assert call(stock, {}).shape[0] == len(ROWS)  # the outer block goes on


def test_other_models_of_the_class_are_untouched(stock):
    other = tiny("llama", seed=1)
    expected = other.generate(torch.tensor([ROWS[0]]), max_new_tokens=6, do_sample=False)
    with eepolicy.early_exit(POLICY, stock):
        got = other.generate(torch.tensor([ROWS[0]]), max_new_tokens=6, do_sample=False)
    assert got.tolist() == expected.tolist()


def test_the_end_token_of_the_layout_ends_replies():
    stock = tiny("llama")
    ids = torch.tensor([ROWS[0]])
    expected = stock.generate(ids, max_new_tokens=40, eos_token_id=LAYOUT.end, pad_token_id=PAD)
    with eepolicy.early_exit("full", stock, layout=LAYOUT):
        assert stock.generate(ids, max_new_tokens=40).tolist() == expected.tolist()


def test_a_peft_model_exits_early_with_its_adapter(stock):
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(stock, config)
    ids = torch.tensor([ROWS[0]])
    with adapted.disable_adapter():
        without = adapted.generate(input_ids=ids).tolist()
    expected = adapted.generate(input_ids=ids).tolist()
    assert expected != without
    method = eepolicy.custom_generate(POLICY, accept="exact")
    assert adapted.generate(input_ids=ids, custom_generate=method).tolist() == expected
    with eepolicy.early_exit(POLICY, adapted, accept="exact"):
        assert adapted.generate(input_ids=ids).tolist() == expected
        with adapted.disable_adapter():
            assert adapted.generate(input_ids=ids).tolist() == without
    probed = eepolicy.probe(adapted, ids, statistics=["top1"])
    assert probed.top1[-1].tolist() == adapted(ids).logits[0].argmax(-1).tolist()


REFUSED = [
    ({"num_beams": 2}, "beam search is not supported"),
    ({"assistant_early_exit": 2}, "use policy='static@DEPTH'"),
    ({"output_scores": True}, "see eepolicy.probe"),
    ({"position_ids": torch.zeros(3, 7, dtype=torch.long)}, "follow from the attention mask"),
]


@pytest.mark.parametrize(("options", "says"), REFUSED, ids=lambda x: ",".join(x)[:30])
def test_unsupported_options_are_refused(stock, options, says):
    with (
        eepolicy.early_exit("full", stock),
        pytest.raises(EepolicyError, match=says),
    ):
        call(stock, options)


def test_own_options_that_change_tokens_are_refused_by_name(stock):
    """From the model's own generation config, in all entrances."""
    stock.generation_config.guidance_scale = 2.0
    with pytest.raises(EepolicyError, match="guidance_scale"):
        HookedModel(stock).generate(torch.tensor(ROWS[0]))


def test_own_options_without_effect_are_ignored(stock):
    expected = HookedModel(stock).generate(torch.tensor(ROWS[0])).tokens.tolist()
    stock.generation_config.update(output_hidden_states=True, return_dict_in_generate=True)
    assert HookedModel(stock).generate(torch.tensor(ROWS[0])).tokens.tolist() == expected


BAD = [
    (lambda m: eepolicy.custom_generate("full", filling="mask"), "filling: the options of early"),
    (lambda m: eepolicy.early_exit("full", HookedModel(m)).__enter__(), "hooked already"),
    (lambda m: eepolicy.early_exit("text=static@99", m).__enter__(), "99"),
    (lambda m: eepolicy.early_exit("static@2", m).__enter__(), "acts on speech"),
]


@pytest.mark.parametrize(("make", "says"), BAD, ids=[says for _, says in BAD])
def test_wrong_arguments_leave_the_model_alone(stock, make, says):
    with pytest.raises(EepolicyError, match=says):
        make(stock)
    assert "generate" not in vars(stock)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """A tokenizer of 60 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    # StopStringCriteria of transformers needs a token "abcdef"
    vocabulary = {"<pad>": 0, "<s>": 1, "abcdef": 2, **{f"w{i}": i for i in range(3, 60)}}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", padding_side="left"
    )


def test_a_streamer_gets_the_prompt_and_each_token(stock, words):
    ids = torch.tensor([ROWS[0]])
    expected = words.decode(stock.generate(ids)[0, ids.shape[1] :])
    streamer = TextIteratorStreamer(words, skip_prompt=True)
    with eepolicy.early_exit("full", stock):
        stock.generate(ids, streamer=streamer)
    assert "".join(streamer) == expected


def test_stop_strings_of_the_call_and_of_the_model(stock, words):
    ids = torch.tensor([ROWS[0]])
    reply = stock.generate(ids)[0, ids.shape[1] :].tolist()
    stop = f"w{reply[3]}"
    expected = stock.generate(ids, stop_strings=[stop], tokenizer=words).tolist()
    assert len(expected[0]) < ids.shape[1] + len(reply)
    with eepolicy.early_exit("full", stock):
        assert stock.generate(ids, stop_strings=[stop], tokenizer=words).tolist() == expected
    stock.generation_config.stop_strings = [stop]
    hooked = HookedModel(stock, tokenizer=words)
    assert hooked.generate(ids).sequences.tolist() == expected
    assert stock.generation_config.stop_strings == [stop]
    with pytest.raises(EepolicyError, match="stop_strings are strings"):
        hooked.generate(ids, stop_strings=[])


def test_a_pipeline_exits_early(stock, words):
    pipe = TextGenerationPipeline(model=stock, tokenizer=words)
    text = " ".join(f"w{i}" for i in ROWS[0])
    options = {"do_sample": False, "max_new_tokens": 9, "return_full_text": False}
    expected = pipe(text, **options)
    with eepolicy.early_exit("full", stock):
        assert pipe(text, **options) == expected
    with eepolicy.early_exit(POLICY, stock):
        early = pipe(text, **options)
    out = HookedModel(stock).generate(torch.tensor(ROWS[0]), POLICY, 9)
    assert early[0]["generated_text"].strip() == words.decode(out.tokens, skip_special_tokens=True)


def test_the_pipeline_of_the_task(stock, words, tmp_path):
    """Options of the pipeline and of a call; the model is hooked once for the same options."""
    stock.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    eepolicy.register_pipeline()
    pipe = pipeline("early-exit-text-generation", model=str(tmp_path), policy=POLICY)
    text = " ".join(f"w{i}" for i in ROWS[0])
    options = {"do_sample": False, "max_new_tokens": 9, "return_full_text": False}
    plain = TextGenerationPipeline(model=stock, tokenizer=words)
    assert pipe(text, policy="full", **options) == plain(text, **options)
    assert pipe(text, accept="exact", **options) == plain(text, **options)
    early = pipe([text, "w9"], **options)
    hooked = pipe._method[1].hooked(pipe.model)
    for prompt, out in zip((ROWS[0], [9]), early, strict=True):
        tokens = hooked.generate(torch.tensor(prompt), POLICY, 9).tokens
        text = words.decode(tokens, skip_special_tokens=True)
        assert out[0]["generated_text"].strip() == text
    pipe("w9", **options)
    assert pipe._method[1].hooked(pipe.model) is hooked
    assert "generate" not in vars(pipe.model)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 3),
    family=st.sampled_from(["llama", "gemma3", "gpt2", "phi3"]),
    policy=st.sampled_from([POLICY, "text=entropy<2@[2,4]", "text=random:3.0@2"]),
    rows=st.lists(st.lists(st.integers(5, 59), min_size=1, max_size=6), min_size=1, max_size=3),
)
def test_exact_acceptance_gives_the_stock_tokens(seed, family, policy, rows):
    """With an exact acceptance rule, the stock tokens in ragged batches."""
    model = tiny(family, seed)
    model.generation_config.pad_token_id = PAD
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 26}
    expected = model.generate(ids, **options)
    with eepolicy.early_exit(policy, model, accept="exact"):
        assert model.generate(ids, **options).tolist() == expected.tolist()


def test_prefix_allowed_tokens_fn_is_refused(stock):
    ids, options = torch.tensor([ROWS[0]]), {"prefix_allowed_tokens_fn": lambda row, ids: [5]}
    with pytest.raises(EepolicyError, match="prefix_allowed_tokens_fn is not supported"):
        stock.generate(ids, custom_generate=eepolicy.custom_generate("full"), **options)


def test_scores_are_refused_and_not_left_out(stock):
    method, ids = eepolicy.custom_generate("full"), torch.tensor([ROWS[0]])
    options = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 3}
    with pytest.raises(EepolicyError, match="output_scores and output_logits are not supported"):
        stock.generate(ids, custom_generate=method, **options)


def test_the_models_own_config_chooses_the_form_of_the_result(stock):
    stock.generation_config.return_dict_in_generate = True
    config = GenerationConfig(max_new_tokens=3)
    ids = torch.tensor([ROWS[0]])
    expected = stock.generate(ids, generation_config=config).sequences
    with eepolicy.early_exit("full", stock):
        ours = stock.generate(ids, generation_config=config)
    assert ours.sequences.tolist() == expected.tolist()


def test_greedy_verification_draws_no_random_numbers(stock):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = HookedModel(stock)
    out = model.generate(torch.tensor(ROWS[0]), "both=static@2", 8, accept="exact")
    assert len(set(out.trace.depth.tolist())) > 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("how", ["block", "method"])
def test_generate_keeps_the_training_mode_of_modules(stock, how):
    stock.train()
    stock.model.layers[0].eval()
    before = [module.training for module in stock.modules()]
    ids = torch.tensor([ROWS[0]])
    method = eepolicy.custom_generate(POLICY)
    expected = None
    for _ in range(2):
        if how == "block":
            with method.inside(stock):
                sequences = stock.generate(ids)
        else:
            sequences = stock.generate(ids, custom_generate=method)
        assert [module.training for module in stock.modules()] == before
        assert sequences.tolist() == (expected or sequences.tolist())
        expected = sequences.tolist()


def test_stop_strings_of_an_adapted_model_apply_and_are_kept(stock, words):
    ids = torch.tensor([ROWS[0]])
    reply = stock.generate(ids)[0, ids.shape[1] :].tolist()
    stock.generation_config.stop_strings = [f"w{reply[3]}"]
    adapted = get_peft_model(stock, LoraConfig(target_modules=["q_proj", "v_proj"]))
    expected = adapted.generate(input_ids=ids, tokenizer=words).tolist()
    assert len(expected[0]) < ids.shape[1] + len(reply)
    with eepolicy.early_exit("full", adapted):
        for _ in range(2):
            assert adapted.generate(input_ids=ids, tokenizer=words).tolist() == expected
    assert stock.generation_config.stop_strings == [f"w{reply[3]}"]


def test_a_row_without_its_dimension_is_refused(stock):
    with (
        eepolicy.early_exit("full", stock),
        pytest.raises(EepolicyError, match=r"takes ids \(rows, tokens\)"),
    ):
        stock.generate(torch.tensor(ROWS[0]))
