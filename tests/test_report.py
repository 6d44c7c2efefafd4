"""The pages, strips and files that people open: whole, self-contained, traceable, and resumable."""

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import attention_branch.report.explained as explained_module
from attention_branch import cli
from attention_branch.data import open_data
from attention_branch.errors import UserError
from attention_branch.evaluation import evaluate
from attention_branch.explanations import explain
from attention_branch.models.preprocessing import Preprocessing
from attention_branch.models.registry import create_backbone, create_model
from attention_branch.report import (
    Bar,
    Card,
    Facts,
    Figure,
    Gallery,
    MatrixBlock,
    TableBlock,
    explain_files,
    figure,
    strip,
    write_evaluation_report,
    write_report,
)
from attention_branch.report.explainers import NetworkExplainer
from html_page import Page

SMALL = Preprocessing(size=(16, 16), resize="squash", crop_pct=1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = create_model("resnet20", num_classes=3, class_names=["ant", "<b>bee", "cow"])
    network.preprocessing = SMALL
    return network.eval()


@pytest.fixture
def run(tmp_path, model):
    model.save_pretrained(tmp_path / "run" / "model")
    return tmp_path / "run"


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (20, 30)), ("b.jpg", (16, 16)), ("deep/a.png", (40, 20)), ("deep/a-2.png", (9, 9))):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
    return folder


def lines(output):
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_image_gets_a_picture_a_raw_map_and_a_traceable_line(tmp_path, run, pictures, model):
    output = tmp_path / "out"
    result = explain_files(run, [pictures], output, top_k=2, batch_size=3, progress=False)
    assert (result.explained, result.failed, result.reused, result.exit_code) == (4, 0, 0, 0)
    entries = lines(output)
    assert len({entry["map"]["file"] for entry in entries}) == 4  # same stems do not overwrite each other
    assert len({entry["picture"] for entry in entries}) == 4
    weights = hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()
    for entry in entries:
        with Image.open(entry["file"]) as picture:
            tensor = SMALL.tensor(picture.convert("RGB"))[None]
            assert (entry["width"], entry["height"]) == picture.size
        with torch.no_grad():
            logits, second, attention = model(tensor)
        raw = np.load(output / entry["map"]["file"], allow_pickle=False)
        assert raw.dtype == np.float32
        assert raw == pytest.approx(attention[0, 0].numpy(), abs=1e-4)
        assert entry["map"]["min"] == pytest.approx(raw.min())
        assert entry["map"]["max"] == pytest.approx(raw.max())
        assert entry["map"]["mean"] == pytest.approx(raw.mean(), abs=1e-6)
        assert entry["map"]["class_agnostic"] is True
        best = int(logits.argmax())
        assert (entry["prediction"]["index"], entry["prediction"]["class"]) == (best, model.class_names[best])
        assert entry["prediction"]["probability"] == pytest.approx(logits.softmax(1)[0, best].item(), abs=1e-4)
        assert len(entry["top"]) == 2
        assert entry["top"][0]["probability"] >= entry["top"][1]["probability"]
        assert entry["attention_branch"]["index"] == int(second.argmax())
        assert entry["branches_agree"] == (int(second.argmax()) == best)
        content = (tmp_path / entry["file"]).read_bytes()
        assert entry["image_sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["model_sha256"] == weights
        assert Preprocessing.from_dict(entry["preprocessing"]) == SMALL
        assert entry["versions"]["torch"] == torch.__version__.split("+")[0]
        with Image.open(output / entry["picture"]) as drawn:
            drawn.verify()
    assert sorted(path.name for path in output.iterdir()) == ["maps", "pictures", "predictions.jsonl", "report.html"]
    page = Page((output / "report.html").read_text(encoding="utf-8"))
    assert len(page.images) == 12


def test_broken_images_are_skipped_counted_and_named(tmp_path, run, pictures):
    (pictures / "empty.png").write_bytes(b"")
    (pictures / "cut.jpg").write_bytes((pictures / "b.jpg").read_bytes()[:200])
    result = explain_files(run, pictures, tmp_path / "out", progress=False)
    assert (result.explained, result.failed, result.exit_code) == (4, 2, 2)
    bad = {entry["file"].rsplit("/", 1)[-1]: entry["error"] for entry in lines(tmp_path / "out") if "error" in entry}
    assert set(bad) == {"empty.png", "cut.jpg"}
    assert all(bad.values())
    assert "cut.jpg" in Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    for path in pictures.rglob("*.*"):
        path.write_bytes(b"")
    nothing = explain_files(run, pictures, tmp_path / "none", progress=False)
    assert (nothing.explained, nothing.failed) == (0, 6)
    Page(nothing.report.read_text(encoding="utf-8"))


def test_images_of_one_name_can_be_told_apart(tmp_path, run, monkeypatch):
    for place in ("cats", "dogs"):
        (tmp_path / "all" / place).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "all" / place / "1.png")
    monkeypatch.chdir(tmp_path)
    named = ["all/cats/1.png", tmp_path / "all" / "dogs" / "1.png"]
    explain_files(run, named, tmp_path / "out", progress=False)
    text = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    assert "cats/1.png" in text
    assert "dogs/1.png" in text
    assert "all/" not in text


def test_a_broken_call_is_continued(tmp_path, run, pictures, monkeypatch):
    output, calls = tmp_path / "out", []
    original = NetworkExplainer.explain

    def dies_on_the_second_batch(self, pictures, *arguments):
        if len(pictures) == 1:  # the blank image
            return original(self, pictures, *arguments)
        calls.append(len(pictures))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, pictures, *arguments)

    monkeypatch.setattr(NetworkExplainer, "explain", dies_on_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        explain_files(run, pictures, output, batch_size=2, progress=False)
    assert not (output / "predictions.jsonl").exists()
    with (output / explained_module.JOURNAL).open("ab") as journal:
        journal.write(b'{"file": "cut in the midst of \xc3')
    result = explain_files(run, pictures, output, batch_size=2, progress=False)
    assert (result.explained, result.reused) == (4, 2)
    assert calls == [2, 2, 2]
    fresh = explain_files(run, pictures, tmp_path / "fresh", batch_size=2, progress=False)
    assert fresh.reused == 0

    def timeless(folder):
        return [{key: value for key, value in entry.items() if key != "time"} for entry in lines(folder)]

    assert timeless(output) == timeless(tmp_path / "fresh")
    # A finished call is not continued but made anew.
    assert explain_files(run, pictures, output, batch_size=2, progress=False).reused == 0


def test_names_that_are_no_text_or_very_long(tmp_path, run):
    folder, output = tmp_path / "odd", tmp_path / "out"
    folder.mkdir()
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(picture, "PNG")
    names = [b"caf\xe9.png", b"line\xe2\x80\xa8break.png", b"x" * 250 + b".png", b"x" * 251 + b".png"]
    for name in [*names, b"\xff broken.png"]:
        (folder / os.fsdecode(name)).write_bytes(b"no picture" if b"broken" in name else picture.getvalue())
    result = explain_files(run, folder, output, progress=False)
    assert (result.explained, result.failed) == (4, 1)
    entries = [json.loads(line) for line in (output / "predictions.jsonl").read_bytes().split(b"\n") if line]
    assert {os.fsencode(Path(entry["file"]).name) for entry in entries} == {*names, b"\xff broken.png"}
    for entry in entries:
        if "error" not in entry:
            assert (output / entry["map"]["file"]).is_file()
            assert (output / entry["picture"]).is_file()
    assert len({entry["picture"] for entry in entries if "error" not in entry}) == 4
    Page(result.report.read_text(encoding="utf-8"))


def test_a_folder_whose_name_is_no_text_can_be_printed(tmp_path, run, pictures, capsys):
    output = tmp_path / os.fsdecode(b"out\xff")
    with pytest.raises(SystemExit) as ended:
        cli.main(["explain", str(run), str(pictures / "a.png"), "--out", str(output), "--device", "cpu"])
    assert ended.value.code == 0
    assert "out\\udcff/report.html" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize("place", ["file", "file/deeper", "/proc/nothing/here"])
def test_a_place_that_no_folder_can_take_is_said_first(tmp_path, run, pictures, place, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(
        explained_module, "open_explainer", explained_module.open_explainer if "proc" in place else None
    )
    with pytest.raises(UserError, match=r"cannot be written|No permission to write") as said:
        explain_files(run, pictures, tmp_path / place, progress=False)
    assert "\n" not in str(said.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_changed_setting_or_image_is_not_reused(tmp_path, run, pictures, monkeypatch):
    output = tmp_path / "out"
    monkeypatch.setattr(explained_module, "write_explained_page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        explain_files(run, pictures, output, progress=False)
    monkeypatch.undo()
    Image.new("RGB", (12, 12), "red").save(pictures / "a.png")
    journal = (output / explained_module.JOURNAL).read_text()
    assert explain_files(run, pictures, output, progress=False).reused == 3
    (output / explained_module.JOURNAL).write_text(journal)
    assert explain_files(run, pictures, output, top_k=1, progress=False).reused == 0


def test_class_evidence_and_stretching_are_said(tmp_path, run, pictures):
    explain_files(run, pictures, tmp_path / "out", method="attention-class", target="cow", progress=False)
    assert {entry["map"]["target"]["class"] for entry in lines(tmp_path / "out")} == {"cow"}
    assert ", stretched" in Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    explain_files(run, pictures, tmp_path / "fixed", progress=False)
    assert ", stretched" not in Page((tmp_path / "fixed" / "report.html").read_text(encoding="utf-8")).text
    for options in ({"target": "cwo"}, {"method": "atention"}, {"top_k": 0}):
        with pytest.raises(UserError):
            explain_files(run, pictures, tmp_path / "no", progress=False, **options)
    with pytest.raises(UserError):
        explain_files(run, [tmp_path / "absent.png"], tmp_path / "no", progress=False)
    with pytest.raises(UserError, match="no class 'cwo'"):
        explain_files(run, pictures, tmp_path / "no", method="attention-class", target="cwo", progress=False)
    assert not (tmp_path / "no").exists()


def test_several_heads(tmp_path, pictures):
    network = create_model("resnet20", heads={"big": 1, "kind": 3})
    network.preprocessing = SMALL
    network.class_names = {"big": ["no", "yes"], "kind": ["ant", "bee", "cow"]}
    network.save_pretrained(tmp_path / "model")
    result = explain_files(tmp_path / "model", pictures, tmp_path / "out", progress=False)
    assert "'big'" in result.note
    entry = lines(tmp_path / "out")[0]
    assert set(entry["heads"]) == {"big", "kind"}
    assert sum(item["probability"] for item in entry["heads"]["big"]["top"]) == pytest.approx(1, abs=1e-5)
    assert entry["map"]["head"] == "big"
    explain_files(
        tmp_path / "model", pictures, tmp_path / "kind", method="attention-class", target="kind=bee", progress=False
    )
    assert lines(tmp_path / "kind")[0]["map"]["target"] == {"class": "bee", "index": 1}


def test_a_plain_network_is_told_what_works(tmp_path, pictures):
    plain = create_backbone("resnet20", num_classes=3)
    plain.preprocessing = SMALL
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="without an attention branch"):
        explain_files(tmp_path / "plain", pictures, tmp_path / "out", progress=False)
    result = explain_files(tmp_path / "plain", pictures, tmp_path / "out", method="center", progress=False)
    assert result.explained == 4
    assert lines(tmp_path / "out")[0]["attention_branch"] is None


def test_the_evaluation_page_stands_alone(tmp_path):
    data = open_data("digits")
    network = create_model("resnet20", num_classes=10, class_names=data.class_names)
    network.preprocessing = SMALL
    images = data.test.subset(range(30))
    evaluation = evaluate(network, images)
    path = write_evaluation_report(
        tmp_path / "report.html", network, images, evaluation, controls={"none": evaluation}, per_gallery=3
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert "http" not in path.read_text().replace("http-equiv", "")
    assert "@import" not in path.read_text()
    assert all(image["alt"] for image in page.images)
    assert all(Image.open(io.BytesIO(decoded(image["src"]))).width > 0 for image in page.images)
    for words in ("Wrong", "Least certain", "control: centre of the image", "control: random place", "none: attention"):
        assert words in page.text
    assert f"{100 * evaluation.accuracy:.1f} %" in page.text
    surest = evaluation.heads["label"].predictions
    wrong = surest.predicted != surest.targets
    assert f"{100 * surest.confidence[wrong].max():.1f} %" in page.text
    with pytest.raises(UserError, match="image set holds"):
        write_evaluation_report(tmp_path / "no.html", network, data.test.subset([1]), evaluation)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["report.html"]


def decoded(uri):
    import base64

    return base64.b64decode(uri.partition("base64,")[2])


def test_text_of_users_cannot_become_markup(tmp_path):
    nasty = "<script>alert('x')</script>&\"'"
    card = Card(Image.new("RGB", (8, 8)), np.zeros((2, 2)), nasty, [(nasty, nasty)])
    blocks = [
        TableBlock(nasty, (nasty,), [[nasty], [Bar(0.5, (0.4, 0.6))]], text=nasty, note=nasty),
        Gallery(nasty, [card], nasty),
        Facts(nasty, [(nasty, nasty)]),
        MatrixBlock(nasty, [nasty, "b"], np.eye(2, dtype=int), nasty),
        TableBlock("Empty", ("a",), []),
    ]
    path = write_report(
        tmp_path / "r.html", nasty, nasty, blocks, figures=[Figure(nasty, nasty, nasty)], alarms=[nasty], footer=nasty
    )
    assert "<script" not in path.read_text()
    page = Page(path.read_text(encoding="utf-8"))
    assert page.text.count(nasty) >= 15
    assert "Empty" not in page.text


def test_figure_writes_what_it_returns_and_marks_stretching(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8))
    values = np.linspace(0.43, 0.51, 16).reshape(4, 4)
    drawn = figure(picture, values, title="t", path=tmp_path / "f.png")
    with Image.open(tmp_path / "f.png") as written:
        assert (np.asarray(written.convert("RGB")) == np.asarray(drawn)).all()
    stretched = figure(picture, values, title="t", stretch=True)
    assert stretched.size == drawn.size
    assert (np.asarray(stretched) != np.asarray(drawn)).any()
    figure(picture, np.full((4, 4), 0.5), stretch=True)  # a map without spread has no scale of its own
    with pytest.raises(UserError):
        figure(picture, np.full((4, 4), np.nan), path=tmp_path / "nan.png")
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]


def test_strip_shows_every_image_above_its_map(tmp_path, model):
    images = torch.rand(3, 3, 16, 16)
    result = explain(model, SMALL.normalize(images))
    path = strip(
        images, result.raw, ["ant", "a name far too long to stand under a small picture", "cow"], tmp_path / "s.png"
    )
    with Image.open(path) as sheet:
        assert sheet.width > 3 * 128
        assert sheet.height > 3 * 128
        pixels = np.asarray(sheet)
    # The first picture stands in the first cell, pixel by pixel enlarged.
    expected = np.asarray((images[0] * 255).round().byte().permute(1, 2, 0)).repeat(8, 0).repeat(8, 1)
    assert any((pixels[y : y + 128, 6 : 6 + 128] == expected).all() for y in range(40))
    strip([Image.new("RGB", (900, 500))], torch.rand(1, 7, 7), ["large"], tmp_path / "large.png", title="epoch 3")
    with pytest.raises(UserError):
        strip(images, result.raw[:2], ["a"] * 3, path)
