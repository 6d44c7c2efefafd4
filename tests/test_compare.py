"""The comparison: its numbers against metrics called directly and against scipy, resuming, refusals, the page."""

import dataclasses
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy import stats

import attention_branch.compare.collect as collect_module
import attention_branch.compare.cost as cost_module
import attention_branch.compare.run as run_module
from attention_branch import cli, metrics
from attention_branch.compare import DEFAULT_METRICS, MEASURES, Answers, Comparison, compare_run, print_comparison
from attention_branch.compare.cost import _peak_bytes, measure_costs
from attention_branch.compare.findings import findings, headline
from attention_branch.compare.journal import Journal
from attention_branch.compare.pictures import first_of_each_class
from attention_branch.compare.run import JOURNAL
from attention_branch.compare.tables import curves, differences, metrics_sheet
from attention_branch.data import open_data
from attention_branch.errors import UserError
from attention_branch.explanations import explain
from attention_branch.metrics.statistics import MetricResult, bootstrap_interval
from attention_branch.models.preprocessing import Preprocessing
from attention_branch.models.registry import create_backbone, create_model
from attention_branch.report.charts import Curves, Interval, Intervals, Line, Panel
from attention_branch.report.page import write_report
from attention_branch.report.picture_grid import PictureGrid, PictureRow
from attention_branch.report.statements import Cell, Records, Sheet, Statement, Statements, Tables
from html_page import Page

SMALL = Preprocessing(size=(16, 16), resize="squash", crop_pct=1)
DATA = "digits:train=10,validation=10,test=20"
FEW = ["average-drop", "pointing", "sparsity", "entropy"]


def saved(folder, build=create_model, name="resnet14"):
    torch.manual_seed(1)
    network = build(name, num_classes=10, class_names=[str(digit) for digit in range(10)])
    network.preprocessing = SMALL
    network.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _few_rounds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost_module, "_MOST_ROUNDS", 3)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return saved(tmp_path_factory.mktemp("abn"))


@pytest.fixture(scope="module")
def compared(run):
    """All default methods and, but for the slow ROAD, metrics on fourteen images, in batches of ten and four."""
    chosen = [name for name in DEFAULT_METRICS if name != "road"]
    return compare_run(run, DATA, metrics=chosen, limit=14, batch_size=10, progress=False)


def small(run, output, **options):
    settings = {"methods": ["attention", "grad-cam"], "metrics": FEW, "limit": 4, "batch_size": 2, "progress": False}
    return compare_run(run, DATA, output=output, **(settings | options))


def timeless(folder):
    """Return what must be the same of two calls: all but the clock's and the stopwatch's numbers."""
    values = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    del values["costs"], values["record"]["time"]
    return values


def test_numbers_are_those_of_the_metrics_on_all_images_at_once(run, compared):
    import attention_branch as ab

    model = ab.load_model(run)
    data = open_data(DATA).test
    assert (run / "comparison" / "comparison.json").is_file()
    chosen = np.random.default_rng(0).permutation(len(data))[:14]
    samples = [data[int(number)] for number in chosen]
    assert list(compared.answers.ids) == [sample.id for sample in samples]
    assert compared.answers.index.tolist() == chosen.tolist()
    images = torch.stack([SMALL.tensor(sample.image) for sample in samples])
    masks = [torch.from_numpy(sample.region(SMALL)) for sample in samples]
    with torch.no_grad():
        output = model(images)
    assert compared.answers.predicted.tolist() == output.logits.argmax(1).tolist()
    assert compared.answers.second.tolist() == output.attention_logits.argmax(1).tolist()
    assert compared.answers.label.tolist() == [sample.target for sample in samples]
    kinds = {
        "deletion": metrics.Deletion, "insertion": metrics.Insertion, "average-drop": metrics.AverageDrop,
        "insertion-deletion": metrics.InsertionMinusDeletion, "average-gain": metrics.AverageGain,
        "increase-in-confidence": metrics.IncreaseInConfidence, "pointing": metrics.PointingGame,
        "energy-pointing": metrics.EnergyPointingGame, "sparsity": metrics.GiniSparsity, "entropy": metrics.Entropy,
    }  # fmt: skip
    assert list(compared.metrics) == [name for name in MEASURES if name in kinds]
    assert set(DEFAULT_METRICS) - set(kinds) == {"road"}
    assert list(compared.methods) == [
        "attention", "attention-class", "cam", "grad-cam", "grad-cam++", "random", "center", "constant"
    ]  # fmt: skip
    for method in ("attention", "grad-cam", "center"):
        maps = explain(model, images, method).maps
        for name, kind in kinds.items():
            metric = kind()
            metric.update(model, images, maps, None, masks if metric.needs_regions else None)
            expected, found = metric.compute(), compared.results[method][name]
            # Batches of ten and four round otherwise than one of fourteen, which can swap two nearly equal pixels.
            np.testing.assert_allclose(found.values, expected.values, atol=2e-3, err_msg=f"{method} {name}")
            assert found.mean == pytest.approx(expected.mean, abs=1e-3)
            assert found.n == expected.n == 14
            assert found.counts == expected.counts
            assert found.protocol == expected.protocol
    drive = metrics.MapDrive()
    drive.update(model, images, torch.tensor([sample.target for sample in samples]))
    expected = drive.compute()
    assert compared.drive["inverted"].accuracy.mean == expected["inverted"].accuracy.mean
    assert compared.drive["mean"].probability.mean == pytest.approx(expected["mean"].probability.mean, abs=1e-5)


def test_paired_differences_against_numpy_and_scipy(run, compared):
    written = json.loads((run / "comparison" / "comparison.json").read_text(encoding="utf-8"))
    values = np.load(run / "comparison" / "values.npz", allow_pickle=False)
    assert set(written["differences"]) == {"grad-cam", "center", "random"}
    for reference in ("grad-cam", "center"):
        difference = values["attention/insertion"] - values[f"{reference}/insertion"]
        found = written["differences"][reference]["attention"]["insertion"]
        assert found["mean"] == pytest.approx(difference.mean())
        assert found["p_value"] == pytest.approx(stats.wilcoxon(difference, zero_method="pratt").pvalue)
        assert found["interval"] == pytest.approx(bootstrap_interval(difference))
        assert (found["n"], found["higher"]) == (14, int((difference > 0).sum()))
    for method in compared.methods:
        for metric in compared.metrics:
            assert written["results"][method][metric]["mean"] == pytest.approx(
                float(np.nanmean(values[f"{method}/{metric}"])), nan_ok=True
            )
    whole = values["attention/insertion"] - values["attention/deletion"]
    np.testing.assert_allclose(values["attention/insertion-deletion"], whole, atol=1e-12)
    shown = values["attention/deletion/curve"].astype(np.float64)
    np.testing.assert_allclose(np.trapezoid(shown, dx=1 / 28, axis=1), values["attention/deletion"], atol=1e-3)
    assert written["results"]["attention"]["deletion"]["details"]["curve"]["score"] == pytest.approx(
        shown.mean(0).tolist(), abs=1e-6
    )


def test_what_is_written_says_how_it_was_measured(run, compared):
    written = json.loads((run / "comparison" / "comparison.json").read_text(encoding="utf-8"))
    digests = {protocol["images_sha256"] for protocol in written["protocols"].values()}
    assert len(digests) == 1
    assert written["protocols"]["deletion"]["steps"] == 28
    record = written["record"]
    assert len(record["model_sha256"]) == len(record["subset_fingerprint"]) == 64
    assert (record["images"], record["split_images"], record["seed"]) == (14, 20, 0)
    assert record["hardware"]["device"] == "cpu"
    assert {"torch", "scipy", "attention_branch"} <= set(record["versions"])
    assert written["map_drives_the_answer"]["n"] == 14
    assert set(written["costs"]["methods"]) == set(compared.methods)
    assert written["answers"]["branches_agree"]["n"] == 14
    pairs = {tuple(entry["methods"]): entry["mean"] for entry in written["likeness"]}
    assert ("attention", "grad-cam") in pairs
    assert not any({"random", "constant"} & set(pair) for pair in pairs)
    assert not list((run / "comparison").glob(".*"))  # neither a journal nor a temporary file is left


def test_likeness_is_spearmans(run, compared):
    import attention_branch as ab

    model = ab.load_model(run)
    data = open_data(DATA).test
    sample = data[int(np.random.default_rng(0).permutation(len(data))[0])]
    image = SMALL.tensor(sample.image)[None]
    first, second = (explain(model, image, method).maps.flatten().numpy() for method in ("cam", "center"))
    expected = stats.spearmanr(first, second).statistic
    assert compared.likeness["cam", "center"][0] == pytest.approx(expected, abs=1e-3)


def test_the_page_stands_alone_and_says_what_was_measured(run, compared):
    html = (run / "comparison" / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert "http" not in html
    assert "@import" not in html
    assert "<script" not in html
    assert all(image["alt"] for image in page.images)
    # Eight rows of the image and eight methods in the first grid; more in the galleries.
    assert len(page.images) >= 8 * 9
    for words in (
        "In plain words",
        "What did the network look at?",
        "How far can the map be trusted?",
        "Where does it fail?",
        "The maps side by side",
        "Does the map drive the answer?",
        "What a map costs",
        "How it was measured",
        compared.record["model_sha256"],
        compared.record["subset_fingerprint"],
        compared.drive.sentence(),
        "14 of the 20 images",
        "outlined: the object",
        "the 95 % interval excludes zero, p < 0.05",
        MEASURES["insertion-deletion"].text(compared.results["grad-cam"]["insertion-deletion"].mean),
    ):
        assert words in page.text, words
    for method in compared.methods:
        assert method in page.text
    assert not re.search(r"\{[A-Z_]+\}", page.text)  # a sentence whose gap was not filled


def test_a_broken_call_is_continued_with_the_same_numbers(tmp_path, run, monkeypatch):
    original, calls = collect_module.explain, []

    def breaks_at(number):
        def counted(model, images, method, *arguments, **options):
            if len(images) > 1:
                calls.append(method)
            if len(calls) == number:
                raise KeyboardInterrupt
            return original(model, images, method, *arguments, **options)

        monkeypatch.setattr(collect_module, "explain", counted)
        calls.clear()

    breaks_at(8)  # two batches of five methods: in the midst of the second
    with pytest.raises(KeyboardInterrupt):
        small(run, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [JOURNAL]
    with (tmp_path / "out" / JOURNAL).open("a") as journal:
        journal.write('{"piece": "cut o')
    breaks_at(-1)
    small(run, tmp_path / "out")
    assert calls.count("attention") == 1  # the first batch and two methods of the second are not measured again ...
    monkeypatch.undo()
    small(run, tmp_path / "whole")
    assert timeless(tmp_path / "out") == timeless(tmp_path / "whole")
    first, second = (np.load(tmp_path / name / "values.npz") for name in ("out", "whole"))
    assert sorted(first) == sorted(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_other_settings_begin_anew_and_say_so(tmp_path, run, monkeypatch):
    original = collect_module.explain

    def breaks(model, images, method, *arguments, **options):
        if len(images) > 1 and method == "grad-cam":
            raise KeyboardInterrupt
        return original(model, images, method, *arguments, **options)

    monkeypatch.setattr(collect_module, "explain", breaks)
    with pytest.raises(KeyboardInterrupt):
        small(run, tmp_path)
    monkeypatch.undo()
    found = small(run, tmp_path, metrics=["sparsity"], seed=1)
    assert any("begins anew" in note and "metrics" in note and "seed" in note for note in found.notes)
    assert list(found.results["attention"]) == ["sparsity"]


def test_changed_pictures_of_the_same_names_are_measured_again(tmp_path, run, monkeypatch):
    monkeypatch.setenv("ABN_DATA", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "photos" / ("train", "test")[number // 6] / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    options = {"methods": ["grad-cam"], "metrics": ["deletion"], "batch_size": 3, "limit": 0, "progress": False}
    original = collect_module.explain

    def breaks(model, images, method, *arguments, **settings):
        if len(images) == 3 and method == "constant" and not torch.equal(images, breaks.first):
            raise KeyboardInterrupt
        return original(model, images, method, *arguments, **settings)

    def remembers(self, start):
        batch = batch_of(self, start)
        if start == 0:
            breaks.first = batch.images
        return batch

    batch_of = collect_module.Work.batch
    monkeypatch.setattr(collect_module.Work, "batch", remembers)
    monkeypatch.setattr(collect_module, "explain", breaks)
    with pytest.raises(KeyboardInterrupt):
        compare_run(run, str(tmp_path / "photos"), output=tmp_path / "out", **options)
    monkeypatch.undo()
    monkeypatch.setenv("ABN_DATA", str(tmp_path / "cache"))
    order = np.random.default_rng(0).permutation(6)
    names = sorted((tmp_path / "photos" / "test").rglob("*.png"))
    Image.new("RGB", (16, 16), "red").save(names[order[0]])
    found = compare_run(run, str(tmp_path / "photos"), output=tmp_path / "out", **options)
    # All of the first batch: four methods and the rank correlations. What was finished of the second stands.
    assert any(note.startswith("5 pieces of a broken comparison") for note in found.notes), found.notes
    whole = compare_run(run, str(tmp_path / "photos"), output=tmp_path / "whole", **options)
    assert not any("broken comparison" in note for note in whole.notes)
    for method in whole.methods:
        first, second = (made.results[method]["deletion"].values.numpy() for made in (found, whole))
        np.testing.assert_array_equal(first, second)


def test_the_subset_is_fixed_by_its_seed(tmp_path, run):
    options = {"metrics": ["sparsity"], "methods": ["attention"]}
    ids = [small(run, tmp_path, seed=seed, **options).answers.ids for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    everything = small(run, tmp_path, limit=0, **options)
    assert everything.n == 20
    assert len(set(everything.answers.ids)) == 20
    assert "All 20 images" in headline(everything)[1]


def test_the_label_can_be_followed(tmp_path, run):
    found = small(run, tmp_path, metrics=["deletion"], methods=["grad-cam"], target="label")
    assert found.answers.target.tolist() == found.answers.label.tolist()
    assert found.answers.target.tolist() != found.answers.predicted.tolist()
    clean = np.load(tmp_path / "values.npz")["grad-cam/deletion/curve"][:, 0]
    assert not np.allclose(clean, found.answers.confidence)


def test_metrics_on_request(tmp_path, run):
    import attention_branch as ab

    chosen = ["adcc", "box-iou", "max-sensitivity", "road"]
    found = small(run, tmp_path, methods=["attention"], metrics=chosen, limit=3)
    assert list(found.results["center"]) == chosen
    model, data = ab.load_model(run), open_data(DATA).test
    places = np.random.default_rng(0).permutation(20)[:3]
    images = torch.stack([SMALL.tensor(data[int(place)].image) for place in places])
    maps = explain(model, images).maps
    for name, metric in {"road": metrics.Road(), "adcc": metrics.ADCC("attention")}.items():
        metric.update(model, images, maps)
        np.testing.assert_allclose(found.results["attention"][name].values, metric.compute().values, atol=2e-3)
        assert found.results["attention"][name].mean == pytest.approx(metric.compute().mean, abs=1e-3)
    # A map that is the same whatever the image does not move.
    assert found.results["center"]["max-sensitivity"].mean == 0
    assert 0 <= found.results["attention"]["adcc"].mean <= 1


def test_a_plain_network_does_without_what_needs_a_branch(tmp_path):
    plain = saved(tmp_path / "plain", create_backbone)
    found = compare_run(plain, DATA, metrics=FEW, limit=4, progress=False)
    assert list(found.methods) == ["cam", "grad-cam", "grad-cam++", "random", "center", "constant"]
    assert set(found.left_out["methods"]) == {"attention", "attention-class"}
    assert found.drive is None
    assert found.answers.second is None
    text = Page((plain / "comparison" / "report.html").read_text(encoding="utf-8")).text
    assert "without an attention branch" in text
    assert "Does the map drive the answer?" not in text
    with pytest.raises(UserError, match="without an attention branch"):
        compare_run(plain, DATA, methods=["attention"], output=tmp_path / "no", progress=False)
    assert not (tmp_path / "no").exists()


def test_several_heads(tmp_path, monkeypatch):
    monkeypatch.setenv("ABN_DATA", str(tmp_path / "cache"))
    rows = ["file_name,big,kind"]
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{number}.png")
        rows.append(f"{number}.png,{('no', 'yes')[number % 2]},{('ant', 'bee', 'cow')[number % 3]}")
    (tmp_path / "data" / "metadata.csv").write_text("\n".join(rows) + "\n")
    network = create_model("resnet14", heads={"big": 1, "kind": 3})
    network.preprocessing = SMALL
    network.class_names = {"big": ["no", "yes"], "kind": ["ant", "bee", "cow"]}
    network.save_pretrained(tmp_path / "model")
    options = {"methods": ["attention", "attention-class"], "metrics": ["deletion", "sparsity"], "progress": False}
    first = compare_run(tmp_path / "model", str(tmp_path / "data"), output=tmp_path / "a", **options)
    assert any("'big'" in note for note in first.notes)
    assert list(first.answers.class_names) == ["no", "yes"]
    second = compare_run(tmp_path / "model", str(tmp_path / "data"), head="kind", output=tmp_path / "b", **options)
    assert second.answers.predicted.max() <= 2
    assert second.drive.head == "kind"
    assert not np.allclose(*(found.results["attention"]["sparsity"].values for found in (first, second)))
    with pytest.raises(UserError, match="no head 'kin'"):
        compare_run(tmp_path / "model", str(tmp_path / "data"), head="kin", output=tmp_path / "c", **options)
    # This data has no regions: what was not asked for by name is left out, and why.
    found = compare_run(
        tmp_path / "model", str(tmp_path / "data"), methods=["attention"], output=tmp_path / "d", progress=False
    )
    assert set(found.left_out["metrics"]) == {"pointing", "energy-pointing"}
    with pytest.raises(UserError, match="neither masks nor boxes"):
        compare_run(
            tmp_path / "model", str(tmp_path / "data"), metrics=["pointing"], output=tmp_path / "e", progress=False
        )
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": ["gradcam"]}, r"Unknown method 'gradcam'. Did you mean 'grad-cam'"),
        ({"methods": ["attention", "grad-cma"]}, "Did you mean 'grad-cam'"),
        ({"methods": []}, "No method is named"),
        ({"metrics": ["deletoin"]}, "Did you mean 'deletion'"),
        ({"layer": "no.such.layer"}, "no.such.layer"),
        ({"limit": -1}, "limit is -1"),
        ({"batch_size": 0}, "batch size 0"),
        ({"seed": -1}, "seed is -1"),
        ({"target": "both"}, "Unknown target 'both'"),
        ({"head": "smiling"}, "no head 'smiling'"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(tmp_path, run, options, words):
    with pytest.raises(UserError, match=words) as caught:
        small(run, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_said_before_the_work(tmp_path, run, monkeypatch):
    (tmp_path / "out").write_text("mine")
    monkeypatch.setattr(run_module, "load_model", None)
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        small(run, tmp_path / "out")


def test_the_command(tmp_path, run, capsys):
    arguments = ["compare", str(run), DATA, "--limit", "3", "--metrics", "sparsity, pointing", "--methods", "attention"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--out", str(tmp_path / "out"), "--json", "--device", "cpu"])
    assert ended.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["metrics"] == ["sparsity", "pointing"]
    assert printed["methods"] == ["attention", "random", "center", "constant"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--target", "label", "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert "report.html" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", str(run), DATA, "--metrics", "sparsty", "--device", "cpu"])
    assert ended.value.code == 2
    assert "Did you mean 'sparsity'" in capsys.readouterr().err


# --- what the numbers are made into ---


def result(values):
    values = torch.as_tensor(values, dtype=torch.float64)
    return MetricResult(float(values.mean()), bootstrap_interval(values.numpy()), len(values), values, {"metric": "m"})


def made_up(**by_metric):
    """Return a comparison of made-up values: {metric: {method: values}}."""
    methods = list(next(iter(by_metric.values())))
    count = len(next(iter(by_metric.values()))[methods[0]])
    names = {metric.replace("_", "-"): found for metric, found in by_metric.items()}
    zeros = np.zeros(count, dtype=np.int64)
    answers = Answers(
        ids=[str(number) for number in range(count)], index=zeros, label=zeros, target=zeros, predicted=zeros,
        confidence=np.full(count, 0.95), second=None, second_confidence=None, class_names=["<b>ant", "bee"],
    )  # fmt: skip
    results = {method: {metric: result(found[method]) for metric, found in names.items()} for method in methods}
    return Comparison(methods, list(names), results, answers, {}, {})


def noisy(mean, seed=0):
    return np.random.default_rng(seed).normal(mean, 0.1, 50)


def test_best_and_verdicts_need_an_interval_beyond_zero():
    shared = noisy(0.5)
    found = made_up(
        insertion={"attention": shared + 0.1, "grad-cam": shared, "random": noisy(0.1, 1), "center": noisy(0.2, 2)},
        deletion={"attention": shared + 0.1, "grad-cam": shared, "random": noisy(0.9, 1), "center": noisy(0.8, 2)},
        pointing={"attention": noisy(0.5), "grad-cam": noisy(0.5, 3), "random": noisy(0.1, 1), "center": noisy(0.2, 2)},
        sparsity={"attention": shared, "grad-cam": shared, "random": shared, "center": shared},
    )
    assert found.verdict("attention", "grad-cam", "insertion") == "better"
    assert found.verdict("attention", "grad-cam", "deletion") == "worse"  # lower is better there
    assert found.verdict("attention", "grad-cam", "pointing") == "unclear"
    assert {metric: found.best(metric) for metric in found.metrics} == {
        "insertion": "attention",
        "deletion": "grad-cam",
        "pointing": None,
        "sparsity": None,
    }
    cells = metrics_sheet(found).rows[0][2]
    assert [cell.kind for cell in cells] == ["best", "", "", ""]
    rows = differences(found)[0].rows
    assert [row.remark for row in rows] == ["better", "worse", "no clear difference"]
    assert rows[0].value == pytest.approx(0.1)
    assert rows[1].value == pytest.approx(-0.1)  # drawn on the worse side


def test_sentences_follow_the_numbers():
    shared = noisy(0.5)
    clear = made_up(insertion={"attention": shared, "random": shared - 0.2, "center": shared - 0.1})
    said = " ".join(item.text for _, part in findings(clear) for item in part)
    assert "The attention map does better than noise" in said
    assert "The attention map does better than a spot in the middle" in said
    assert "no clear difference" not in said.lower().replace("with no clear difference on 0", "")
    _, summary, figures, alarms = headline(clear)
    assert not alarms
    assert "says more than noise and says more than the middle" in summary
    assert [figure.value for figure in figures] == ["100.0 %", "yes", "yes"]
    blurred = made_up(insertion={"attention": shared, "random": noisy(0.5, 1), "center": shared + 0.1})
    said = " ".join(item.text for _, part in findings(blurred) for item in part)
    assert "No clear difference between the attention map and noise" in said
    assert "The attention map does worse than a spot in the middle" in said
    _, summary, figures, alarms = headline(blurred)
    assert [figure.value for figure in figures] == ["100.0 %", "not shown", "no"]
    assert "do not read it as the reason" in alarms[0]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"split_images": 5}, "all 5 images of the test split"),
        ({"split_images": 9}, "5 of the 9 images of the test split, drawn at random (seed 0)"),
        ({"split_images": 9, "labelled_images": 5}, "all 5 images with a label of the 9 of the test split"),
        ({"split_images": 9, "labelled_images": 7}, "5 of the 7 images with a label of the test split, drawn at"),
        ({"split_images": 9, "labelled_images": 9}, "5 of the 9 images of the test split, drawn at random"),
    ],
)
def test_the_images_are_said_as_they_were_chosen(record, words):
    found = made_up(sparsity={"attention": np.zeros(5)})
    assert dataclasses.replace(found, record=record | {"split": "test"}).images_text().startswith(words)


def test_few_images_prove_nothing():
    few = np.linspace(0.5, 0.6, 5)
    found = made_up(insertion={"attention": few, "random": few - 0.2, "center": few - 0.1 * np.arange(1, 6)})
    assert all(found.difference("attention", other, "insertion").interval[0] > 0 for other in ("random", "center"))
    assert found.verdict("attention", "center", "insertion") == "unclear"
    assert found.best("insertion") is None
    _, summary, figures, alarms = headline(found)
    assert [figure.value for figure in figures] == ["100.0 %", "not shown", "not shown"]
    assert "5 images are too few for any difference to be sure" in summary
    assert alarms


def test_the_grid_takes_one_of_each_class_in_turn():
    found = made_up(sparsity={"attention": np.zeros(8), "random": np.zeros(8)})
    label = np.array([2, 2, 0, 2, 1, 0, -1, 1])
    answers = dataclasses.replace(found.answers, label=label, predicted=np.full(8, 3))
    chosen = first_of_each_class(dataclasses.replace(found, answers=answers), 5)
    # First of 0, 1, 2 and 3 (an image without a label goes by its prediction), then the second of the first class left.
    assert chosen == [2, 4, 0, 6, 1]


def test_curves_need_both_and_are_in_order_of_the_area():
    found = made_up(insertion={"attention": noisy(0.2), "random": noisy(0.1)})
    assert curves(found).empty
    found = made_up(
        insertion={"attention": noisy(0.2), "random": noisy(0.4)},
        deletion={"attention": noisy(0.1), "random": noisy(0.1)},
    )
    for by_metric in found.results.values():
        for one in by_metric.values():
            one.details["curve"] = {"share": [0, 0.5, 1], "score": [0.1, 0.2, 0.55]}
    panels = curves(found).panels
    assert [panel.heading for panel in panels] == ["control: random", "attention"]
    html = curves(found).html()
    assert Page(html).text.count("insertion") >= 4
    assert ">60<" in html  # the scale ends at the next level above the highest value


def test_journal_brings_back_every_bit(tmp_path):
    path = tmp_path / "journal"
    value = {
        "a": torch.tensor([0.1, float("nan"), 1e-300], dtype=torch.float64),
        "b": [torch.zeros(0, 3), {"c": 1, "d": "ü"}, True, None],
        "e": np.float64(0.1),
        "f": {3, 1},
        "g": torch.tensor([[True], [False]]),
    }
    first = Journal(path, {"x": (1, 2)})
    found = first.once("one", lambda: value)
    again = Journal(path, {"x": [1, 2]})
    for back in (found, again.once("one", lambda: 1 / 0)):
        assert torch.equal(back["a"].nan_to_num(7), value["a"].nan_to_num(7))
        assert back["a"].dtype == torch.float64
        assert back["b"][0].shape == (0, 3)
        assert back["b"][1:] == [{"c": 1, "d": "ü"}, True, None]
        assert back["e"] == 0.1
        assert set(back["f"]) == {1, 3}
        assert back["g"].dtype == torch.bool
    assert again.reused == 1
    other = Journal(path, {"x": [1, 3]})
    assert "(x)" in other.note
    assert len(path.read_text().splitlines()) == 2  # nothing is lost before there is something new
    with pytest.raises(ZeroDivisionError):
        other.once("two", lambda: 1 / 0)
    other.once("two", lambda: 2)
    assert Journal(path, {"x": [1, 3]}).note == ""
    other.remove()
    assert not path.exists()


def test_damaged_lines_of_a_journal_count_as_missing(tmp_path):
    path = tmp_path / "journal"
    first = Journal(path, {"x": 1})
    for name in ("one", "two", "three", "four\u2028ü"):
        first.once(name, lambda: {"a": torch.arange(3.0), "b": float("nan")})
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"value", b"valve")  # a piece without a value
    lines[3] = lines[3].replace(b'"three"', b'"thr\xffe"')
    path.write_bytes(b"\n".join(lines)[:-1] + b'\n{"piece": "cut \xc3')
    again = Journal(path, {"x": 1})
    made = {name: again.once(name, lambda: {"new": True}) for name in ("one", "two", "three", "four\u2028ü")}
    assert (made["two"], made["three"]) == ({"new": True}, {"new": True})
    assert torch.equal(made["one"]["a"], torch.arange(3.0))
    assert np.isnan(made["four\u2028ü"]["b"])
    assert (again.reused, again.outdated) == (2, 0)
    last = Journal(path, {"x": 1})
    assert last.once("two", lambda: 1 / 0) == {"new": True}
    assert last.once("one", lambda: 7, material="other pixels") == 7
    assert last.outdated == 1
    assert Journal(path, {"x": 1}).once("one", lambda: 1 / 0, material="other pixels") == 7


def test_peak_memory_is_what_was_held_at_once():
    mebi = 2**20

    def call():
        first = torch.zeros(mebi, dtype=torch.uint8)
        second = torch.zeros(2 * mebi, dtype=torch.uint8)
        del first
        third = torch.zeros(4 * mebi, dtype=torch.uint8)
        del second, third
        return torch.zeros(mebi, dtype=torch.uint8)

    assert _peak_bytes(call, torch.device("cpu")) == pytest.approx(6 * mebi, abs=1024)


def test_costs_stand_beside_a_forward_pass(run):
    import attention_branch as ab

    model = ab.load_model(run)
    found = measure_costs(model, torch.randn(2, 3, 16, 16), ["attention", "occlusion"])
    occlusion, attention = found.methods["occlusion"], found.methods["attention"]
    assert occlusion.time_ratio > 5 > attention.time_ratio > 0  # it answers dozens of changed images
    assert occlusion.memory_bytes > attention.memory_bytes > 0
    assert found.protocol["rounds"] >= 3
    assert attention.time_ratios[0] <= attention.time_ratio <= attention.time_ratios[1]


def test_text_of_users_cannot_become_markup(tmp_path):
    nasty = "<script>alert('x')</script>&\"'"
    row = PictureRow(
        Image.new("RGB", (8, 8)), nasty, [nasty], {nasty: np.eye(4)}, verdict="right", under={nasty: nasty}
    )
    sheet = Sheet(nasty, [nasty], [(nasty, nasty, [Cell(nasty, nasty)])], nasty, nasty)
    blocks = [
        Statements(nasty, [(nasty, [Statement(nasty)])], nasty),
        PictureGrid(nasty, [row], {nasty: None, "other": (0.0, 1.0)}, nasty),
        sheet,
        Tables(nasty, [sheet], nasty),
        Intervals(nasty, [Interval(nasty, nasty, 0.1, 0.0, 0.2, nasty, nasty)], nasty, nasty),
        Curves(nasty, [Panel(nasty, nasty, [Line(nasty, [(0, 0), (0.5, 1), (1, 0.2)], "up")])], nasty, nasty, nasty),
        Records(nasty, [(nasty, [(nasty, nasty)])], nasty),
        Statements("Empty", [("q", [])]),
        Curves("Empty", [], "x", "y"),
    ]
    path = write_report(tmp_path / "r.html", nasty, nasty, blocks)
    html = path.read_text(encoding="utf-8")
    assert "<script" not in html
    page = Page(html)
    assert page.text.count(nasty) > 25
    assert "Empty" not in page.text


def test_the_table_on_the_command_line(compared):
    console = Console(file=io.StringIO(), width=80)
    print_comparison(compared, console)
    text = console.file.getvalue()
    assert "control: center" in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert all(word in text for metric in compared.metrics for word in metric.split("-"))
    assert headline(compared)[1][:40] in text
    assert "14 of the 20 images" in text


def test_a_named_layer_is_for_the_methods_that_read_one(tmp_path, run):
    compared = compare_run(
        run, DATA, methods=["cam", "grad-cam"], metrics=["sparsity"], limit=4, layer="layer2", output=tmp_path
    )
    # cam needs the layer that is pooled.
    assert list(compared.left_out["methods"]) == ["cam"]
    assert "layer2" in compared.layers["grad-cam"]
    assert (tmp_path / "comparison.json").is_file()
