"""The study of distractors in miniature: what a record says of them, and what is shown, against evaluation by hand."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy import stats

import attention_branch as ab
from attention_branch.data import open_data
from attention_branch.metrics import distraction
from attention_branch.metrics.distraction import DISTRACTOR
from attention_branch.reproduce.arrays import Arrays, preprocessing_of
from attention_branch.reproduce.cells import Cell, cells_for, choose
from attention_branch.reproduce.figures import draw_figure, first_of_classes
from attention_branch.reproduce.groups import read_groups
from attention_branch.reproduce.page import write_tables_page
from attention_branch.reproduce.plan import Protocol, make_jobs, recipe_of
from attention_branch.reproduce.results import all_rows, studies
from attention_branch.reproduce.show import print_tables
from attention_branch.reproduce.sources import open_origin, open_others, parse_data
from html_page import Page
from reproduce_runs import finish, write_pictures

ARMS = ("plain", "wider-multiply-adds", "none", "residual", "product")


def small_origin(name="digits-distracted"):
    """Return the study's own data with few pictures."""
    origin = {one.name: one for one in parse_data([])}[name]
    few = "digits:train=40,validation=10,test=40"
    others = tuple((other, spec.replace("digits:train=10,validation=10", few)) for other, spec in origin.others)
    return dataclasses.replace(origin, spec=origin.spec.replace("digits:train=28000", few), others=others)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The data, its pictures decoded, and a function that makes a run of an arm."""
    folder = tmp_path_factory.mktemp("distractors")
    origin = small_origin()
    data = open_origin(origin)

    def job(arm):
        cell = Cell("resnet14", "digits-distracted", arm)
        return make_jobs([cell], origin, data, Protocol(epochs=1), [0], folder / "runs", True)[0]

    arrays = Arrays(folder / "arrays", data).write(
        data, preprocessing_of(job("plain").config, data), open_others(origin)
    )
    return data, arrays, job


def test_the_study_has_the_arms_of_equal_cost():
    cells = cells_for("distractors")
    assert {(cell.network, cell.role) for cell in cells} == {
        ("resnet14", "digits-distracted"), ("resnet14", "digits-alone"), ("resnet20", "mosaics-target"),
    }  # fmt: skip
    assert {cell.arm for cell in cells} == set(ARMS)
    assert len(cells) == 15
    assert len(choose(cells, ["*/digits-alone"])) == 5
    assert recipe_of(cells[0], Protocol()) == recipe_of(choose(cells, ["*/digits-alone"])[0], Protocol())
    assert recipe_of(choose(cells, ["resnet20"])[0], Protocol()) == "constructed"


@pytest.mark.parametrize(("name", "classes", "side"), [("mosaics-target", 16, 64), ("mosaics-target-32", 8, 32)])
def test_embedded_data_is_at_hand_and_mosaics_are_made_of_what_is_named(tmp_path, name, classes, side):
    pictures = write_pictures(tmp_path / "pictures", classes=20, train=2, test=1)
    origins = {one.name: one for one in parse_data([f"{name}={pictures}"])}
    assert {"digits-distracted", "digits-alone", name} <= set(origins)
    assert origins[name].kind.stands_for is None
    assert origins[name].kind.role == "mosaics-target"
    small = dataclasses.replace(origins[name], spec=f"{origins[name].spec},train=10,test=20")
    data = open_origin(small)
    assert data.num_classes == classes
    assert data.test.source.pixels().shape == (20, side, side, 3)
    spec = dict(origins[name].others)["without"]
    (without,) = open_others(dataclasses.replace(small, others=(("without", f"{spec},test=20"),))).values()
    # The same quarters, without the others.
    assert np.array_equal(without.targets, data.test.targets)
    inside = np.stack([sample.mask for sample in without]) > 0
    assert inside.mean() == 0.25
    assert np.array_equal(without.source.pixels()[inside], data.test.source.pixels()[inside])
    assert (without.source.pixels()[~inside] == 128).all()


def test_the_digits_of_all_tests_are_the_same(small):
    data, arrays, _ = small
    assert arrays.others == ["without", "shapes"]
    with_letters, labels = arrays.split("test")
    without, others_labels = arrays.split("test-without")
    assert np.array_equal(labels, others_labels)
    letters = arrays.distractors()
    assert letters.shape == (40, 64, 64)
    assert np.array_equal(letters, np.stack([sample.distractor for sample in data.test]) > 0)
    differ = (with_letters != without).any(-1)
    assert differ[letters].mean() > 0.9
    assert not (differ & arrays.regions()[:, 0]).any()
    plain = open_data("digits:test=40").test.source.pixels()
    assert np.array_equal(without, plain)
    alone = open_origin(small_origin("digits-alone"))
    assert alone.train[0].distractor is None
    assert np.array_equal(alone.test.source.pixels(), with_letters)


@pytest.mark.parametrize("arm", ["plain", "residual"])
def test_a_record_says_what_distractors_do(small, arm):
    data, arrays, job = small
    record = finish(job(arm), arrays)
    network = ab.load_model(job(arm).network).eval()
    splits = {"test_error": data.test} | {
        f"test_error_{name}": one for name, one in open_others(small_origin()).items()
    }
    for name, images in splits.items():
        pictures = torch.stack([network.preprocessing.tensor(sample.image) for sample in images])
        with torch.no_grad():
            output = network(pictures)
        wrong = (output.logits if arm == "residual" else output).argmax(1).numpy() != images.targets
        assert record["last"][name] == pytest.approx(wrong.mean(), abs=1e-6)
        if name == "test_error":
            wrong_beside_letters = wrong
    pictures = torch.stack([network.preprocessing.tensor(sample.image) for sample in data.test])
    objects, letters = arrays.regions()[:, 0], arrays.distractors()
    own = ["attention", "attention-class", "grad-cam"] if arm == "residual" else ["grad-cam"]
    assert list(record["distraction"]) == [*own, "random", "center", "constant"]
    for method in own:
        maps = ab.explain(network, pictures, method=method).maps
        found = distraction(maps, objects, letters)
        wanted = found.to_dict() | {"on_distractor_where_wrong": found.share(DISTRACTOR, wrong_beside_letters)}
        for name in wanted.keys() - {"intervals"}:
            assert record["distraction"][method][name] == pytest.approx(wanted[name], abs=1e-4), name
    constant = record["distraction"]["constant"]
    assert constant["mass_on_object"] == pytest.approx(objects.mean(), abs=1e-6)
    assert constant["mass_on_distractor"] == pytest.approx(letters.mean(), abs=1e-6)
    json.dumps(record, allow_nan=False)


def made_up(arm, seed, error, without, mass):
    """Return a record with maps whose mass on the distractor is given; a constant map has 0.1 there."""
    on = {"n": 100, "on_object": 0.6, "on_distractor": 0.3, "elsewhere": 0.1, "mass_on_object": 0.2,
          "mass_on_distractor": mass, "object_area": 0.05, "distractor_area": 0.1}  # fmt: skip
    nothing = on | {
        "on_object": 0,
        "on_distractor": 0,
        "elsewhere": 1,
        "mass_on_object": 0.05,
        "mass_on_distractor": 0.1,
    }
    figures = {"test_error": error, "validation_error": error, "test_error_without": without, "test_error_shapes": 0.5}
    return {
        "format": 1,
        "status": "finished",
        "cell": {"network": "resnet14", "role": "digits-distracted", "arm": arm},
        "protocol": {"name": "published", "recipe": "distractors-study", "shortened": False, "train_images": None},
        "seed": seed,
        "settings": {"epochs": 4, "precision": "32"},
        "data": {"title": "digits beside a letter", "stands_for": None, "images": {"train": 9, "test": 100}},
        "last": figures,
        "best_on_validation": figures,
        "best_on_test": figures,
        "cost": {"parameters": 1000, "multiply_adds": 1_000_000},
        "hardware": {"device": "cpu"},
        "versions": {"torch": "2.15.0"},
        "map": None,
        "distraction": {"grad-cam" if arm == "plain" else "attention": on | {"on_distractor_where_wrong": 0.8},
                        "constant": nothing},
    }  # fmt: skip


PLAIN = [(0.20, 0.10), (0.22, 0.10), (0.24, 0.13)]
RESIDUAL = [(0.15, 0.10), (0.18, 0.11), (0.16, 0.12)]


@pytest.fixture
def folder(tmp_path):
    for arm, runs in (("plain", PLAIN), ("residual", RESIDUAL)):
        for seed, (error, without) in enumerate(runs):
            mass = 0.05 if arm == "residual" else 0.15
            path = tmp_path / arm / f"published-seed{seed}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(made_up(arm, seed, error, without, mass + 0.01 * seed)))
    return tmp_path


def test_costs_are_paired_by_seed(folder):
    (study,) = studies(read_groups([folder]))
    lines = {line["arm"]: line["distraction"] for line in study["arms"]}
    costs = {arm: [100 * (a - b) for a, b in runs] for arm, runs in (("plain", PLAIN), ("residual", RESIDUAL))}
    for arm, values in costs.items():
        assert lines[arm]["cost"]["mean"] == pytest.approx(np.mean(values))
        assert lines[arm]["cost"]["std"] == pytest.approx(np.std(values, ddof=1))
        assert lines[arm]["tests"]["shapes"]["mean"] == pytest.approx(50)
    less = lines["residual"]["less_cost"]["plain"]
    assert less["mean"] == pytest.approx(np.mean(costs["residual"]) - np.mean(costs["plain"]))
    assert less["p_value"] == pytest.approx(stats.ttest_rel(costs["residual"], costs["plain"]).pvalue)
    assert lines["plain"]["less_cost"] == {}
    # 0.05, 0.06 and 0.07 of the mass where a constant map has 0.1 of it.
    density = lines["residual"]["maps"]["attention"]["density_on_distractor"]
    assert density["mean"] == pytest.approx(0.6)
    assert density["std"] == pytest.approx(0.1)
    assert lines["residual"]["maps"]["constant"]["density_on_object"]["mean"] == pytest.approx(1)
    assert lines["plain"]["maps"]["grad-cam"]["on_distractor_where_wrong"]["mean"] == pytest.approx(80)
    json.dumps(all_rows(read_groups([folder])), allow_nan=False)


def test_the_terminal_and_the_page_show_them(folder, tmp_path):
    groups = read_groups([folder])
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    print_tables(groups, console)
    page = Page(write_tables_page(tmp_path / "page.html", groups).read_text())
    for text in (console.export_text(), page.text):
        assert "11.00 ± 1.00" in text  # what distractors cost the plain network
        assert "5.33 ± 1.53" in text
        assert "0.60 ± 0.10" in text
        assert "-5.67" in text
    # In a terminal of the usual width there are means, and no figure is cut.
    narrow = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    print_tables(groups, narrow)
    text = narrow.export_text()
    assert "…" not in text
    assert "11.00 ± 1.00" not in text
    assert "11.00" in text
    assert "0.60" in text
    # Runs that know of no distractor have no such tables.
    for path in folder.rglob("*-seed*.json"):
        record = json.loads(path.read_text())
        del record["distraction"]
        path.write_text(json.dumps(record))
    page = Page(write_tables_page(tmp_path / "page.html", read_groups([folder])).read_text())
    assert "what distractors cost" not in page.text


def test_the_figure_shows_each_arms_map_and_answer(small, tmp_path):
    data, arrays, job = small
    jobs = [job(arm) for arm in ("plain", "residual")]
    for one in jobs:
        if not one.network.is_dir():
            finish(one, arrays)
    with Image.open(draw_figure("distractors", jobs, data, tmp_path / "figure.png")) as drawn:
        assert drawn.format == "PNG"
        # Three columns of 1.35 inches, six rows of 1.55, at 120 dots an inch.
        assert drawn.size == (round(120 * (3 * 1.35 + 0.1)), round(120 * (0.55 + 6 * 1.55 + 0.35)))
        shown = drawn.convert("RGB")
    chosen = first_of_classes(data.test, 6)
    assert chosen == [0, 1, 2, 3, 4, 5]
    for row, number in enumerate(chosen):
        apart = []
        for column in range(3):
            left, top = 120 * (0.08 + column * 1.35), 120 * (0.61 + row * 1.55)
            panel = shown.crop((round(left), round(top), round(left + 154.8), round(top + 154.8))).resize((64, 64))
            apart.append(np.median(np.abs(np.asarray(panel) / 1.0 - np.asarray(data.test[number].image))))
        # The picture itself, but for the outline, and the same with maps on it.
        assert apart[0] < 8
        assert min(apart[1:]) > apart[0] + 3
