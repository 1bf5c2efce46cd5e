"""The model class for lm-evaluation-harness, beside the harness's own class, on local tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import eepolicy
from eepolicy.loading.pocket import pocket_folder

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
from eepolicy.harness.lm_eval import EarlyExitLM

pytestmark = pytest.mark.slow

TASKS = {
    "replies": """
task: replies
dataset_path: json
dataset_kwargs: {data_files: {test: "FILE"}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_gen_toks: 24, do_sample: false}
metric_list: [{metric: exact_match}, {metric: bleu}]
""",
    "choices": """
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: "FILE"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["{{answer}}", "Some snow is white", "five"]
doc_to_target: 0
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "texts": """
task: texts
dataset_path: json
dataset_kwargs: {data_files: {test: "FILE"}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} {{answer}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
}
QUESTIONS = [
    ("What color is snow?", "Snow is white"),
    ("What is two plus three?", "Two plus three is five"),
    ("Which month comes after January, and which one comes before it?", "February"),
    ("Is grass green?", "Yes"),
    ("What is the capital of France?", "The capital of France is Paris"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Tasks, and a random text model with the pocket model's tokenizer."""
    folder = tmp_path_factory.mktemp("harness")
    lines = [json.dumps({"question": q, "answer": a}) for q, a in QUESTIONS]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    (folder / "tasks").mkdir()
    for name, text in TASKS.items():
        text = text.replace("FILE", str(folder / "questions.jsonl"))
        (folder / "tasks" / f"{name}.yaml").write_text(text)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=4,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.normal_(1.0, 0.3)
    model.save_pretrained(folder / "model")
    pocket = eepolicy.load("pocket")
    pocket.tokenizer.save_pretrained(folder / "model")
    return folder


def run(folder: Path, monkeypatch, model, tasks: str = "replies,choices,texts", **options):
    """Results and replies of the harness in this process."""
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    results = simple_evaluate(
        model,
        tasks=tasks.split(","),
        task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
        batch_size=2,
        device="cpu",
        bootstrap_iters=10,
        **options,
    )
    replies = {
        name: [s["filtered_resps"] for s in sorted(samples, key=lambda s: s["doc_id"])]
        for name, samples in results["samples"].items()
    }
    return results, replies


def run_command(folder: Path, *arguments: str):
    """Results and replies of `eepolicy lm-eval` in a separate process, without network."""
    environment = os.environ | {
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    out = folder / "results"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "eepolicy.cli", "lm-eval"),
            *("--include_path", str(folder / "tasks"), "--tasks", "replies,choices,texts"),
            *("--output_path", str(out), "--log_samples", "--batch_size", "2"),
            *("--device", "cpu", *arguments),
        ],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [results] = out.rglob("results_*.json")
    replies = {}
    for file in results.parent.glob("samples_*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        name = file.name.split("_")[1]
        replies[name] = [r["filtered_resps"] for r in sorted(rows, key=lambda r: r["doc_id"])]
    return json.loads(results.read_text()), replies


def metrics(results) -> dict[tuple[str, str], float]:
    return {
        (task, name): value
        for task, values in results["results"].items()
        for name, value in values.items()
        if isinstance(value, float) and "stderr" not in name
    }


def test_full_depth_equals_the_harness_own_class(folder, monkeypatch):
    model = str(folder / "model")
    stock, stock_replies = run(
        folder, monkeypatch, "hf", model_args={"pretrained": model, "dtype": "float32"}
    )
    ours, replies = run_command(folder, "--model_args", f"pretrained={model}")
    assert replies["replies"] == stock_replies["replies"]
    assert metrics(ours) == pytest.approx(metrics(stock), rel=1e-5)  # of another process
    assert len(metrics(ours)) >= 6
    assert {task for task, _ in metrics(ours)} == {*TASKS}
    exits = ours["config"]["exits"]
    assert exits["mean_depth"] == exits["mean_scored_depth"] == exits["full_depth"] == 6
    # a lossless rule gives the same replies and scores
    options = {"policy": "text=static@5", "accept": "exact"}
    exact, exact_replies = run(
        folder, monkeypatch, EarlyExitLM(model, device="cpu", batch_size=2, **options)
    )
    assert exact_replies == stock_replies
    assert metrics(exact) == metrics(stock)


def test_exits_are_in_results(folder, monkeypatch):
    policy = "text=entropy<6.55@[2,4]"
    lm = EarlyExitLM(str(folder / "model"), policy=policy, device="cpu", batch_size=2)
    _, replies = run(folder, monkeypatch, lm)
    exits = lm.get_model_info()["exits"]
    assert lm.get_model_info()["policy"] == policy
    assert exits["replies"] == len(QUESTIONS)
    assert 2 <= exits["mean_depth"] < 6
    assert 2 <= exits["mean_scored_depth"] < 6
    assert exits["layer_calls"] < exits["layer_calls_at_full_depth"]
    for (question, _), reply in zip(QUESTIONS, replies["replies"], strict=True):
        out = lm.hooked.generate(question, policy, max_new_tokens=24)
        text = lm.tokenizer.decode(out.tokens, skip_special_tokens=True)
        assert reply == [text.split(".")[0]]


def test_log_likelihoods_do_not_depend_on_the_batch_size(folder):
    """Requests come back in their order; the model is in float32."""
    answers, scored = [], []
    for size in (1, 3):
        lm = EarlyExitLM(
            str(folder / "model"), policy="text=entropy<6.55@[2,4]", device="cpu", batch_size=size
        )
        ids = [lm.tok_encode(text) for pair in QUESTIONS for text in pair]
        requests = [(None, q, a) for q, a in zip(ids[::2], ids[1::2], strict=True)]
        answers.append(lm._loglikelihood_tokens(requests, disable_tqdm=True))
        scored.append(lm.tally.to_dict(6))
    assert scored[0] == scored[1]
    assert len({value for value, _ in answers[0]}) == len(QUESTIONS)
    for (one, greedy), (other, also) in zip(*answers, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
        assert greedy == also


def test_a_speech_model_answers_questions(folder, monkeypatch):
    lm = EarlyExitLM("pocket", policy="spark:triple@14", device="cpu", batch_size=2)
    results, replies = run(
        folder, monkeypatch, lm, tasks="replies", gen_kwargs={"max_gen_toks": 300}
    )
    assert replies["replies"][0] == ["Snow is white"]
    assert results["results"]["replies"]["exact_match,none"] >= 0.4
    assert 14 < lm.tally.to_dict(20)["mean_depth"] < 20


def test_unsupported_model_arguments_and_models_are_refused(folder):
    with pytest.raises(eepolicy.EepolicyError, match="--model_args has peft; the model takes"):
        EarlyExitLM(str(folder / "model"), peft="adapter")
    with pytest.raises(eepolicy.EepolicyError, match="acts on speech, and this model has none"):
        EarlyExitLM(str(folder / "model"), policy="static@2", device="cpu")
    with pytest.raises(eepolicy.EepolicyError, match="the device 'zz' cannot be used"):
        EarlyExitLM(str(folder / "model"), device="zz")
    speech = EarlyExitLM(str(pocket_folder()), device="cpu")
    with pytest.raises(eepolicy.EepolicyError, match="defined for text models"):
        speech._loglikelihood_tokens([(None, [1], [2])])
