"""The picture of many heads: as many maps as asked for, coloured by their values, and the scores of the perception."""

import numpy as np
import pytest
import torch
from PIL import Image

import attention_branch as ab
from attention_branch.explanations import attribute_figure as module
from attention_branch.report import attribute_figure

HEADS = {"n01443537 goldfish": 2, "hair": 3, "glasses": 1}
NAMES = {"n01443537 goldfish": ["absent", "present"], "hair": ["black", "brown", "other"], "glasses": ["no", "yes"]}


@pytest.fixture(scope="module")
def model():
    return ab.create_model("resnet14", heads=HEADS, class_names=NAMES).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32)


@pytest.fixture
def drawn(monkeypatch):
    """Record what is asked to be drawn, and draw it."""
    calls = []

    def record(pictures, rows, stretch, title, path, draw=module._drawn):
        calls.append((pictures, rows, stretch))
        return draw(pictures, rows, stretch, title, path)

    monkeypatch.setattr(module, "_drawn", record)
    return calls


def test_scores_and_maps_are_those_of_the_network(model, images, drawn, tmp_path):
    picture = attribute_figure(model, images, path=tmp_path / "heads.png")
    with Image.open(tmp_path / "heads.png") as written:
        assert np.array_equal(np.asarray(written.convert("RGB")), np.asarray(picture))
    ((pictures, rows, _),) = drawn
    assert len(pictures) == len(rows) == 2
    with torch.no_grad():
        output = model(images)
    for row, own in enumerate(rows):
        assert [head for head, _, _ in own] == list(HEADS)
        for number, (_, _, values) in enumerate(own):
            assert torch.allclose(values, output.attention[row, number])
        goldfish = output.logits["n01443537 goldfish"][row].softmax(0)[1]
        hair = output.logits["hair"][row].softmax(0)
        glasses = output.logits["glasses"][row].sigmoid()[0]
        assert own[0][1] == f"{100 * goldfish:.1f} %"
        assert own[1][1] == f"{NAMES['hair'][hair.argmax()]}, {100 * hair.max():.1f} %"
        assert own[2][1] == f"{100 * glasses:.1f} %"


def test_heads_are_chosen_in_the_order_asked_for(model, images, drawn):
    wide = attribute_figure(model, images, ["glasses", "hair"])
    assert [head for head, _, _ in drawn[0][1][0]] == ["glasses", "hair"]
    assert attribute_figure(model, images, "glasses").width < wide.width < attribute_figure(model, images).width
    assert attribute_figure(model, images[:1]).height < attribute_figure(model, images).height


def test_a_map_is_seen_where_it_is_high(model):
    """On a black picture the overlay's colour is the map's alone: the panel of the third head lights up at one side."""

    class Fixed(torch.nn.Module):
        is_abn, heads, class_names, preprocessing = True, HEADS, NAMES, model.preprocessing

        def forward(self, batch, attention_logits=True):
            maps = torch.zeros(len(batch), 3, 16, 16)
            maps[:, 2, :, 8:] = 1
            return ab.ABNOutput({head: torch.zeros(len(batch), size) for head, size in HEADS.items()}, None, maps)

    black = [Image.new("RGB", (32, 32))]
    pixels = np.asarray(attribute_figure(Fixed().eval(), black)).astype(int)
    shown = (pixels[..., 0] > pixels[..., 2] + 40).sum(0)  # the colormap's tones are warm
    panel = pixels.shape[1] // 5
    lit = np.flatnonzero(shown > 20)
    lit = lit[lit < pixels.shape[1] - 90]  # left of the colour bar
    # Picture and two maps are dark; the third map's right half is not.
    assert lit.min() > 3 * panel
    assert 40 < len(lit) < 110


def test_many_heads_go_on_in_lines_below():
    heads = {f"a{number}": 2 for number in range(20)}
    many = ab.create_model("resnet14", heads=heads, perception="shared", branch="lite").eval()
    one = torch.randn(1, 3, 32, 32)
    whole, eight = attribute_figure(many, one), attribute_figure(many, one, list(heads)[:8])
    assert whole.width == eight.width
    assert whole.height > 2.2 * eight.height


def test_a_stretched_picture_is_another(model, images):
    plain, stretched = (np.asarray(attribute_figure(model, images, stretch=stretch)) for stretch in (False, True))
    # Each map has a scale of its own then, so there is no colour bar for all.
    assert plain.shape[0] == stretched.shape[0]
    assert plain.shape[1] > stretched.shape[1]
    assert (plain[:, : stretched.shape[1]] != stretched).any()


def test_training_mode_comes_back(model, images):
    model.train()
    with pytest.warns(UserWarning, match="training mode"):
        attribute_figure(model, images)
    assert model.training
    model.eval()


def test_what_has_no_maps_by_head_is_refused(model, images):
    for network in (ab.create_model("resnet14", 3).eval(), ab.create_backbone("resnet14", heads=HEADS).eval()):
        with pytest.raises(ab.UserError, match="no map for each of several heads"):
            attribute_figure(network, images)
    with pytest.raises(ab.UserError, match=r"no head 'hairs'\. Did you mean 'hair'"):
        attribute_figure(model, images, ["hairs"])
