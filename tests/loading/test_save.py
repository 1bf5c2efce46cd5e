"""`save_pretrained` and loading what it wrote; options for the location of a model's files."""

from __future__ import annotations

import json
import shutil

import huggingface_hub
import pytest
import torch
from conftest import tiny
from huggingface_hub.errors import EntryNotFoundError

import eepolicy
from eepolicy import EepolicyError, ExitHead, HookedModel
from eepolicy.heads import TunedLens
from eepolicy.loading import auto, hub, huggingface
from eepolicy.loading import save as save_module

PROMPT = torch.tensor([9, 31, 12, 44, 7])


@pytest.fixture
def fitted() -> HookedModel:
    """A text model with heads that are not the logit lens, exact in half precision."""
    hooked = HookedModel(tiny("llama"))
    hooked.heads = TunedLens.untrained(hooked.lens, (2, 4), width=32)
    with torch.no_grad():
        for parameter in hooked.heads.parameters():
            parameter.copy_(torch.randn_like(parameter).mul(0.1).half().float())
    return hooked


def reply(model: HookedModel) -> list[int]:
    return model.generate(PROMPT, "text=static@2", 8).tokens.tolist()


def test_a_saved_text_model_loads_with_its_heads(fitted, tmp_path):
    fitted.save_pretrained(tmp_path / "model")
    for loaded in (
        HookedModel.from_pretrained(str(tmp_path / "model")),
        eepolicy.load(str(tmp_path), subfolder="model"),
    ):
        assert reply(loaded) == reply(fitted)
    lens = HookedModel(fitted.model)
    assert reply(lens) != reply(fitted)
    assert reply(eepolicy.load(str(tmp_path / "model"), heads="lens")) == reply(lens)


def test_the_saved_pocket_model_gives_the_same_replies_and_sound(pocket, tmp_path):
    """With its layout, its voice and its heads; the model in memory does not change."""
    before = dict(pocket.config.to_dict())
    pocket.save_pretrained(tmp_path / "model")
    assert pocket.config.to_dict() == before
    loaded = eepolicy.load(str(tmp_path / "model"))
    assert loaded.layout == pocket.layout
    for policy in ("static@6", "static@10"):
        old, new = (m.generate("What color is snow?", policy, 24) for m in (pocket, loaded))
        assert new.tokens.tolist() == old.tokens.tolist()
    assert torch.equal(new.audio, old.audio)


def test_what_cannot_be_saved_is_refused(fitted, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EepolicyError, match="is not empty"):
        fitted.save_pretrained(tmp_path)

    class Own(ExitHead):
        def logits(self, hidden, depth):
            raise NotImplementedError

    fitted.heads = Own()
    with pytest.raises(EepolicyError, match=r"set model.heads = model.lens"):
        fitted.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


class FakeHub:
    """Repositories as folders; records the options of each download and upload."""

    def __init__(self, root):
        self.root, self.calls, self.uploaded = root, [], {}

    def download(self, name, file, **options):
        self.calls.append((file, options))
        path = self.root / name / options.get("subfolder", "") / file
        if not path.is_file():
            raise EntryNotFoundError("no such file")
        return str(path)

    def create_repo(self, repo_id, exist_ok, **options):
        assert exist_ok
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, repo_id, folder_path):
        shutil.copytree(folder_path, self.root / repo_id)

        class Commit:
            commit_url = f"https://huggingface.co/{repo_id}/commit/1"

        return Commit


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(hub, "hf_hub_download", fake.download)
    monkeypatch.setattr(hub, "HfApi", lambda token=None: fake)
    return fake


def test_heads_come_from_a_repository(fitted, fake_hub, tmp_path):
    assert fitted.push_to_hub("someone/heads", private=True).endswith("/someone/heads/commit/1")
    assert (fake_hub.root / "someone" / "heads" / "config.json").is_file()
    HookedModel(fitted.model).save_pretrained(tmp_path / "bare")
    bare = eepolicy.load(str(tmp_path / "bare"), heads="someone/heads")
    assert reply(bare) == reply(fitted)
    with pytest.raises(EepolicyError, match=r"no repository with heads.safetensors"):
        eepolicy.load(str(tmp_path / "bare"), heads="someone/nothing")


def test_hub_options_apply_to_all_files(fitted, fake_hub, monkeypatch, tmp_path):
    """Config, weights, tokenizer and heads come from one revision."""
    fitted.save_pretrained(fake_hub.root / "someone" / "model" / "sub")
    place = {"revision": "abc", "token": "secret", "subfolder": "sub"}
    seen = {}

    def model_of(name, **options):
        seen["model"] = {key: options[key] for key in place}
        return tiny("llama"), {"missing_keys": [], "mismatched_keys": []}

    def tokenizer_of(name, **options):
        seen["tokenizer"] = {key: options[key] for key in place}

    monkeypatch.setattr(huggingface.AutoModelForCausalLM, "from_pretrained", model_of)
    monkeypatch.setattr(huggingface.AutoTokenizer, "from_pretrained", tokenizer_of)
    loaded = eepolicy.load("someone/model", **place)
    assert reply(loaded) == reply(fitted)
    assert seen == {"model": place, "tokenizer": place}
    assert {file for file, _ in fake_hub.calls} >= {"config.json", "heads.safetensors"}
    assert all(options == place for _, options in fake_hub.calls)


def test_loading_a_local_folder_downloads_nothing(fitted, fake_hub, tmp_path):
    fitted.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "heads.safetensors").unlink()
    eepolicy.load(str(tmp_path / "model"), revision="main")
    assert fake_hub.calls == []
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "llama"
    assert auto.load is eepolicy.load


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    model = HookedModel(tiny("llama"))

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(save_module, "_save_stock", stop)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    model.save_pretrained(tmp_path / "model")
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    (tmp_path / "file").write_text("")
    with pytest.raises(EepolicyError, match="file is a file: give a new folder"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(EepolicyError, match=r"/file/model cannot be written: Not a directory"):
        model.save_pretrained(tmp_path / "file" / "model")
