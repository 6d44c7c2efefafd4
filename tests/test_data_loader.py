import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from attention_branch.data import AUGMENTATIONS, ImageSet, make_loader, open_data
from attention_branch.data.augment import (
    DRAWS,
    _crop_box,
    _mix,
    flip,
    pad_crop,
    pad_crop_flip,
    pad_crop_flip_trivial,
    trivial,
    uniforms,
)
from attention_branch.data.dataset import Source
from attention_branch.data.loader import BatchPlan
from attention_branch.errors import UserError
from attention_branch.models.preprocessing import Preprocessing

SMALL = Preprocessing(size=(64, 64), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), resize="squash")


class Noise(Source):
    """Pictures of several sizes that are not in memory; the row in `broken` cannot be read."""

    def __init__(self, count, broken=None):
        self.count, self.broken, self.read = count, broken, 0

    def __len__(self):
        return self.count

    def id(self, row):
        return f"noise:{row}"

    def image(self, row):
        if row == self.broken:
            raise UserError(f"'{self.id(row)}' is broken; remove it.")
        self.read += 1
        random = np.random.default_rng(row)
        return Image.fromarray(random.integers(0, 255, (40 + row % 7, 50, 3), dtype=np.uint8))


def noise(count, broken=None):
    return ImageSet(Noise(count, broken), {"label": np.arange(count) % 3}, {"label": ("a", "b", "c")})


@pytest.fixture(scope="module")
def digits():
    return open_data("digits:train=50,validation=10,test=10").train


def epoch_of(loader, epoch, start=0):
    loader.set_epoch(epoch, start)
    batches = list(loader)
    return torch.cat([batch["index"] for batch in batches]), torch.cat([batch["images"] for batch in batches])


def test_evaluation_is_the_preprocessing_in_order(digits):
    for images in (digits, noise(10)):
        loader = make_loader(images, SMALL, 4, train=False)
        batches = list(loader)
        assert [len(batch["index"]) for batch in batches] == [4] * (len(images) // 4) + [len(images) % 4]
        assert len(loader) == len(batches)
        stacked = torch.cat([batch["images"] for batch in batches])
        assert stacked.dtype == torch.float32
        assert torch.equal(stacked, torch.stack([SMALL.tensor(sample.image) for sample in images]))
        assert torch.cat([batch["targets"] for batch in batches]).tolist() == images.targets.tolist()
        assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(len(images)))


def test_uint8_batches_are_normalised_by_the_device(digits):
    raw = next(iter(make_loader(digits, SMALL, 8, train=False, normalized=False)))["images"]
    done = next(iter(make_loader(digits, SMALL, 8, train=False)))["images"]
    assert raw.dtype == torch.uint8
    assert torch.equal(SMALL.normalize(raw), done)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_an_epoch_depends_on_seed_and_epoch_alone(augment):
    images = noise(22)
    preprocessing = Preprocessing(size=(16, 24), resize="squash")
    arguments = {"train": True, "augment": augment, "seed": 7}
    loader = make_loader(images, preprocessing, 5, workers=0, **arguments)
    order, pictures = epoch_of(loader, 3)
    assert len(order) == 20
    assert len(set(order.tolist())) == 20
    # Another epoch in between, two workers, a start inside of the epoch, another batch size: the same pictures.
    other_order, other_pictures = epoch_of(loader, 4)
    assert not torch.equal(order, other_order)
    forked = make_loader(images, preprocessing, 5, workers=2, **arguments)
    for _ in range(2):
        again, same = epoch_of(forked, 3)
        assert torch.equal(order, again)
        assert torch.equal(pictures, same)
    rest, late = epoch_of(loader, 3, start=2)
    assert torch.equal(order[10:], rest)
    assert torch.equal(pictures[10:], late)
    by_two, larger = epoch_of(make_loader(images, preprocessing, 10, workers=0, **arguments), 3)
    assert torch.equal(order, by_two)
    assert torch.equal(pictures, larger)
    if augment != "none":
        places = [other_order.tolist().index(index) for index in order.tolist() if index in other_order.tolist()]
        matched = [order.tolist().index(int(other_order[place])) for place in places]
        assert not torch.equal(pictures[matched], other_pictures[places])


def test_trivial_augment_for_small_pictures_is_one_operation_then_a_shifted_window():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    preprocessing = Preprocessing(size=(32, 32), resize="squash")
    state = torch.get_rng_state()
    unchanged = 0
    for draws in uniforms(3, 1, np.arange(60), DRAWS):
        found = np.asarray(pad_crop_flip_trivial(picture, preprocessing, draws))
        with torch.random.fork_rng():
            torch.manual_seed(int(draws[-1] * 2**53))
            operated = np.asarray(v2.TrivialAugmentWide()(picture))
        unchanged += (operated == np.asarray(picture)).all()
        assert (np.asarray(trivial(picture, preprocessing, draws)) == operated).all()
        top, left = int(draws[0] * 9) - 4, int(draws[1] * 9) - 4
        window = np.zeros_like(operated)
        for y in range(max(0, -top), min(32, 32 - top)):
            for x in range(max(0, -left), min(32, 32 - left)):
                window[y, x] = operated[y + top, x + left]
        assert (found == (window[:, ::-1] if draws[2] < 0.5 else window)).all()
    assert 0 < unchanged < 20
    assert torch.equal(state, torch.get_rng_state())


def test_two_processes_take_the_batches_of_one(digits):
    for train, count in ((True, 50), (False, 49)):
        images = digits.subset(range(count))
        whole = make_loader(images, SMALL, 8, train=train, augment="pad-crop", seed=1)
        parts = [
            make_loader(images, SMALL, 8, train=train, augment="pad-crop", seed=1, num_replicas=2, rank=rank)
            for rank in range(2)
        ]
        for loader in (whole, *parts):
            loader.set_epoch(5)
        alone = list(whole)
        together = [list(part) for part in parts]
        assert [len(part) for part in parts] == [len(batches) for batches in together]
        assert len(together[0]) == len(alone)
        for step, batch in enumerate(alone):
            halves = [batches[step] for batches in together if step < len(batches)]
            merged = {int(i): x for half in halves for i, x in zip(half["index"], half["images"], strict=True)}
            assert sum(len(half["index"]) for half in halves) == len(merged) == len(batch["index"])
            if train:
                assert len(halves[0]["index"]) == len(halves[1]["index"]) == 4
            for index, picture in zip(batch["index"], batch["images"], strict=True):
                assert torch.equal(merged[int(index)], picture)


def test_training_drops_the_rest_and_evaluation_nothing():
    for count, batch, world in ((17, 4, 1), (17, 4, 2), (3, 64, 1), (5, 64, 2), (64, 64, 4)):
        taken = []
        for rank in range(world):
            plan = BatchPlan(count, batch, train=False, num_replicas=world, rank=rank)
            batches = list(plan)
            assert len(batches) == len(plan)
            taken += [index for _, indices in batches for index in indices]
        assert sorted(taken) == list(range(count))
    small = make_loader(noise(5), SMALL, 64, train=True, num_replicas=2, rank=0)
    assert [len(batch["index"]) for batch in small] == [2]


def test_each_epoch_is_a_fair_shuffle():
    plan = BatchPlan(1000, 10, train=True, seed=0)
    first = plan.order()
    plan.set_epoch(1)
    assert sorted(first) == list(range(1000))
    assert (first != plan.order()).mean() > 0.99
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.1


def test_multitask_targets():
    tasks = {"colour": ("red", "blue"), "kind": ("a", "b", "c")}
    targets = {"colour": np.array([0, -1, 1, 0]), "kind": np.array([2, 1, -1, 0])}
    images = ImageSet(Noise(4), targets, tasks, multitask=True)
    batch = next(iter(make_loader(images, SMALL, 4, train=False)))
    assert {head: values.tolist() for head, values in batch["targets"].items()} == {
        "colour": [0, -1, 1, 0],
        "kind": [2, 1, -1, 0],
    }
    assert images[2].target == {"colour": 1, "kind": -1}


def test_pictures_that_fit_are_read_once():
    for cache_bytes, reads in ((1 << 20, 10), (100, 30)):
        images = noise(10)
        loader = make_loader(images, SMALL, 5, train=True, augment="flip", workers=0, cache_bytes=cache_bytes)
        pictures = [epoch_of(loader, 2) for _ in range(3)]
        assert images.source.read == reads
        assert all(torch.equal(pictures[0][1], other[1]) for other in pictures)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_breaks_stops_with_one_sentence(workers):
    loader = make_loader(noise(8, broken=5), SMALL, 4, train=False, workers=workers)
    with pytest.raises(UserError) as caught:
        list(loader)
    assert str(caught.value) == "'noise:5' is broken; remove it."


def test_batches_can_be_sent_to_a_spawned_worker(digits):
    for images in (digits, noise(8)):
        batches = make_loader(images, SMALL, 4, train=True, augment="pad-crop").dataset
        assert torch.equal(pickle.loads(pickle.dumps(batches))[2, [3, 1]]["images"], batches[2, [3, 1]]["images"])


def test_bad_arguments(digits):
    with pytest.raises(UserError, match="Did you mean 'flip'"):
        make_loader(digits, SMALL, 4, train=True, augment="flop")
    with pytest.raises(UserError, match="multiple of their number, 4; use 8"):
        make_loader(digits, SMALL, 7, train=True, num_replicas=4, rank=0)
    with pytest.raises(UserError, match="too few"):
        make_loader(noise(3), SMALL, 8, train=True, num_replicas=4, rank=0)


def test_uniforms_are_splitmix64():
    # First outputs of the reference implementation (Vigna, splitmix64.c) from state 0.
    state, outputs = np.zeros(1, dtype=np.uint64), []
    for _ in range(3):
        outputs.append(int(_mix(state)[0]))
        state = state + np.uint64(0x9E3779B97F4A7C15)
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    values = uniforms(1, 2, np.arange(5000), 8)
    assert values.min() >= 0
    assert values.max() < 1
    assert np.abs(np.quantile(values, [0.25, 0.5, 0.75]) - [0.25, 0.5, 0.75]).max() < 0.01
    assert np.abs(np.corrcoef(values.T) - np.eye(8)).max() < 0.06
    assert np.array_equal(uniforms(1, 2, np.array([77]), 8)[0], values[77])
    assert not np.array_equal(uniforms(2, 1, np.array([77]), 8)[0], values[77])


def test_pad_crop_and_flip_against_a_slow_truth():
    pictures = np.random.default_rng(0).integers(1, 256, (40, 16, 24, 3), dtype=np.uint8)
    draws = uniforms(0, 0, np.arange(40), DRAWS)
    shifts = set()
    for number, (picture, cropped, both) in enumerate(
        zip(pictures, pad_crop(pictures, draws), pad_crop_flip(pictures, draws), strict=True)
    ):
        mirrored = draws[number, 2] < 0.5
        assert np.array_equal(both, cropped[:, ::-1] if mirrored else cropped)
        padded = np.pad(picture, ((2, 2), (3, 3), (0, 0)))
        fits = [(y, x) for y in range(5) for x in range(7) if np.array_equal(padded[y : y + 16, x : x + 24], cropped)]
        assert len(fits) == 1
        shifts.add(fits[0])
    assert len(shifts) > 15
    flipped = flip(pictures, draws)
    assert all(
        np.array_equal(f, p[:, ::-1] if d < 0.5 else p) for f, p, d in zip(flipped, pictures, draws[:, 0], strict=True)
    )


def test_crop_boxes_keep_to_area_and_aspect():
    draws = uniforms(0, 0, np.arange(2000), DRAWS)
    boxes = np.array([_crop_box(200, 300, mine[1:]) for mine in draws])
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 200).all()
    assert (left + width <= 300).all()
    share, aspect = height * width / 60000, width / height
    assert share.min() > 0.075
    assert share.max() <= 1
    assert aspect.min() > 0.74
    assert aspect.max() < 1.36
    assert share.min() < 0.1
    assert share.max() > 0.85
    assert (top == 0).any()
    assert (top + height == 200).any()
    top, left, height, width = _crop_box(10, 1000, np.full(41, 0.999))
    assert (height, width) == (10, 13)
    assert (top, left) == (0, 493)


def test_set_epoch_is_where_lightning_looks_for_it(digits):
    loader = make_loader(digits, SMALL, 10, train=True, seed=2)
    loader.sampler.set_epoch(6)
    order = torch.cat([batch["index"] for batch in loader])
    assert torch.equal(order, epoch_of(make_loader(digits, SMALL, 10, train=True, seed=2), 6)[0])
