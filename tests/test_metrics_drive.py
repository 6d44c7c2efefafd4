"""Does the map drive the answer? Stand-ins that obey, ignore or misuse their map, and a real network image by image."""

import json
import math

import pytest
import torch
from torch import nn

from attention_branch import ABNOutput, create_backbone, create_model
from attention_branch.errors import UserError
from attention_branch.metrics import MapDrive, map_drive
from attention_branch.metrics.drive_result import REPLACED

PLACES = 10


def numbered(classes):
    """Pictures that hold their class, and their own number."""
    images = torch.zeros(len(classes), 3, 8, 8)
    images[:, 0] = torch.tensor(classes)[:, None, None]
    images[:, 1] = torch.arange(len(classes))[:, None, None]
    return images


class StandIn(nn.Module):
    """A network of which all is known: its map has its maximum, 0.9, at the place of the picture's class.

    Every map is told apart by a trace of the picture's number at the last place. `answer` makes logits of the maps
    (N, h * w) and the classes.
    """

    is_abn = True
    mechanism = "residual"
    heads = None

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.given = []

    def forward(self, images, attention=None, attention_logits=True):
        assert not attention_logits
        classes = images[:, 0, 0, 0].long()
        own = 0.2 + 0.7 * nn.functional.one_hot(classes, PLACES).float()
        own[:, -1] += images[:, 1, 0, 0] / 1000
        maps = own.reshape(-1, 1, 2, PLACES // 2)
        if attention is not None:
            self.given.append(attention)
            maps = attention
        return ABNOutput(self.answer(maps.flatten(1), classes), None, maps)


def obeys(maps, classes):
    return maps * 20


def ignores(maps, classes):
    return nn.functional.one_hot(classes, PLACES).float() * 5


def is_misled(maps, classes):
    """Right by itself, unless the map clearly prefers another place."""
    clear = (maps.amax(1, keepdim=True) - maps.mean(1, keepdim=True)) > 0.5
    return ignores(maps, classes) + 100 * maps * clear


def batches(images, classes, size):
    for start in range(0, len(images), size):
        yield {"images": images[start : start + size], "targets": torch.tensor(classes[start : start + size])}


@pytest.mark.parametrize("size", [1, 4, 9])
def test_answers_that_follow_the_map(size):
    """Nine pictures of nine classes: with another's map every answer is wrong, however they are divided."""
    classes = [3, 1, 7, 0, 5, 8, 2, 6, 4]
    images = numbered(classes)
    result = map_drive(StandIn(obeys), batches(images, classes, size))
    alone = 1 if size == 1 else 0  # the first image of all has no other yet
    assert result.counts == {"unlabelled": 0, "no_other_image": alone}
    assert (result.n, result.same_class) == (9, 0.0)
    assert result.accuracy("own").mean == 1.0
    assert result.accuracy("another_image").mean == 0.0
    assert result.accuracy("another_image").n == 9 - alone
    assert result.accuracy("inverted").mean == pytest.approx(0)
    for flat in ("mean", "ones", "zeros"):
        # The same everywhere: the first place is the answer, right for the picture of class 0.
        assert result.accuracy(flat).values.tolist() == [own == 0 for own in classes]
    assert result.verdict == "drives"
    row = result["mean"]
    assert row.accuracy_drop.mean == pytest.approx(8 / 9)
    assert (row.accuracy_drop.higher, row.accuracy_drop.lower, row.accuracy_drop.equal) == (8, 0, 1)
    assert row.accuracy_drop.p_value == pytest.approx(2 * 0.5**8)  # McNemar: all of eight on one side
    assert row.agreement.values.tolist() == row.accuracy.values.tolist()
    sentence = result.sentence()
    assert sentence.startswith("The map drives the answer:")
    assert "falls by 88.9 points" in sentence
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_maps_put_in_are_what_they_are_called():
    classes = [row % 7 for row in range(41)]
    images = numbered(classes)
    network = StandIn(obeys)
    result = map_drive(network, batches(images, classes, 8))  # 41: the last batch holds one picture
    own = network(images, attention_logits=False).attention[:, 0]
    kinds = {name: torch.cat(network.given[place :: len(REPLACED)])[:, 0] for place, name in enumerate(order())}
    torch.testing.assert_close(kinds["mean"], own.mean((1, 2), keepdim=True).expand_as(own))
    torch.testing.assert_close(kinds["inverted"], 1 - own)
    assert kinds["ones"].eq(1).all()
    assert kinds["zeros"].eq(0).all()
    torch.testing.assert_close(kinds["shuffled"].flatten(1).sort(1).values, own.flatten(1).sort(1).values)
    moved = (kinds["shuffled"].flatten(1).argmax(1) != own.flatten(1).argmax(1)).float().mean()
    assert moved > 0.7  # one in ten stays by chance
    assert len({tuple(row.argsort().tolist()) for row in kinds["shuffled"].flatten(1)}) > 30  # each its own way
    lenders = [int((own - lent).abs().flatten(1).sum(1).argmin()) for lent in kinds["another_image"]]
    for row, lender in enumerate(lenders):
        assert torch.equal(kinds["another_image"][row], own[lender])
        assert lender != row
        assert lender < (row // 8 + 1) * 8  # among those before it and in its batch
    assert len(set(lenders)) > 20
    same = sum(classes[row] == classes[lender] for row, lender in enumerate(lenders))
    assert result.same_class == pytest.approx(same / 41)
    again = StandIn(obeys)
    map_drive(again, batches(images, classes, 8))
    assert all(torch.equal(one, two) for one, two in zip(again.given, network.given[:36], strict=True))


def order():
    """The order in which maps are put in, read off maps that are known."""
    network = StandIn(obeys)
    images = numbered([2, 4])
    map_drive(network, batches(images, [2, 4], 2))
    own = network(images, attention_logits=False).attention
    tests = {
        "mean": lambda given: torch.allclose(given, own.mean((2, 3), keepdim=True).expand_as(own)),
        "another_image": lambda given: torch.allclose(given, own.flip(0)),
        "inverted": lambda given: torch.allclose(given, 1 - own),
        "ones": lambda given: bool(given.eq(1).all()),
        "zeros": lambda given: bool(given.eq(0).all()),
    }
    return [next((name for name, holds in tests.items() if holds(given)), "shuffled") for given in network.given]


def test_the_readings():
    classes = [row % 9 for row in range(60)]
    images = numbered(classes)

    def read(answer, **more):
        return map_drive(StandIn(answer), batches(images, classes, 16), **more)

    deaf = read(ignores)
    assert deaf.verdict == "does not drive"
    assert all(row.accuracy_drop.mean == 0 and row.accuracy_drop.p_value is None for row in deaf.rows.values())
    assert deaf.sentence().startswith("The map does not drive the answer")
    assert "the accuracy stays as it is" in deaf.sentence()
    misled = read(is_misled)
    assert misled.verdict == "only when wrong"
    assert misled.accuracy("mean").mean == 1.0
    assert misled.accuracy("another_image").mean < 0.3
    assert "That its own map improves the answer is not shown" in misled.sentence()

    def is_hindered(maps, classes):
        # Wrong with any map that has a maximum; worst with one of another class.
        flat = maps.amax(1) - maps.amin(1) < 0.01
        held = (maps.argmax(1) == classes) & (classes > 3)
        wrong = (classes + 1) % PLACES
        return nn.functional.one_hot(torch.where(flat | held, classes, wrong), PLACES).float()

    hindered = read(is_hindered)
    assert hindered.verdict == "only when wrong"
    assert hindered["mean"].accuracy_drop.mean < 0
    assert "rises by" in hindered.sentence()
    assert "better without looking anywhere" in hindered.sentence()

    def is_helped(maps, classes):
        # With a map that looks nowhere, wrong for one picture in fifty.
        flat = maps.amax(1) - maps.amin(1) < 0.01
        right = (maps.argmax(1) == classes) | (flat & (torch.rand(len(classes)) > 0.02))
        return nn.functional.one_hot(torch.where(right, classes, (classes + 1) % PLACES), PLACES).float()

    images, classes = numbered(classes * 5), classes * 5
    helped = read(is_helped)
    assert helped.verdict == "drives"
    assert 0 < helped["mean"].accuracy_drop.mean < 0.05
    assert "adds a little" in helped.sentence()
    # Wrong without its places for 4 of 60: an interval above 0, and 4 changes all alike, p = 0.125.
    lost = torch.zeros(60).index_fill(0, torch.tensor([3, 20, 33, 47]), 1)

    def is_barely_helped(maps, classes):
        flat = maps.amax(1) - maps.amin(1) < 0.01
        right = ~flat | (lost == 0)
        return nn.functional.one_hot(torch.where(right, classes, (classes + 1) % PLACES), PLACES).float()

    barely = MapDrive()
    barely.update(StandIn(is_barely_helped).eval(), images[:60], torch.tensor(classes[:60]))
    barely = barely.compute()
    assert barely["mean"].drop.higher == 4
    assert barely["mean"].drop.interval[0] > 0
    assert barely["mean"].drop.p_value == 0.125
    assert barely.verdict == "does not drive"
    # All right with every map: the bootstrap knows no doubt, Wilson's interval does.
    assert deaf.accuracy("own").interval == pytest.approx((60 / (60 + 1.959964**2), 1.0))
    assert deaf["mean"].agreement.interval == deaf.accuracy("own").interval
    assert deaf["own"].agreement.interval == (1.0, 1.0)
    five = map_drive(StandIn(obeys), batches(images[:5], classes[:5], 5))
    assert five["inverted"].drop.interval[0] > 0
    assert five.verdict == "unknown"
    few = map_drive(StandIn(obeys), batches(images[:1], classes[:1], 1))
    assert few.verdict == "unknown"
    assert "too few" in few.sentence()
    assert math.isnan(few.same_class)
    json.dumps(few.to_dict(), allow_nan=False)
    alike = map_drive(StandIn(obeys), batches(numbered([1, 1, 1, 1, 1, 2]), [1, 1, 1, 1, 1, 2], 6))
    assert "of the same class for" in alike.sentence()


def test_without_labels_it_reads_agreement():
    classes = [3, 1, 7, 0, 5, 8]
    images = numbered(classes)
    drive = MapDrive()
    drive.update(StandIn(obeys).eval(), images)
    result = drive.compute()
    assert result.rows["own"].accuracy is None
    assert result.counts["unlabelled"] == 6
    assert result["another_image"].agreement.mean == 0.0
    assert result["another_image"].drop is result["another_image"].agreement_drop
    assert "agreement with its own answer" in result.sentence()
    assert "not whether they get worse" in result.sentence()
    with pytest.raises(UserError, match="no accuracy"):
        result.accuracy("own")
    drive.reset()
    with pytest.raises(UserError, match="No images yet"):
        drive.compute()
    # Some labels: those images have an accuracy, all have an agreement; a wrong label is none of the map's doing.
    drive.update(StandIn(obeys).eval(), images, torch.tensor([3, -1, 7, 9, -1, -1]))
    result = drive.compute()
    assert str(result.accuracy("own").values.tolist()) == "[1.0, nan, 1.0, 0.0, nan, nan]"
    assert (result["own"].agreement.mean, result.counts["unlabelled"]) == (1.0, 3)


@pytest.fixture(scope="module")
def images():
    return torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def settled(images, **answers):
    torch.manual_seed(0)
    model = create_model("resnet20", image_size=32, **answers).double().train()
    with torch.no_grad():
        for _ in range(8):
            model(images)
    return model.eval()


@pytest.mark.parametrize("mechanism", ["residual", "product", "none"])
def test_a_real_network_image_by_image(images, mechanism):
    model = settled(images, num_classes=3, mechanism=mechanism)
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    result = map_drive(
        model, [{"images": images[:4], "targets": targets[:4]}, {"images": images[4:], "targets": targets[4:]}]
    )
    changes = {
        "own": lambda own: own,
        "mean": lambda own: own * 0 + own.mean(),
        "inverted": lambda own: 1 - own,
        "ones": torch.ones_like,
        "zeros": torch.zeros_like,
    }
    for name, change in changes.items():
        for row in range(7):
            one = images[row : row + 1]
            with torch.no_grad():
                clean = model(one)
                logits = model(one, attention=change(clean.attention)).logits
            best = int(clean.logits.argmax())
            expected = float(logits.softmax(1)[0, best])
            assert result[name].probability.values[row].item() == pytest.approx(expected, rel=1e-9)
            assert result[name].agreement.values[row].item() == (int(logits.argmax()) == best)
            assert result.accuracy(name).values[row].item() == (int(logits.argmax()) == int(targets[row]))
    if mechanism == "none":
        assert result.verdict == "not applied"
        assert "does not apply its map" in result.sentence()
        assert all(row.probability_drop.mean == 0 and row.accuracy_drop.mean == 0 for row in result.rows.values())
    else:
        assert result["zeros"].probability_drop.mean != 0
    assert len(result.protocol["images_sha256"]) == 64


def test_one_head_of_several(images):
    model = settled(images, heads={"kind": 3, "old": 1})
    given = []
    real = model.forward

    def noted(batch, attention=None, **more):
        if attention is not None:
            given.append(attention)
        return real(batch, attention=attention, **more)

    model.forward = noted
    targets = {"kind": torch.tensor([0, 1, 2, 0, 1, 2, 0]), "old": torch.tensor([0, 1, 1, 0, 1, 1, 0])}
    result = map_drive(model, [{"images": images, "targets": targets}], head="old")
    own = real(images).attention
    assert len(given) == 6
    for maps in given:
        torch.testing.assert_close(maps[:, 0], own[:, 0])
        assert not torch.equal(maps[:, 1], own[:, 1])
    answers = (real(images).logits["old"][:, 0] > 0).long()
    assert result.accuracy("own").values.tolist() == (answers == targets["old"]).double().tolist()
    assert result.head == "old"
    with pytest.raises(UserError, match=r"2 heads.*head='kind'"):
        map_drive(model, [{"images": images, "targets": targets}])
    with pytest.raises(UserError, match=r"no head 'odl'.*Did you mean 'old'"):
        map_drive(model, [{"images": images}], head="odl")
    drive = MapDrive()
    drive.update(model, images, targets, "old")
    with pytest.raises(UserError, match="one head"):
        drive.update(model, images, targets, "kind")


def test_bad_input():
    network, images = StandIn(obeys).eval(), numbered([1, 2, 3])
    drive = MapDrive()
    plain = create_backbone("resnet20", num_classes=3).eval()
    with pytest.raises(UserError, match="no map takes part"):
        drive.update(plain, torch.randn(2, 3, 32, 32))
    with pytest.raises(UserError, match="training mode"):
        drive.update(network.train(), images)
    network.eval()
    for nothing in (None, images.numpy(), images[0]):
        with pytest.raises(UserError, match="normalised float tensor"):
            drive.update(network, nothing)
    with pytest.raises(UserError, match="Label 10 is out of range"):
        drive.update(network, images, torch.tensor([1, 2, 10]))
    with pytest.raises(UserError, match=r"shape \(N,\)"):
        drive.update(network, images, torch.tensor([1, 2]))
    with pytest.raises(UserError, match="no head 'kind'"):
        drive.update(network, images, head="kind")
    with pytest.raises(UserError, match="batches"):
        map_drive(network, [images])
    with pytest.raises(UserError, match="No images yet"):
        map_drive(network, [])
    fresh = MapDrive()
    fresh.update(network, images)
    with pytest.raises(UserError, match=r"no map 'zeroes'.*'zeros'"):
        fresh.compute()["zeroes"]


def test_nothing_is_kept_of_what_is_refused_or_empty():
    classes = [row % 9 for row in range(12)]
    images = numbered(classes)
    drive = MapDrive()
    with pytest.raises(UserError, match="out of range"):
        drive.update(StandIn(obeys).eval(), images, torch.full((12,), PLACES))
    with pytest.raises(UserError, match="No images yet"):
        drive.compute()
    drive.update(StandIn(obeys).eval(), images, torch.tensor(classes))
    drive.update(StandIn(obeys).eval(), images[:0])
    assert drive.compute().n == 12
    with pytest.raises(UserError, match="has one task"):
        drive.update(StandIn(obeys).eval(), images, {"label": torch.tensor(classes)})
    wrapped = nn.DataParallel(StandIn(obeys).eval())  # says itself to be in training mode
    drive.update(wrapped, images, torch.tensor(classes))
