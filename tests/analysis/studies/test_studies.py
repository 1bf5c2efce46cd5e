"""The studies: statistics against scipy and simulated truths, the others by arithmetic."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import LAYOUT, tiny
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eepolicy import Document, HookedModel, Modality, ProbeResult, probe
from eepolicy.analysis.stats.tests import (
    holm,
    paired_effect,
    prompts_needed,
    sign_flip,
    superiority,
)
from eepolicy.analysis.studies.acceptance import acceptance_sweep
from eepolicy.analysis.studies.base import BatchOptions
from eepolicy.analysis.studies.calibration import reliability
from eepolicy.analysis.studies.fixed_depth import fixed_depth_readout
from eepolicy.analysis.studies.heads import head_gain
from eepolicy.analysis.studies.layers import token_statistics
from eepolicy.analysis.studies.lenses import LensComparison, compare_lenses
from eepolicy.analysis.studies.positions import by_position, chunk_positions
from eepolicy.analysis.studies.sequences import (
    cut_to,
    describe,
    entropy_bits,
    jackknife,
    sequence_statistics,
    zipf_slope,
)
from eepolicy.analysis.studies.spoken_words import exit_depths
from eepolicy.heads import TunedLens
from eepolicy.speech.units import Units


class Words:
    """A tokenizer for the tiny models."""

    def __call__(self, text, add_special_tokens):
        return type("Encoding", (), {"input_ids": [5 + ord(c) % 15 for c in text]})

    def decode(self, ids):
        return " ".join(f"w{i}" for i in ids.tolist())


def speaker(family: str = "llama") -> HookedModel:
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(40, 320, generator=generator)
    return HookedModel(tiny(family), layout=LAYOUT, tokenizer=Words(), vocoder=Units(codebook))


@given(st.integers(0, 100))
def test_sign_flips_are_scipys(seed):
    rng = np.random.default_rng(seed)
    differences = rng.normal(0.4, 1, (9, 2))
    ours = sign_flip(differences, resamples=25_000)
    for column in range(2):
        exact = stats.permutation_test(
            (differences[:, column],), np.sum, permutation_type="samples", n_resamples=np.inf
        )
        # scipy's is exact over all 512 sign patterns; ours draws them: a deviation of 0.0035
        assert ours[column] == pytest.approx(exact.pvalue, abs=0.02)


def test_sign_flips_have_the_right_error_rate_and_power():
    rng = np.random.default_rng(1)
    null = rng.normal(0, 1, (30, 400))
    false = (sign_flip(null, resamples=999) < 0.05).mean()
    assert false == pytest.approx(0.05, abs=0.033)  # three deviations of 400 draws
    shifted = rng.normal(0.5, 1, (30, 400))
    measured = (sign_flip(shifted, resamples=999) < 0.05).mean()
    power = stats.nct.sf(stats.t.ppf(0.975, 29), 29, 0.5 * 30**0.5)
    assert measured == pytest.approx(power, abs=0.07)
    assert prompts_needed(shifted[:, 0]) > 2


def test_holm_by_hand():
    adjusted = holm([[0.01, 0.04], [0.03, 0.005]])
    np.testing.assert_allclose(adjusted, [[0.03, 0.06], [0.06, 0.02]])
    assert (holm(np.full(5, 0.4)) == 1.0).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_and_keeps_the_order(p):
    adjusted = holm(p)
    assert (adjusted >= np.array(p) - 1e-12).all()
    order = np.argsort(p)
    assert (np.diff(adjusted[order]) >= -1e-12).all()


@given(st.integers(0, 200))
def test_superiority_is_mann_whitneys(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 6, 14), rng.integers(0, 8, 9)
    statistic = stats.mannwhitneyu(first, second).statistic
    assert superiority(first, second) == pytest.approx(statistic / (14 * 9))
    assert superiority(first, second) == pytest.approx(1 - superiority(second, first))


def test_prompts_needed_is_enough():
    """As many prompts as it says find the difference about as often as it says."""
    rng = np.random.default_rng(0)
    needed = int(prompts_needed(rng.normal(0.3, 1, 100_000)))
    assert needed == pytest.approx((1.96 + 0.8416) ** 2 / 0.3**2, rel=0.05)
    drawn = rng.normal(0.3, 1, (2000, needed))
    measured = (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean()
    assert measured == pytest.approx(0.8, abs=0.04)
    assert np.isnan(prompts_needed([1.0]))
    assert prompts_needed([0.0, 0.0, 0.0]) == np.inf


def simulated(shift: float, seed: int) -> ProbeResult:
    """Twenty documents of text and speech whose entropies differ by a shift, documents varying."""
    rng = np.random.default_rng(seed)
    documents, each, depths = 20, 30, 3
    document = np.repeat(np.arange(documents), each)
    modality = np.tile(np.arange(each) % 2, documents)
    own = rng.normal(0, 1, documents)[document]
    entropy = own[:, None] + rng.normal(0, 0.5, (len(document), depths)) + 5
    entropy[modality == 1] += shift
    columns = {
        "document": document,
        "modality": modality,
        "token": document,
        "entropy": entropy,
        "top1": rng.integers(0, 2, (len(document), depths)),
    }
    return ProbeResult(np.arange(1, depths + 1), columns, full_depth=3, vocabulary=9)


def test_real_differences_are_detected_and_false_ones_are_rare():
    measured = token_statistics(simulated(0.3, 0))
    rows = measured.tests.loc["entropy"]
    assert rows.difference.to_numpy() == pytest.approx(np.full(3, 0.3), abs=0.1)
    assert (rows.p_holm < 0.05).all()
    false = [
        (token_statistics(simulated(0.0, seed)).tests.p_holm < 0.05).any() for seed in range(40)
    ]
    assert sum(false) <= 6  # two expected at most, over all rows of all of them; measured 4
    # between documents the spread is larger than the shift: without pairs it does not show
    assert measured.levels["entropy"]["speech"].low[0] < measured.levels["entropy"]["text"].high[0]


def test_effects_are_arithmetic():
    differences = np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 2.0]])
    effect = paired_effect(differences)
    assert effect[0] == pytest.approx(2.0)
    assert np.isinf(effect[1])


def test_token_statistics_of_a_model():
    hooked = speaker()
    outs = [hooked.generate(q, max_new_tokens=40) for q in ("cat", "a horse", "it", "snow")]
    result = probe(hooked, outs)
    measured = token_statistics(result)
    spoken = result.modality == 1
    for measure in ("entropy", "kl", "cosine_last"):
        expected = getattr(result, measure)[:, spoken].mean(1)
        np.testing.assert_allclose(measured.levels[measure]["speech"].value, expected, rtol=1e-5)
    auc = stats.mannwhitneyu(result.entropy[2, spoken], result.entropy[2, ~spoken]).statistic
    assert measured.tests.loc[("entropy", 3)].superiority == pytest.approx(
        auc / spoken.sum() / (~spoken).sum()
    )
    # at full depth, what compares with the last layer is not tested
    assert len(measured.table().splitlines()) == 2 + 4 * len(measured.levels) - 5
    assert ("kl", 6) not in measured.tests.index
    positions = by_position(result, result.entropy[-1], "speech", 7)
    third = result.entropy[-1][spoken & (result.phase == 2)]
    assert positions.value[2] == pytest.approx(third.mean())
    chunks = chunk_positions(result, 3, {"text": 3, "speech": 7})
    assert len(chunks.figure().axes) == 2
    assert len(chunks.table().splitlines()) == 2 + 7
    rows = chunks.to_pandas().set_index(["modality", "position"])
    assert rows.entropy["speech", 2] == positions.value[2]
    lines = measured.figure().axes[0].get_lines()
    np.testing.assert_allclose(lines[1].get_ydata(), measured.levels["entropy"]["speech"].value)


def test_reliability_of_known_confidence():
    """Right as often as it is sure: no error; right half as often: half of the confidence."""
    rng = np.random.default_rng(0)
    tokens = 40_000
    sure = rng.uniform(0.05, 0.95, (tokens, 1))
    for share in (1.0, 0.5):
        agree = rng.random((tokens, 1)) < share * sure
        columns = {
            "document": np.arange(tokens) // 40,
            "modality": np.ones(tokens, int),
            "token": np.zeros(tokens, int),
            "confidence": np.concatenate([sure, np.ones_like(sure)], 1),
            "top1": np.concatenate([agree, np.ones_like(agree)], 1).astype(int),
        }
        result = ProbeResult(np.array([1, 2]), columns, full_depth=2, vocabulary=9)
        measured = reliability(result, resamples=20)
        expected = (1 - share) * sure.mean()
        assert measured.ece["speech"][0].value == pytest.approx(expected, abs=0.01)
        auc = stats.mannwhitneyu(sure[agree], sure[~agree]).statistic
        assert measured.auc["speech"][0].value == pytest.approx(auc / agree.sum() / (~agree).sum())
        assert measured.ece["speech"][0].low <= max(expected, 0.002)
        assert measured.ece["speech"][0].high >= expected - 0.01
        assert measured.ideal["speech"] == 0
        assert measured.auc["speech"][0].low < measured.auc["speech"][0].value
        assert measured.curves["speech"][0, :, 2].sum() == tokens
    assert "text" not in measured.ece


def test_sequences_by_hand():
    measured = describe([[1, 1, 1, 2], [3, 1]], [[0.4, 0.1, 0.3, 0.2], [0.6, 0.5]])
    assert measured["tokens"] == 6
    assert measured["types"] == 3
    assert measured["repeats"] == 2 / 4
    assert measured["run"] == 6 / 4
    assert measured["documents"] == 2
    assert measured["once"] == 2 / 3
    plain = stats.entropy([4, 1, 1], base=2)
    assert entropy_bits(Counter({1: 4, 2: 1, 3: 1})) == pytest.approx(
        plain + 2 / (2 * 6) / np.log(2)
    )
    assert cut_to([[1, 2, 3], [4, 5], [6]], 4) == [[1, 2, 3], [4]]


def test_jackknife_is_the_standard_error_of_a_mean():
    values = np.random.default_rng(0).normal(size=40)
    without = [np.delete(values, i).mean() for i in range(40)]
    measured = jackknife(values.mean(), without)
    assert (measured.high - measured.low) / 2 == pytest.approx(1.96 * stats.sem(values))


def test_sequences_of_known_sources():
    rng = np.random.default_rng(0)
    uniform = [rng.integers(0, 64, 100).tolist() for _ in range(200)]
    # each token is followed by one of two: one bit, whatever its own entropy
    chain = []
    for _ in range(100):
        tokens = [int(rng.integers(0, 64))]
        for _ in range(149):
            tokens.append((3 * tokens[-1] + int(rng.integers(0, 2))) % 64)
        chain.append(tokens)
    measured = sequence_statistics({"text": uniform, "speech": chain})
    text, speech = measured.statistics["text"], measured.statistics["speech"]
    assert text["tokens"].value == speech["tokens"].value == 15_000
    assert text["unigram"].value == pytest.approx(6, abs=0.01)
    assert text["conditional"].value == pytest.approx(6, abs=0.15)
    assert speech["conditional"].value == pytest.approx(1, abs=0.02)
    # a shuffled sequence is not predictable; with few tokens it looks predictable
    assert speech["shuffled"].value == pytest.approx(6, abs=0.15)
    few = describe([rng.integers(0, 2000, 500).tolist()], [rng.random(500).tolist()])
    assert few["conditional"] == pytest.approx(few["shuffled"], abs=0.1)
    assert few["conditional"] < 3
    alone = sequence_statistics({"text": [[1, 2]], "speech": [[3] * 9]})
    assert np.isnan(alone.statistics["speech"]["types"].low)
    frequencies = 1e5 / np.arange(1, 300) ** 1.3
    assert zipf_slope(frequencies) == pytest.approx(-1.3, abs=1e-6)
    assert np.isnan(zipf_slope(np.array([2.0, 1.0])))


class Recognizer:
    """Transcribes any audio of two units' length as one word."""

    def transcribe(self, wave):
        return " ".join(["word"] * (len(wave) // 1280))


def test_fixed_depth_readout_agrees_with_the_probe():
    hooked = speaker()
    outs = [hooked.generate(q, max_new_tokens=40) for q in ("cat", "a horse", "it")]
    measured = fixed_depth_readout(hooked, outs, [2, 4], asr=Recognizer())
    full = measured.rows[measured.rows.depth == 6]
    assert (full.same == full.units).all()
    assert (full.distance == 0).all()
    result = probe(hooked, outs, statistics=("top1",))
    spoken = (result.next >= LAYOUT.speech[0]) & (result.next < LAYOUT.speech[1])
    spoken &= result.modality == 1
    for depth in (2, 4):
        row = measured.rows[measured.rows.depth == depth]
        assert row.units.sum() == spoken.sum()
        assert row.same.sum() == result.agreement[depth - 1, spoken].sum()
        value = measured.to_pandas().set_index("depth").agreement[depth]
        assert value == pytest.approx(100 * result.agreement[depth - 1, spoken].mean())
    assert "DistillMOS" not in measured.table()
    assert len(measured.figure().axes) == 3


@pytest.mark.usefixtures("quick_sound")
def test_the_acceptance_sweep_ends_without_loss():
    hooked = speaker()
    questions = [{"question": q, "keys": ["word"]} for q in ("cat", "a horse", "it", "snow")]
    measured = acceptance_sweep(
        hooked,
        questions,
        "static@3",
        settings=("all", "top:3", "exact"),
        asr=Recognizer(),
        options=BatchOptions(size=3, max_new_tokens=20),
    )
    edited, calls = measured.by_rule("edit_share"), measured.by_rule("layer_calls")
    assert edited["full"].value == edited["exact"].value == 0
    assert edited["all"].value > 0
    assert calls["full"].value == 6
    accepted = measured.by_rule("accepted")
    assert np.isnan(accepted["full"].value)
    assert accepted["all"].value == 100
    assert accepted["exact"].value < accepted["top:3"].value < 100
    assert len(measured.table().splitlines()) == 2 + 4
    assert measured.to_pandas().set_index("accept").layer_calls["full"] == 6
    assert len(measured.figure().axes) == 2


def test_head_gain_equals_the_difference_of_two_probes():
    hooked = speaker()
    outs = [hooked.generate(q, max_new_tokens=30) for q in ("cat", "a horse", "it")]
    heads = TunedLens.untrained(hooked.lens, range(1, 6), width=32)
    with torch.no_grad():
        for depth in heads.depths:
            heads.at(depth).bias += 0.5
    documents = [Document(torch.cat([o.prompt, o.tokens]), len(o.prompt)) for o in outs]
    measured = head_gain(hooked, documents, heads)
    lens, fitted = probe(hooked, outs, heads=hooked.lens), probe(hooked, outs, heads=heads)
    spoken = lens.modality == 1
    np.testing.assert_allclose(
        measured.gain["kl"]["speech"].value,
        (fitted.kl - lens.kl)[:-1, spoken].mean(1),
        rtol=1e-4,
        atol=1e-6,
    )
    assert measured.measure_table("gap").count("\n") == 8
    rows = measured.to_pandas().set_index(["measure", "modality", "depth"])
    assert rows.gain["kl", "speech", 2] == measured.gain["kl"]["speech"].value[1]
    assert len(measured.figure().axes) == 3


@pytest.mark.parametrize("family", ["llama"])
def test_lenses_are_compared_at_the_same_depths(hooked):
    prompts = [torch.arange(5, 9), torch.arange(6, 12)]
    replies = [Document.of(o) for o in hooked.generate(prompts, max_new_tokens=30)]
    study = LensComparison(compare_lenses(hooked, replies, {"Jacobian lens": hooked.lens}))
    frame = study.to_pandas().set_index(["lens", "modality", "depth"])
    plain = probe(hooked, replies)
    for depth in exit_depths(hooked)[:-1]:
        for modality in Modality:
            own = plain[plain.modality == modality]
            row = frame.loc[("logit lens", modality.name.lower(), depth)]
            assert row.agreement == pytest.approx(100 * own.agreement[depth - 1].mean())
            assert row.kl == pytest.approx(own.kl[depth - 1].mean(), rel=1e-4)
    same = frame.loc["Jacobian lens"] - frame.loc["logit lens"]
    assert (same.abs() < 1e-9).all(axis=None)
    assert study.table().count("| depth | logit lens | Jacobian lens |") == 2
    assert [t.get_text() for t in study.figure().legends[0].get_texts()] == [
        "logit lens",
        "Jacobian lens",
    ]
