"""Statistics over seeds against scipy and by hand, and what is shown of them."""

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from attention_branch.cli import main
from attention_branch.errors import UserError
from attention_branch.reproduce import groups as groups_module
from attention_branch.reproduce.findings import statements
from attention_branch.reproduce.groups import find_folders, read_groups
from attention_branch.reproduce.page import write_tables_page
from attention_branch.reproduce.published import PUBLISHED
from attention_branch.reproduce.record import pack, read, unpack
from attention_branch.reproduce.results import all_rows, difference, studies, table_rows
from attention_branch.reproduce.show import print_tables
from html_page import Page

PLAIN = [0.31, 0.32, 0.30, 0.33, 0.31]
RESIDUAL = [0.30, 0.30, 0.29, 0.31, 0.30]


def record(arm, seed, error, *, shortened=False, status="finished", data="CIFAR-100", network="resnet20"):
    figures = {"test_error": error, "validation_error": error + 0.01, "test_attention_error": error + 0.02}
    return {
        "format": 1,
        "status": status,
        "cell": {"network": network, "role": "cifar100", "arm": arm},
        "protocol": {"name": "published", "recipe": "cifar", "shortened": shortened, "train_images": None},
        "seed": seed,
        "settings": {"epochs": 2 if shortened else 300, "precision": "32"},
        "data": {"title": data, "stands_for": None, "images": {"train": 45000, "validation": 5000, "test": 10000}},
        "last": figures,
        "best_on_validation": {**figures, "epoch": 3},
        "best_on_test": {**figures, "test_error": error - 0.005},
        "cost": {"parameters": 278324, "multiply_adds": 40818944},
        "hardware": {"device": "cpu"},
        "versions": {"torch": "2.15.0"},
        "map": {"alarm": None, "on_object": 0.5} if arm == "residual" else None,
    }


def write(folder, *records):
    for number, one in enumerate(records):
        path = folder / one["cell"]["arm"] / f"{number}-seed{one['seed']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(one))


@pytest.fixture
def folder(tmp_path):
    runs = [record("plain", seed, error) for seed, error in enumerate(PLAIN)]
    runs += [record("residual", seed, error) for seed, error in enumerate(RESIDUAL)]
    write(tmp_path, *runs)
    return tmp_path


def test_mean_and_spread_are_of_the_last_epoch(folder):
    rows = {(row["table"], row["row"], row["column"]): row for row in table_rows(read_groups([folder]))}
    ours = rows["table1", "ResNet20", "g(x)"]["ours"]
    assert ours["mean"] == pytest.approx(100 * np.mean(PLAIN))
    assert ours["std"] == pytest.approx(100 * np.std(PLAIN, ddof=1))
    assert ours["n"] == 5
    assert ours["data"] == "CIFAR-100"
    assert ours["best_on_test"]["mean"] == pytest.approx(100 * np.mean(PLAIN) - 0.5)
    assert ours["attention_branch"]["mean"] == pytest.approx(100 * np.mean(PLAIN) + 2)
    assert rows["table1", "ResNet20", "g(x)"]["published"] == 31.47
    assert rows["table1", "ResNet20", "g(x)*(1+M(x))"]["ours"]["mean"] == pytest.approx(30.0)
    assert rows["table1", "ResNet20", "g(x)*M(x)"]["ours"] is None
    assert "not run (resnet20/cifar100/product)" in rows["table1", "ResNet20", "g(x)*M(x)"]["reason"]
    assert rows["table2", "Attention", "CIFAR10"]["ours"] is None


def test_differences_are_paired_by_seed(folder):
    groups = {group.arm: group for group in read_groups([folder])}
    found = difference(groups["residual"], groups["plain"])
    wanted = stats.ttest_rel(100 * np.array(RESIDUAL), 100 * np.array(PLAIN))
    interval = wanted.confidence_interval(0.95)
    assert found.mean == pytest.approx(-1.4)
    assert found.p_value == pytest.approx(wanted.pvalue)
    assert found.interval == pytest.approx((interval.low, interval.high))
    assert found.clear
    assert found.lower == found.n == 5


def test_seeds_that_only_one_arm_has_are_left_out(tmp_path):
    write(tmp_path, *[record("plain", seed, 0.3 + seed / 100) for seed in (0, 1, 2)])
    write(tmp_path, *[record("residual", seed, 0.2 + seed / 100) for seed in (1, 2, 7)])
    groups = {group.arm: group for group in read_groups([tmp_path])}
    found = difference(groups["residual"], groups["plain"])
    assert (found.n, found.mean) == (2, pytest.approx(-10))
    assert found.interval == pytest.approx((-10, -10))
    one = read_groups([tmp_path])[0]
    assert difference(one, one).clear is False


def test_one_seed_settles_nothing(tmp_path):
    write(tmp_path, record("plain", 0, 0.3), record("residual", 0, 0.2))
    (study,) = studies(read_groups([tmp_path]))
    line = next(line for line in study["arms"] if line["arm"] == "residual")
    assert line["less"]["plain"]["interval"] is None
    assert not line["less"]["plain"]["clear"]
    assert "settles nothing" in statements(study)[0].text


def test_unfinished_runs_do_not_count_and_smoke_tests_stand_apart(tmp_path):
    write(tmp_path, record("plain", 0, 0.3), record("plain", 1, 0.9, status="unfinished"))
    write(tmp_path / "short", record("plain", 5, 0.8, shortened=True))
    groups = read_groups([tmp_path])
    rows = all_rows(groups)
    (row,) = [row for row in rows if row["ours"] and row["table"] == "table1"]
    assert (row["ours"]["n"], row["ours"]["mean"], row["ours"]["std"]) == (1, pytest.approx(30), None)
    assert [row["ours"]["mean"] for row in rows if row["table"] == "smoke tests"] == [pytest.approx(80)]


def test_a_run_found_twice_counts_once(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write(other, record("plain", 0, 0.99), record("plain", 9, 0.31))
    (plain,) = [group for group in read_groups([folder, other]) if group.arm == "plain"]
    assert plain.seeds == [0, 1, 2, 3, 4, 9]
    assert plain.values("last", "test_error")[0] == PLAIN[0]


def told(groups, arm="plain"):
    return {group.protocol: group.seeds for group in groups if group.arm == arm}


WORDS = "published settings, recipe cifar, 300 epochs"
SHIPPED = f"{WORDS}; shipped with the package"


def test_own_and_shipped_runs_are_never_mixed(folder, tmp_path_factory):
    """Seeds 0 and 1 run by a user, seeds 0 to 4 of both arms shipped: two studies, each paired in itself."""
    own = tmp_path_factory.mktemp("own")
    mine = [record("plain", 0, 0.5), record("plain", 1, 0.4), record("residual", 0, 0.4), record("residual", 1, 0.6)]
    for one in mine:
        one["hardware"] = {"device": "cpu", "processor": "another"}
    write(own, *mine)
    groups = read_groups([own], [folder])
    assert told(groups) == {WORDS: [0, 1], SHIPPED: [0, 1, 2, 3, 4]}
    compared = {
        study["protocol"]: line["less"]["plain"]["mean"]
        for study in studies(groups)
        for line in study["arms"]
        if line["arm"] == "residual"
    }
    assert compared == {WORDS: pytest.approx(5), SHIPPED: pytest.approx(-1.4)}
    rows = [row["ours"] for row in table_rows(groups) if (row["row"], row["column"]) == ("ResNet20", "g(x)")]
    assert [(row["shipped"], row["n"], row["mean"]) for row in rows] == [
        (False, 2, pytest.approx(45)),
        (True, 5, pytest.approx(31.4)),
    ]


def test_copies_of_shipped_runs_appear_once(folder, tmp_path_factory):
    copies, more = (tmp_path_factory.mktemp(name) for name in ("copies", "more"))
    write(copies, *[record("plain", seed, PLAIN[seed]) for seed in (0, 1)])
    assert told(read_groups([copies], [folder])) == {SHIPPED: [0, 1, 2, 3, 4]}
    # One's own runs beside a part of the shipped ones, then beside all of them.
    write(more, record("plain", 0, PLAIN[0]), record("plain", 9, 0.2))
    assert told(read_groups([more], [folder])) == {WORDS: [0, 9], SHIPPED: [1, 2, 3, 4]}
    write(more / "all", *[record("plain", seed, error) for seed, error in enumerate(PLAIN)])
    write(more / "all", *[record("residual", seed, error) for seed, error in enumerate(RESIDUAL)])
    groups = read_groups([more], [folder])
    assert told(groups) == {WORDS: [0, 1, 2, 3, 4, 9]}
    assert len(studies(groups)) == 1


def of(one, *, fingerprint=None, **settings):
    one["settings"] |= settings
    if fingerprint:
        one["data"]["fingerprint"] = fingerprint
    return one


def test_runs_on_other_images_or_with_other_settings_are_other_groups(tmp_path):
    for number, (lr, fingerprint, error) in enumerate([(0.1, "a1b2c3d4", 0.3), (0.1, "b7", 0.4), (0.2, "b7", 0.5)]):
        arms = [record("plain", 0, error), record("residual", 0, error - 0.01 * (number + 1))]
        write(tmp_path / str(number), *[of(one, fingerprint=fingerprint, lr=lr) for one in arms])
    groups = read_groups([tmp_path])
    assert told(groups) == {
        f"{WORDS}, lr 0.1, images a1b2c3": [0],
        f"{WORDS}, lr 0.1, images b7": [0],
        f"{WORDS}, lr 0.2, images b7": [0],
    }
    found = [{line["arm"]: line["less"] for line in study["arms"]} for study in studies(groups)]
    assert [one["residual"]["plain"]["mean"] for one in found] == pytest.approx([-1, -2, -3])
    console = Console(width=250, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    print_tables(groups, console)
    assert f"resnet20 on CIFAR-100; {WORDS}, lr 0.2, images b7; top-1 error" in " ".join(console.export_text().split())


def test_the_arms_own_settings_do_not_part_them(tmp_path):
    """Arms differ by what they are; a setting that a record does not have yet had its default."""
    wider = of(record("wider-parameters", 0, 0.2), baseline=True, model_options=["stem_stride=2", "width=1.4"])
    plain = of(record("plain", 0, 0.3), baseline=True, model_options=["stem_stride=2"], label_smoothing=0.0)
    other = of(record("plain", 0, 0.9), baseline=True, model_options=["stem_stride=2"], batch_size=7, lr=5.0, ema=0.5,
               momentum=0.1)  # fmt: skip
    write(tmp_path, wider, plain)
    (study,) = studies(read_groups([tmp_path]))
    assert [line["arm"] for line in study["arms"]] == ["plain", "wider-parameters"]
    write(tmp_path / "other", other)
    words = list(told(read_groups([tmp_path])))
    assert len(words) == 2
    assert all(f"{WORDS}, settings " in one for one in words)
    # An arm that the package built otherwise once is apart, and the rest stays as it was.
    write(tmp_path / "wide", of(wider | {"seed": 1}, model_options=["stem_stride=2", "width=1.5"]))
    assert sum("other settings of the arm (2)" in one for one in told(read_groups([tmp_path]), "wider-parameters")) == 1


def test_runs_of_several_machines_are_said_to_be(tmp_path):
    one, other = record("plain", 0, 0.3), record("plain", 1, 0.4)
    other["hardware"] = {"device": "cuda", "processor": "x", "gpu": "a card"}
    write(tmp_path, one, other)
    groups = read_groups([tmp_path])
    assert groups[0].machines == ["cpu", "a card"]
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    print_tables(groups, console)
    assert "Runs on several machines: cpu, a card." in console.export_text()
    page = Page(write_tables_page(tmp_path / "page.html", groups).read_text())
    assert "on several machines: cpu, a card" in page.text


def test_a_file_that_is_being_written_is_not_read(folder):
    (folder / "plain" / ".published-seed0.x1y2z3.json").write_text("")
    assert told(read_groups([folder])) == {WORDS: [0, 1, 2, 3, 4]}


def test_the_package_carries_the_records_where_they_are_looked_for(tmp_path, monkeypatch):
    root = Path(__file__).parents[1]
    build = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    ((source, place),) = build["force-include"].items()
    assert read_groups([], [root / source])
    # As it lies after an installation: the package's folder alone, nothing of the repository around it.
    installed = tmp_path / place
    shutil.copytree(root / source, installed)
    monkeypatch.setattr(groups_module, "__file__", str(tmp_path / "attention_branch" / "reproduce" / "groups.py"))
    monkeypatch.chdir(tmp_path)
    assert find_folders(None) == ([], [installed])
    assert all(group.shipped for group in read_groups(*find_folders(None)))


def test_data_sets_are_never_mixed(folder):
    write(folder / "other", record("plain", 0, 0.5, data="Tiny-ImageNet-100 at 32 px"))
    rows = [row for row in table_rows(read_groups([folder])) if row["row"] == "ResNet20" and row["column"] == "g(x)"]
    assert {(row["ours"]["data"], row["ours"]["n"]) for row in rows} == {
        ("CIFAR-100", 5),
        ("Tiny-ImageNet-100 at 32 px", 1),
    }


def heads_record(network, role, arm, seed, accuracies):
    one = record(arm, seed, 1 - float(np.mean(list(accuracies.values()))), network=network)
    one["cell"]["role"] = role
    one["last"]["test_accuracy_by_head"] = accuracies
    return one


def test_a_row_says_what_the_branch_changes(folder, tmp_path):
    """The difference from the plain network stands beside the published number, by scipy's paired test."""
    rows = {(row["table"], row["row"], row["column"]): row for row in table_rows(read_groups([folder]))}
    less = rows["table1", "ResNet20", "g(x)*(1+M(x))"]["less_plain"]
    assert less["mean"] == pytest.approx(100 * (np.mean(RESIDUAL) - np.mean(PLAIN)))
    assert less["p_value"] == pytest.approx(stats.ttest_rel(RESIDUAL, PLAIN).pvalue)
    assert rows["table1", "ResNet20", "g(x)"]["less_plain"] is None
    assert rows["table1", "ResNet32", "g(x)*(1+M(x))"]["less_plain"] is None
    plain = [{"model": 0.90, "maker": 0.94}, {"model": 0.92, "maker": 0.96}]
    branch = [{"model": 0.93, "maker": 0.93}, {"model": 0.94, "maker": 0.96}]
    for arm, accuracies in (("plain", plain), ("residual", branch)):
        runs = [heads_record("vgg16", "compcars", arm, seed, one) for seed, one in enumerate(accuracies)]
        for run in runs:
            run["best_on_validation"]["test_accuracy_by_head"] = {"model": 0.5, "maker": 0.6}
            run["best_on_test"] = {}
        write(tmp_path / "cars" / arm, *runs)
    rows = {(row["table"], row["row"], row["column"]): row for row in table_rows(read_groups([tmp_path / "cars"]))}
    model, maker = rows["table3", "VGG16+ABN", "model"], rows["table3", "VGG16+ABN", "maker"]
    # Points of error: less is better.
    assert (model["less_plain"]["mean"], maker["less_plain"]["mean"]) == (pytest.approx(-2.5), pytest.approx(0.5))
    assert model["ours"]["best_on_validation"]["mean"] == pytest.approx(50)
    assert maker["ours"]["best_on_validation"]["mean"] == pytest.approx(60)
    assert model["ours"]["best_on_test"] is None


def test_the_page_says_which_seeds_and_versions_are_in_a_study(tmp_path):
    runs = [record("plain", 0, 0.3), record("plain", 1, 0.3), record("residual", 0, 0.3)]
    runs[1]["versions"] = {"torch": "2.11.0"}
    write(tmp_path, *runs)
    page = Page(write_tables_page(tmp_path / "page.html", read_groups([tmp_path])).read_text())
    assert "0, 1 (plain); 0 (residual)" in page.text
    assert "2.15.0, 2.11.0" in page.text


def test_several_heads_fill_tables_3_and_4(tmp_path):
    cars = [{"model": 0.90, "maker": 0.94}, {"model": 0.92, "maker": 0.96}]
    write(tmp_path / "cars", *[heads_record("vgg16", "compcars", "plain", seed, one) for seed, one in enumerate(cars)])
    plain = [{"a": 0.9, "b": 0.8, "c": 0.7}, {"a": 0.9, "b": 0.8, "c": 0.7}]
    branch = [{"a": 0.95, "b": 0.8, "c": 0.8}, {"a": 0.95, "b": 0.7, "c": 0.7}]
    write(tmp_path / "p", *[heads_record("resnet101", "celeba", "plain", s, one) for s, one in enumerate(plain)])
    write(tmp_path / "r", *[heads_record("resnet101", "celeba", "residual", s, one) for s, one in enumerate(branch)])
    groups = read_groups([tmp_path])
    rows = {(row["table"], row["row"], row["column"]): row["ours"] for row in table_rows(groups)}
    assert rows["table3", "VGG16", "model"]["mean"] == pytest.approx(91)
    assert rows["table3", "VGG16", "maker"]["mean"] == pytest.approx(95)
    assert rows["table4", "ABN", "average accuracy"]["mean"] == pytest.approx(100 * (0.85 + 2.35 / 3) / 2)
    # Better on two attributes, then on one: a tie is no win.
    assert rows["table4", "ResNet101", "odds"]["mean"] == pytest.approx(1.5)
    (study,) = [study for study in studies(groups) if study["role"] == "celeba"]
    line = next(line for line in study["arms"] if line["arm"] == "residual")
    assert (line["heads_won"]["mean"], line["heads"]) == (pytest.approx(1.5), 3)


def test_rows_have_what_is_promised(folder, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "show", "--json", "--out", str(folder)])
    assert ended.value.code == 0
    rows = json.loads(capsys.readouterr().out)
    assert isinstance(rows, list)
    for row in rows:
        assert {"table", "row", "column", "published", "ours", "note"} <= set(row)
        assert row["ours"] is None or {"mean", "std", "n", "data"} <= set(row["ours"])
    published = {(number.table, number.row, number.column) for number in PUBLISHED}
    assert published <= {(row["table"], row["row"], row["column"]) for row in rows}


def test_the_page_and_the_terminal_show_the_same(folder, tmp_path):
    groups = read_groups([folder])
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    print_tables(groups, console)
    text = console.export_text()
    assert "31.40 ± 1.14" in text
    assert "-1.40 !" in text
    narrow = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    print_tables(groups, narrow)
    text = narrow.export_text()
    assert "…" not in text
    assert "g(x)*(1+M(x))" in text
    page = Page(write_tables_page(tmp_path / "page.html", groups).read_text())
    assert "31.40 ± 1.14" in page.text
    better = "clearly better than the plain backbone (-1.40 points of error, from -2.08 to -0.72, 5 seeds)."
    assert f"The paper's network: {better}" in page.text
    assert "nan" not in page.text.lower().split()


def test_table_4_says_that_the_authors_code_is_another_network(tmp_path):
    write(tmp_path, heads_record("resnet101", "celeba", "residual", 0, {"a": 0.9, "b": 0.8}))
    groups = read_groups([tmp_path])
    noted = {(row["table"], row["row"], row["column"]) for row in all_rows(groups) if row["note"]}
    # He et al.'s network of basic blocks, the map of the authors' SENet code, networks of which no file was published.
    others = {("table2", "ResNet", "CIFAR10"), ("table2", "SENet+ABN", "ImageNet")}
    others |= {("table2", "Attention", column) for column in ("CIFAR10", "CIFAR100")}
    systems = ("FaceTracer", "PANDA-1", "LNet+ANet", "MOON")
    others |= {("table4", row, column) for row in systems for column in ("average accuracy", "odds")}
    assert noted == others | {("table4", "ABN", "average accuracy"), ("table4", "ResNet101", "odds")}
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    print_tables(groups, console)
    text = console.export_text()
    assert text.count("† The authors' CelebA code multiplies by the map alone, g(x)*M(x)") == 1
    assert "ABN †" in text
    page = Page(write_tables_page(tmp_path / "page.html", groups).read_text())
    assert page.text.count("† The authors' CelebA code multiplies by the map alone, g(x)*M(x)") == 1
    assert "ABN, average accuracy †" in page.text


def test_one_damaged_record_hides_no_other(folder, capsys):
    (folder / "plain" / "9-seed9.json").write_text((folder / "plain" / "0-seed0.json").read_text()[:100])
    groups = read_groups([folder])
    assert {group.arm: group.seeds for group in groups} == {"plain": [0, 1, 2, 3, 4], "residual": [0, 1, 2, 3, 4]}
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("Left out: ") == said.err.count("9-seed9.json") == 1


def test_packed_answers_come_back():
    random = np.random.default_rng(0)
    for shape in ((13,), (5, 3)):
        right = random.random(shape) < 0.5
        assert np.array_equal(unpack(json.loads(json.dumps(pack(right)))), right)


def test_damaged_records_are_named(tmp_path):
    (tmp_path / "a-seed0.json").write_text('{"format": 1, ')
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "a-seed0.json")
    (tmp_path / "a-seed0.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="is no record"):
        read(tmp_path / "a-seed0.json")
    for name in ("status", "seed", "cell", "protocol", "settings", "data", "last", "cost", "hardware", "versions"):
        for harm in (None, [], {}):
            if name in ("status", "seed") and harm is not None:
                continue
            (tmp_path / "a-seed0.json").write_text(json.dumps(record("plain", 0, 0.3) | {name: harm}))
            with pytest.raises(UserError, match=f"is damaged: its '{name}'"):
                read(tmp_path / "a-seed0.json")
