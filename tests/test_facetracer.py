"""FaceTracer: regions, features and choices against closed forms, and the whole on generated faces and on CelebA."""

import colorsys
import dataclasses
from queue import Queue

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import attention_branch as ab
from attention_branch.data.dataset import DataSet, ImageSet
from attention_branch.data.torchvision_sets import ArraySource
from attention_branch.errors import UserError
from attention_branch.models.facial.facetracer import BINS, RegionFeatures, histogram, hsv, normalised, pixel_types
from attention_branch.models.facial.regions import ALIGNED, FACE, face_boxes, grid_boxes, patches
from attention_branch.reproduce import record as records
from attention_branch.reproduce.cells import Cell
from attention_branch.reproduce.groups import read_groups
from attention_branch.reproduce.large_run import run_large
from attention_branch.reproduce.plan import Protocol, make_jobs
from attention_branch.reproduce.results import table_rows
from attention_branch.reproduce.sources import open_origin, parse_data
from attention_branch.training import TrainConfig, train
from attention_branch.training.facetracer import _best_alone, _classifier, boosted, discriminant, fit_facetracer
from attention_branch.training.stages import Stages
from test_data_paper_sets import settings, write_celeba, write_landmarks

assert settings  # the counts of the official set are replaced by those of the small one, for every test


def test_a_patch_is_the_mean_of_what_each_cell_covers():
    random = np.random.default_rng(0)
    picture = random.random((3, 7, 9))
    box = (1.25, 0.5, 7.75, 6.1)
    found = patches(torch.from_numpy(picture)[None], torch.tensor([box], dtype=torch.float64), 4)
    # By hand: every pixel in 200 x 200 points, each point in the cell that it lies in.
    fine = np.repeat(np.repeat(picture, 200, 1), 200, 2)
    y, x = ((np.arange(n * 200) + 0.5) / 200 for n in (7, 9))
    for row in range(4):
        for column in range(4):
            low, high = (box[1] + (box[3] - box[1]) * (row + k) / 4 for k in (0, 1))
            left, right = (box[0] + (box[2] - box[0]) * (column + k) / 4 for k in (0, 1))
            own = fine[:, (y >= low) & (y < high)][:, :, (x >= left) & (x < right)].mean((1, 2))
            assert np.allclose(found[0, 0, :, row, column].numpy(), own, atol=2e-3)
    each = patches(torch.from_numpy(picture)[None], torch.tensor([[box]], dtype=torch.float64), 4)
    assert torch.equal(each, found)


def test_regions_lie_where_the_points_say():
    points = torch.tensor(ALIGNED) * torch.tensor([178.0, 218.0])
    boxes = dict(zip(FACE, face_boxes(points, 218, 178).tolist(), strict=True))
    x, y = points.unbind(1)
    for name, own in (("eyes", (0, 1)), ("nose", (2,)), ("mouth", (3, 4)), ("face", range(5))):
        x0, y0, x1, y1 = boxes[name]
        assert all(x0 < x[p] < x1 and y0 < y[p] < y1 for p in own)
    assert boxes["forehead"][3] < y[0]
    assert boxes["hair"][3] <= boxes["forehead"][3]
    assert y[2] < boxes["upper lip"][3] <= y[3]
    assert boxes["chin"][1] > y[3]
    assert boxes["left cheek"][2] < x[2] < boxes["right cheek"][0]
    assert boxes["picture"] == [0, 0, 178, 218]
    # A face twice as large, moved: so are the regions; what lies outside the picture is cut off.
    moved = face_boxes(2 * points + 30, 1000, 1000)[:-1]
    assert torch.allclose(moved, 2 * face_boxes(points, 218, 178)[:-1] + 30, atol=1e-3)
    cut = face_boxes(points - 80, 60, 60)
    assert cut.min() >= 0
    assert cut.max() <= 60
    assert ((cut[:, 2:] - cut[:, :2]) >= 2 - 1e-4).all()
    assert grid_boxes(2, 10, 20).tolist()[1] == [10, 0, 20, 5]


def test_hue_saturation_value_is_colorsys():
    colours = np.random.default_rng(0).random((1, 1, 3, 6, 6))
    colours[..., 0, :] = colours[..., :1, 0, :]  # grey
    found = hsv(torch.from_numpy(colours))[0, 0].numpy()
    for row in range(6):
        for column in range(6):
            wanted = colorsys.rgb_to_hsv(*colours[0, 0, :, row, column])
            assert np.allclose(found[:, row, column], wanted, atol=1e-6)


def test_edges_of_a_ramp():
    steps = torch.arange(8, dtype=torch.float64) / 10
    across = steps.expand(1, 1, 3, 8, 8)
    for picture, direction in ((across, 0.25), (across.transpose(3, 4), 0.75)):
        *_, magnitude, orientation = pixel_types(picture)
        # Sobel / 4 of a slope of 0.1 a cell over two cells, divided by the square root of two.
        assert torch.allclose(magnitude[..., 1:-1, 1:-1], torch.tensor(0.2 / 2**0.5, dtype=torch.float64), atol=1e-6)
        assert torch.allclose(orientation[..., 1:-1, 1:-1], torch.tensor(direction, dtype=torch.float64), atol=1e-6)
    flat = pixel_types(torch.full((1, 1, 3, 8, 8), 0.4))
    assert flat[4].abs().max() == 0


def test_normalisations_take_the_light_away():
    values = torch.rand(2, 3, 1, 8, 8, dtype=torch.float64) + 0.2
    assert torch.allclose(normalised(0.5 * values, "mean"), normalised(values, "mean"))
    assert torch.allclose(normalised(0.5 * values + 0.1, "energy"), normalised(values, "energy"))
    assert torch.allclose(normalised(values, "mean").mean((3, 4)), torch.ones(2, 3, 1, dtype=torch.float64))
    energy = normalised(values, "energy")
    assert torch.allclose(energy.square().mean((3, 4)), torch.ones(2, 3, 1, dtype=torch.float64))


def test_a_histogram_counts_between_the_middles_of_its_bins():
    middles = torch.arange(BINS, dtype=torch.float64) / (BINS - 1)
    for number, middle in enumerate(middles):
        found = histogram(middle.expand(1, 1, 1, 5), 0.0, 1.0)[0, 0, 0]
        assert found[number] == pytest.approx(1)
    between = histogram((middles[2] + (middles[3] - middles[2]) * 0.25).expand(1, 1, 1, 1), 0.0, 1.0)[0, 0, 0]
    assert between[2:4].tolist() == pytest.approx([0.75, 0.25])
    many = histogram(torch.randn(2, 3, 1, 50, dtype=torch.float64), 0.0, 1.0)
    assert torch.allclose(many.sum(3), torch.ones(2, 3, 1, dtype=torch.float64))


def test_each_combination_lies_where_it_says():
    features = RegionFeatures("grid", 2).double()
    picture = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    found = features(picture)[0]
    assert len(features.names) == 5 * 5 * 3 * 3
    assert found.shape == (features.width,)
    # The second row's first region is the lower left quarter; its 16 x 16 pixels are the patch's cells.
    quarter = picture[0, :, 16:, :16]
    where = dict(zip(features.names, features.slices, strict=True))
    region = "row 2, column 1"
    statistics = found[where[region, "rgb", "none", "statistics"]].view(3, 2)
    assert torch.allclose(statistics[:, 0], quarter.mean((1, 2)))
    assert torch.allclose(statistics[:, 1], quarter.std((1, 2), correction=0))
    values = found[where[region, "rgb", "none", "values"]].view(3, 8, 8)
    assert torch.allclose(values, quarter.unflatten(2, (8, 2)).unflatten(1, (8, 2)).mean((2, 4)))
    counts = found[where[region, "intensity", "none", "histogram"]]
    grey = (quarter * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]).sum(0)
    assert (counts * torch.arange(BINS)).sum() / 7 == pytest.approx(grey.mean().item())


def test_a_discriminant_is_scikit_learns():
    random = np.random.default_rng(0)
    mixing = random.normal(size=(5, 5))
    features = random.normal(size=(400, 5)) @ mixing
    targets = (features @ random.normal(size=(5, 3)) + random.normal(size=(400, 3)) > 1).astype(np.int64)
    targets[:50, 1] = -1
    targets[:, 2] = 0
    asked = random.normal(size=(300, 5)) @ mixing
    found = discriminant(features, targets, asked)
    for head in range(2):
        known = targets[:, head] >= 0
        reference = LinearDiscriminantAnalysis(solver="lsqr", priors=[0.5, 0.5]).fit(
            features[known], targets[known, head]
        )
        # The small ridge moves the border a little.
        assert (found[:, head] == (reference.predict(asked) == 1)).mean() > 0.97
    assert not found[:, 2].any()


def test_boosting_picks_as_adaboost_does():
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, 300)
    verdicts = np.where(random.random((300, 12)) < np.linspace(0.55, 0.8, 12), truth[:, None], 1 - truth[:, None]) == 1
    labels = truth.copy()
    labels[:20] = -1
    # Freund and Schapire's form: weights times exp(-alpha y h), normalised; classes of equal weight at the start.
    y, h = 2.0 * truth[20:] - 1, 2.0 * verdicts[20:] - 1
    weights = np.where(y > 0, 1 / (y > 0).sum(), 1 / (y < 0).sum()) / 2
    wanted = []
    for _ in range(5):
        errors = [weights[h[:, k] != y].sum() if k not in wanted else 1.0 for k in range(12)]
        best = int(np.argmin(errors))
        alpha = 0.5 * np.log((1 - errors[best]) / errors[best])
        weights = weights * np.exp(-alpha * y * h[:, best])
        weights /= weights.sum()
        wanted.append(best)
    assert boosted(verdicts, labels, 5) == wanted
    perfect = np.column_stack([verdicts, truth == 1])
    assert boosted(perfect, labels, 5) == [12]
    assert boosted(verdicts[:, :1] & False, labels, 5) == []
    assert boosted(verdicts, np.ones(300, dtype=np.int64), 5) == []


def test_a_rare_answer_is_given_too():
    """Two yes-pictures among 300, which both halves seldom get: the one feature that tells them is found."""
    random = np.random.default_rng(0)
    features = random.normal(size=(300, 6)).astype(np.float32)
    target = np.zeros(300, dtype=np.int64)
    target[[10, 200]] = 1
    features[target == 1, 4] += 30
    assert _best_alone(features, target, [slice(start, start + 2) for start in (0, 2, 4)]) == 2
    target[0] = -1
    assert _best_alone(features, target, [slice(start, start + 2) for start in (0, 2, 4)]) == 2


def test_without_validation_labels_all_picks_are_read():
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(60, 6)).astype(np.float16), random.integers(0, 2, (60, 1))
    kept = {"train": features, "validation": features}
    places = [np.array([number]) for number in range(6)]
    found = _classifier(kept, {"train": labels, "validation": np.full((60, 1), -1)}, 0, places, 0)
    assert int(found["count"]) == 6


def face(random, glasses: bool, moustache: bool) -> Image.Image:
    """A drawn face in the proportions of CelebA's aligned pictures."""
    picture = Image.new("RGB", (89, 109), tuple(random.integers(0, 120, 3).tolist()))
    draw = ImageDraw.Draw(picture)
    skin = tuple((np.array([200, 160, 130]) + random.integers(-40, 40)).tolist())
    draw.ellipse((17, 22, 71, 100), fill=skin)
    dark = tuple(random.integers(0, 60, 3).tolist())
    for x in (34, 54):
        draw.ellipse((x - 3, 53, x + 3, 57), fill=dark)
        if glasses:
            draw.ellipse((x - 8, 48, x + 8, 63), outline=dark, width=2)
    draw.line((35, 76, 53, 76), fill=(150, 40, 40), width=3)
    if moustache:
        draw.rectangle((35, 70, 53, 73), fill=dark)
    noisy = np.asarray(picture).astype(int) + random.integers(-12, 13, (109, 89, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    root, random = tmp_path_factory.mktemp("data") / "faces", np.random.default_rng(0)
    root.mkdir()
    lines = ["file_name,split,glasses,moustache"]
    for number in range(110):
        glasses, moustache = bool(random.integers(2)), number % 3 == 0
        split = ("train", "train", "train", "validation", "test")[number % 5]
        face(random, glasses, moustache).save(root / f"{number:03d}.png")
        lines.append(f"{number:03d}.png,{split},{'yes' if glasses else 'no'},{'yes' if moustache else 'no'}")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def test_faces_are_told_by_the_right_regions(faces, tmp_path, capsys):
    config = TrainConfig(
        data=str(faces), model="facetracer", image_size=(109, 89), resize="squash", out=str(tmp_path / "run"),
        model_options=("regions='face'", "features=3"), accelerator="cpu", workers=0,
    )  # fmt: skip
    run = train(config)
    assert "The data gives no points of the faces" in capsys.readouterr().out
    model = ab.load_model(run)
    found = ab_evaluate(run, tmp_path)
    assert found.accuracy > 0.9
    first = {head: model.reads(number)[0][0] for number, head in enumerate(model.heads)}
    assert first["glasses"] in ("eyes", "face", "nose", "picture")
    assert first["moustache"] in ("upper lip", "mouth", "nose", "face", "picture")
    images = torch.rand(2, 3, 109, 89)
    # Points of each picture move the regions; those it was fitted with change nothing.
    own = (model.backbone.points * torch.tensor([89, 109]) - 0.5).expand(2, 5, 2)
    with torch.no_grad():
        assert torch.allclose(model.scores(images, own), model.scores(images), atol=1e-4)
        assert not torch.allclose(model.scores(images, own + 5), model.scores(images), atol=1e-4)
    assert ab.explain(model, images[:1], method="occlusion", target={"glasses": 1}).maps.shape == (1, 109, 89)


def ab_evaluate(run, folder):
    from attention_branch.evaluation import evaluate_run

    return evaluate_run(run, output=folder / "out", progress=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"regions": "nose"}, "regions is 'nose'; use 'face' or 'grid'"),
        ({"features": 0}, "features is 0; use a whole number"),
        ({"colour": 1}, "'facetracer' has no option 'colour'"),
        ({"pretrained": True}, "no pretrained weights for 'facetracer'"),
        ({"name": "facetracer:resnet50"}, "'facetracer' is built by its name alone"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(UserError, match=words):
        ab.create_backbone(**{"name": "facetracer", "heads": {"a": 2}} | options)


def test_its_row_of_table_4(tmp_path):
    write_celeba(tmp_path / "faces")
    points = write_landmarks(tmp_path / "faces")
    (origin,) = [found for found in parse_data([f"celeba={tmp_path}/faces"]) if found.name == "celeba"]
    data = open_origin(origin)
    (job,) = make_jobs([Cell("facetracer", "celeba", "plain")], origin, data, Protocol(), [0], tmp_path / "runs", False)
    assert job.large
    assert job.config.precision == "32"
    job = dataclasses.replace(
        job, config=dataclasses.replace(job.config, image_size=(109, 89), model_options=("features=1",), workers=0)
    )
    queue = Queue()
    run_large(job, "cpu", queue)
    told = [queue.get() for _ in range(queue.qsize())]
    assert [one.kind for one in told] == ["begun", "finished"], told
    record = records.read(job.record)
    assert records.is_finished(record)
    assert len(record["last"]["test_accuracy_by_head"]) == 40
    # The regions lie where the training pictures' points are on the average.
    model = ab.load_model(job.network)
    mean = np.mean([points[name] for name in data.train.ids], axis=0) + 0.5
    assert np.allclose(model.backbone.points.numpy() * [178, 218], mean, atol=0.02)
    rows = {(row["row"], row["column"]): row for row in table_rows(read_groups([tmp_path / "runs"]))}
    ours = rows["FaceTracer", "average accuracy"]
    assert ours["ours"]["mean"] == pytest.approx(100 * (1 - record["last"]["test_error"]))
    assert ours["published"] == 81.13
    assert rows["FaceTracer", "odds"]["ours"] is None  # they need the paper's network on the same pictures
    shares = record["last"]["test_accuracy_by_head"]
    better = {head: share + (0.01 if number < 25 else -0.01) for number, (head, share) in enumerate(shares.items())}
    network = record | {
        "cell": record["cell"] | {"network": "resnet101", "arm": "residual"},
        "last": record["last"] | {"test_accuracy_by_head": better},
    }
    records.write(tmp_path / "runs" / "abn-seed0.json", network)
    rows = {(row["row"], row["column"]): row for row in table_rows(read_groups([tmp_path / "runs"]))}
    assert rows["FaceTracer", "odds"]["ours"]["mean"] == 25
    assert "HOG and colour histograms" in ours["note"]
    assert "not run (moon/celeba/plain). CelebA is not here" in rows["MOON", "average accuracy"]["reason"]


def test_heads_of_one_kind_of_label_are_answered_by_it(tmp_path):
    random = np.random.default_rng(0)
    source = ArraySource(random.integers(0, 255, (40, 16, 16, 3), dtype=np.uint8), [("train", 40)])
    tasks = {"always": ("no", "yes"), "never": ("no", "yes"), "unknown": ("no", "yes")}
    targets = {"always": np.ones(40), "never": np.zeros(40), "unknown": np.full(40, -1)}
    images = ImageSet(source, targets, tasks, multitask=True)
    data = DataSet(spec="made", seed=0, tasks=tasks, train=images, validation=images.subset(range(5)), multitask=True)
    model = ab.create_backbone("facetracer", heads=data.heads, image_size=16, regions="grid", grid=1).eval()
    fit_facetracer(TrainConfig(), data, model, Stages(tmp_path))
    with torch.no_grad():
        answers = model(torch.rand(3, 3, 16, 16))
    assert [logits.argmax(1).tolist() for logits in answers.values()] == [[1] * 3, [0] * 3, [0] * 3]
    assert model.reads(0) == []
