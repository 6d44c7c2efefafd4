"""What an exported file answers: against PyTorch in float64, in whole numbers of images that it was not made with."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from PIL import Image

import attention_branch as ab
from attention_branch import cli
from attention_branch.errors import UserError
from attention_branch.export import exporting
from attention_branch.export.agreement import drift, overlap, parity, predicted, spearman
from attention_branch.export.named_outputs import Output
from attention_branch.files import sha256
from exported import noise, trained_looking

NAMES = ["cat", "dog", "horse", "newt"]


def float64(model, images, **options):
    """The network's answer in float64, its state put back afterwards."""
    with torch.no_grad():
        try:
            return model.double()(torch.from_numpy(images).double(), **options)
        finally:
            model.float()


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def answers(path, images):
    opened = session(path)
    return dict(zip([item.name for item in opened.get_outputs()], opened.run(None, {"images": images}), strict=True))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return trained_looking(ab.create_model("resnet14", num_classes=4, branch="lite", class_names=NAMES))


@pytest.fixture(scope="module")
def run(tmp_path_factory, network):
    """A run's folder, with data of its own that can be opened."""
    folder = tmp_path_factory.mktemp("run")
    network.save_pretrained(folder / "model")
    generator = np.random.default_rng(0)
    for name in NAMES:
        (folder / "data" / name).mkdir(parents=True)
        for index in range(6):
            pixels = np.kron(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((9, 9, 1), np.uint8))
            Image.fromarray(pixels).save(folder / "data" / name / f"{index}.png")
    record = {"data": {"spec": str(folder / "data"), "seed": 0}}
    (folder / "config.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def whole(run):
    return ab.export(run, attention_logits=True, class_evidence=True)


def test_the_file_answers_as_the_network_for_any_number_of_images(network, whole):
    for count in (1, 3, 5):
        images = noise(count, 32, seed=count)
        found, expected = answers(whole.path, images), float64(network, images)
        assert list(found) == ["logits", "attention", "attention_logits", "class_evidence"]
        assert found["attention"].shape == (count, 1, 16, 16)
        for name in ("logits", "attention_logits", "attention"):
            assert np.abs(found[name] - getattr(expected, name).numpy()).max() < 1e-4, name
        # The branch is a class activation map: the mean of its evidence is its score.
        assert np.abs(found["class_evidence"].mean((2, 3)) - found["attention_logits"]).max() < 1e-4


def test_the_file_says_what_it_is(run, network, whole):
    stored = {item.key: item.value for item in onnx.load(whole.path).metadata_props}
    details = json.loads(stored["attention_branch"])
    assert details == whole.details
    assert details["class_names"] == NAMES
    assert details["preprocessing"] == json.loads(json.dumps(network.preprocessing.to_dict()))
    assert details["weights_sha256"] == sha256(run / "model" / "model.safetensors")
    assert (details["backbone"], details["mechanism"], details["branch"]) == ("resnet14", "residual", "lite")
    assert (details["map_range"], details["map_size"], details["precision"]) == ([0.0, 1.0], [16, 16], "32")
    assert details["parity"]["real"]
    assert details["parity"]["batch_sizes"] == [1, 3]
    assert 0 < details["parity"]["largest_difference"]["logits"] < 1e-4
    assert "cat, dog, horse, newt" in stored["classes"]
    assert details["versions"]["torch"].startswith(torch.__version__.partition("+")[0])


def test_nothing_in_the_file_names_the_machine(whole):
    text = whole.path.read_bytes()
    assert b"site-packages" not in text
    assert b".py" not in text


def test_features_cost_nothing_and_the_network_is_left_as_it_was(network, whole):
    model = onnx.load(whole.path)
    assert "features" not in {item.name for item in model.graph.output}
    assert "features" in {name for node in model.graph.node for name in node.output}
    assert not network._flow
    before = network(torch.zeros(1, 3, 32, 32)).logits
    assert torch.equal(network(torch.zeros(1, 3, 32, 32)).logits, before)


def test_several_heads_are_named(tmp_path):
    torch.manual_seed(0)
    heads = {"smiling": 1, "age": 3}
    model = trained_looking(ab.create_model("resnet14", heads=heads, branch="lite", perception="shared"))
    done = ab.export(model, tmp_path / "heads.onnx", attention_logits=True, data="random")
    images = noise(3, 32)
    found, expected = answers(done.path, images), float64(model, images)
    assert list(found)[:3] == ["logits.smiling", "logits.age", "attention"]
    assert found["attention"].shape == (3, 2, 16, 16)
    assert np.abs(found["attention"] - expected.attention.numpy()).max() < 1e-4
    for head in heads:
        assert np.abs(found[f"logits.{head}"] - expected.logits[head].numpy()).max() < 1e-4
        assert np.abs(found[f"attention_logits.{head}"] - expected.attention_logits[head].numpy()).max() < 1e-4


def test_a_plain_network_of_timm_gives_cam(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5).train()
    done = ab.export(model, tmp_path / "plain.onnx", data="random")
    assert model.training  # left as it was
    model.eval()
    images = noise(3, 160)
    found = answers(done.path, images)
    assert found["cam"].shape == (3, 5, 5, 5)
    with torch.no_grad():
        expected = model.double()(torch.from_numpy(images).double()).numpy()
    assert np.abs(found["logits"] - expected).max() < 1e-4
    # CAM's check: the mean over positions plus the classifier's bias is the score.
    assert np.abs(found["cam"].mean((2, 3)) + model.fc.bias.detach().float().numpy() - expected).max() < 1e-4
    assert done.details["is_abn"] is False
    assert done.details["backbone"] == "test_resnet"


def test_a_head_that_is_not_linear_is_said(tmp_path, capsys):
    torch.manual_seed(0)
    done = ab.export(timm.create_model("test_vit", num_classes=5), tmp_path / "vit.onnx", data="random")
    assert [item["name"] for item in done.details["outputs"]] == ["logits"]
    assert any("no class activation map" in line for line in done.lines())


def test_a_file_that_answers_otherwise_is_not_written(tmp_path, network, monkeypatch):
    original = exporting._session

    def spoilt(model):
        answer = original(model)
        return lambda images: {name: value + 2e-4 * (name == "attention") for name, value in answer(images).items()}

    monkeypatch.setattr(exporting, "_session", spoilt)
    with pytest.raises(UserError, match=r"its map differ by 2\.\de-04.*Nothing was written"):
        ab.export(network, tmp_path / "model.onnx", data="random")
    assert not list(tmp_path.iterdir())


def test_parity_refuses_what_is_no_number():
    outputs = [Output("logits", "logits")]
    fine = [{"logits": np.array([[1.0, 2.0]])}]
    assert parity(fine, [{"logits": np.array([[1.0, 2.00005]])}], outputs)["logits"] == pytest.approx(5e-5)
    for wrong in (2.001, np.nan):
        with pytest.raises(UserError, match="logits differ"):
            parity(fine, [{"logits": np.array([[1.0, wrong]])}], outputs)


def test_torch_export_answers_the_same_and_carries_the_details(tmp_path, network, run):
    done = ab.export(run, tmp_path / "model.pt2", format="torch-export", class_evidence=True)
    extra = {"attention_branch.json": ""}
    program = torch.export.load(done.path, extra_files=extra).module()
    details = json.loads(extra["attention_branch.json"])
    assert details["class_names"] == NAMES
    assert details["parity"]["largest_difference"]["map"] < 1e-4
    for count in (1, 4):
        images = noise(count, 32, seed=7)
        found, expected = program(torch.from_numpy(images)), float64(network, images)
        assert list(found) == ["logits", "attention", "class_evidence"]
        assert (found["logits"] - expected.logits).abs().max() < 1e-4
        assert (found["attention"] - expected.attention).abs().max() < 1e-4


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_coarser_files_report_the_drift_of_scores_and_map(tmp_path, network, run, whole, precision):
    done = ab.export(run, tmp_path / "coarse.onnx", precision=precision, images=4)
    assert done.bytes < 0.8 * whole.bytes
    found = done.details["drift"]
    assert json.loads((tmp_path / "coarse.json").read_text())["drift"] == found
    images = np.stack([network.preprocessing.array(Image.open(path)) for path in sorted(run.glob("data/*/*.png"))])
    mine, other = float64(network, images), answers(done.path, images)
    assert other["logits"].dtype == np.float32
    # Of the same size as what is measured here on all the data, of which it took four images.
    off = np.abs(other["logits"] - mine.logits.numpy())
    assert 0 < found["logits"]["mean"] < 5 * off.mean() + 1e-6
    assert found["logits"]["largest"] <= off.max() + 1e-5
    assert found["map"]["largest_difference"] <= np.abs(other["attention"] - mine.attention.numpy()).max() + 1e-5
    assert found["n"] == 4
    assert found["map"]["spearman"]["mean"] > 0.9
    assert 0.5 < found["map"]["top_overlap"]["least"] <= 1


def test_drift_of_a_case_made_by_hand():
    outputs = [Output("logits", "logits"), Output("attention", "attention")]
    mine = {"logits": np.array([[1.0, 2.0], [3.0, 1.0]]), "attention": np.arange(20.0).reshape(2, 1, 2, 5) / 20}
    other = {"logits": np.array([[1.0, 1.5], [1.0, 3.0]]), "attention": mine["attention"].copy()}
    other["attention"][1] = other["attention"][1, :, ::-1, ::-1]
    found = drift(mine, other, outputs)
    assert found["logits"] == {"largest": 2.0, "mean": pytest.approx(4.5 / 4)}
    assert found["equal_predictions"] == 0.5
    assert found["map"]["spearman"] == {"mean": pytest.approx(0), "least": pytest.approx(-1), "maps": 2}
    assert found["map"]["top_overlap"] == {"mean": 0.5, "least": 0.0, "share": 0.2}
    assert found["map"]["largest_difference"] == pytest.approx(0.45)


def test_ranks_and_overlap_of_single_maps():
    ramp = np.arange(25.0).reshape(5, 5)
    assert spearman(ramp, np.exp(ramp)) == pytest.approx(1)
    assert spearman(ramp, np.zeros((5, 5))) is None
    moved = ramp.copy()
    moved[4, 4], moved[0, 0] = moved[0, 0], moved[4, 4]
    assert overlap(ramp, moved) == pytest.approx(4 / 6)  # one of the five highest is another one
    assert predicted(np.array([[-1.0], [2.0]])).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "tflite"}, "Unknown format 'tflite'"),
        ({"precision": "int4"}, "Unknown precision 'int4'"),
        ({"precision": "int8", "format": "torch-export"}, "is for ONNX files"),
        ({"precision": "int8", "data": "random"}, "real images; name them with --data"),
        ({"precision": "fp16"}, "name the data with --data"),
        ({"path": "model.pt2"}, r"does not end in \.onnx"),
        ({"images": 0}, "1 or more"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(tmp_path, network, options, said):
    options = {"path": "model.onnx"} | options
    path = tmp_path / options.pop("path")
    with pytest.raises(UserError, match=said):
        ab.export(network, path, **options)
    assert not list(tmp_path.iterdir())


def test_outputs_of_a_branch_are_refused_where_there_is_none(tmp_path):
    with pytest.raises(UserError, match="--class-evidence is an output of an attention branch"):
        ab.export(ab.create_backbone("resnet14", 3), tmp_path / "a.onnx", class_evidence=True, data="random")


def test_a_network_of_timm_by_name_brings_the_names_of_its_classes(tmp_path, monkeypatch):
    create = timm.create_model
    # Without the download: the same network, weights drawn.
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=False))
    monkeypatch.chdir(tmp_path)
    done = ab.export("timm:test_resnet.r160_in1k", data="random")
    assert done.path.name == "test_resnet.r160_in1k.onnx"
    names = done.details["class_names"]
    assert (len(names), names[0], names[207], names[999]) == (1000, "tench", "golden retriever", "toilet tissue")
    assert done.details["preprocessing"]["size"] == [160, 160]


def test_names_of_timm_that_do_not_exist():
    with pytest.raises(UserError, match=r"timm has no network 'resnet5000'.*Did you mean"):
        ab.export("timm:resnet5000")


def test_the_command(tmp_path, run, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(run), "--out", str(tmp_path / "m.onnx"), "--data", "random", "--json"])
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == (tmp_path / "m.onnx").stat().st_size
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(tmp_path / "nowhere")])
    assert ended.value.code == 2
    assert "abn: There is no folder" in capsys.readouterr().err
