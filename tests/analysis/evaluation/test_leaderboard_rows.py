"""The list of the leaderboard against the registries."""

from __future__ import annotations

from functools import cache

import pytest
from conftest import own_plugins

from eepolicy.analysis.evaluation.leaderboard_rows import LEFT_OUT, POLICIES_LEFT_OUT, ROWS
from eepolicy.analysis.evaluation.rows import parse_row
from eepolicy.decode.acceptance import ACCEPTANCE_RULES
from eepolicy.decode.config import EarlyExitConfig
from eepolicy.decode.fills import FILLS
from eepolicy.policies import POLICIES, ByModality


@pytest.fixture(scope="module")
def names() -> dict[str, list[str]]:
    """Names of the built-in plug-ins."""
    kinds = {"policy": POLICIES, "fill": FILLS, "accept": ACCEPTANCE_RULES}
    return {kind: list(own_plugins(table)) for kind, table in kinds.items()}


def test_there_are_few_rows_and_full_depth_is_first():
    assert ROWS[0] == "full"
    assert len(ROWS) <= 24
    specs = [parse_row(row).spec for row in ROWS]
    assert len(set(specs)) == len(specs)
    assert specs == list(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_rows_fit_the_pocket_model(row, pocket):
    config = parse_row(row).decoding(EarlyExitConfig())
    config.validate(pocket.depth, pocket.layout, pocket.vocoder)


def test_every_built_in_policy_has_a_row(names):
    rows = [parse_row(row) for row in ROWS]
    policies = [row.policy for row in rows]
    both = [p for p in policies if isinstance(p, ByModality)]
    assert both
    policies += [part for p in both for part in (p.text, p.speech)]
    assert {p.name for p in policies if p.name} >= set(names["policy"]) - set(POLICIES_LEFT_OUT)


def test_the_reasons_of_policies_without_a_row(pocket):
    left_out = {"draft", "drift", "predictor", "dynamic-draft", "steady", "silence"}
    assert set(POLICIES_LEFT_OUT) == left_out
    assert pocket.predictor is None
    assert parse_row("dynamic-draft@6").policy.needs_verification


def test_every_fill_and_acceptance_rule_has_one_row_on_triple(names):
    shared = EarlyExitConfig()
    configs = [parse_row(row).decoding(shared) for row in ROWS]
    triple = [c for c in configs if c.policy.spec == "spark:triple@14"]
    plain = (shared.fill.name, shared.accept.name)
    combinations = [(c.fill.name, c.accept.name) for c in triple]
    expected = [plain]
    expected += [(name, plain[1]) for name in names["fill"] if name != plain[0]]
    kept = set(names["accept"]) - set(LEFT_OUT) - {plain[1]}
    expected += [(plain[0], name) for name in kept]
    assert sorted(combinations) == sorted(expected)
    assert all(c in triple for c in configs if (c.fill.name, c.accept.name) != plain)


@pytest.fixture(scope="module")
def reply(pocket):
    """The reply by an acceptance rule, decoded once."""
    return cache(
        lambda rule: pocket.generate("What color is snow?", "spark:triple@14", 24, accept=rule)
    )


@pytest.mark.parametrize(
    ("rule", "equal"),
    [
        ("sampling", "exact"),
        ("block", "exact"),
        ("tolerance:0.2", "exact"),
        ("groups:20", "acoustic:20"),
    ],
)
def test_rules_without_a_row_equal_another_in_greedy_decoding(reply, rule, equal):
    """The reasons in `LEFT_OUT`."""
    name = rule.split(":")[0]
    assert LEFT_OUT[name].endswith(f"equals accept={equal.split(':')[0]}")
    first, second = reply(rule), reply(equal)
    assert first.tokens.tolist() == second.tokens.tolist()
    assert first.trace.layer_calls.tolist() == second.trace.layer_calls.tolist()


def test_all_reasons_but_one_claim_a_tested_equality():
    untested = {name for name, why in LEFT_OUT.items() if "equals" not in why}
    assert untested == {"regret"}
