"""Mosaics against what they are made of: each quarter is a picture of its class and of its own split."""

import numpy as np
import pytest
import torch
from PIL import Image

from attention_branch.compare.subset import Subset
from attention_branch.data import Sample, check_data, open_data
from attention_branch.data.derived import find_class, read_spec
from attention_branch.data.mosaics import draw
from attention_branch.errors import UserError
from attention_branch.evaluation import evaluate
from attention_branch.metrics import EnergyPointingGame
from attention_branch.models.preprocessing import Preprocessing

COLOURS = {"n00000001 red, crimson": (200, 0, 0), "n00000002 green": (0, 200, 0), "n00000003 blue": (0, 0, 200),
           "n00000004 grey": (90, 90, 90)}  # fmt: skip
NAMES = list(COLOURS)


def fill(folder, splits, count=6, size=(40, 30)):
    """Write flat pictures in the class's colour; their green or blue channel numbers them within the split."""
    for split in splits:
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                shade = tuple(min(255, part + 3 * number + {"train": 0, "val": 1, "test": 2, "": 0}[split])
                              for part in colour)  # fmt: skip
                Image.new("RGB", size, shade).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("colours"), ["train", "val", "test"])


@pytest.fixture(scope="module")
def data(folder):
    return open_data(f"mosaics:{folder},classes=3,train=80,validation=20,test=40,side=32", seed=5, progress=False)


def class_of(pixel):
    """Return the class a pixel shows, by the colour that is nearest."""
    distance = {name: np.abs(np.array(colour) - pixel.astype(int)).sum() for name, colour in COLOURS.items()}
    return min(distance, key=distance.get)


def quarters(picture):
    pixels, half = np.asarray(picture), picture.width // 2
    return [pixels[top : top + half, left : left + half] for top in (0, half) for left in (0, half)]


def test_labels_and_places_are_what_the_quarters_show(data):
    heads = list(data.tasks)
    assert len(heads) == 3
    assert data.multitask
    assert data.heads == dict.fromkeys(heads, 2)
    assert set(data.tasks.values()) == {("absent", "present")}
    twice = 0
    for images in data.splits.values():
        for sample in images:
            assert sample.image.size == (32, 32)
            shown = [class_of(quarter[8, 8]) for quarter in quarters(sample.image)]
            # A quarter holds one picture, from edge to edge.
            assert all(np.ptp(quarter.reshape(-1, 3), axis=0).max() == 0 for quarter in quarters(sample.image))
            assert sample.target == {head: int(head in shown) for head in heads}
            assert set(sample.masks) == set(shown)
            for head, mask in sample.masks.items():
                wanted = np.kron(np.reshape([name == head for name in shown], (2, 2)), np.ones((16, 16)))
                assert np.array_equal(mask, wanted)
            twice += len(set(shown)) < 4
    assert twice > 100  # of three classes one comes twice at least


def test_no_picture_is_in_two_splits(data):
    seen = {}
    for split, images in data.splits.items():
        source = images.source
        seen[split] = {source.pictures.id(int(place)) for place in np.unique(source.plan)}
        assert all(name.startswith(f"{ {'validation': 'val'}.get(split, split) }/") for name in seen[split])
        # What the name says it is made of is what it shows.
        sample = images[3]
        parts = sample.id.split("/", 3)[3].split("+")
        for name, quarter in zip(parts, quarters(sample.image), strict=True):
            assert name in seen[split]
            assert class_of(quarter[0, 0]) == name.split("/")[1]
    assert not seen["train"] & seen["test"]


def test_a_mosaic_depends_on_seed_split_and_index_alone(folder, data):
    spec = f"mosaics:{folder},classes=3,train=30,validation=20,test=40,side=32"
    again = open_data(spec, seed=5, progress=False)
    one_by_one = np.stack([np.asarray(again.train[index].image) for index in range(30)])
    assert np.array_equal(data.train.source.pixels()[:30], one_by_one)
    assert np.array_equal(np.asarray(data.train[7].image), one_by_one[7])  # also once all are in memory
    other = open_data(spec, seed=6, progress=False)
    assert (other.train.source.pixels() != one_by_one).any()
    assert not np.array_equal(data.train.source.plan[:20], data.validation.source.plan)
    assert data.test.fingerprint() == again.test.fingerprint()
    assert data.record()["splits"]["test"]["classes"] == again.record()["splits"]["test"]["classes"]


@pytest.mark.parametrize("crowd", [4, 2])
def test_how_often_a_class_is_present(crowd):
    members = [np.arange(10 * number, 10 * number + 10) for number in range(8 if crowd == 4 else 12)]
    drawn = np.stack([draw(1, "train", index, members, 8, crowd) for index in range(4000)])
    classes, pictures = drawn[:, 0], drawn[:, 1]
    assert np.array_equal(pictures // 10, classes)
    assert ((classes < 8).sum(1) == crowd).all()
    present = np.stack([(classes == number).any(1).mean() for number in range(8)])
    # Each of `crowd` quarters misses a class with probability 7/8; the standard error is 0.008.
    assert np.allclose(present, 1 - (7 / 8) ** crowd, atol=0.035)
    # Quarters are alike, and all pictures come.
    assert np.allclose((classes == 0).mean(0), crowd / 4 / 8, atol=0.03)
    assert len(np.unique(pictures)) == 10 * len(members)


def one_target(folder, more="", seed=5, sizes="train=30,validation=20,test=60"):
    return open_data(f"mosaics:{folder},classes=2,{sizes},side=32,target=one{more}", seed=seed, progress=False)


def test_one_quarter_counts_and_the_others_say_nothing(folder):
    data = one_target(folder)
    asked = list(data.tasks["label"])
    assert data.num_classes == len(asked) == 2
    assert not data.multitask
    counts = np.zeros(4, dtype=int)
    for images in data.splits.values():
        for sample in images:
            shown = [class_of(quarter[8, 8]) for quarter in quarters(sample.image)]
            # One quarter shows a class that is asked for; the others show classes that never are.
            (place,) = [number for number, name in enumerate(shown) if name in asked]
            assert asked[sample.target] == shown[place]
            wanted = np.kron(np.eye(4)[place].reshape(2, 2), np.ones((16, 16)))
            assert np.array_equal(sample.mask, wanted)
            assert np.array_equal(sample.distractor, 1 - wanted)
            assert sample.masks is None
            counts[place] += 1
    # 110 mosaics: a quarter each, standard deviation 4.5.
    assert (np.abs(counts - 27.5) < 18).all()
    assert "of which one counts" in data.split_made
    assert 5 < np.bincount(data.test.targets)[0] < 55


def test_without_distractors_the_same_quarter_stands_alone(folder):
    """The quarter that counts, its place and its label are those of the mosaic with distractors; the rest is grey."""
    full, alone = one_target(folder), one_target(folder, ",test-distractors=no")
    assert alone.train.fingerprint() == full.train.fingerprint()
    assert alone.test.fingerprint() != full.test.fingerprint()
    assert np.array_equal(alone.test.targets, full.test.targets)
    one_by_one = np.stack([np.asarray(alone.test[number].image) for number in range(60)])
    assert np.array_equal(alone.test.source.pixels(), one_by_one)
    inside = np.stack([sample.mask for sample in full.test]) > 0
    assert np.array_equal(one_by_one[inside], full.test.source.pixels()[inside])
    assert (one_by_one[~inside] == 128).all()
    assert (full.test.source.pixels()[~inside] != 128).any()
    assert alone.test[0].distractor is None
    assert alone.train[0].distractor is not None
    assert "grey in test" in alone.split_made
    everywhere = one_target(folder, ",distractors=no")
    assert np.array_equal(everywhere.test.source.pixels(), one_by_one)
    assert everywhere.train[0].distractor is None
    assert "grey in train, validation, test" in everywhere.split_made


def test_one_target_is_a_pure_function_of_seed_split_and_index(folder):
    first, again = one_target(folder), one_target(folder)
    one_by_one = np.stack([np.asarray(again.test[number].image) for number in range(60)])
    assert np.array_equal(first.test.source.pixels(), one_by_one)
    assert (one_target(folder, seed=6).test.source.pixels() != one_by_one).any()
    assert first.test.id(0).startswith("mosaics-target-32/test/0/")


def test_the_record_says_what_it_is(folder, data):
    made = open_data(f"mosaics:{folder},classes=n00000001|blue,crowd=1", seed=0, progress=False)
    assert list(made.tasks) == [NAMES[0], NAMES[2]]
    assert [len(images) for images in made.splits.values()] == [20000, 2000, 2000]
    counts = made.train.counts()[NAMES[0]]
    assert abs(counts["present"] / 20000 - 0.5) < 0.02
    assert "constructed" in made.split_made
    assert "50.0 %" in made.split_made
    assert data.split_made.startswith("constructed")


def test_without_a_test_split_validation_makes_it(tmp_path):
    made = open_data(
        f"mosaics:{fill(tmp_path, ['train', 'val'], 10)},classes=3,train=20,validation=20,test=20", progress=False
    )
    used = {split: {name for row in range(20) for name in images.id(row).split("/", 3)[3].split("+")}
            for split, images in made.splits.items()}  # fmt: skip
    assert all(name.startswith("val/") for name in used["test"])
    assert all(name.startswith("train/") for name in used["train"] | used["validation"])
    assert not used["train"] & used["validation"]
    assert "its validation split makes the test mosaics" in made.split_made


def test_a_region_of_each_head_at_the_networks_size(data):
    preprocessing = Preprocessing(size=(48, 48), resize="squash")
    sample = data.test[0]
    regions = sample.head_regions(preprocessing)
    assert set(regions) == {head for head, present in sample.target.items() if present}
    for head, region in regions.items():
        assert region.shape == (48, 48)
        assert region.dtype == bool
        assert region.mean() == sample.masks[head].mean()
        assert np.array_equal(sample.region(preprocessing, head), region)
    absent = next((head for head, present in sample.target.items() if not present), "another")
    assert sample.region(preprocessing, absent) is None
    assert sample.region(preprocessing) is None
    plain = Sample(Image.new("RGB", (8, 8)), 0, 0, "a", box=(0, 0, 4, 4))
    assert plain.head_regions(preprocessing) == {}
    assert np.array_equal(plain.region(preprocessing, "any"), plain.region(preprocessing))


class KnowsThePlaces(torch.nn.Module):
    """Finds each head's colour in the picture and puts its map there, but for the last head: there it looks away."""

    is_abn = True

    def __init__(self, data):
        super().__init__()
        self.heads = data.heads
        self.class_names = data.class_names
        self.preprocessing = Preprocessing(size=(32, 32), mean=(0, 0, 0), std=(1, 1, 1), resize="squash")

    def forward(self, images):
        pixels = (images * 255).permute(0, 2, 3, 1)[..., None, :]
        colours = torch.tensor([COLOURS[head] for head in self.heads], dtype=torch.float32)
        near = torch.exp(-(pixels - colours).abs().sum(-1) / 30).permute(0, 3, 1, 2)
        maps = torch.cat([near[:, :-1], 1 - near[:, -1:]], 1)
        scores = {head: near[:, number].amax((1, 2))[:, None] - 0.05 for number, head in enumerate(self.heads)}
        logits = {head: torch.cat([-score, score], 1) for head, score in scores.items()}

        class Output(tuple):
            __slots__ = ()

        output = Output()
        output.__class__.logits, output.__class__.attention_logits = logits, logits
        output.__class__.attention = maps
        return output


def test_evaluation_holds_each_map_against_its_own_quarters(data):
    result = evaluate(KnowsThePlaces(data), data.test, batch_size=16)
    assert result.accuracy == 1
    first, second, last = data.tasks
    present = {head: int(data.test.targets[head].sum()) for head in data.tasks}
    games = {head: result.pointing[f"attention: {head}"] for head in data.tasks}
    assert {head: game.n for head, game in games.items()} == present
    assert all(game.protocol["tolerance"] == 0 for game in games.values())
    assert games[first].mean == games[second].mean == 1
    # Where all four quarters show the class, no map can miss it.
    everywhere = [sample.masks[last].all() for sample in data.test if last in sample.masks]
    assert games[last].mean <= np.mean(everywhere) < 0.1
    together = result.pointing["attention"]
    assert together.n == sum(present.values())
    assert together.mean == pytest.approx(sum(game.mean * game.n for game in games.values()) / together.n)
    assert "not independent" in together.protocol["heads"]
    # With the published tolerance the middle would hit every quarter.
    area = np.mean([mask.mean() for sample in data.test for mask in sample.masks.values()])
    assert abs(result.pointing["random"].mean - area) < 0.15
    assert result.pointing["center"].mean < 0.6
    assert list(result.pointing)[-2:] == ["center", "random"]


def test_other_metrics_take_the_regions_of_a_head(data):
    """A map that is one on the quarters has all of its energy there; a constant one has the region's share."""
    head = next(iter(data.tasks))
    preprocessing = Preprocessing(size=(32, 32), resize="squash")
    regions = [sample.region(preprocessing, head) for sample in data.test]
    maps = torch.stack([torch.ones(32, 32) if own is None else torch.from_numpy(own).float() for own in regions])
    metric = EnergyPointingGame()
    metric.update(None, None, maps, regions=regions)
    result = metric.compute()
    assert result.mean == 1
    assert result.n == int(data.test.targets[head].sum())


def test_a_comparison_takes_the_regions_of_its_head(data):
    head = next(iter(data.tasks))
    preprocessing = Preprocessing(size=(32, 32), resize="squash")
    subset = Subset(data.test, data.test.targets[head], np.arange(40), head, ["absent", "present"], preprocessing)
    assert subset.has_regions
    regions = subset.batch(range(12), torch.device("cpu")).regions
    for sample, own in zip(data.test, regions, strict=False):
        assert (own is None) == (head not in sample.masks)
        assert own is None or np.array_equal(own.numpy(), sample.masks[head].astype(bool))


def test_check_reads_them(folder):
    report = check_data(f"mosaics:{folder},classes=2,train=10,validation=10,test=10", progress=False)
    assert report.images == 30
    assert not report.broken


def test_strings_that_can_be_read():
    assert read_spec("mosaics:a/b,side=64,crowd=2", ("side", "crowd")) == ("a/b", {"side": "64", "crowd": "2"})
    assert read_spec("mosaics:[digits:train=20,test=10],side=64", ("side",)) == (
        "digits:train=20,test=10", {"side": "64"},
    )  # fmt: skip
    assert read_spec("mosaics:[a,[b]]", ()) == ("a,[b]", {})


def test_classes_by_any_of_their_names():
    names = ["n01443537 goldfish, Carassius auratus", "n02124075 Egyptian cat", "lemon", "goldfish"]
    assert find_class("n01443537", names) == 0
    assert find_class("n01443537 fish", names) == 0
    assert find_class("goldfish", names) == 3  # the name itself goes before the first of several
    assert find_class("Egyptian cat", names) == 1
    assert find_class("lemon", names) == 2
    assert find_class("cat", names) is None
    assert find_class("n02124075", ["n02124075", "x"]) == 0
    assert find_class("crane", ["n02012849 crane", "n03126707 crane"]) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("sides=64", "Did you mean 'side'"),
        ("side=33", "even number"),
        ("side=9000", "from 16 to 2048"),
        ("train=3", "from 10 to 1000000"),
        ("crowd=5", "from 1 to 4"),
        ("classes=9", "from 2 to 4"),
        ("classes=red|blue|red", "different names"),
        ("classes=red|pink", "'pink' .* is not the name of one class"),
        ("classes=4,crowd=3", "nothing is left for the 1 other quarters"),
        ("side=64,side=32", "stands twice"),
        ("target=two", "it can be one"),
        ("distractors=no", "only with target=one"),
        ("classes=2,target=one,distractors=maybe", "it can be yes or no"),
        ("classes=2,target=one,crowd=2", "leave crowd out"),
        ("classes=4,target=one", "choose fewer classes.$"),
    ],
)
def test_bad_options_are_refused(folder, options, says):
    with pytest.raises(UserError, match=says):
        open_data(f"mosaics:{folder},{options}", progress=False)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("mosaics:", "names no data"),
        ("mosaics:digits:train=20,side=64", "square brackets"),
        ("mosaics:[digits:train=20,side=64", "not closed"),
        ("mosaics:[digits:train=20]side=64", "not followed by a comma|not closed"),
        ("mosaics:no-such-folder", "There is no data set 'no-such-folder'"),
        ("mosaics:[mosaics:digits,classes=4],classes=2", "several tasks"),
    ],
)
def test_bad_strings_are_refused(spec, says):
    with pytest.raises(UserError, match=says):
        open_data(spec, progress=False)


def test_a_split_without_a_class_is_named(tmp_path):
    root = fill(tmp_path, ["train", "val", "test"], 2)
    for picture in (root / "test" / NAMES[1]).iterdir():
        picture.unlink()
    with pytest.raises(UserError, match=r"The test split .* no picture of the class 'n00000002 green'"):
        open_data(f"mosaics:{root},classes=4", progress=False)


def test_a_broken_picture_is_left_out_before(tmp_path):
    root = fill(tmp_path, ["train", "val", "test"], 3)
    broken = root / "train" / NAMES[0] / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    data = open_data(f"mosaics:{root},classes=4,train=200", progress=False)
    assert [name for name, _ in data.left_out] == [f"train/{NAMES[0]}/1.png"]
    assert not any(f"{NAMES[0]}/1.png" in name for name in data.train.ids)
    assert len(data.train.source.pixels()) == 200
