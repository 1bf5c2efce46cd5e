"""`EarlyExitConfig`: one object for all options, checked when it is built and against a model."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest
import torch
from conftest import LAYERS, LAYOUT, tiny
from hypothesis import given
from hypothesis import strategies as st

from eepolicy import (
    Acceptance,
    EarlyExitConfig,
    EepolicyError,
    Entropy,
    HookedModel,
    KVFill,
    SparK,
    Static,
    TokenLayout,
    policies,
)
from eepolicy.decode import acceptance, fills
from eepolicy.decode.acceptance import AcceptAll, AcceptExact, AcceptRatio, AcceptTop
from eepolicy.decode.fills import CatchUp, Mask, Propagate
from eepolicy.policies import FullDepth

configs = st.one_of(
    st.builds(
        EarlyExitConfig,
        policy=st.sampled_from([FullDepth(), Static(2), SparK("triple", 3), Entropy(0.5, (2, 4))]),
        fill=st.just(CatchUp()),
        max_pending=st.none() | st.integers(1, 9),
        rebatch=st.sampled_from(["never", "always", "auto"]) | st.floats(0, 1),
        restrict_vocab=st.booleans(),
        compile=st.booleans(),
        record=st.booleans(),
        seed=st.integers(0, 2**40),
    ),
    st.builds(
        EarlyExitConfig, policy=st.just(Static(2)), fill=st.sampled_from([Mask(), Propagate()])
    ),
    st.builds(
        EarlyExitConfig,
        accept=st.sampled_from([AcceptExact(), AcceptTop(3), AcceptRatio(0.25)]),
        max_pending=st.none() | st.integers(1, 9),
    ),
)


@given(configs)
def test_json_and_repr_round_trip(config):
    assert EarlyExitConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    names = {**vars(policies), **vars(acceptance), **vars(fills)}
    assert eval(repr(config), {"EarlyExitConfig": EarlyExitConfig, **names}) == config


def test_spec_strings_become_objects():
    config = EarlyExitConfig("spark:triple@3", "propagate", "all")
    assert (config.policy, config.fill) == (SparK("triple", 3), Propagate())
    assert config.accept == AcceptAll()
    assert config == EarlyExitConfig(SparK("triple", 3), Propagate(), AcceptAll())
    with pytest.raises(FrozenInstanceError):
        config.seed = 3
    assert config.replace(fill="mask").fill == Mask()
    assert config.fill == Propagate()


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"policy": 3}, "policy is a spec string or an instance of ExitPolicy; got 3"),
        ({"fill": CatchUp}, "fill is a spec string or an instance of KVFill; got <class"),
        ({"accept": "exactly"}, "'exactly' is no acceptance rule"),
        ({"max_pending": 0}, "max_pending: expected 1 or more; got 0"),
        ({"max_pending": True}, "max_pending: expected a valid integer; got True"),
        ({"max_pending": 2.5}, "max_pending: expected a valid integer; got 2.5"),
        ({"rebatch": True}, "rebatch: expected a valid string or a valid number; got True"),
        ({"rebatch": -0.1}, "rebatch is 'never', 'always', 'auto' or a share"),
        ({"fill": "propagate", "max_pending": 3}, "use fill='catch_up'"),
    ],
)
def test_wrong_values_are_refused_when_the_config_is_built(values, match):
    with pytest.raises(EepolicyError, match=match):
        EarlyExitConfig(**values)


@pytest.mark.parametrize(
    ("values", "layout", "match"),
    [
        ({"policy": "static@7"}, LAYOUT, "depths 1 to 6"),
        ({"policy": "static@2"}, TokenLayout.text_only(60), "acts on speech"),
        ({"restrict_vocab": True}, TokenLayout.text_only(60), "needs a model with speech"),
        ({"accept": "acoustic:2"}, LAYOUT, "a model whose vocoder has a codebook"),
    ],
)
def test_a_config_that_does_not_fit_the_model_is_refused(values, layout, match):
    with pytest.raises(EepolicyError, match=match):
        EarlyExitConfig(**values).validate(LAYERS, layout)


def test_generate_takes_a_config_and_arguments_override_it():
    hooked = HookedModel(tiny("llama"), layout=LAYOUT)
    prompt = torch.tensor([1, 7, 30])
    config = EarlyExitConfig("both=static@2", fill="mask", seed=3)
    by_config = hooked.generate(prompt, config=config, max_new_tokens=20)
    by_arguments = hooked.generate(prompt, "both=static@2", max_new_tokens=20, fill="mask", seed=3)
    assert by_config.tokens.tolist() == by_arguments.tokens.tolist()
    assert set(by_config.trace.depth) == {2}
    override = hooked.generate(prompt, "both=static@4", config=config, max_new_tokens=20)
    assert set(override.trace.depth) == {4}


class Nothing(KVFill):
    """Of no spec string."""

    def on_exit(self, batch, block) -> None:
        batch.mask_out(block, block.depth)
        batch.mark_computed(block)


class Never(Acceptance):
    """Rejects every draft."""

    def accepts(self, drafts):
        return drafts.tokens < 0


def test_fills_and_rules_of_users_decode():
    hooked = HookedModel(tiny("llama"), layout=LAYOUT)
    prompt = torch.tensor([1, 7, 30])
    options = {"policy": "both=static@2", "max_new_tokens": 25}
    masked = hooked.generate(prompt, fill="mask", **options)
    assert (
        hooked.generate(prompt, fill=Nothing(), **options).tokens.tolist() == masked.tokens.tolist()
    )
    full = hooked.generate(prompt, max_new_tokens=25)
    rejected = hooked.generate(prompt, accept=Never(), **options)
    assert rejected.tokens.tolist() == full.tokens.tolist()
    assert (rejected.trace.draft_status == 2).all()
