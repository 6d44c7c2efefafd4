"""The demo in small: every file and figure it promises, and that it leaves strangers' folders alone."""

import dataclasses
import json

import pytest

import attention_branch as ab
from attention_branch import demo


@pytest.fixture
def tiny(monkeypatch):
    """The demo's own recipe on a few digits and one epoch."""
    real = demo.recipe

    def small(name, **changes):
        data = "digits:train=60,validation=20,test=20"
        return dataclasses.replace(real(name, **changes), data=data, epochs=1, batch_size=20, warmup_epochs=0)

    monkeypatch.setattr(demo, "recipe", small)


def test_writes_what_it_promises(tiny, tmp_path, monkeypatch, capsys):
    summary = demo.run_demo(tmp_path / "demo")
    assert json.loads((tmp_path / "demo" / "summary.json").read_text()) == json.loads(json.dumps(summary))
    wanted = {"accuracy", "attention_accuracy", "pointing", "pointing_center", "pointing_random", "seconds"}
    assert wanted <= set(summary)
    assert wanted <= set(summary["controls"]["none"])
    assert set(summary["replaced"]) == {"mean", "another_image", "shuffled", "inverted", "ones", "zeros"}
    assert all(0 <= accuracy <= 1 for accuracy in summary["replaced"].values())
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "another image&#x27;s map" in page or "another image's map" in page
    assert summary["map_drive"].split(":")[0].split(",")[0] in page
    assert "http://" not in page
    assert "https://" not in page
    assert len(list((tmp_path / "demo" / "explained" / "pictures").iterdir())) == 12
    assert ab.load_model(tmp_path / "demo").mechanism == summary["mechanism"]
    assert ab.load_model(tmp_path / "demo" / "control-none").mechanism == "none"
    monkeypatch.setattr(demo, "_SECONDS", 0.0)  # no time is left for the control
    assert "controls" not in demo.run_demo(tmp_path / "demo")
    assert "--control yes" in capsys.readouterr().out
    assert not (tmp_path / "demo" / "control-none").exists()


def test_the_control_runs_where_it_is_asked_for(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_SECONDS", 0.0)
    assert "controls" in demo.run_demo(tmp_path / "demo", control=True)


def test_a_strangers_folder_is_left_alone(tmp_path):
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(ab.UserError, match="not a demo"):
        demo.run_demo(tmp_path)
    assert (tmp_path / "letters.txt").read_text() == "dear"
