"""The demo in small: every file and figure it promises, and that it leaves strangers' folders alone."""

import dataclasses
import json

import pytest
import torch
from PIL import Image

import attention_branch as ab
from attention_branch import data as ab_data
from attention_branch import demo


@pytest.fixture
def tiny(monkeypatch):
    """The demo's own recipe on a few digits and one epoch."""
    real = demo.recipe

    def small(name, **changes):
        data = "digits:train=60,validation=20,test=20"
        return dataclasses.replace(real(name, **changes), data=data, epochs=1, batch_size=20, warmup_epochs=0)

    monkeypatch.setattr(demo, "recipe", small)


def test_writes_what_it_promises(tiny, tmp_path):
    summary = demo.run_demo(tmp_path / "demo", control=True)
    assert json.loads((tmp_path / "demo" / "summary.json").read_text()) == json.loads(json.dumps(summary))
    wanted = {"accuracy", "attention_accuracy", "pointing", "pointing_center", "pointing_random", "seconds"}
    assert wanted <= set(summary)
    assert wanted <= set(summary["controls"]["none"])
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert len(list((tmp_path / "demo" / "explained" / "pictures").iterdir())) == 12
    assert ab.load_model(tmp_path / "demo").mechanism == summary["mechanism"]
    assert ab.load_model(tmp_path / "demo" / "control-none").mechanism == "none"
    demo.run_demo(tmp_path / "demo", control=False)
    assert not (tmp_path / "demo" / "control-none").exists()


def test_the_control_runs_if_time_allows(tiny, tmp_path, monkeypatch, capsys):
    assert "controls" in demo.run_demo(tmp_path / "demo")
    monkeypatch.setattr(demo, "_SECONDS", 0.0)
    assert "controls" not in demo.run_demo(tmp_path / "demo")
    assert "--control yes" in capsys.readouterr().out


class _Obeys:
    """A stand-in for a network whose answer is the place of the map's maximum, so every accuracy is known."""

    preprocessing = ab.Preprocessing(size=(8, 8), crop_pct=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)

    def attend(self, images):
        # The picture's own class is written in its first pixel.
        place = (images[:, 0, 0, 0] * 255).round().long()
        return torch.nn.functional.one_hot(place, 10).float().reshape(-1, 1, 2, 5), None

    def __call__(self, images, attention, attention_logits):
        assert not attention_logits
        return ab.ABNOutput(attention.flatten(1), None, attention)


def test_accuracy_with_other_maps(tmp_path):
    for label in range(10):
        (tmp_path / "test" / str(label)).mkdir(parents=True)
        (tmp_path / "train" / str(label)).mkdir(parents=True)
        for split, copies in (("test", 2), ("train", 4)):
            for copy in range(copies):
                picture = Image.new("RGB", (8, 8), (label, 10 * copy, 0))
                picture.save(tmp_path / split / str(label) / f"{copy}.png")
    found = demo.accuracy_with_other_maps(_Obeys(), ab_data.open_data(str(tmp_path)).test)
    # Two pictures a class in a row: the map of the one before is the right one for every second picture. Inverted, the
    # first other place is the maximum: 0, or 1 for class 0. A constant map always answers 0.
    assert found == {"another_image": 0.5, "inverted": 0.0, "mean": 0.1}


def test_a_strangers_folder_is_left_alone(tmp_path):
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(ab.UserError, match="not a demo"):
        demo.run_demo(tmp_path)
    assert (tmp_path / "letters.txt").read_text() == "dear"
