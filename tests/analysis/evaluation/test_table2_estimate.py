"""The estimate of a run: sizes against the models themselves, hours against loops and bounds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from loading import test_glm4_voice, test_step_audio2

from eepolicy.analysis.evaluation import table2_estimate
from eepolicy.analysis.evaluation.spark_table2 import ROWS
from eepolicy.analysis.evaluation.table2_estimate import A100, Load, estimate, row_hours
from eepolicy.analysis.evaluation.table2_sizes import published_sizes
from eepolicy.loading.upstream import glm4_voice, step_audio2

GLM = test_glm4_voice.CONFIG | {
    "num_layers": 40,
    "hidden_size": 4096,
    "ffn_hidden_size": 13_696,
    "num_attention_heads": 32,
    "kv_channels": 128,
    "padded_vocab_size": 168_960,
}
STEP = test_step_audio2.real_config()


@pytest.mark.parametrize(
    ("name", "module", "config"),
    [("glm-4-voice", glm4_voice, GLM), ("step-audio-2-mini", step_audio2, STEP)],
)
def test_the_sizes_are_those_of_the_models(name, module, config):
    size = published_sizes()[name]
    with torch.device("meta"):
        whole = module.native(config).make()
    decoder = getattr(whole, "decoder", whole)
    layers = decoder.model.layers
    assert size.weights == sum(p.numel() for p in whole.parameters())
    assert size.layers == len(layers)
    assert size.layer_weights == sum(p.numel() for p in layers[0].parameters())
    assert (size.vocabulary, size.width) == decoder.lm_head.weight.shape
    attention = layers[0].self_attn
    assert size.cached == sum(len(p.weight) for p in (attention.k_proj, attention.v_proj))


def test_a_row_alone_reads_its_layers_once_a_token():
    size = published_sizes()["step-audio-2-mini"]
    load = Load(questions=100, batch=1, seconds=4.0)
    full, *_, triple = ROWS["step-audio-2-mini"]
    tokens = 100 * 4.0 * 25 * 5 / 4  # four units and a text token, 25 units a second
    for row, depth in ((full, 28), (triple, (28 + 4 * 25) / 5)):
        read = depth * 2 * size.layer_weights + 2 * size.width * size.vocabulary
        read_hours = tokens * read / A100.bytes_per_second / 3600
        hours = row_hours(size, row, load, A100)
        # half of the bandwidth, and the keys and values
        assert read_hours / 0.5 < hours < 1.02 * read_hours / 0.5
    slow = row_hours(size, full, replace(load, compiled=False), A100)
    assert slow == pytest.approx(tokens * 28 * 0.87e-3 / 3600)


def test_more_machines_and_known_speeds():
    size, rows = published_sizes()["glm-4-voice"], ROWS["glm-4-voice"]
    one = estimate(size, rows, Load())
    two = estimate(size, rows, Load(processes=2))
    hours = {stage.name: stage.hours for stage in one.stages}
    assert {s.name: s.hours for s in two.stages}["decoding"] == pytest.approx(hours["decoding"] / 2)
    assert hours["judge"] is hours["vocoder, recognition, rating"] is None
    known = estimate(size, rows, Load(workers=4), reply_seconds={"vocoder": 2.0, "judge": 0.36})
    hours = {stage.name: stage.hours for stage in known.stages}
    assert hours["judge"] == pytest.approx(24_990 * 0.36 / 3600)
    assert hours["vocoder, recognition, rating"] == pytest.approx(24_990 * 2.0 / 4 / 3600)
    # weights, six heads and one depth of fitting: they fit on a device of 80 GB
    assert sum(one.memory.values()) < 60e9
    assert "| together |" in one.tables()
    assert one.tables().count("estimate") == 2


def test_the_command_prints_both_models(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["table2_estimate", "--questions", "10", "--bandwidth", "4e12"])
    table2_estimate.main()
    printed = capsys.readouterr().out
    assert printed.count("on the given machine") == 2
    assert "glm-4-voice" in printed


def test_models_check_prints_the_estimate_at_full_size(tmp_path):
    from eepolicy.cli.models import _estimates

    for config, lines in ((GLM, 2), (STEP, 2), (GLM | {"num_layers": 4}, 0)):
        (tmp_path / "config.json").write_text(json.dumps(config))
        told = _estimates(tmp_path)
        assert len(told) == lines
        assert all(line.startswith("Estimate: ") for line in told)
