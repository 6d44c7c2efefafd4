"""PANDA: places of parts by hand, part networks counted, each network's own loss, points that are found, a run."""

import dataclasses
import importlib
import sys
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
import torch

import attention_branch as ab
from attention_branch.errors import UserError
from attention_branch.models.facial.crops import cut, enlarged
from attention_branch.models.facial.lnets_anet import CONTEXT
from attention_branch.models.facial.localiser import best_window
from attention_branch.models.facial.panda import powered
from attention_branch.models.facial.part_networks import PartNetworks
from attention_branch.models.facial.parts import PARTS, PointNet, overlapping_boxes, part_boxes
from attention_branch.models.facial.regions import ALIGNED
from attention_branch.reproduce import record as records
from attention_branch.reproduce.cells import Cell
from attention_branch.reproduce.groups import read_groups
from attention_branch.reproduce.large_run import run_large
from attention_branch.reproduce.plan import Protocol, make_jobs
from attention_branch.reproduce.results import table_rows
from attention_branch.reproduce.sources import open_origin, parse_data
from attention_branch.training import TrainConfig, attribute_stages, train
from attention_branch.training.attribute_stages import divided, moved, point_error, train_points
from attention_branch.training.stages import Stages
from test_data_paper_sets import settings as counts
from test_data_paper_sets import write_celeba, write_landmarks
from test_moon import write_marks

assert counts  # those of the official CelebA are replaced by the miniature's, for every test

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
drawn_faces = importlib.import_module("drawn_faces").drawn_faces
sys.path.remove(BENCHMARKS)

HEADS = {"glasses": 2, "smiling": 1}
SMALL = {
    "part": 32, "channels": 4, "hidden": 3, "whole": "resnet14", "whole_options": {"stem_stride": 2}, "image_size": 64,
}  # fmt: skip


def network(**changes):
    return ab.create_backbone("panda", heads=HEADS, **SMALL | changes).eval()


def test_parts_are_squares_about_the_points():
    """A face whose eyes are 40 pixels above its mouth, in a picture twice as wide as high."""
    points = torch.tensor([[[80.0, 30], [120, 30], [100, 50], [85, 70], [115, 70]]])
    boxes = part_boxes(points / torch.tensor([200.0, 100]), (100, 200))[0] * torch.tensor([200.0, 100, 200, 100])
    found = {part.name: box.tolist() for part, box in zip(PARTS, boxes, strict=True)}
    assert found["left eye"] == pytest.approx([60, 10, 100, 50])
    assert found["right eye"] == pytest.approx([100, 10, 140, 50])
    assert found["mouth"] == pytest.approx([74, 44, 126, 96])
    assert found["left cheek"] == pytest.approx([62.5, 30, 102.5, 70])
    assert found["chin"] == pytest.approx([70, 64, 130, 124])
    assert found["face"] == pytest.approx([40, -18, 160, 102])


def test_the_grid_overlaps_by_half():
    assert overlapping_boxes(3)[[0, 1, 5, 8]].tolist() == [
        [0, 0, 0.5, 0.5], [0.25, 0, 0.75, 0.5], [0.5, 0.25, 1, 0.75], [0.5, 0.5, 1, 1],
    ]  # fmt: skip


def test_part_networks_have_the_released_layers():
    """Weights by hand from deploy_panda.prototxt: 5x5, 5x5, 3x3, 3x3, and 3x3 local at each of 3x3 positions."""
    networks = PartNetworks(2, heads=5)
    convolutions = 25 * 3 * 64 + 25 * 64 * 64 + 2 * 9 * 64 * 64 + 9 * 9 * 64 * 64
    own = sum(parameter.numel() for parameter in networks.networks[0].parameters() if parameter.ndim == 4)
    assert own == convolutions
    assert networks.branch[0].numel() == 5 * 576 * 128
    patches = torch.randn(3, 2, 3, 56, 56)
    networks.eval()
    with torch.no_grad():
        features = networks(patches)
        assert features.shape == (3, 2, 576)
        changed = networks(torch.stack([patches[:, 0], torch.zeros_like(patches[:, 1])], dim=1))
    assert torch.equal(features[:, 0], changed[:, 0])
    scores = networks.scores(features)
    hidden = torch.relu(networks.branch[1, 4].T @ features[2, 1] + networks.branch_bias[1, 4])
    assert scores[2, 1, 4].item() == pytest.approx((networks.answer[1, 4] @ hidden + networks.answer_bias[1, 4]).item())


@pytest.mark.parametrize("places", ["landmarks", "localiser", "grid"])
def test_features_are_those_of_the_patches_side_by_side(places):
    model = network(parts=places, lnet="resnet14", lnet_options={"stem_stride": 2})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        boxes, present = model.localise(images)
        count = len(model.part_names)
        assert boxes.shape == (2, count, 4)
        assert present.all()
        patch = cut(images, boxes[:, 1:2], (32, 32))[:, 0]
        mine = model.backbone.parts.networks[1](patch).flatten(1)
        features = model.features(images)
        whole = model.backbone.whole.forward_features(images).mean((2, 3))
    assert torch.allclose(features[:, 0, 36:72], mine**0.3 * (mine > 0), atol=0.07)
    assert torch.allclose(features[:, 0, 36 * count :], powered(whole), atol=1e-5)
    if places == "landmarks":
        assert torch.allclose(boxes, part_boxes(torch.tensor([ALIGNED, ALIGNED]), (64, 64)))
    if places == "localiser":
        face = enlarged(best_window(model.backbone.lnet.response(images)), CONTEXT)
        assert torch.equal(boxes[:, 0], face)
        assert torch.allclose(boxes[:, 5, :2], face[:, :2] + 0.25 * (face[:, 2:] - face[:, :2]))


def test_a_missing_part_has_features_of_zeros():
    model = network()
    # A face in the lower left corner: what is left of its mouth and below it is cut off.
    model.backbone.points.mean.copy_(torch.tensor(ALIGNED) + torch.tensor([-0.39, 0.28]))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        _, present = model.localise(images)
        features, _ = model.part_features(images)
    missing = [name for name, one in zip(model.part_names, present[0], strict=True) if not one]
    assert "chin" in missing
    assert "right eye" not in missing
    assert not features[~present].any()
    assert features[present].any(1).all()


def test_occlusion_finds_the_only_part_that_counts():
    pytest.importorskip("captum")
    model = network(parts="grid")
    weight = torch.zeros(2, model.backbone.num_features)
    weight[0, :36] = torch.randn(36)  # the upper left window's features
    model.linear.set(weight, torch.zeros(2))
    found = ab.explain(model, torch.randn(1, 3, 64, 64), method="occlusion", target={"glasses": 1})
    # A window of an eighth is laid on; what lies beyond one of them from the part changes nothing.
    assert found.raw[0, :32, :32].abs().max() > 0
    assert found.raw[0, 41:].abs().max() < 1e-5
    assert found.raw[0, :, 41:].abs().max() < 1e-5


def test_powers_of_features_have_slopes():
    features = torch.tensor([-2.0, 0.0, 1e-6, 3.0], requires_grad=True)
    made = powered(features)
    # The floor under the root takes 0.0001^0.3 = 0.063 off; close to zero it takes most of the power away.
    wanted = [-(2.0001**0.3) + 0.0001**0.3, 0, 0.000101**0.3 - 0.0001**0.3, 3.0001**0.3 - 0.0001**0.3]
    assert made.tolist() == pytest.approx(wanted, abs=1e-5)
    made.sum().backward()
    assert features.grad.isfinite().all()


def test_each_network_is_trained_as_if_it_were_alone():
    model = network(parts="grid")
    model.begin("parts")
    images, targets = (
        torch.randn(4, 3, 64, 64),
        {"glasses": torch.tensor([0, 1, 1, -1]), "smiling": torch.tensor([1, 0, -1, 1])},
    )
    output = model(images)
    assert len(output.each) == 10
    mean = torch.stack([one["glasses"] for one in output.each]).mean(0)
    assert torch.allclose(output["glasses"], mean, atol=1e-5)
    losses = [ab.abn_loss(one, targets).total for one in output.each]
    total = model.loss(output, targets).total
    assert total.item() == pytest.approx(sum(losses).item(), rel=1e-5)
    weight = model.backbone.parts.networks[3][0].weight
    (alone,) = torch.autograd.grad(losses[3], weight, retain_graph=True)
    (together,) = torch.autograd.grad(total, weight)
    assert torch.allclose(alone, together, atol=1e-6)
    one = ab.create_backbone("panda", num_classes=2, parts="grid", **SMALL).eval()
    one.begin("parts")
    single = one(images)
    assert one.loss(single, targets["glasses"]).total > 3 * ab.abn_loss(single, targets["glasses"]).total


def test_moving_a_picture_moves_its_points():
    """A bright spot a point: where the spots' middles are afterwards is where the points must be."""
    places = torch.tensor([[20, 30], [44, 30], [32, 40], [25, 50], [39, 50]])  # x, y
    generator = torch.Generator().manual_seed(3)
    kinds = set()
    for number in range(5):
        images = torch.zeros(8, 3, 64, 64)
        x, y = places[number].tolist()
        images[:, :, y - 1 : y + 2, x - 1 : x + 2] = 1
        points = ((places + 0.5) / 64).expand(8, -1, -1)
        seen, found = moved(images, points, generator)
        grid = (torch.arange(64) + 0.5) / 64
        mass = seen[:, 0].sum((1, 2))
        middle = torch.stack([seen[:, 0].sum(1) @ grid, seen[:, 0].sum(2) @ grid], dim=1) / mass[:, None]
        distance = (found - middle[:, None]).norm(dim=2)
        kinds |= set(distance.argmin(1).tolist())
        assert (distance.amin(1) < 0.01).all()
        mirrored = distance.argmin(1) != number
        assert (distance.argmin(1)[mirrored] == [1, 0, 2, 4, 3][number]).all()
    assert kinds == {0, 1, 2, 3, 4}


def test_points_of_faces_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(attribute_stages, "POINT_EPOCHS", 8)
    monkeypatch.setattr(attribute_stages, "POINT_BATCH", 16)
    data = drawn_faces(0, {"train": 160, "validation": 40})
    model = network()
    networks, machines = divided(data, 0)
    assert (len(networks.train), len(machines)) == (142, 18)
    assert not set(networks.train.ids) & set(machines.ids)
    config = TrainConfig(data="drawn", model="panda", workers=0)
    tensors = train_points(config, networks, model, Stages(tmp_path))
    true = (torch.from_numpy(data.validation.all_points(model.preprocessing)) + 0.5) / 64
    images = torch.stack([model.preprocessing.tensor(data.validation.image(number)) for number in range(40)])
    fresh = PointNet().eval()
    fresh.load_state_dict({name.removeprefix("backbone.points."): value for name, value in tensors.items()})
    with torch.no_grad():
        error = point_error(fresh(images), true).mean()
    known = point_error(fresh.mean.expand_as(true), true).mean()
    assert error < 0.75 * known


def test_errors_are_shares_of_the_eyes_distance():
    found, wanted = torch.tensor([[[0.0, 0.3]] * 5]), torch.zeros(1, 5, 2)
    wanted[0, 1, 0] = 0.5
    expected = [0.6, (0.25 + 0.09) ** 0.5 / 0.5, 0.6, 0.6, 0.6]
    assert point_error(found, wanted)[0].tolist() == pytest.approx(expected)


def settings(data, out, *options) -> TrainConfig:
    chosen = ("part=32", "channels=2", "hidden=2", "whole=resnet14", "whole_options={'stem_stride': 2}", *options)
    return TrainConfig(
        data=str(data), model="panda", image_size=32, model_options=chosen, out=str(out), epochs=1, batch_size=16,
        warmup_epochs=0.0, accelerator="cpu", workers=0, maps=0,
    )  # fmt: skip


def test_a_run_on_pictures_without_points(tmp_path):
    data = write_marks(tmp_path / "marks")
    run = train(settings(data, tmp_path / "run"))
    model = ab.load_model(run)
    assert model.config.backbone_options["parts"] == "grid"
    assert model.linear.weight.any()
    assert (run / "parts.jsonl").exists()
    with pytest.raises(UserError, match=r"has no points of faces .* parts=localiser or parts=grid"):
        train(settings(data, tmp_path / "other", "parts=landmarks"))


def test_its_row_of_table_4_on_a_miniature_of_celeba(tmp_path):
    write_celeba(tmp_path / "faces")
    points = write_landmarks(tmp_path / "faces")
    (origin,) = [found for found in parse_data([f"celeba={tmp_path}/faces"]) if found.name == "celeba"]
    data = open_origin(origin)
    (job,) = make_jobs([Cell("panda", "celeba", "plain")], origin, data, Protocol(), [0], tmp_path / "runs", False)
    assert job.config.pretrained
    assert job.config.image_size == (218, 178)
    options = ("part=32", "channels=2", "hidden=2", "whole=resnet14", "whole_options={'stem_stride': 2}")
    small = {"pretrained": False, "image_size": (64, 52), "model_options": options, "epochs": 1, "warmup_epochs": 0.0}
    job = dataclasses.replace(job, config=dataclasses.replace(job.config, workers=0, **small))
    queue = Queue()
    run_large(job, "cpu", queue)
    told = [queue.get() for _ in range(queue.qsize())]
    assert [one.kind for one in told] == ["begun", "finished"], told
    assert (job.record.with_suffix("") / "parts.jsonl").exists()
    record = records.read(job.record)
    assert records.is_finished(record)
    rows = {(one["row"], one["column"]): one for one in table_rows(read_groups([tmp_path / "runs"]))}
    ours = rows["PANDA-1", "average accuracy"]
    assert ours["ours"]["mean"] == pytest.approx(100 * (1 - record["last"]["test_error"]))
    assert ours["published"] == 85.43
    assert "true landmarks" in ours["note"]
    other = rows["LNet+ANet", "average accuracy"]
    assert other["published"] == 87.30
    assert "not run (lnets-anet/celeba/plain)" in other["reason"]
    model = ab.load_model(job.network)
    where = [points[name] for name in divided(data, 0)[0].train.ids]
    mean = (np.mean(where, axis=0) + 0.5) / [178, 218]
    # The miniature's points differ by a few pixels and its pictures are noise: they are found where the mean ones lie.
    with torch.no_grad():
        found = model.backbone.points(torch.zeros(1, 3, 64, 52))[0].numpy()
    assert np.abs(found - mean).max() < 0.1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parts": "poselets"}, "parts is 'poselets'; use one of landmarks, localiser, grid"),
        ({"part": 40}, "part is 40; .* 32 or 56"),
        ({"heads": {"hair": 3}}, "'hair' has 3"),
        ({"whole": "resnet15"}, "Unknown backbone 'resnet15'"),
        ({"name": "panda:resnet50"}, "built by its name alone, and its network is chosen by the option whole"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        ab.create_backbone(**{"name": "panda", "heads": HEADS} | SMALL | changes)


def test_a_head_of_its_own_may_widen_the_features():
    model = ab.create_backbone("panda", heads=HEADS, image_size=64, parts="grid", part=32, channels=2,
                               whole="mobilenetv3_small_050").eval()  # fmt: skip
    assert model(torch.zeros(1, 3, 64, 64)).keys() == HEADS.keys()
