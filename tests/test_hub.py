"""Upload and download: a folder takes the hub's place, and what lies in it is what a stranger would get."""

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import attention_branch as ab
from attention_branch.errors import UserError
from attention_branch.evaluation import evaluate_run
from attention_branch.models import saving

NAMES = ["cat", "dog", "horse"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub in a folder: `repos/user/name` holds what was uploaded last."""
    repos = tmp_path / "hub"

    def create_repo(self, repo_id, **_):
        name = repo_id if "/" in repo_id else f"me/{repo_id}"
        (repos / name).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, *, repo_id, folder_path, commit_message, repo_type, **_):
        shutil.copytree(folder_path, repos / repo_id, dirs_exist_ok=True)
        return f"https://hub.example/{repo_id}/commit/1"

    def snapshot_download(name, allow_patterns):
        if not (repos / name).is_dir():
            raise OSError("404")
        return str(repos / name)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(saving.huggingface_hub, "snapshot_download", snapshot_download)
    return repos


@pytest.fixture
def run(tmp_path):
    """A run with data that can be evaluated and a strip of maps."""
    torch.manual_seed(0)
    folder = tmp_path / "run"
    ab.create_model("resnet14", 3, branch="lite", class_names=NAMES).save_pretrained(folder / "model")
    for place, name in enumerate(NAMES):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(10):
            pixels = np.random.default_rng(10 * place + index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.png")
    (folder / "config.json").write_text(json.dumps({"data": {"spec": str(tmp_path / "data"), "seed": 0}}))
    (folder / "maps").mkdir()
    for epoch, shade in enumerate(("white", "black")):
        Image.new("RGB", (40, 20), shade).save(folder / "maps" / f"epoch-{epoch:03d}.png")
    return folder


def card(folder):
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_a_card_carries_the_measured_figures_and_the_network_comes_back(hub, run, tmp_path):
    found = evaluate_run(run, report=None, progress=False)
    model = ab.load_model(run)
    assert model.push_to_hub("me/animals", license="mit").endswith("me/animals/commit/1")
    folder = hub / "me" / "animals"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    front, text = card(folder)
    assert (front["library_name"], front["pipeline_tag"], front["license"]) == (
        "attention-branch", "image-classification", "mit",
    )  # fmt: skip
    (index,) = front["model-index"]
    (result,) = index["results"]
    assert result["metrics"][0]["value"] == found.accuracy
    assert result["dataset"]["split"] == found.record["split"]
    low, high = found.heads["label"].perception.accuracy_interval
    assert f"| {100 * found.accuracy:.1f} % | {100 * low:.1f} to {100 * high:.1f} % | {found.n} |" in text
    assert "cat, dog, horse" in text
    assert "class-agnostic" in text
    assert "Nothing was measured" not in text
    # Neither the card nor its front matter says where on this machine the data lie.
    assert str(tmp_path) not in (folder / "README.md").read_text(encoding="utf-8")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ab.load_model("me/animals")(images).logits, model(images).logits)


def test_nothing_measured_is_said_and_no_figure_made_up(hub, run):
    ab.load_model(run).push_to_hub("me/bare")
    front, text = card(hub / "me" / "bare")
    assert "model-index" not in front
    assert "license" not in front
    assert "Nothing was measured with these weights" in text
    assert "%" not in text.partition("## Measured")[2].partition("## Limits")[0]


def test_figures_of_other_weights_are_left_out(hub, run):
    evaluate_run(run, report=None, progress=False)
    model = ab.load_model(run)
    with torch.no_grad():
        model.backbone.stem[0].weight.mul_(2)
    model.push_to_hub("me/changed")
    front, text = card(hub / "me" / "changed")
    assert "model-index" not in front
    assert "was measured with other weights" in text


def test_pictures_are_those_that_were_named(hub, run, tmp_path):
    model = ab.load_model(run)
    model.push_to_hub("me/strip", picture="strip")
    with Image.open(hub / "me" / "strip" / "where-it-looked.png") as shown:
        assert (shown.size, shown.getpixel((0, 0))) == ((40, 20), (0, 0, 0))  # the last epoch's
    model.push_to_hub("me/images", picture=[tmp_path / "data" / "cat" / "0.png", tmp_path / "data" / "dog" / "0.png"])
    with Image.open(hub / "me" / "images" / "where-it-looked.png") as shown:
        single = ab.explain(model, Image.open(tmp_path / "data" / "cat" / "0.png")).figure()
        assert shown.size == (single.width, 2 * single.height)
        assert np.array_equal(np.asarray(shown)[: single.height], np.asarray(single))
    assert "](where-it-looked.png)" in card(hub / "me" / "images")[1]
    with pytest.raises(UserError, match="no run with strips"):
        ab.create_model("resnet14", 3).push_to_hub("me/none", picture="strip")


def test_what_the_hub_refuses_is_one_sentence(hub, run, monkeypatch):
    def refuse(self, **_):
        raise OSError("401 Client Error: Unauthorized\nmore")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(UserError, match=r"did not take 'me/x' \(401 Client Error: Unauthorized\); check the name"):
        ab.load_model(run).push_to_hub("me/x")
    with pytest.raises(UserError, match="There is no folder"):
        ab.load_model(run).push_to_hub("me/x", run="nowhere")


def test_saving_with_push_uploads_too(hub, run, tmp_path):
    model = ab.load_model(run)
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="me/saved")
    assert (hub / "me" / "saved" / "README.md").is_file()
