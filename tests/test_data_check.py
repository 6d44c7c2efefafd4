import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from attention_branch.data import check_data


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ABN_DATA", str(tmp_path_factory.mktemp("cache")))


def save(path, picture=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if picture is None:
        seed = [*str(path).encode()]
        picture = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 40, 3), dtype=np.uint8))
    picture.save(path, **options)


def folder(root):
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for label in ("cat", "dog"):
            for number in range(count):
                save(root / split / label / f"{number}.png")


def test_a_clean_folder_is_sound(tmp_path):
    folder(tmp_path)
    report = check_data(tmp_path)
    assert report.sound
    assert report.images == 16
    assert report.counts["train"] == {"label": {"cat": 4, "dog": 4}}
    assert not (report.empty)
    assert not (report.broken)
    assert not (report.duplicates)
    assert not (report.odd)
    assert not (report.ignored)


def test_all_that_is_wrong_is_found(tmp_path):
    folder(tmp_path)
    train = tmp_path / "train"
    (train / "cat" / "empty.jpg").write_bytes(b"")
    content = (train / "cat" / "0.png").read_bytes()
    (train / "dog" / "cut.png").write_bytes(content[: len(content) // 2])
    (train / "dog" / "web.jpg").write_text("<html>not found</html>")
    (train / "cat" / "copy.png").write_bytes(content)
    (train / "dog" / "liar.png").write_bytes((train / "cat" / "1.png").read_bytes())
    (tmp_path / "test" / "dog" / "leak.png").write_bytes((train / "dog" / "2.png").read_bytes())
    (train / "cat" / "notes.txt").write_text("x")
    report = check_data(tmp_path)
    assert not report.sound
    assert report.empty == ["train/cat/empty.jpg"]
    assert report.ignored == ["train/cat/notes.txt"]
    assert {name for name, _ in report.broken} == {"train/dog/cut.png", "train/dog/web.jpg"}
    assert "web page" in dict(report.broken)["train/dog/web.jpg"]
    found = {tuple(sorted(group.ids)): (group.across_splits, group.conflict) for group in report.duplicates}
    assert found == {
        ("train/cat/0.png", "train/cat/copy.png"): (False, False),
        ("train/cat/1.png", "train/dog/liar.png"): (False, True),
        ("test/dog/leak.png", "train/dog/2.png"): (True, False),
    }
    values = json.loads(json.dumps(report.to_dict()))
    assert values["sound"] is False
    assert values["broken"][0].keys() == {"id", "reason"}
    console = Console(file=io.StringIO(), width=300)
    report.print(console)
    text = console.file.getvalue()
    for told in (
        "train/cat/empty.jpg",
        "cut.png",
        "liar.png (train, dog)",
        "leak.png (test, dog)",
        "under different labels",
        "Training leaves out 3 empty or broken",
        "Copies in different splits",
    ):
        assert told in text


def test_odd_pictures_are_named_by_kind(tmp_path):
    folder(tmp_path)
    cat = tmp_path / "train" / "cat"
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(cat / "cmyk.jpg", Image.fromarray(noise, "CMYK"))
    save(cat / "deep.png", Image.fromarray(noise[..., 0].astype(np.uint16) * 257))
    save(cat / "palette.gif", Image.fromarray(noise[..., :3]).quantize(16))
    save(cat / "grey.png", Image.fromarray(noise[..., 0]))
    save(cat / "alpha.png", Image.fromarray(noise))
    save(cat / "turned.jpg", Image.fromarray(noise[..., :3]), exif=exif)
    save(cat / "dot.png", Image.fromarray(noise[:10, :10, :3]))
    save(cat / "strip.png", Image.fromarray(np.tile(noise[:20, :, :3], (1, 3, 1))))
    save(cat / "jpeg.png", Image.fromarray(noise[..., :3]), format="JPEG")
    save(
        cat / "moving.webp", Image.fromarray(noise[..., :3]), save_all=True, append_images=[Image.new("RGB", (40, 40))]
    )
    report = check_data(tmp_path)
    odd = {}
    for name, kind in report.odd:
        odd.setdefault(name.removeprefix("train/cat/"), []).append(kind)
    assert odd == {
        "cmyk.jpg": ["CMYK"],
        "deep.png": ["more than 8 bits"],
        "palette.gif": ["palette"],
        "grey.png": ["grey"],
        "alpha.png": ["transparent parts"],
        "turned.jpg": ["rotated by EXIF"],
        "dot.png": ["a side below 16 pixels"],
        "strip.png": ["longer than 5 to 1"],
        "jpeg.png": ["JPEG inside, another file ending"],
        "moving.webp": ["animated, the first frame counts"],
    }
    assert report.sound
    assert not report.broken


def test_missing_files_of_a_list(tmp_path):
    for number in range(12):
        save(tmp_path / f"{number}.png")
    rows = "".join(f"{number}.png,{number % 2}\n" for number in range(13))
    (tmp_path / "metadata.csv").write_text("file_name,label\n" + rows)
    ((name, reason),) = check_data(tmp_path).broken
    assert name == "12.png"
    assert "line 14" in reason


def test_digits_hold_no_copies():
    report = check_data("digits:train=200,validation=50,test=100")
    assert report.sound
    assert report.images == 350
    assert not report.duplicates


def test_names_with_brackets_are_printed_as_they_are(tmp_path):
    folder(tmp_path)
    (tmp_path / "train" / "cat" / "[red]x.png").write_bytes(b"")
    console = Console(file=io.StringIO(), width=300)
    check_data(tmp_path).print(console)
    assert "train/cat/[red]x.png" in console.file.getvalue()
