"""The provider for Inspect, on a task in this process."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny

from eepolicy import EepolicyError, HookedModel, load

pytest.importorskip("inspect_ai", reason="the extra inspect is not installed")
import inspect_ai
from inspect_ai._util.config import parse_cli_args
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

from eepolicy import parse_policy
from eepolicy.harness.inspect_provider import prompt_of

pytestmark = pytest.mark.slow

QUESTIONS = {"What color is snow?": "white", "What is the capital of France?": "Paris"}


def test_a_task_runs_with_early_exit(tmp_path):
    task = inspect_ai.Task(
        dataset=[Sample(input=q, target=a) for q, a in QUESTIONS.items()],
        solver=generate(),
        scorer=includes(),
    )
    model = get_model("eepolicy/pocket", policy="spark:triple@14", memoize=False)
    [log] = inspect_ai.eval(task, model=model, log_dir=str(tmp_path), display="none")
    assert log.status == "success", log.error
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
    stock = load("pocket")
    for sample in log.samples:
        out = stock.generate(sample.input, "spark:triple@14")
        assert sample.output.completion == out.text
        assert sample.output.usage.output_tokens == len(out.tokens)
        assert sample.output.metadata == {
            "mean_depth": out.trace.depth.mean(),
            "layer_calls": out.trace.layer_calls.sum(),
        }


class Tokenizer:
    """A tokenizer with a chat template: the ids are letters."""

    chat_template = "{{ messages }}"
    pad_token_id = 0

    def apply_chat_template(self, chat, tokenize, add_generation_prompt):
        assert (tokenize, add_generation_prompt) == (False, True)
        return "".join(f"{m['role'][0]}{m['content']}" for m in chat) + "a"

    def __call__(self, text, add_special_tokens, return_tensors):
        assert not add_special_tokens
        ids = torch.tensor([[ord(letter) - 96 for letter in text]])
        return type("Encoding", (), {"input_ids": ids})

    def decode(self, ids):
        return "".join(chr(96 + i) for i in ids.tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"divice": "cpu"}, "does not know divice; its arguments are accept"),
        ({"dtype": "float8"}, "dtype is float32, bfloat16, float16; got 'float8'"),
        ({"device": "tpu9"}, "the device 'tpu9' cannot be used"),
    ],
)
def test_wrong_arguments_of_the_model(arguments, message):
    with pytest.raises(EepolicyError, match=message):
        get_model("eepolicy/pocket", memoize=False, **arguments)


def test_device_and_dtype_of_the_model():
    model = get_model("eepolicy/pocket", memoize=False, device="cpu", dtype="bfloat16")
    assert model.api.hooked.dtype == torch.bfloat16


def test_a_policy_with_commas_from_the_command_line():
    """Inspect has split it at the commas."""
    parts = parse_cli_args(["policy=text=entropy<1.0@[14,16]"])
    assert isinstance(parts["policy"], list)
    model = get_model("eepolicy/pocket", memoize=False, **parts)
    assert model.api.exit_config.policy == parse_policy("text=entropy<1.0@[14,16]")


def test_messages_go_through_the_chat_template():
    model = HookedModel(tiny("llama"), tokenizer=Tokenizer())
    messages = [ChatMessageSystem(content="be"), ChatMessageUser(content="hi")]
    letters = "".join(chr(96 + i) for i in prompt_of(model, messages).tolist())
    assert letters == "sbeuhia"
    model.tokenizer.chat_template = None
    with pytest.raises(EepolicyError, match="gets one message of the user; got system, user"):
        prompt_of(model, messages)
    assert prompt_of(model, messages[1:]) == "hi"


def test_greedy_settings_and_cut_replies(tmp_path):
    task = inspect_ai.Task(
        dataset=[Sample(input=q, target=a) for q, a in QUESTIONS.items()], solver=generate()
    )
    model = get_model("eepolicy/pocket", policy="full", memoize=False)
    options = {"model": model, "display": "none", "log_samples": True}
    for length, reason in ((3, "max_tokens"), (300, "stop")):
        settings = {"temperature": 0, "top_p": 0.9, "max_tokens": length}
        [log] = inspect_ai.eval(task, log_dir=str(tmp_path), **settings, **options)
        assert log.status == "success", log.error
        assert {sample.output.stop_reason for sample in log.samples} == {reason}
