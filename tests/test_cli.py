"""The command line as a stranger meets it: help, answers, one-sentence errors, exit codes."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from attention_branch import cli


def run(capsys, *arguments):
    """Return (exit code, standard output, standard error) of `abn ARGUMENTS`."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    return caught.value.code or 0, captured.out, captured.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Red and green pictures with noise, 24 of each in folders of their own."""
    root = tmp_path_factory.mktemp("data") / "colours"
    random = np.random.default_rng(0)
    for label, channel in (("green", 1), ("red", 0)):
        (root / label).mkdir(parents=True)
        for index in range(24):
            pixels = random.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            pixels[8:24, 8:24, channel] += 150
            Image.fromarray(pixels).save(root / label / f"{index:02d}.png")
    return root


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run of two epochs on the coloured pictures."""
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--model", "resnet20", "--epochs", "2", "--batch-size", "8", "--maps", "2", "--accelerator", "cpu"]
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", str(folder), "--out", str(out), *options])
    assert not caught.value.code
    return out


def test_help_lists_every_command_and_answers_without_torch():
    code = "import sys; from attention_branch import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in found.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"abn {command}" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Did you mean 'train'"),
        (["info", "resnet5000"], "Unknown backbone 'resnet5000'"),
        (["info", "hrnet_w18_small"], "'hrnet_w18_small' cannot be gated"),
        (["models", "nothing-like-this"], "No backbone matches"),
        (["train", "no-such-folder", "--model", "resnet20"], "no-such-folder"),
        (["train", "digits", "--recipe", "cifr"], "cifar"),
        (["evaluate", "no-such-run"], "There is no folder 'no-such-run'"),
        (["explain", "no-such-run", "picture.png"], "picture.png"),
        (["check", "digit"], "digits"),
        (["check", "digits:mark=red"], "position or colour"),
        (["demo", "--mark", "position"], "add --shortcut"),
        (["demo", "--shortcut", "--control", "yes"], "--control belongs to the demo without --shortcut"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(capsys, arguments, words):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("abn: ")
    assert err.count("\n") == 1
    assert words in err


def test_info_as_json(capsys):
    code, out, _ = run(capsys, "info", "resnet20", "--classes", "100", "--json")
    assert code == 0
    assert json.loads(out)["networks"]["paper"]["parameters"] == 501_650


def test_models_finds_parts_of_names(capsys):
    code, out, _ = run(capsys, "models", "resnet20")
    assert code == 0
    assert out.splitlines()[0].startswith("resnet20")


def test_check_names_a_broken_and_a_doubled_file(capsys, tmp_path, folder):
    import shutil

    copy = tmp_path / "colours"
    shutil.copytree(folder, copy)
    (copy / "red" / "broken.png").write_bytes((copy / "red" / "00.png").read_bytes()[:300])
    shutil.copy(copy / "red" / "01.png", copy / "green" / "copy.png")
    code, out, _ = run(capsys, "check", str(copy), "--json")
    assert code == 1
    found = json.loads(out)
    assert "broken.png" in found["broken"][0]["id"]
    assert any("copy.png" in name for group in found["duplicates"] for name in group["ids"])
    assert run(capsys, "check", str(folder))[0] == 0


def test_train_evaluate_explain(capsys, trained, folder, tmp_path):
    code, out, _ = run(capsys, "evaluate", str(trained), "--json")
    assert code == 0
    found = json.loads(out)
    assert 0 <= found["accuracy"] <= 1
    assert found["record"]["split"] == "test"
    assert (trained / "evaluation-test.json").exists()
    assert (trained / "report.html").read_text().startswith("<!doctype html>".lower()) or (
        "<html" in (trained / "report.html").read_text()[:200]
    )
    picture = folder / "red" / "00.png"
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    code, out, _ = run(capsys, "explain", str(trained), str(picture), str(bad), "--out", str(tmp_path / "explained"))
    assert code == 2  # one of the two could not be read, and the other is done all the same
    lines = [json.loads(line) for line in (tmp_path / "explained" / "predictions.jsonl").read_text().splitlines()]
    assert [("error" in line) for line in lines] == [False, True]
    assert len(list((tmp_path / "explained" / "pictures").iterdir())) == 1
    flagged = sum(bool(line["second_look"]) for line in lines if "error" not in line)
    assert f"Worth a second look: {flagged} of 1 predictions" in out
