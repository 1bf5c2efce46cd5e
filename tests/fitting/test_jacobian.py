"""The Jacobian lens: against derivatives of the stock model, and the published format."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYERS, layers_of, plain_lens, tiny

from eepolicy import Document, EepolicyError
from eepolicy.fitting import fit_jacobian, read_jacobian_lens

SKIP = 3
IDS = [torch.randint(60, (n,), generator=torch.Generator().manual_seed(n)) for n in (9, 7)]


def naive(stock, ids: torch.Tensor, depth: int) -> torch.Tensor:
    """The mean Jacobian of one document from one depth, by forward-mode differences.

    A hook adds a small change to the states after `depth` layers, one position and one direction
    at a time; the changes of all later states of the last layer are added.
    """
    layers = layers_of(stock)
    captured: list[torch.Tensor] = []
    change = torch.zeros(len(ids), 32, dtype=torch.float64)

    def disturb(module, args, out):
        return (out[0] + change, *out[1:]) if isinstance(out, tuple) else out + change

    def capture(module, args, out):
        captured.append((out[0] if isinstance(out, tuple) else out)[0])

    hooks = [layers[depth - 1].register_forward_hook(disturb)]
    hooks.append(layers[-1].register_forward_hook(capture))
    total, step, valid = torch.zeros(32, 32, dtype=torch.float64), 5e-3, range(SKIP, len(ids) - 1)
    with torch.no_grad():
        for position in valid:
            for direction in range(32):
                ends = []
                for sign in (1, -1):
                    change.zero_()[position, direction] = sign * step
                    stock(ids[None])
                    ends.append(captured.pop()[valid.start : valid.stop].sum(0))
                total[:, direction] += (ends[0] - ends[1]) / (2 * step)
    for hook in hooks:
        hook.remove()
    return total / len(valid)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_is_the_mean_derivative_of_the_stock_model(family, hooked):
    lens = fit_jacobian(hooked, [Document(ids) for ids in IDS], [4], skip=SKIP, rows=5)
    double = tiny(family, dtype=torch.float64)
    expected = sum(naive(double, ids, 4) for ids in IDS) / 2
    jacobian = lens.at(4).weight.double() + torch.eye(32)
    assert (expected - torch.eye(32)).norm() > 1  # not the identity
    # measured 5e-5, of differences in float32 norms
    torch.testing.assert_close(jacobian, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama"])
def test_a_lens_reads_the_transported_state(hooked, stock, tmp_path):
    documents = [Document(ids) for ids in IDS]
    lens = fit_jacobian(hooked, documents, skip=SKIP)
    assert lens.depths == tuple(range(1, LAYERS))
    hidden = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    jacobians = {d: lens.at(d).weight + torch.eye(32) for d in lens.depths}
    with torch.no_grad():
        expected = plain_lens(stock, hidden @ jacobians[3].T)
        torch.testing.assert_close(lens.logits(hidden, 3), expected, rtol=1e-4, atol=1e-4)
        # the published format: matrices in half precision by layer from 0, the last one included
        stored = {depth - 1: each.half() for depth, each in jacobians.items()}
        stored[LAYERS - 1] = torch.eye(32).half()
        torch.save({"J": stored, "n_prompts": 2, "d_model": 32}, tmp_path / "lens.pt")
        again = read_jacobian_lens(tmp_path / "lens.pt", hooked)
        assert again.depths == lens.depths
        torch.testing.assert_close(again.logits(hidden, 3), expected, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("family", ["llama"])
def test_invalid_jacobian_lenses_are_refused(hooked, tmp_path):
    file = tmp_path / "lens.pt"
    for stored, match in (
        ({"W": {}}, "no matrices 'J'"),
        ({"J": {0: torch.eye(31)}}, r"needs matrices \(32, 32\).* has \(31, 31\) at layer 0"),
        ({"J": {6: torch.eye(32)}}, "has layers 0 to 5"),
    ):
        torch.save(stored, file)
        with pytest.raises(EepolicyError, match=match):
            read_jacobian_lens(file, hooked)
    file.write_bytes(b"no tensors")
    with pytest.raises(EepolicyError, match="cannot be read as a Jacobian lens"):
        read_jacobian_lens(file, hooked)
    with pytest.raises(EepolicyError, match="no document has more than 17 tokens"):
        fit_jacobian(hooked, [Document(IDS[0])])
    with pytest.raises(EepolicyError, match="depths 1 to 5; got"):
        fit_jacobian(hooked, [Document(IDS[0])], [6], skip=1)
