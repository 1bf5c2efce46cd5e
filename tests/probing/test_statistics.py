"""Statistics as pure functions: order, shared values, buffers, and statistics of users."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
import torch
from conftest import LAYERS, tiny
from torch import Tensor

import eepolicy
from eepolicy import EepolicyError, ProbeResult, Statistic, TokenLayout, probe
from eepolicy.probing import STATISTICS, LogitContext, StateContext
from eepolicy.probing.statistics import Extras, LastLayer
from eepolicy.probing.statistics.base import RESERVED
from eepolicy.probing.statistics.buffers import BufferPool
from eepolicy.probing.statistics.measure import LogitStatistics

OF_LOGITS = [s for s in STATISTICS.values() if s.of_logits]
LAYOUT = TokenLayout((0, 20), (20, 50), 3, 7, end_of_text=3, end=4)


def context(pool: BufferPool | None = None, seed: int = 0) -> LogitContext:
    generator = torch.Generator().manual_seed(seed)
    logits, last, deeper = 4 * torch.randn(3, 7, 50, generator=generator)
    following = torch.randint(50, (7,), generator=generator)
    lease = None if pool is None else pool.lease()
    extras = Extras(LAYOUT, LastLayer.of(deeper, keep_logs=False))
    return LogitContext(logits, logits.argmax(-1), following, LastLayer.of(last), lease, extras)


@pytest.mark.parametrize("buffered", [False, True])
def test_a_statistic_does_not_depend_on_those_before_it(buffered):
    """A statistic that overwrites what another one reads fails here, wherever it is added."""

    def pool() -> BufferPool | None:
        return BufferPool() if buffered else None

    alone = {s.name: s.compute(context(pool())) for s in OF_LOGITS}
    for first, second in itertools.permutations(OF_LOGITS, 2):
        shared = context(pool())
        first.compute(shared)
        assert torch.equal(second.compute(shared), alone[second.name]), (first.name, second.name)
    for order in (OF_LOGITS, OF_LOGITS[::-1]):
        shared = context(pool())
        values = {s.name: s.compute(shared) for s in order}
        assert all(torch.equal(values[name], alone[name]) for name in alone)


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("statistic", OF_LOGITS, ids=lambda s: s.name)
def test_a_statistic_leaves_the_shared_values_alone(statistic, buffered):
    shared = context(BufferPool() if buffered else None)
    for each in OF_LOGITS:  # every shared value is computed
        each.compute(shared)
    before = [tensor.clone() for tensor in shared.values()]
    statistic.compute(shared)
    assert len(before) == len(shared.values())
    for old, new in zip(before, shared.values(), strict=True):
        assert torch.equal(old, new)


def test_a_statistic_that_overwrites_shared_values_changes_the_next_one():
    """A guard of the two tests above: they can fail."""

    def careless(context: LogitContext) -> Tensor:
        return context.weights.mul_(2).sum(-1)

    right = STATISTICS["entropy"].compute(context())
    shared = context()
    careless(shared)
    assert not torch.equal(STATISTICS["entropy"].compute(shared), right)


def test_shared_values_are_computed_once():
    shared = context()
    for name in ("shifted", "weights", "scale", "entropy", "confidence", "log_normaliser"):
        assert getattr(shared, name) is getattr(shared, name)
    with pytest.raises(AttributeError):
        shared.logits = shared.weights


def test_buffers_that_have_another_owner_cannot_be_read():
    pool = BufferPool()
    first = context(pool)
    right = first.entropy.clone()
    assert first.entropy.equal(right)
    second = context(pool, seed=1)
    for name in ("entropy", "weights", "shifted", "mixture_entropy"):
        with pytest.raises(RuntimeError, match="another slice"):
            getattr(first, name)
    with pytest.raises(RuntimeError, match="another slice"):
        first.rank(first.next)
    assert not second.entropy.equal(right)
    # a smaller slice takes a part of the same memory
    weights = second.weights
    logits = second.logits[:3]
    third = LogitContext(logits, logits.argmax(-1), second.next[:3], None, pool.lease())
    assert third.weights.data_ptr() == weights.data_ptr()
    assert third.weights.shape == (3, 50)


@pytest.mark.parametrize("family", ["llama"])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_user_defined_statistics_are_computed_and_stored(hooked, tmp_path, compiled):
    if compiled and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")

    def collision(context: LogitContext) -> Tensor:
        return context.probabilities.square().sum(-1)

    def second(context: LogitContext) -> Tensor:
        return context.logits.topk(2).indices[:, 1]

    def total_variation(context: LogitContext) -> Tensor:
        return (context.log_probabilities - context.last.log_probabilities).abs().amax(-1)

    def surprise(context: LogitContext) -> Tensor:
        return -context.probability(context.next).log()

    def change(context: StateContext) -> Tensor:
        return (context.states - context.previous).norm(dim=-1)

    own = [
        Statistic(name="collision", description="collision probability", compute=collision),
        Statistic(
            name="second", description="second token", compute=second, integer=True, average="none"
        ),
        Statistic(
            name="furthest",
            description="largest change of a log-probability",
            compute=total_variation,
            unit="nats",
            compares_with="last",
            needs_last_logs=True,
        ),
        Statistic(
            name="surprise",
            description="surprise",
            compute=surprise,
            unit="nats",
            compares_with="next",
        ),
        Statistic(
            name="hit",
            description="whether the most likely token is the next one",
            compute=lambda context: context.top1 == context.next,
            compares_with="next",
        ),
        Statistic(
            name="change",
            description="change of the state",
            compute=change,
            compares_with="previous",
            of_states=True,
        ),
    ]
    ids = torch.randint(60, (9,), generator=torch.Generator().manual_seed(5))
    options = dict(distributions="all", hidden_states="all", top_k=2)
    result = probe(
        hooked, ids, statistics=["entropy", *own], save=tmp_path / "p", compile=compiled, **options
    )
    assert result.statistics == ("entropy", *(s.name for s in own))
    logs = np.asarray(result.distributions, float)
    np.testing.assert_array_equal(
        result.hit[:, :-1], result.top_tokens[:, :-1, 0] == ids[1:].numpy()
    )
    assert np.isnan(result.hit[:, -1]).all()
    np.testing.assert_allclose(result.collision, np.exp(2 * logs).sum(-1), rtol=1e-4)
    np.testing.assert_array_equal(result.second, result.top_tokens[..., 1])
    assert result.second.dtype == np.int64
    np.testing.assert_allclose(result.furthest, np.abs(logs - logs[-1]).max(-1), atol=1e-4)
    chosen = np.take_along_axis(logs[:, :-1], ids[None, 1:, None].numpy(), -1)[..., 0]
    np.testing.assert_allclose(result.surprise[:, :-1], -chosen, atol=1e-4)
    assert np.isnan(result.surprise[:, -1]).all()
    steps = np.diff(np.asarray(result.hidden_states), axis=0)
    np.testing.assert_allclose(result.change[1:], np.linalg.norm(steps, axis=-1), rtol=1e-4)
    # the user's statistics do not change those of the library
    plain = probe(hooked, ids, statistics=["entropy"], compile=compiled)
    # the first compiled call adds up in another order than later ones: measured 2e-6
    np.testing.assert_allclose(plain.entropy, result.entropy, rtol=0, atol=1e-5 if compiled else 0)
    # tables and plots show them, also after loading from a folder
    assert {"collision", "surprise"} <= {*result.by_modality().columns}
    assert "second" not in result.by_modality().columns
    axes = result.plot.layers("surprise").axes[0]
    assert axes.get_ylabel() == "surprise, nats"
    again = ProbeResult.load(tmp_path / "p", statistics=own)
    assert again.definition("surprise") is own[3]
    unknown = ProbeResult.load(tmp_path / "p")
    assert {*unknown.statistics} == {"entropy", *(s.name for s in own)}
    assert unknown.plot.layers("surprise").axes[0].get_ylabel() == "surprise"
    with pytest.raises(EepolicyError, match="another statistics"):
        probe(hooked, ids, statistics=["entropy"], save=tmp_path / "p", **options)


@pytest.mark.parametrize("family", ["llama"])
def test_a_users_statistic_in_a_record(hooked):
    mine = Statistic(
        name="largest",
        description="largest logit",
        compute=lambda context: context.logits.amax(-1),
    )
    out = hooked.generate(
        torch.arange(5), "static@3", 6, fill="mask", record={"statistics": [mine, "top1"]}
    )
    ran = out.record.top1 >= 0
    assert (np.isnan(out.record.largest) == ~ran).all()


@pytest.mark.parametrize("family", ["llama"])
@pytest.mark.parametrize(
    ("compute", "match"),
    [
        (lambda context: context.logits, r"one value a row, a tensor \(4,\); got \(4, 60\)"),
        (lambda context: 3.0, "one value a row, .* got 3.0"),
        (lambda context: context.weights.mul_(2).sum(-1), "wrote into a tensor"),
        (lambda context: context.logits.sort().values.zero_()[:, 0] * 0, None),
        (lambda context: context.logits.clamp_(0).sum(-1), "wrote into a tensor"),
        (lambda context: context.probability(context.last.top1), "declare Statistic.compares_with"),
        (lambda context: context.deeper.entropy, "next deeper depth is known only to statistics"),
        (lambda context: context.given_rank("word"), "declare them: Statistic.given='word'"),
    ],
)
def test_a_users_statistic_is_checked(hooked, compute, match):
    mine = Statistic(name="mine", description="mine", compute=compute)
    if match is None:  # a copy may be written to
        assert (probe(hooked, torch.arange(4), statistics=[mine]).mine == 0).all()
        return
    with pytest.raises(EepolicyError, match=match):
        probe(hooked, torch.arange(4), depths=[], statistics=["entropy", mine])


@pytest.mark.parametrize("family", ["llama"])
def test_undeclared_use_of_last_log_probabilities_is_refused(hooked):
    mine = Statistic(
        name="mine",
        description="mine",
        compute=lambda context: context.last.log_probabilities.amax(-1),
        compares_with="last",
    )
    with pytest.raises(EepolicyError, match="needs_last_logs=True"):
        probe(hooked, torch.arange(4), statistics=[mine])


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"name": "two words"}, "a Python identifier"),
        ({"name": "depths"}, "not used by a ProbeResult"),
        ({"compute": 3}, "compute: expected callable"),
        ({"compares_with": "previous"}, "of logits has compares_with"),
        ({"compares_with": "next", "of_states": True}, "of hidden states has compares_with"),
        ({"average": "mode"}, "average: expected"),
        ({"of_attention": True, "compares_with": "last"}, "of attention has compares_with"),
        ({"of_attention": True, "of_states": True}, "not both"),
        ({"of_states": True, "given": "word"}, "only a statistic of logits reads given tokens"),
    ],
)
def test_a_statistic_checks_its_fields(fields, match):
    with pytest.raises(EepolicyError, match=match):
        Statistic(**{"name": "mine", "description": "mine", "compute": len} | fields)


def test_reserved_names_are_those_of_a_result():
    columns = {"token": np.zeros(1, int)}
    result = ProbeResult(np.array([1]), columns, full_depth=1, vocabulary=2)
    # nnsight adds `save` to every object of the process that imported it
    own = set(object.__dir__(result)) - set(dir(object()))
    assert {name for name in own if not name.startswith("_")} <= RESERVED


@pytest.mark.parametrize("family", ["llama"])
def test_different_statistics_of_one_name_are_refused(hooked):
    mine = Statistic(name="entropy", description="mine", compute=len)
    for statistics in ([mine], ["entropy", mine]):
        with pytest.raises(EepolicyError, match="two statistics have the name 'entropy'"):
            probe(hooked, torch.arange(4), statistics=statistics)
    with pytest.raises(EepolicyError, match="got 7"):
        probe(hooked, torch.arange(4), statistics=[7])
    twice = probe(hooked, torch.arange(4), statistics=["entropy", STATISTICS["entropy"]])
    assert twice.statistics == ("entropy",)


def test_measure_without_the_last_layer():
    c = context()
    statistics = LogitStatistics(list(STATISTICS.values()))
    names = {*statistics.measure(c.logits, None, c.next, Extras(LAYOUT))}
    assert names == {s.name for s in OF_LOGITS if s.compares_with not in ("last", "deeper")}
    names = {*statistics.measure(c.logits, None, c.next, c.extras)}
    assert names == {s.name for s in OF_LOGITS if s.compares_with != "last"}


def test_a_stock_model_is_wrapped():
    stock = tiny("llama", 0)
    ids = torch.arange(5)
    plain, wrapped = probe(stock, ids), probe(eepolicy.wrap(stock), ids)
    np.testing.assert_array_equal(plain.entropy, wrapped.entropy)
    assert len(plain.depths) == LAYERS
    with pytest.raises(
        EepolicyError, match="expected a causal language model of transformers; got str"
    ):
        probe("llama", ids)
