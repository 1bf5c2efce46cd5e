"""Rows of a comparison: policies with their own options."""

from __future__ import annotations

import pytest

from eepolicy import EepolicyError, SparK
from eepolicy.analysis.evaluation.rows import Row, parse_row
from eepolicy.decode.config import EarlyExitConfig

MINE = """
import torch
from eepolicy import ExitPolicy

class Middle(ExitPolicy):
    def __init__(self, depth, chunk=16):
        super().__init__()
        self.depth, self.chunk = depth, chunk

    def depths(self, step):
        return torch.full_like(step.phase, self.depth)
"""


@pytest.mark.parametrize(
    ("text", "policy", "own"),
    [
        ("static@16", "static@16", {}),
        ("spark:triple@14, fill=mask", "spark:triple@14", {"fill": "mask"}),
        ("static@3,accept=ratio:0.3", "static@3", {"accept": "ratio:0.3"}),
        (
            "entropy<1.22@[12,14,16], fill=catch_up, accept=exact",
            "entropy<1.22@[12,14,16]",
            {"fill": "catch_up", "accept": "exact"},
        ),
        ("text=static@18,speech=spark:even@12", "text=static@18,speech=spark:even@12", {}),
        (
            "text=static@18,speech=spark:even@12, fill=mask",
            "text=static@18,speech=spark:even@12",
            {"fill": "mask"},
        ),
    ],
)
def test_a_row_is_a_policy_and_its_options(text, policy, own):
    row = parse_row(text)
    assert (row.policy.spec, row.own) == (policy, own)
    assert parse_row(row.spec) == row
    config = row.decoding(EarlyExitConfig(max_pending=4) if not own else EarlyExitConfig())
    assert config.policy == row.policy
    assert (config.fill.spec, config.accept.spec) == (
        own.get("fill", "catch_up"),
        own.get("accept", "all"),
    )


def test_a_policy_is_a_row():
    policy = SparK("triple", exit_depth=14)
    assert parse_row(policy) == Row(policy)
    assert parse_row(policy).spec == "spark:triple@14"


def test_a_policy_of_a_file_keeps_its_arguments(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    text = f"{tmp_path / 'mine.py'}:Middle(12, chunk=8)"
    row = parse_row(f"{text}, fill=mask")
    assert (row.policy.depth, row.policy.chunk, row.fill) == (12, 8, "mask")
    assert row.spec == f"{text}, fill=mask"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("static@3, fill=mask, fill=mask", "a row sets fill once"),
        ("static@3, speed=2", "is no policy|unread|cannot"),
        ("fill=mask", "."),
    ],
)
def test_mistakes_are_errors(text, match):
    with pytest.raises(EepolicyError, match=match):
        parse_row(text)
    with pytest.raises(EepolicyError):
        parse_row("static@3, fill=copy").decoding(EarlyExitConfig())
