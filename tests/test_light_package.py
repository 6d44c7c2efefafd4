"""attention-branch-onnx: what its own dependencies give is enough, and torch is not among them."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image

import attention_branch as ab
from attention_branch.light import FULL_ONLY
from exported import trained_looking

ROOT = Path(__file__).parents[1]
LIGHT = tomllib.loads((ROOT / "packaging" / "onnx" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FULL = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def needed(requirements):
    """The installed distributions that requirements lead to, with their extras, by normalised name."""
    found = {}
    ahead = [(Requirement(text), "") for text in requirements]
    while ahead:
        requirement, _ = ahead.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        key = (name, frozenset(requirement.extras))
        if key in found:
            continue
        distribution = found[key] = importlib.metadata.distribution(name)
        for text in distribution.requires or []:
            further = Requirement(text)
            extras = requirement.extras or {""}
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                ahead.append((further, name))
    return {name: distribution for (name, _), distribution in found.items()}


def environment(folder, requirements):
    """Fill a folder with the top-level modules of what requirements lead to, and nothing else."""
    for distribution in needed(requirements).values():
        for file in distribution.files or []:
            top = file.parts[0]
            # Metadata too: packages ask for their own versions. Scripts (..) stay behind.
            if top in ("..", "__pycache__") or (folder / top).exists():
                continue
            (folder / top).symlink_to(Path(distribution.locate_file(top)))
    return folder


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    return environment(tmp_path_factory.mktemp("light"), LIGHT["dependencies"])


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    needs = [*LIGHT["dependencies"], *LIGHT["optional-dependencies"]["serve"]]
    return environment(tmp_path_factory.mktemp("serving"), needs)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    network = trained_looking(ab.create_model("resnet14", num_classes=3, branch="lite", class_names=["a", "b", "c"]))
    return ab.export(network, tmp_path_factory.mktemp("exported") / "model.onnx", data="random").path


def variables(light):
    return {"PYTHONPATH": f"{light}{os.pathsep}{ROOT / 'src'}", "PATH": "", "HOME": str(light)}


def python(light, *arguments):
    # -S: no site-packages; the environment is the folder and the source.
    return subprocess.run(
        [sys.executable, "-S", *arguments], capture_output=True, text=True, timeout=120, env=variables(light)
    )


def test_none_of_what_only_the_full_package_has_is_there(light):
    for name in FULL_ONLY:
        done = python(light, "-c", f"import {name}")
        assert done.returncode == 1
        assert f"No module named '{name}'" in done.stderr


def test_the_command_line_answers(light, exported, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "1.png")
    run = ["-m", "attention_branch.cli"]
    done = python(light, *run, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    done = python(light, *run, "explain", str(exported), str(tmp_path / "1.png"), "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 images explained" in done.stdout
    assert (tmp_path / "out" / "pictures" / "1.png").is_file()
    assert (tmp_path / "out" / "report.html").is_file()
    done = python(light, *run, "train", str(tmp_path))
    assert done.returncode == 2
    assert re.match(r"abn: `abn train` needs \w+, which is not installed here; install the full package", done.stderr)


def test_the_server_answers_without_torch(serving, exported, tmp_path):
    assert python(serving, "-c", "import torch").returncode == 1
    command = [sys.executable, "-S", "-m", "attention_branch.cli", "serve", str(exported), "--port", "0"]
    made = subprocess.Popen(
        [*command, "--annotations", str(tmp_path / "maps")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables(serving),
    )  # fmt: skip
    try:
        said = ""
        while "Open http" not in said:
            line = made.stdout.readline()
            assert line, said
            said += line
        address = re.search(r"http://127\.0\.0\.1:\d+", said)[0]
        picture = BytesIO()
        pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(picture, "PNG")
        body = {"content": picture.getvalue(), "headers": {"content-type": "image/png"}, "timeout": 60}
        answer = httpx.post(f"{address}/v1/predict", **body).json()["results"][0]
        opened = httpx.post(f"{address}/v1/images", **body).json()
        assert answer["probabilities"] == pytest.approx(opened["probabilities"], abs=1e-5)
        assert "torch" not in answer["versions"]
        given = np.zeros(np.shape(opened["maps"][0]["values"])).tolist()
        asked = httpx.post(f"{address}/v1/images/{opened['id']}/answer", json={"maps": {"label": given}}, timeout=60)
        assert asked.json()["probabilities"] != pytest.approx(answer["probabilities"], abs=1e-4)
        assert httpx.get(f"{address}/v1/images/{opened['id']}/reading", timeout=60).status_code == 200
    finally:
        made.terminate()
        made.wait(30)


def test_without_the_server_s_packages_it_says_how_to_get_them(light, exported):
    done = python(light, "-m", "attention_branch.cli", "serve", str(exported))
    assert done.returncode == 2
    assert re.match(r"abn: '\w+' is not installed; pip install 'attention-branch\[serve\]'", done.stderr)


def test_both_packages_are_of_one_version_and_ask_for_the_same():
    assert LIGHT["version"] == FULL["version"] == ab.__version__
    optional = FULL["optional-dependencies"]
    full = {Requirement(text).name: text for text in [*FULL["dependencies"], *optional["onnx"]]}
    for text in LIGHT["dependencies"]:
        assert full[Requirement(text).name] == text
    assert LIGHT["optional-dependencies"]["serve"] == optional["serve"]
    for module, distribution in {
        "torch": "torch",
        "sklearn": "scikit-learn",
        "huggingface_hub": "huggingface_hub",
    }.items():
        assert module in FULL_ONLY
        assert distribution in {Requirement(text).name for text in FULL["dependencies"]}
