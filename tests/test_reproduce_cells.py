"""The tables' numbers, their cells, and the settings each run gets."""

import pytest

from attention_branch.errors import UserError
from attention_branch.models import create_model
from attention_branch.models.cost import cost
from attention_branch.models.registry import stands_alone
from attention_branch.reproduce.arms import ARMS, backbone_options, network_cost
from attention_branch.reproduce.cells import Cell, cells_for, cells_of, choose
from attention_branch.reproduce.plan import Protocol, kept_settings, recipe_of, settings, startable
from attention_branch.reproduce.published import PUBLISHED
from attention_branch.reproduce.sources import KINDS, Origin, missing, parse_data
from attention_branch.training import RECIPES, recipe
from attention_branch.training.building import make_model
from attention_branch.training.optimization import rate_factor

NUMBERS = {(number.table, number.row, number.column): number.value for number in PUBLISHED}
# The gains that Table 2 prints in brackets behind its numbers.
GAINS = {
    ("ResNet", "CIFAR10"): 1.52, ("ResNet", "CIFAR100"): 1.32, ("ResNet", "SVHN"): 0.32, ("ResNet", "ImageNet"): 0.82,
    ("WideResNet", "CIFAR10"): 0.22, ("WideResNet", "CIFAR100"): 1.13, ("WideResNet", "SVHN"): 0.18,
    ("DenseNet", "CIFAR10"): 0.34, ("DenseNet", "CIFAR100"): 0.64, ("DenseNet", "SVHN"): 0.06,
    ("ResNeXt", "CIFAR10"): 0.04, ("ResNeXt", "CIFAR100"): 0.62, ("ResNeXt", "SVHN"): 0.15,
    ("VGGNet+BN", "ImageNet"): 0.69, ("SENet", "ImageNet"): 0.80,
}  # fmt: skip


def test_the_published_gains_follow_from_the_numbers():
    for (row, column), gain in GAINS.items():
        found = NUMBERS["table2", row, column] - NUMBERS["table2", f"{row}+ABN", column]
        assert found == pytest.approx(gain, abs=1e-9), (row, column)
    assert NUMBERS["table2", "VGGNet+BN+CAM", "ImageNet"] - NUMBERS["table2", "VGGNet+BN", "ImageNet"] == pytest.approx(
        1.18
    )
    assert NUMBERS["table2", "ResNet+CAM", "ImageNet"] - NUMBERS["table2", "ResNet", "ImageNet"] == pytest.approx(-0.08)


def test_numbers_are_shown_as_printed():
    printed = {(number.table, number.row, number.column): number.printed for number in PUBLISHED}
    assert printed["table1", "ResNet44", "g(x)"] == "25.90"
    assert printed["table2", "WideResNet", "CIFAR10"] == "4.00"
    assert printed["table2", "ResNet", "SVHN"] == "2.18*"
    assert printed["table2", "VGGNet", "ImageNet"] == "31.2"
    assert printed["table3", "VGG16", "model"] == "85.9"
    assert printed["table4", "LNet+ANet", "average accuracy"] == "87.30"
    assert printed["table4", "MOON", "odds"] == "29"


def test_the_tables_agree_where_they_share_a_number():
    assert NUMBERS["table1", "ResNet110", "g(x)"] == NUMBERS["table2", "ResNet", "CIFAR100"]
    assert NUMBERS["table1", "ResNet110", "g(x)*(1+M(x))"] == NUMBERS["table2", "ResNet+ABN", "CIFAR100"]
    shared = [number for number in PUBLISHED if Cell("resnet164b", "cifar100", "residual") in cells_of(number)]
    assert {number.table for number in shared} == {"table1", "table2"}


def test_every_number_has_cells():
    for number in PUBLISHED:
        assert cells_of(number), number
    assert len(PUBLISHED) == 15 + 41 + 8 + 11


def test_every_network_of_a_table_has_every_arm():
    for table in ("table1", "table2", "table3", "table4", "digits"):
        cells = cells_for(table)
        pairs = {(cell.network, cell.role) for cell in cells}
        several = {"compcars", "two-level", "celeba", "mosaics"}
        squeezed = sum(network.startswith("seresnet") for network, _ in pairs)
        systems = {pair for pair in pairs if stands_alone(pair[0])}
        arms = sum(10 if role in several else 9 for _, role in pairs - systems)
        assert len(cells) == len(systems) + arms + squeezed
    assert {("resnet65b", "cifar100"), ("resnet65b", "cifar10")} <= {(c.network, c.role) for c in cells_for("table1")}


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("resnet20", 18),
        ("resnet20/cifar100/residual", 1),
        ("*/cifar100/plain", 8),
        ("*/tiny-imagenet-100/plain", 8),
        ("resnet*b", 54),
        ("*/*/wider-*", 32),
    ],
)
def test_cells_are_chosen_by_patterns(pattern, count):
    assert len(choose(cells_for("table1"), [pattern])) == count


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("resnet21", "'resnet21' is no network here"),
        ("resnet20/svhn", "'svhn' is no data set here; there are cifar10, cifar100"),
        ("resnet20/cifar100/residuall", "Did you mean 'residual'"),
    ],
)
def test_a_cell_that_does_not_exist_is_named(pattern, words):
    with pytest.raises(UserError, match=words):
        choose(cells_for("table1"), ["resnet32", pattern])


@pytest.mark.parametrize(("network", "size"), [("resnet20", 32), ("resnet14", 64)])
def test_wider_arms_cost_what_the_papers_network_costs(network, size):
    own = {"stem_stride": 2} if network == "resnet14" else {}
    wanted = network_cost(ARMS["residual"], network, {"num_classes": 100}, size, own)
    for arm in ("wider-parameters", "wider-multiply-adds"):
        options = backbone_options(ARMS[arm], network, {"num_classes": 100}, size, own)
        found = network_cost(ARMS[arm], network, {"num_classes": 100}, size, options)
        kind = ARMS[arm].equal
        assert getattr(found, kind) == pytest.approx(getattr(wanted, kind), rel=0.02)
        assert options.get("stem_stride", 1) == own.get("stem_stride", 1)


@pytest.mark.parametrize("protocol", ["published", "modern"])
def test_wider_networks_are_left_out_where_the_others_start_from_pretrained_weights(protocol):
    wider = {"wider-parameters", "wider-multiply-adds"}
    for table, role, networks in (("table3", "compcars", 2), ("table4", "celeba", 1)):
        kept, lacking = startable(cells_for(table), [], Protocol(protocol))
        assert len(lacking) == 2 * networks
        assert {(cell.role, cell.arm) for cell in lacking} == {(role, arm) for arm in wider}
        assert not {cell.arm for cell in kept if cell.role == role} & wider
        # The stand-ins are trained from scratch, as ImageNet is.
        assert wider <= {cell.arm for cell in kept if cell.role != role}
    assert not startable(cells_for("table2"), ["*/imagenet/wider-*"], Protocol(protocol))[1]

    # Among other cells they are left out, by name they are refused.
    kept, lacking = startable(cells_for("table4"), ["*/*/wider-parameters"], Protocol())
    assert [cell.name for cell in kept] == ["resnet20/mosaics/wider-parameters"]
    assert [cell.name for cell in lacking] == ["resnet101/celeba/wider-parameters"]
    with pytest.raises(UserError, match=r"'\*/celeba/wider-\*' cannot be run: celeba starts from pretrained weights"):
        startable(cells_for("table4"), ["resnet20", "*/celeba/wider-*"], Protocol(protocol))


def origin(name="cifar10"):
    return Origin(KINDS[name], "somewhere", KINDS[name].title)


@pytest.mark.parametrize("arm", [name for name, arm in ARMS.items() if not arm.several_heads and not arm.family])
def test_an_arm_is_the_network_its_title_says(arm):
    from attention_branch.data import DataSet

    data = DataSet(spec="", seed=0, tasks={"label": tuple("0123456789")})
    cell = Cell("resnet20", "cifar10", arm)
    config = settings(
        cell, origin(), Protocol(), 0, backbone_options(ARMS[arm], "resnet20", {"num_classes": 10}, 32, {})
    )
    model = make_model(config, data)
    assert model.is_abn == (arm not in ("plain", "wider-parameters", "wider-multiply-adds"))
    if model.is_abn:
        kinds = {"product": "product", "none": "none"}
        assert model.mechanism == kinds.get(arm, "residual")
        assert model.map_control == (arm if arm in ("constant", "shuffled") else "own")
        assert (model.config.branch == "lite") == (arm == "lite")
    assert config.epochs == 300
    assert config.weight_decay == 1e-4
    # ResNet-20 by hand: stem, three stages of six 3x3 convolutions with their norms, two projections, ten classes.
    plain = (432 + 32) + 6 * (2304 + 32) + (4608 + 5 * 9216 + 6 * 64) + (18432 + 5 * 36864 + 6 * 128)
    plain += (512 + 64) + (2048 + 128) + 650
    found = cost(model).parameters
    papers = sum(one.numel() for one in create_model("resnet20", 10).parameters())
    if arm == "plain":
        assert found == plain
    elif arm == "lite":
        assert plain < found < 1.1 * plain
    elif arm == "wider-parameters":
        assert found == pytest.approx(papers, rel=0.02)
    elif arm == "wider-multiply-adds":
        assert found > papers  # a width costs as many parameters as multiply-adds, the paper's branch fewer
    else:
        assert found == papers


def test_a_smoke_test_keeps_the_course_of_the_learning_rate():
    cell = Cell("resnet20", "cifar10", "plain")
    whole = settings(cell, origin(), Protocol(), 0, {})
    short = settings(cell, origin(), Protocol(epochs=60), 0, {})
    course = [rate_factor(whole, 10)(10 * epoch) for epoch in range(300)]
    shortened = [rate_factor(short, 10)(10 * epoch) for epoch in range(60)]
    assert shortened == pytest.approx(course[::5])
    assert rate_factor(settings(cell, origin(), Protocol(epochs=1), 0, {}), 10)(9) == 1.0
    assert Protocol().label == "published"
    assert Protocol(epochs=2, train_images=500).label == "published-e2-n500"


def test_every_cell_has_settings_of_both_protocols():
    for table in ("table1", "table2", "table3", "table4"):
        for cell in cells_for(table):
            assert recipe_of(cell, Protocol()) in RECIPES
            if cell.role not in ("two-level", "mosaics") or cell.network == "facetracer":
                assert recipe_of(cell, Protocol("modern")) in RECIPES
    with pytest.raises(UserError, match="no modern settings for digits"):
        recipe_of(cells_for("digits")[0], Protocol("modern"))


def test_a_sum_of_losses_is_trained_as_their_mean():
    """SGD on the sum of T losses at rate / T with T times the decay takes the steps of the mean at the rate."""
    cell = Cell("resnet20", "mosaics", "plain")
    found = settings(cell, origin("mosaics"), Protocol(), 0, {}, heads=16)
    start = RECIPES["constructed"]
    assert found.lr * 16 == pytest.approx(start.lr)
    assert found.lr * found.weight_decay == pytest.approx(start.lr * start.weight_decay)


def test_kept_settings_say_nothing_of_places():
    config = settings(Cell("resnet20", "cifar10", "plain"), origin(), Protocol(), 3, {"width": 1.5})
    kept = kept_settings(config)
    assert "somewhere" not in str(kept)
    assert kept["seed"] == 3
    assert kept["model_options"] == ["width=1.5"]


def test_data_is_named_as_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("ABN_DATA", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    named = {found.name: found for found in parse_data([f"cifar10={tmp_path}/mine", f"cifar10-jpeg={tmp_path}/mine"])}
    assert named["cifar10"].title == "CIFAR-10 as given (mine)"
    assert named["cifar10"].spec == f"{tmp_path}/mine"
    assert named["cifar10-jpeg"].title == "CIFAR-10 (JPEG)"
    assert named["cifar10-jpeg"].kind.stands_for == "CIFAR-10"
    assert "cifar100" not in named
    (tmp_path / "mine" / "cifar-10-batches-py").mkdir()
    (official,) = [found for found in parse_data([f"cifar10={tmp_path}/mine"]) if found.name == "cifar10"]
    assert official.title == "CIFAR-10"
    assert official.spec == f"torchvision:CIFAR10:{tmp_path}/mine"
    (tmp_path / "cache" / "cifar-100-python").mkdir(parents=True)
    assert "cifar100" in {found.name for found in parse_data([])}


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("cifar10", "write NAME=PATH"),
        ("cifar11=here", "Did you mean 'cifar10'"),
        ("svhn=/nowhere/at/all", "get train_32x32.mat"),
    ],
)
def test_data_that_is_not_there_says_what_to_get(argument, words):
    with pytest.raises(UserError, match=words):
        parse_data([argument])
    assert "--data cifar10-jpeg=PATH" in missing("cifar10")


@pytest.mark.parametrize(
    ("cell", "protocol", "wanted"),
    [
        (Cell("resnet164b", "svhn", "plain"), "published", ("svhn", "none", 0.1)),
        (Cell("resnet164b", "svhn", "plain"), "modern", ("svhn-modern", "trivial", 0.1)),
        (Cell("vgg16_cam", "imagenet", "plain"), "published", ("imagenet-vgg", "random-resized-crop", 0.01)),
        (Cell("vgg16_bn", "imagenet", "plain"), "published", ("imagenet", "random-resized-crop", 0.1)),
        (Cell("vgg16", "imagenet", "plain"), "modern", ("imagenet-vgg-modern", "trivial-augment", 0.05)),
        (Cell("wrn_28_10", "cifar10", "plain"), "modern", ("cifar-modern", "pad-crop-flip-trivial", 0.1)),
        (Cell("attention452_cifar", "cifar10", "plain"), "published", ("cifar-attention", "pad-crop-flip", 0.1)),
        (Cell("attention56", "imagenet", "plain"), "published", ("imagenet-attention", "random-resized-crop", 0.1)),
        (Cell("attentionnext56", "imagenet", "plain"), "modern", ("imagenet-modern", "trivial-augment", 0.5)),
    ],
)
def test_signs_are_not_mirrored_and_nets_without_batch_norm_learn_slowly(cell, protocol, wanted):
    chosen = recipe(recipe_of(cell, Protocol(protocol)))
    assert (chosen.recipe, chosen.augment, chosen.lr) == wanted


def test_the_quoted_resnet_is_run_at_both_depths():
    numbers = {(number.row, number.column): number for number in PUBLISHED if number.table == "table2"}
    assert [cell.network for cell in cells_of(numbers["ResNet", "CIFAR10"])] == ["resnet164b", "resnet110"]
    assert [cell.network for cell in cells_of(numbers["ResNet+ABN", "CIFAR10"])] == ["resnet164b"]
