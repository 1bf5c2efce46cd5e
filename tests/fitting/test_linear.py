"""The linear lens: against NumPy's least squares on states of the stock model."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from conftest import LAYERS, layers_of, plain_lens

from eepolicy import Document, EepolicyError
from eepolicy.fitting import fit_jacobian, fit_linear

#: more positions than the width of the model, 32
DOCUMENTS = [
    Document(torch.randint(60, (n,), generator=torch.Generator().manual_seed(n)), prompt)
    for n, prompt in ((40, 3), (31, 5))
]


def states_of(stock, document: Document) -> dict[int, np.ndarray]:
    """States after each layer at the positions that predict the reply, from the stock model."""
    captured: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(
            lambda module, args, out: captured.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in layers_of(stock)
    ]
    with torch.no_grad():
        stock(document.tokens[None])
    for hook in hooks:
        hook.remove()
    at = slice(document.prompt - 1, len(document.tokens) - 1)
    return {d: each[0, at].double().numpy() for d, each in enumerate(captured, 1)}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_is_the_least_squares_map_of_the_stock_model(stock, hooked):
    lens = fit_linear(hooked, DOCUMENTS, [2, 4])
    assert lens.depths == (2, 4)
    states = [states_of(stock, document) for document in DOCUMENTS]
    for depth in lens.depths:
        inputs = np.concatenate([each[depth] for each in states])
        inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], 1)
        last = np.concatenate([each[LAYERS] for each in states])
        expected = np.linalg.lstsq(inputs, last, rcond=None)[0]
        head = lens.at(depth)
        # the map is not the identity, and its constant is not zero
        assert np.abs(expected[:-1] - np.eye(32)).max() > 0.1
        assert np.abs(expected[-1]).max() > 0.1
        fitted = head.weight.detach().double().numpy().T + np.eye(32)
        np.testing.assert_allclose(fitted, expected[:-1], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(head.bias.detach(), expected[-1], rtol=1e-3, atol=1e-3)
        hidden = torch.from_numpy(states[0][depth]).float()
        with torch.no_grad():
            mapped = torch.from_numpy(inputs[: len(hidden)] @ expected).float()
            logits = plain_lens(stock, mapped)
            torch.testing.assert_close(lens.logits(hidden, depth), logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama"])
def test_few_positions_give_the_last_states_themselves(stock, hooked):
    """Fewer positions than the width: the map is not unique, and fits all of them."""
    document = Document(torch.arange(12), 3)
    lens = fit_linear(hooked, [document])
    assert lens.depths == tuple(range(1, LAYERS))
    states = states_of(stock, document)
    mapped = lens.at(3).translate(torch.from_numpy(states[3]).float())
    # measured 2e-6
    np.testing.assert_allclose(mapped.detach(), states[LAYERS], atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("fit", [fit_linear, partial(fit_jacobian, skip=2)])
def test_embeddings_are_read_instead_of_ids(hooked, fit):
    embeddings = [hooked.parts.embed(document.tokens).detach() for document in DOCUMENTS]
    spoken = [
        Document(torch.zeros_like(document.tokens), document.prompt, embeddings=states)
        for document, states in zip(DOCUMENTS, embeddings, strict=True)
    ]
    lens, expected = fit(hooked, spoken, [2]).at(2), fit(hooked, DOCUMENTS, [2]).at(2)
    torch.testing.assert_close(lens.weight, expected.weight, rtol=0, atol=0)
    torch.testing.assert_close(lens.bias, expected.bias, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama"])
def test_wrong_inputs_are_refused(hooked):
    with pytest.raises(EepolicyError, match="one document or more"):
        fit_linear(hooked, [])
    with pytest.raises(EepolicyError, match="depths 1 to 5; got"):
        fit_linear(hooked, DOCUMENTS, [6])
