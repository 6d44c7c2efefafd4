"""Saving and loading: what comes back, and what is refused in one sentence."""

import errno
import json
import pickle

import pytest
import torch

import attention_branch as ab
from attention_branch.models import saving


@pytest.fixture
def model():
    return ab.create_model("resnet20", num_classes=3, class_names=["cat", "dog", "eel"]).eval()


def test_names_preprocessing_and_mechanism_travel(model, tmp_path):
    model.preprocessing = ab.Preprocessing(size=(40, 48), mean=(0.1, 0.2, 0.3), std=(1, 1, 1), resize="squash")
    model.save_pretrained(tmp_path / "saved")
    loaded = ab.load_model(tmp_path / "saved")
    assert loaded.class_names == ["cat", "dog", "eel"]
    assert loaded.preprocessing == model.preprocessing
    assert (loaded.mechanism, loaded.name, loaded.is_abn) == ("residual", "resnet20", True)
    assert not loaded.training
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]


def test_default_preprocessing_is_kept_even_where_the_backbone_has_another(tmp_path):
    model = ab.create_model("resnet20", num_classes=3)
    model.preprocessing = ab.Preprocessing()
    model.save_pretrained(tmp_path / "saved")
    assert ab.load_model(tmp_path / "saved").preprocessing == ab.Preprocessing()


@pytest.mark.parametrize("mechanism", ["product", "none"])
def test_variants_come_back(tmp_path, mechanism):
    heads = {"a": 2, "b": 1}
    model = ab.create_model("resnet20", heads=heads, mechanism=mechanism, branch="lite", map_kernel=1, stem_stride=2)
    model.eval().save_pretrained(tmp_path / "saved")
    loaded = ab.load_model(tmp_path / "saved")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        one, two = model(images), loaded(images)
    assert torch.equal(one.attention, two.attention)
    assert all(torch.equal(one.logits[head], two.logits[head]) for head in heads)


def test_a_plain_backbone_comes_back(tmp_path):
    plain = ab.create_backbone("resnet20", num_classes=3).eval()
    plain.save_pretrained(tmp_path / "saved")
    loaded = ab.load_model(tmp_path / "saved")
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain(images), loaded(images))
    assert not loaded.is_abn


def test_a_run_folder_stands_for_its_model(model, tmp_path):
    model.save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text("{}")
    assert ab.load_model(tmp_path / "run").class_names == ["cat", "dog", "eel"]


def test_saving_into_a_folder_leaves_other_files(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    ab.load_model(tmp_path)


def test_saving_again_replaces_both_files(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        model.backbone.fc.bias.fill_(7)
    model.save_pretrained(tmp_path / "saved")
    assert ab.load_model(tmp_path / "saved").backbone.fc.bias.eq(7).all()


def test_hub_methods_are_there(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    assert isinstance(ab.AttentionBranchNetwork.from_pretrained(tmp_path / "saved"), ab.AttentionBranchNetwork)
    assert callable(model.push_to_hub)


def refused(folder):
    with pytest.raises(ab.UserError) as caught:
        ab.load_model(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_strangers_pickles_are_refused(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"a": 1}))
    assert "Pickled checkpoints" in refused(path)


def test_damage_is_named(model, tmp_path):
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    good, values = weights.read_bytes(), json.loads(config.read_text())
    weights.write_bytes(good[:-100])
    assert "model.safetensors" in refused(folder)
    weights.write_bytes(good)
    config.write_text(json.dumps(values)[:-30])
    assert "config.json" in refused(folder)
    config.write_text(json.dumps(values | {"num_classes": 5, "class_names": None}))
    assert "(3, 64)" in refused(folder)
    config.write_text(json.dumps(values | {"name": "resnet32"}))
    assert "layer1.3" in refused(folder)
    config.write_text(json.dumps({"library": "other"}))
    assert "not saved by this package" in refused(folder)


def test_missing_folders_and_hub_names(tmp_path, monkeypatch):
    assert "holds no saved network" in refused(tmp_path)
    assert "There is no folder" in refused(tmp_path / "nothing")

    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(saving.huggingface_hub, "snapshot_download", unreachable)
    assert "no network" in refused("somebody/something")


def test_a_full_disk_leaves_the_earlier_save_as_it_was(model, tmp_path, monkeypatch):
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    before = (folder / "model.safetensors").read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving.safetensors.torch, "save_file", full)
    with pytest.raises(ab.UserError, match="disk is full"):
        model.save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_class_names_must_fit():
    with pytest.raises(ab.UserError, match="2 class names for 3 classes"):
        ab.create_model("resnet20", num_classes=3, class_names=["a", "b"])
    with pytest.raises(ab.UserError, match="hat"):
        ab.create_model("resnet20", heads={"hat": 2}, class_names={"hair": ["a", "b"]})
