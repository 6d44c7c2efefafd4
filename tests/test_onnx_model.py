"""The reader of exported files: against the network in PyTorch, with given maps, from threads, and on hostile files."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import attention_branch as ab
from attention_branch.errors import UserError
from attention_branch.explanations.onnx_methods import explain_onnx
from attention_branch.onnx_cut import gated_part
from attention_branch.onnx_model import OnnxModel
from attention_branch.report import explain_files
from exported import noise, trained_looking

NAMES = ["cat", "dog", "horse"]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return trained_looking(ab.create_model("resnet14", num_classes=3, branch="lite", class_names=NAMES))


@pytest.fixture(scope="module")
def path(tmp_path_factory, network):
    file = tmp_path_factory.mktemp("exported") / "model.onnx"
    ab.export(network, file, attention_logits=True, class_evidence=True, data="random")
    return file


@pytest.fixture(scope="module")
def model(path):
    return OnnxModel.load(path, threads=1)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((70, 50), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def test_it_says_what_the_network_says(model, network):
    assert (model.name, model.mechanism, model.is_abn, model.heads) == ("resnet14", "residual", True, None)
    assert (model.class_names, model.map_range, model.map_size) == (NAMES, (0.0, 1.0), (16, 16))
    assert model.preprocessing == network.preprocessing
    assert model.outputs == ["logits", "attention", "attention_logits", "class_evidence"]
    assert model.answers_given_maps


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 16, 16), (3, 1, 16, 16), (3, 1, 5, 9), (1, 40, 40)])
def test_a_given_map_is_answered_as_the_network_answers_it(model, network, shape):
    images = noise(3, 32)
    given = np.random.default_rng(1).random(shape, dtype=np.float32)
    outputs, features = model.run_with_features(images)
    with torch.no_grad():
        own = network(torch.from_numpy(images)).logits
        expected = network(torch.from_numpy(images), attention=torch.from_numpy(given)).logits
    assert (expected - own).abs().max() > 0.01  # the map does change the answer
    assert np.abs(outputs["logits"] - own.numpy()).max() < 1e-4
    assert np.abs(model.answer(features, given) - expected.numpy()).max() < 1e-4
    assert np.array_equal(model.features(images), features)


def test_the_own_map_gives_the_own_answer(model):
    outputs, features = model.run_with_features(noise(2, 32))
    assert np.abs(model.answer(features, outputs["attention"]) - outputs["logits"]).max() < 1e-5


def test_only_the_part_behind_the_gate_runs(path, model):
    whole = onnx.load(path)
    part = gated_part(whole, model.cut, ["logits"])
    assert [item.name for item in part.graph.input] == ["features", "attention"]
    convolutions = [sum(node.op_type == "Conv" for node in graph.node) for graph in (whole.graph, part.graph)]
    # ResNet-14: 13 convolutions and 2 shortcuts, 3 of the branch and one of the evidence; 4 and a shortcut in layer3.
    assert convolutions == [13 + 2 + 4 + 1, 4 + 1]
    sizes = [sum(len(item.raw_data) for item in graph.initializer) for graph in (whole.graph, part.graph)]
    assert 0.5 < sizes[1] / sizes[0] < 0.9


def test_threads_share_a_model(model):
    images = [noise(2, 32, seed=seed) for seed in range(8)]
    given = np.random.default_rng(0).random((1, 16, 16), dtype=np.float32)
    alone = [(model.run(batch), model.answer(model.features(batch), given)) for batch in images]

    def work(batch):
        return model.run(batch), model.answer(model.features(batch), given)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, images * 3))
    for (one, answered), (other, again) in zip(alone * 3, together, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
        assert np.array_equal(answered, again)


def test_heads_are_answered_by_name(tmp_path):
    torch.manual_seed(0)
    network = trained_looking(ab.create_model("resnet14", heads={"smiling": 1, "age": 3}, branch="lite"))
    ab.export(network, tmp_path / "heads.onnx", class_evidence=True, data="random")
    model = OnnxModel.load(tmp_path / "heads.onnx")
    images, given = noise(2, 32), np.random.default_rng(0).random((2, 2, 16, 16), dtype=np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images), attention=torch.from_numpy(given)).logits
    found = model.answer(model.features(images), given)
    assert list(found) == ["smiling", "age"]
    for head in found:
        assert np.abs(found[head] - expected[head].numpy()).max() < 1e-4
    for method, target in (("attention", "age"), ("attention-class", {"age": 2}), ("attention-class", {"smiling": 0})):
        mine = explain_onnx(model, images, method, target)
        theirs = ab.explain(network, torch.from_numpy(images), method, target)
        assert np.abs(mine.maps - theirs.maps.numpy()).max() < 1e-4
        assert (mine.head, mine.layer) == (theirs.head, theirs.layer)
    with pytest.raises(UserError, match="2 heads with a map each"):
        explain_onnx(model, images, "attention")


@pytest.mark.parametrize(("name", "options"), [("test_vit", {}), ("resnet14", {"mechanism": "none"})])
def test_transformers_and_maps_that_are_not_applied(tmp_path, name, options):
    torch.manual_seed(0)
    network = trained_looking(ab.create_model(name, num_classes=3, branch="lite", **options))
    ab.export(network, tmp_path / "model.onnx", data="random")
    model = OnnxModel.load(tmp_path / "model.onnx")
    images = noise(3, network.preprocessing.size[0])
    if options:
        assert not model.answers_given_maps
        with pytest.raises(UserError, match=r"its map is not applied \(mechanism 'none'\)"):
            model.features(images)
        return
    assert model.cut.features == "features"
    given = np.random.default_rng(0).random((3, *model.map_size), dtype=np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images), attention=torch.from_numpy(given)).logits
    assert np.abs(model.answer(model.features(images), given) - expected.numpy()).max() < 1e-4


@pytest.mark.parametrize("shape", [(3, 16), (2, 16, 16), (3, 2, 16, 16), (3, 0, 4)])
def test_maps_of_another_shape_are_refused(model, shape):
    with pytest.raises(UserError, match="A given map must have the shape"):
        model.answer(model.features(noise(3, 32)), np.zeros(shape, np.float32))


def test_images_of_another_size_are_refused(model):
    with pytest.raises(UserError, match=r"\(N, 3, 32, 32\); these have \(1, 3, 40, 40\)"):
        model.run(noise(1, 40))


def test_what_is_no_file_of_ours_is_said(tmp_path, path):
    with pytest.raises(UserError, match="There is no file"):
        OnnxModel.load(tmp_path / "nothing.onnx")
    content = path.read_bytes()
    for name, spoilt in (("text", b"not a model"), ("cut", content[: len(content) // 2]), ("empty", b"")):
        (tmp_path / f"{name}.onnx").write_bytes(spoilt)
        with pytest.raises(UserError, match=r"is no ONNX file, or it is damaged|was not written by"):
            OnnxModel.load(tmp_path / f"{name}.onnx")
    other = onnx.load(path)
    details = json.loads(other.metadata_props[0].value)
    for change, said in (
        ({"library": "another"}, "was not written by `abn export`"),
        ({"format": 99}, "another version of this package"),
        ({"outputs": details["outputs"][:1]}, "other inputs or outputs"),
        ({"outputs": [5]}, "cannot run"),
        ({"preprocessing": {"size": "large"}}, "other inputs or outputs"),
        ({"preprocessing": {"size": [32, 40]}}, "other inputs or outputs"),
        ({"preprocessing": {"sizes": [32, 32]}}, "cannot run"),
    ):
        other.metadata_props[0].value = json.dumps(details | change)
        onnx.save(other, tmp_path / "changed.onnx")
        with pytest.raises(UserError, match=said):
            OnnxModel.load(tmp_path / "changed.onnx")


def test_weights_in_another_file_are_refused(tmp_path, path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(10**6))
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda item: len(item.raw_data))
    size = len(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "secret"), ("offset", "0"), ("length", str(size))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    (tmp_path / "pointing.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"keeps weights in another file|is no ONNX file"):
        OnnxModel.load(tmp_path / "pointing.onnx")


def test_explaining_a_file_is_explaining_its_network(tmp_path, path, network, pictures):
    network.save_pretrained(tmp_path / "saved")
    for method, target in (("attention", None), ("attention-class", "horse"), ("center", None), ("constant", None)):
        ours, theirs = tmp_path / f"file-{method}", tmp_path / f"network-{method}"
        done = explain_files(path, pictures, ours, method=method, target=target, progress=False)
        explain_files(tmp_path / "saved", pictures, theirs, method=method, target=target, progress=False)
        assert (done.explained, done.failed, done.exit_code) == (3, 0, 0)
        both = [
            [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
            for folder in (ours, theirs)
        ]
        for mine, other in zip(*both, strict=True):
            assert mine["prediction"]["class"] == other["prediction"]["class"]
            assert mine["prediction"]["probability"] == pytest.approx(other["prediction"]["probability"], abs=1e-5)
            assert mine["attention_branch"]["class"] == other["attention_branch"]["class"]
            assert mine["map"]["target"] == other["map"]["target"]
            assert mine["map"]["layer"] == other["map"]["layer"]
            assert [flag["flag"] for flag in mine["second_look"]] == [flag["flag"] for flag in other["second_look"]]
            maps = [np.load(folder / entry["map"]["file"]) for folder, entry in ((ours, mine), (theirs, other))]
            assert np.abs(maps[0] - maps[1]).max() < 1e-4
            drawn = [
                np.asarray(Image.open(folder / entry["picture"])).astype(int)
                for folder, entry in ((ours, mine), (theirs, other))
            ]
            assert np.abs(drawn[0] - drawn[1]).mean() < 0.5
        assert (ours / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("grad-cam", r"'grad-cam' cannot be computed from an exported file.*attention, attention-class, random"),
        ("cam", "'cam' cannot be computed from an exported file"),
    ],
)
def test_methods_that_a_file_does_not_carry(tmp_path, path, pictures, method, said):
    with pytest.raises(UserError, match=said):
        explain_files(path, pictures, tmp_path / "out", method=method, progress=False)
    assert not (tmp_path / "out").exists()


def test_cam_of_a_plain_file_is_cam_of_the_network(tmp_path):
    torch.manual_seed(0)
    network = trained_looking(ab.create_backbone("resnet14", 3))
    ab.export(network, tmp_path / "plain.onnx", data="random")
    model, images = OnnxModel.load(tmp_path / "plain.onnx"), noise(3, 32)
    for target in (None, 2, [0, 1, 2]):
        mine, theirs = (
            explain_onnx(model, images, "cam", target),
            ab.explain(network, torch.from_numpy(images), "cam", target),
        )
        assert mine.target.tolist() == theirs.target.tolist()
        assert np.abs(mine.raw - theirs.raw.numpy()).max() < 1e-4 * np.abs(mine.raw).max()
    with pytest.raises(UserError, match="it has none of its own"):
        model.features(images)
    network = trained_looking(ab.create_backbone("resnet14", heads={"smiling": 1, "age": 3}))
    ab.export(network, tmp_path / "heads.onnx", data="random")
    heads = OnnxModel.load(tmp_path / "heads.onnx")
    assert heads.outputs == ["logits.smiling", "logits.age", "cam.smiling", "cam.age"]
    for target in ({"age": 1}, {"smiling": 0}):
        mine = explain_onnx(heads, images, "cam", target).raw
        theirs = ab.explain(network, torch.from_numpy(images), "cam", target).raw.numpy()
        assert np.abs(mine - theirs).max() < 1e-4 * np.abs(theirs).max()
    with pytest.raises(UserError, match=r"no class 'cow'|no class names"):
        explain_onnx(model, images, "cam", "cow")


def test_it_runs_where_torch_is_not(tmp_path, path, pictures):
    from test_lazy import BLOCK

    shutil.copy(path, tmp_path / "model.onnx")
    code = (
        BLOCK
        + f"""
from attention_branch.cli import main
main(["explain", {str(tmp_path / "model.onnx")!r}, {str(pictures)!r}, "--out", {str(tmp_path / "out")!r}])
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 images explained" in done.stdout
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 3
