"""Training on human maps: the loss by hand, maps that move with their pictures, what is frozen, what is refused."""

import dataclasses
import json
import shutil
from io import BytesIO
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

import attention_branch as ab
from attention_branch.annotations import delete_annotation, read_annotations, write_annotation
from attention_branch.data import make_loader, open_data
from attention_branch.data.augment import AUGMENTATIONS
from attention_branch.data.dataset import DataSet, ImageSet
from attention_branch.data.folders import FileSource
from attention_branch.data.loader import AnnotatedPlan
from attention_branch.data.maps import MOVABLE, PictureMaps
from attention_branch.errors import UserError
from attention_branch.models.preprocessing import Preprocessing
from attention_branch.training import human_map_settings, parse_train_arguments, recipe, train
from attention_branch.training.annotated import MapTeacher, extractor_parts, map_distances
from attention_branch.training.config import TrainConfig, check_settings
from attention_branch.training.counterexamples import counterexamples
from attention_branch.training.journal import read_metrics
from attention_branch.training.matching import match_annotations
from attention_branch.training.module import Classifier

DATA = "digits:train=30,validation=12,test=10"


def png(picture):
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def annotate(folder, images, indices, label=True, **record):
    """Write the digits' true masks as annotations."""
    for index in indices:
        sample = images[index]
        name = str(sample.target) if label else None
        write_annotation(folder, png(sample.image), sample.mask, label=name, record=record or None)
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run to start from, and annotations of five of its training pictures."""
    place = tmp_path_factory.mktemp("begun")
    small = {"data": DATA, "model": "resnet20", "image_size": 32, "batch_size": 10, "maps": 0, "accelerator": "cpu"}
    run = train(recipe("default", **small, epochs=1, seed=3, augment="pad-crop", out=str(place / "run")))
    annotate(place / "maps", open_data(DATA, seed=3).train, range(5))
    return run, place / "maps"


def settings(begun, out, **changes):
    return human_map_settings(*begun, **{"epochs": 2, "maps": 0, "out": str(out)} | changes)


@pytest.fixture(scope="module")
def taught(begun, tmp_path_factory):
    return train(settings(begun, tmp_path_factory.mktemp("taught") / "run"))


# --- the loss ---


def test_the_norm_is_over_positions_and_the_mean_over_images():
    attention = torch.zeros(2, 2, 1, 2, requires_grad=True)
    wanted = torch.tensor([[[[3.0, 4.0]], [[0.0, 0.0]]], [[[0.0, 1.0]], [[6.0, 8.0]]]])
    each = map_distances(attention, wanted, torch.ones(2, 2, dtype=torch.bool)).each
    assert each.tolist() == [[5, 0], [1, 10]]
    each.sum().backward()
    # The gradient of a norm is minus the unit vector towards what is wanted; where both are equal, 0 and not NaN.
    assert torch.allclose(attention.grad[0, 0], torch.tensor([[-0.6, -0.8]]))
    assert attention.grad[0, 1].tolist() == [[0, 0]]


def test_gamma_and_the_weight_of_kept_maps(begun):
    start = ab.load_model(begun[0])
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        before, _ = start.attend(images)
    human = torch.zeros_like(before)
    annotated = torch.tensor([[True], [False], [False]])
    shifted = (before + 0.25).clone()  # each kept map is 0.25 * sqrt(h * w) away
    positions = before[0, 0].numel()
    teacher = MapTeacher(start, weight=10.0, keep=0.5)
    first = shifted[0].square().sum().sqrt().item()
    kept = 0.25 * positions**0.5
    loss = teacher.loss(shifted, images, human, annotated).item()
    assert loss == pytest.approx(10 * (first + 0.5 * kept * 2) / 3, rel=1e-5)
    figures = teacher.figures(False)
    assert figures == {"train_map_annotated": pytest.approx(first), "train_map_kept": pytest.approx(kept)}
    assert teacher.figures(False) == {}
    # An unannotated map that is what it was costs nothing, whatever the human map's place holds.
    assert teacher.loss(before, images, human, torch.zeros(3, 1, dtype=torch.bool)).item() == 0
    free = MapTeacher(start, weight=10.0, keep=0.0)
    assert free.loss(shifted, images, human, annotated).item() == pytest.approx(10 * first / 3, rel=1e-5)


# --- maps move with their pictures ---


@pytest.mark.parametrize("augment", MOVABLE)
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_a_map_that_is_its_picture_stays_it(tmp_path, augment, resize):
    random = np.random.default_rng(0)
    names = []
    for number, size in enumerate([(40, 30), (30, 50), (36, 36)]):
        levels = random.integers(0, 256, (size[0] // 2, size[1] // 2), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
        Image.fromarray(levels).save(tmp_path / f"{number}.png")
        names.append(f"{number}.png")
    images = ImageSet(FileSource(tmp_path, names), {"label": np.zeros(3, dtype=int)}, {"label": ("a",)})
    preprocessing = Preprocessing(size=(24, 24), resize=resize, crop_pct=0.8, interpolation="bilinear")
    files = {index: {0: tmp_path / name} for index, name in enumerate(names)}
    maps = PictureMaps(files, 1, (24, 24), preprocessing, augment, inside=True)
    loader = make_loader(
        images, preprocessing, 3, train=True, augment=augment, seed=5, normalized=False, maps=maps, workers=0
    )
    for epoch in range(4):
        loader.set_epoch(epoch)
        (batch,) = loader
        assert batch["annotated"].all()
        # The picture is grey: each of its channels is what the map must be.
        assert torch.allclose(batch["human_maps"][:, 0] * 255, batch["images"][:, 0].float(), atol=1e-3)
        assert torch.equal(batch["inside"], batch["images"][:, 0] >= 128)


def test_a_map_is_averaged_over_areas(tmp_path):
    levels = np.zeros((8, 8), dtype=np.uint8)
    levels[:4, :4] = 255
    levels[4:, 4:6] = 255
    Image.fromarray(levels).save(tmp_path / "a.png")
    maps = PictureMaps({1: {1: tmp_path / "a.png"}}, 2, (2, 2), Preprocessing(size=(8, 8), resize="squash"), "none")
    found = maps.batch(np.array([0, 1]), None)
    assert set(found) == {"human_maps", "annotated"}
    values, known = found.values()
    assert known.tolist() == [[False, False], [False, True]]
    assert values[1, 1].tolist() == [[1, 0], [0, 0.5]]
    assert values[0].abs().sum() == values[1, 0].abs().sum() == 0


def test_augmentations_that_no_map_can_follow_are_refused(begun, tmp_path):
    assert set(AUGMENTATIONS) - set(MOVABLE) == {"trivial", "trivial-augment", "pad-crop-flip-trivial"}
    with pytest.raises(UserError, match="augment is 'trivial', which cannot do to a human map"):
        train(settings(begun, tmp_path / "a", augment="trivial"))


# --- batches ---


def test_each_batch_holds_its_share_of_annotated_pictures():
    chosen = np.array([2, 3, 5, 8])
    plan = AnnotatedPlan(40, 8, chosen=chosen, share=0.25, seed=1)
    assert len(plan) == 6  # 36 others, six a batch
    seen = []
    for epoch in (0, 1):
        plan.set_epoch(epoch)
        batches = [numbers for _, numbers in plan]
        assert [sum(number in chosen for number in batch) for batch in batches] == [2] * 6
        others = [number for batch in batches for number in batch if number not in chosen]
        assert len(set(others)) == len(others) == 36
        seen.append(batches)
        # Twelve draws of four pictures: each three times.
        counts = np.bincount([number for batch in batches for number in batch], minlength=40)
        assert counts[chosen].tolist() == [3] * 4
    assert seen[0] != seen[1]
    shares = [AnnotatedPlan(40, 8, chosen=chosen, share=0.25, seed=1, num_replicas=2, rank=rank) for rank in (0, 1)]
    for plan in shares:
        plan.set_epoch(1)
    together = [sorted(a + b) for (_, a), (_, b) in zip(*shares, strict=True)]
    assert together == [sorted(batch) for batch in seen[1]]


@pytest.mark.parametrize(
    ("count", "chosen", "share", "wanted", "batches"),
    [
        (40, 3, 0.9, 3, 7),  # no more than there are: 37 others, five a batch
        (40, 30, 0.1, 6, 5),  # their natural share, 10 others and two a batch
        (8, 8, 0.5, 8, 1),  # all of them
        (10, 4, 1.0, 4, 1),  # others fill up what is left
    ],
)
def test_few_and_many_annotated_pictures(count, chosen, share, wanted, batches):
    plan = AnnotatedPlan(count, 8, chosen=np.arange(chosen), share=share)
    assert len(plan) == batches
    for _, numbers in plan:
        assert len(numbers) == 8
        assert sum(number < chosen for number in numbers) == wanted


# --- which pictures they are ---


def test_training_pictures_get_their_maps_and_others_come_behind(tmp_path):
    data = open_data(DATA, seed=0)
    annotate(tmp_path, data.train, [4, 7])
    stranger = open_data(DATA, seed=1).train
    annotate(tmp_path, stranger, [9])
    annotate(tmp_path, stranger, [12], label=False)
    train_set, files = match_annotations(read_annotations(tmp_path), data)
    assert len(train_set) == 32
    assert set(files) == {4, 7, 30, 31}
    for index in (4, 7):
        with Image.open(files[index][0]) as drawn:
            assert np.array_equal(np.asarray(drawn) > 127, data.train[index].mask > 0)
    assert train_set.targets[:30].tolist() == data.train.targets.tolist()
    assert sorted(train_set.targets[30:].tolist()) == [-1, 9]
    added = int(np.flatnonzero(train_set.targets[30:] == 9)[0]) + 30
    assert np.array_equal(np.asarray(train_set[added].image), np.asarray(stranger[9].image))
    assert train_set[added].mask is None
    assert np.array_equal(np.asarray(train_set[3].image), np.asarray(data.train[3].image))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_what_the_figures_are_measured_by_is_refused(tmp_path, split):
    data = open_data(DATA, seed=0)
    annotate(tmp_path, data.train, [0])
    annotate(tmp_path, data.splits[split], [3])
    with pytest.raises(UserError, match=f"a {split} picture of.*can no longer be measured"):
        match_annotations(read_annotations(tmp_path), data)


def test_a_file_is_known_by_its_bytes_or_by_its_name_and_pixels(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(10):
            random = np.random.default_rng([ord(label[0]), number])
            noise = random.integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "data" / label / f"{number}.png")
    data = open_data(str(tmp_path / "data"), seed=0)
    first, second, third = (data.train.id(index) for index in (0, 1, 2))
    content = (tmp_path / "data" / first).read_bytes()
    write_annotation(tmp_path / "maps", content, np.ones((9, 9)), label=first.split("/")[0])
    for name, source in ((second, second), (third, "elsewhere.png")):
        again = BytesIO()  # other bytes, the same pixels
        Image.open(tmp_path / "data" / name).save(again, "BMP")
        write_annotation(tmp_path / "maps", again.getvalue(), np.ones((9, 9)), label=None, record={"source": source})
    _, files = match_annotations(read_annotations(tmp_path / "maps"), data)
    assert set(files) == {0, 1, len(data.train)}


def two_heads():
    pictures = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    from attention_branch.data.torchvision_sets import ArraySource

    targets = {"kind": np.array([0, 1, 0, 1]), "hue": np.array([0, 0, 1, -1])}
    tasks = {"kind": ("cat", "dog"), "hue": ("red", "blue")}
    images = ImageSet(ArraySource(pictures, [("pictures", 4)]), targets, tasks, multitask=True)
    return DataSet("two", 0, tasks, train=images, validation=images.subset([]), multitask=True), pictures


def test_maps_by_head(tmp_path):
    data, pictures = two_heads()
    content = png(Image.fromarray(pictures[1]))
    whole = write_annotation(tmp_path, content, np.ones((6, 6)), label={"kind": "dog"})
    hue = write_annotation(tmp_path, content, np.zeros((6, 6)), label=None, head="hue")
    stranger = png(Image.new("RGB", (5, 4)))
    for head, label in (("hue", {"hue": "blue"}), ("kind", {"kind": "cat"})):
        write_annotation(tmp_path, stranger, np.zeros((4, 5)), label=label, head=head)
    train_set, files = match_annotations(read_annotations(tmp_path), data)
    assert files[1] == {0: whole.map, 1: hue.map}
    assert set(files) == {1, 4}
    assert set(files[4]) == {0, 1}
    assert train_set.targets_of(4) == {"kind": 0, "hue": 1}
    assert train_set.targets_of(3) == {"kind": 1, "hue": -1}


@pytest.mark.parametrize(
    ("label", "head", "message"),
    [
        ({"kind": "cat"}, None, "calls 'pictures:1' cat, the data calls it dog"),
        ({"kind": "cta"}, None, "'cta' for 'kind'.*Did you mean 'cat'"),
        ({"sort": "cat"}, None, "'cat' for 'sort'"),
        ("cat", None, "write a label for each"),
        (None, "hoe", "head 'hoe'.*Did you mean 'hue'"),
    ],
)
def test_labels_and_heads_that_do_not_fit_are_named(tmp_path, label, head, message):
    data, pictures = two_heads()
    write_annotation(tmp_path, png(Image.fromarray(pictures[1])), np.ones((6, 6)), label=label, head=head)
    with pytest.raises(UserError, match=message):
        match_annotations(read_annotations(tmp_path), data)


# --- what learns ---


def test_what_leads_to_the_features_is_found():
    model = ab.create_model("resnet18", num_classes=3, image_size=64)
    modules, parameters = extractor_parts(model)
    extractor = ("backbone.conv1", "backbone.bn1", "backbone.layer1", "backbone.layer2", "backbone.layer3")
    expected = [name for name, _ in model.named_parameters() if name.startswith(extractor)]
    assert sorted(parameters) == sorted(expected)
    top = {name for name in modules if name.count(".") == 1}
    assert set(extractor) <= top <= {*extractor, "backbone.act1", "backbone.maxpool"}
    assert not any(name.startswith(("backbone.layer4", "backbone.fc", "branch")) for name in modules)
    assert model.training


def test_only_the_two_branches_learn(begun, taught):
    before, after = (ab.load_model(run).state_dict() for run in (begun[0], taught))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # resnet20: the features leave at layer2, layer3 is the perception branch.
    assert not [name for name in changed if not name.startswith(("backbone.layer3", "backbone.fc", "branch."))]
    for part in ("backbone.layer3", "backbone.fc", "branch.stage", "branch.map_norm"):
        assert [name for name in changed if name.startswith(part)], part


def test_the_extractor_learns_when_asked_to(begun, tmp_path):
    run = train(settings(begun, tmp_path / "a", epochs=1, train_extractor=True))
    before, after = (ab.load_model(folder).state_dict() for folder in (begun[0], run))
    first = next(name for name in before if name.startswith("backbone."))
    statistics = next(name for name in before if name.endswith("running_mean"))
    assert all(not torch.equal(before[name], after[name]) for name in (first, statistics))


def test_maps_come_to_the_humans_and_more_weight_brings_them_nearer(begun, tmp_path):
    distance = {}
    data = open_data(DATA, seed=3)
    masks = torch.stack([torch.from_numpy(data.train[index].mask).float() for index in range(5)])[:, None]
    for weight in (0.0, 3.0):
        run = train(settings(begun, tmp_path / str(weight), epochs=4, map_weight=weight, lr=1e-2, augment="none"))
        model = ab.load_model(run)
        images = torch.stack([model.preprocessing.tensor(data.train[index].image) for index in range(5)])
        with torch.no_grad():
            attention, _ = model.attend(images)
        wanted = torch.nn.functional.interpolate(masks, attention.shape[2:], mode="area")
        distance[weight] = (attention - wanted).square().sum((2, 3)).sqrt().mean().item()
    assert distance[3.0] < 0.7 * distance[0.0]


# --- counterexamples ---


def scene(count=6, side=8):
    """Images of one constant each, whose object is a square of the constant's negative; the last two have no map."""
    images = torch.arange(1.0, count + 1)[:, None, None, None].expand(-1, 3, side, side).clone()
    inside = torch.zeros(count, side, side, dtype=torch.bool)
    for number in range(count):
        inside[number, number : number + 3, 2:5] = True
    images = torch.where(inside[:, None], -images, images)
    annotated = torch.ones(count, dtype=torch.bool)
    annotated[-2:] = False
    return images, inside, annotated


@pytest.mark.parametrize(("share", "wanted"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_the_surroundings_are_those_of_other_annotated_pictures(share, wanted):
    images, inside, annotated = scene()
    came = set()
    for seed in range(20):
        torch.manual_seed(seed)
        changed, places = counterexamples(images, inside, annotated, share)
        torch.manual_seed(seed)
        assert torch.equal(counterexamples(images, inside, annotated, share).images, changed)
        assert len(set(places.tolist())) == wanted
        for number in range(6):
            if number not in places:
                assert torch.equal(changed[number], images[number])
                continue
            assert (changed[number][:, inside[number]] == -(number + 1)).all()
            outside = changed[number][:, ~inside[number]]
            assert (outside >= 0).all()  # no object of another picture: theirs are negative
            assert number + 1 not in outside  # nor its own surroundings
            came |= set(outside.unique().tolist())
    # Of the four with a map, and never of the two without.
    assert came - {0.0} == ({1, 2, 3, 4} if wanted else set())


def test_where_all_have_their_object_the_mean_colour_stands():
    images, inside, annotated = scene(4)  # two with a map: the other's object leaves a hole
    changed, places = counterexamples(images, inside, annotated, 1.0)
    assert sorted(places.tolist()) == [0, 1]
    hole = inside[1] & ~inside[0]
    assert (changed[0][:, hole] == 0).all()
    assert (changed[0][:, ~inside[0] & ~inside[1]] == 2).all()


def test_there_must_be_others_and_something_marked():
    images, inside, annotated = scene()
    alone = torch.zeros(6, dtype=torch.bool)
    alone[2] = True
    for given in (annotated & False, alone):
        changed, places = counterexamples(images, inside, given, 1.0)
        assert torch.equal(changed, images)
        assert len(places) == 0
    inside[0] = False  # "do not look anywhere": neither changed nor given to others, whose object it would bring
    for seed in range(10):
        torch.manual_seed(seed)
        changed, places = counterexamples(images, inside, annotated, 1.0)
        assert sorted(places.tolist()) == [1, 2, 3]
        assert not (changed[1:4].abs() == 1).any()


def test_a_run_shows_its_counterexamples(begun, taught, tmp_path, capsys):
    run = train(settings(begun, tmp_path / "a", counterexamples=1.0, maps=4))
    assert "100% of those in a batch are shown in other surroundings" in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["settings"]["counterexamples"] == 1
    assert {path.name for path in (run / "counterexamples").iterdir()} == {"epoch-000.png", "epoch-001.png"}
    with Image.open(run / "counterexamples" / "epoch-000.png") as sheet:
        assert sheet.width > 4 * 128
    plain, changed = (ab.load_model(each).state_dict() for each in (taught, run))
    assert any(not torch.equal(plain[name], changed[name]) for name in plain)
    again = train(settings(begun, tmp_path / "b", counterexamples=1.0))
    assert all(torch.equal(value, changed[name]) for name, value in ab.load_model(again).state_dict().items())


def test_only_pictures_whose_heads_all_have_a_map_are_changed():
    images, inside, _ = scene(4)
    model = ab.create_model("resnet20", heads={"kind": 2, "hue": 2}, image_size=32)
    module = Classifier(model, TrainConfig(counterexamples=1.0), 1)
    annotated = torch.tensor([[True, True], [True, False], [True, True], [False, False]])
    batch = {"images": images, "inside": inside, "annotated": annotated}
    module._change_surroundings(batch, 0)
    assert [torch.equal(*pair) for pair in zip(batch["images"], images, strict=True)] == [False, True, False, True]
    plain, marked, shown = module.surroundings
    assert len(plain) == len(marked) == len(shown) == 2


# --- the run ---


def test_what_a_run_says(begun, taught):
    lines = read_metrics(taught)
    for line in lines:
        assert {"train_map_annotated", "train_map_kept", "validation_map_change", "train_loss"} <= set(line)
        assert line["best"]  # the last one counts
    record = json.loads((taught / "config.json").read_text())
    assert record["settings"]["start"] == str(begun[0])
    assert record["annotations"]["pictures"] == record["annotations"]["annotations"] == 5
    assert record["annotations"]["added"] == 0
    assert len(record["annotations"]["fingerprint"]) == 64
    assert record["settings"]["seed"] == record["data"]["seed"] == 3
    model, last, data = ab.load_model(taught), ab.load_model(taught / "last"), open_data(DATA, seed=3)
    assert all(torch.equal(value, last.state_dict()[name]) for name, value in model.state_dict().items())
    batch = torch.stack([model.preprocessing.tensor(sample.image) for sample in data.validation])
    with torch.no_grad():
        change = (model.attend(batch)[0] - ab.load_model(begun[0]).attend(batch)[0]).abs().mean().item()
    assert lines[-1]["validation_map_change"] == pytest.approx(change, rel=1e-3)


class Stop(L.Callback):
    """Ctrl-C after the first epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def test_stopped_and_resumed_equals_unbroken(begun, taught, tmp_path):
    copies = (tmp_path / "run", tmp_path / "maps")
    for source, copy in zip(begun, copies, strict=True):
        shutil.copytree(source, copy)
    with pytest.raises(SystemExit) as stopped:
        train(settings(copies, tmp_path / "b"), callbacks=[Stop()])
    assert stopped.value.code == 130
    shutil.rmtree(copies[0])  # what it started from lies in the run
    train(parse_train_arguments(["--resume", str(tmp_path / "b")]))
    whole, resumed = ab.load_model(taught).state_dict(), ab.load_model(tmp_path / "b").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    delete_annotation(copies[1], read_annotations(copies[1])[0].name)
    with pytest.raises(UserError, match="no longer holds the annotations"):
        train(parse_train_arguments(["--resume", str(tmp_path / "b")]))


def test_the_command_line_takes_the_runs_settings_over(begun):
    config = parse_train_arguments(["--from", str(begun[0]), "--annotations", str(begun[1]), "--lr", "0.5"])
    assert config == dataclasses.replace(human_map_settings(*begun), lr=0.5)
    assert (config.data, config.model, config.seed, config.augment) == (DATA, "resnet20", 3, "pad-crop")
    assert (config.batch_size, config.image_size, config.recipe) == (10, (32, 32), "human-maps")
    assert parse_train_arguments(["other", "--from", str(begun[0]), "--annotations", "x"]).data == "other"
    saved = begun[0] / "model"  # the run's own
    assert human_map_settings(saved, begun[1]) == dataclasses.replace(human_map_settings(*begun), start=str(saved))


def test_a_saved_network_needs_its_data_named(begun, tmp_path):
    ab.load_model(begun[0]).save_pretrained(tmp_path / "saved")
    assert human_map_settings(tmp_path / "saved", begun[1]).data == ""
    run = train(human_map_settings(tmp_path / "saved", begun[1], data=DATA, seed=3, epochs=1, out=str(tmp_path / "a")))
    assert json.loads((run / "config.json").read_text())["annotations"]["added"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": None}, "add --from RUN"),
        ({"annotations": None}, "add --annotations DIR"),
        ({"mixup": 0.2}, "mixup is 0.2"),
        ({"cutmix": 1.0}, "cutmix is 1.0"),
        ({"guided": "crop"}, "guided is crop"),
        ({"baseline": True}, "baseline has no map"),
        ({"mechanism": "none"}, "mechanism none applies no map"),
        ({"map_control": "constant"}, "map_control constant has no map of its own"),
        ({"map_form": "sum-log"}, "no upper bound"),
        ({"map_weight": -1.0}, "map_weight is -1.0"),
        ({"keep_weight": float("inf")}, "keep_weight is inf"),
        ({"annotated_share": 0.0}, "annotated_share is 0.0"),
        ({"counterexamples": 1.5}, "counterexamples is 1.5"),
    ],
)
def test_settings_that_cannot_work(begun, changes, message):
    with pytest.raises(UserError, match=message):
        check_settings(dataclasses.replace(human_map_settings(*begun), **changes))


def test_options_without_annotations_are_refused():
    with pytest.raises(UserError, match="map_weight is 7"):
        check_settings(recipe("default", data="digits", map_weight=7.0))
    with pytest.raises(UserError, match="needs --from RUN"):
        check_settings(recipe("human-maps", data="digits"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mechanism": "product"}, "mechanism is product, but that of .* is residual"),
        ({"seed": 4}, "was trained with 3"),
        ({"data": "torchvision:none"}, "no data set"),
    ],
)
def test_a_run_that_is_not_the_networks_own_is_refused(begun, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(settings(begun, tmp_path / "a", **changes))


def test_other_classes_are_refused(begun, tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (32, 32), (number, len(label), 0)).save(tmp_path / "data" / label / f"{number}.png")
    with pytest.raises(UserError, match=r"classes of .* are not those"):
        train(settings(begun, tmp_path / "a", data=str(tmp_path / "data")))


def test_a_network_without_a_branch_is_refused(begun, tmp_path):
    ab.create_backbone("resnet20", num_classes=10, image_size=32).save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="baseline has no map"):
        train(human_map_settings(tmp_path / "plain", begun[1], data=DATA, out=str(tmp_path / "a")))
    config = dataclasses.replace(settings(begun, tmp_path / "a"), start=str(tmp_path / "plain"))
    with pytest.raises(UserError, match="no attention branch"):
        train(config)
    assert not Path(tmp_path / "a").exists()
