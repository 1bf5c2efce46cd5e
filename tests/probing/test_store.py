"""Folders of a probe: stopped, resumed, of another probe, damaged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import LAYERS, tiny

from eepolicy import Document, EepolicyError, HookedModel, ProbeResult, probe
from eepolicy.heads import TunedLens


@pytest.mark.parametrize("family", ["llama"])
def test_a_stopped_probe_goes_on_from_its_folder(hooked, tmp_path):
    generator = torch.Generator().manual_seed(1)
    documents = [torch.randint(60, (n,), generator=generator) for n in (5, 9, 3, 8)]
    whole = probe(hooked, documents, hidden_states=[2], top_k=3)
    folder = tmp_path / "probe"

    def broken():
        yield from documents[:2]
        raise KeyboardInterrupt

    options = dict(hidden_states=[2], top_k=3, save=folder)
    with pytest.raises(KeyboardInterrupt):
        probe(hooked, broken(), **options)
    assert len(ProbeResult.load(folder)) == 14
    # a document that was only half written is cut off
    with open(folder / "entropy.npy", "ab") as file:
        file.write(b"\0" * 40)
    seen = []

    def shown(items):
        for item in items:
            seen.append(item)
            yield item

    passes = []
    hook = hooked.parts.layers[0].register_forward_hook(lambda *_: passes.append(1))
    result = probe(hooked, iter(documents), progress=shown, **options)
    hook.remove()
    assert len(seen) == 4
    assert len(passes) == 2  # the first two were not run again
    assert isinstance(result.columns["entropy"], np.memmap)
    again = ProbeResult.load(folder)
    for name, column in whole.columns.items():
        np.testing.assert_array_equal(result.columns[name], column, err_msg=name)
        np.testing.assert_array_equal(again.columns[name], column, err_msg=name)
    assert again.hidden_depths == (2,)
    with pytest.raises(EepolicyError, match="another top_k"):
        probe(hooked, documents, hidden_states=[2], top_k=2, save=folder)
    with pytest.raises(EepolicyError, match="begun with other documents"):
        probe(hooked, documents[::-1], **options)
    with pytest.raises(EepolicyError, match="begun with 4 documents, and 3 were given"):
        probe(hooked, documents[:3], **options)
    with pytest.raises(EepolicyError, match="begun with other documents"):
        probe(hooked, [*documents[:3], Document(documents[3], 2)], **options)
    hooked.heads = TunedLens.untrained(hooked.lens, range(1, LAYERS), width=32)
    with pytest.raises(EepolicyError, match="another heads"):
        probe(hooked, documents, **options)
    hooked.heads = hooked.lens
    hooked.layout = replace(hooked.layout, speech_chunk=hooked.layout.speech_chunk + 1)
    with pytest.raises(EepolicyError, match="another layout"):
        probe(hooked, documents, **options)
    with pytest.raises(EepolicyError, match="another model"):
        probe(HookedModel(tiny("llama", 3)), documents, **options)
    (folder / "entropy.npy").write_bytes((folder / "entropy.npy").read_bytes()[:-40])
    with pytest.raises(EepolicyError, match=r"cannot be read|cut short"):
        ProbeResult.load(folder)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").write_text("")
    with pytest.raises(EepolicyError, match="contains files but no probe"):
        probe(hooked, documents, save=tmp_path / "thesis")
    with pytest.raises(EepolicyError, match="contains no probe"):
        ProbeResult.load(tmp_path / "thesis")


@pytest.mark.parametrize("family", ["llama"])
def test_a_folder_refuses_documents_with_other_depths_or_embeddings(hooked, tmp_path):
    ids = torch.arange(5, 12)
    embeddings = hooked.model.get_input_embeddings()(ids).detach()
    documents = [
        Document(ids, 4),
        Document(ids, 4, depth=np.array([2, 3, 6])),
        Document(ids, 4, depth=np.array([2, 3, 5])),
        Document(ids, 4, embeddings=embeddings),
        Document(ids, 4, embeddings=2 * embeddings),
    ]
    for rows in (embeddings[:5], embeddings[:0], torch.cat([embeddings, embeddings[:1]])):
        with pytest.raises(EepolicyError, match=f"each of the 7 tokens; got {len(rows)}"):
            Document(ids, 4, embeddings=rows)
    Document(ids, 4, embeddings=embeddings[:6])  # the last token of a reply is never an input
    with pytest.raises(EepolicyError, match="each of the 7 tokens; got 6"):
        Document(ids, embeddings=embeddings[:6])
    for number, document in enumerate(documents):
        folder = tmp_path / str(number)
        probe(hooked, [document], save=folder)
        for other in documents:
            if other is document:
                probe(hooked, [other], save=folder)
                continue
            with pytest.raises(EepolicyError, match="other documents"):
                probe(hooked, [other], save=folder)
