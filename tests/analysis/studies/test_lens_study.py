"""The comparison of lenses as a whole, on a tiny model."""

from __future__ import annotations

from functools import partial

import torch
from conftest import LAYOUT, plain_lens, tiny

from eepolicy import HookedModel
from eepolicy.analysis.studies import LensComparison, Workspace, base, lenses
from eepolicy.fitting import fit_jacobian, generate_replies
from eepolicy.heads import load_heads

QUESTIONS = [{"question": q, "keys": []} for q in ("cat", "a horse", "it")]
#: questions of the other split, on whose shortest replies the lens is fitted
DEV = [{"question": q} for q in ("a dog, a bird and a fish", "a cow", "is it", "snow is white")]


class Letters:
    """A tokenizer for the tiny model: one id for each letter."""

    def __call__(self, text, add_special_tokens):
        return type("Encoding", (), {"input_ids": [5 + ord(c) % 15 for c in text]})

    def decode(self, ids):
        return ""


def test_the_whole_comparison(tmp_path, monkeypatch):
    model = HookedModel(tiny("llama"), layout=LAYOUT, tokenizer=Letters())
    monkeypatch.setattr(base, "held_out", lambda split: {"dev": DEV}[split])
    monkeypatch.setattr(lenses, "JACOBIAN_REPLIES", 2)
    short = partial(generate_replies, max_new_tokens=30)
    monkeypatch.setattr(base, "generate_replies", short)
    study = LensComparison.run(Workspace.open(model, QUESTIONS, tmp_path))

    dev = short(model, [q["question"] for q in DEV])
    shortest = sorted(dev, key=lambda reply: len(reply.tokens))[:2]
    assert {len(r.tokens) for r in shortest} != {len(r.tokens) for r in dev}
    stored = load_heads(tmp_path / "jacobian.safetensors", model.lens, model.model)
    expected = fit_jacobian(model, shortest, stored.depths)
    for depth in stored.depths:  # stored in half precision
        torch.testing.assert_close(
            stored.at(depth).weight, expected.at(depth).weight, rtol=1e-3, atol=1e-3
        )

    # the agreement of the Jacobian lens, by the layers of the stock model
    agrees = []
    for reply in Workspace.open(model, QUESTIONS, tmp_path).replies:
        with torch.no_grad():
            states = model.model(reply.tokens[None], output_hidden_states=True).hidden_states
            hidden = states[3][0, reply.prompt - 1 : -1]
            jacobian = stored.at(3).weight.float() + torch.eye(32)
            early = plain_lens(model.model, hidden @ jacobian.T)
            last = model.model(reply.tokens[None]).logits[0, reply.prompt - 1 : -1]
        agrees.append(early.argmax(-1) == last.argmax(-1))
    rows = study.rows[(study.rows.lens == "Jacobian lens") & (study.rows.depth == 3)]
    assert rows.known.sum() == sum(map(len, agrees))
    assert rows.agreement.sum() == torch.cat(agrees).sum()

    assert set(study.rows.lens) == {"logit lens", "linear lens", "Jacobian lens", "fitted heads"}

    # another run reads the measurements; without them, it reads the lens
    monkeypatch.setattr(lenses, "fit_jacobian", None)
    assert LensComparison.run(Workspace.open(model, QUESTIONS, tmp_path)).table() == study.table()
    (tmp_path / "lenses.csv").unlink()
    assert LensComparison.run(Workspace.open(model, QUESTIONS, tmp_path)).table() == study.table()


def test_studies_with_other_numbers_of_development_questions_share_a_folder(tmp_path, monkeypatch):
    model = HookedModel(tiny("llama"), layout=LAYOUT, tokenizer=Letters())
    monkeypatch.setattr(base, "held_out", lambda split: {"dev": DEV}[split])
    monkeypatch.setattr(base, "generate_replies", partial(generate_replies, max_new_tokens=4))
    workspace = Workspace.open(model, QUESTIONS, tmp_path)
    counts = (4, 2)
    first = [workspace.development_replies(count) for count in counts]
    assert [len(replies) for replies in first] == [4, 2]
    # another call reads the stored replies
    monkeypatch.setattr(HookedModel, "generate", None)
    again = [workspace.development_replies(count) for count in counts]
    assert [[r.tokens.tolist() for r in replies] for replies in again] == [
        [r.tokens.tolist() for r in replies] for replies in first
    ]
