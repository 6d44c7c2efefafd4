"""Comp-Cars and CelebA in their official forms, in miniature, and what of a copy is refused."""

import numpy as np
import pytest
import scipy.io
from PIL import Image

from attention_branch import cli
from attention_branch.data import celeba, compcars, open_data
from attention_branch.data.opening import run_name
from attention_branch.errors import UserError
from attention_branch.models import Preprocessing

# Maker and model of each car. The models 2 and 5 share a name, as do 5 and 6 of the same maker; 7 has none.
CARS = {1: (4, "Audi A4L"), 2: (9, "V5"), 5: (78, "V5"), 6: (78, "V5"), 7: (9, "")}
MAKERS = {4: "Audi", 9: "", 78: "Zhonghua"}


@pytest.fixture(autouse=True)
def settings(tmp_path_factory, monkeypatch):
    """The checks run as they are, on the counts of the miniatures."""
    monkeypatch.setenv("ABN_DATA", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(compcars, "LISTED", {"train": 20, "test": 10})
    monkeypatch.setattr(celeba, "IMAGES", {"train": 12, "validation": 4, "test": 6})


def cells(names, count):
    """A column of MATLAB cells, [] where there is no name."""
    table = np.empty((count, 1), dtype=object)
    for number in range(1, count + 1):
        table[number - 1, 0] = names.get(number) or np.zeros((0, 0))
    return table


@pytest.fixture
def cars(tmp_path):
    """Comp-Cars below a folder of its own: each car a white rectangle on noise, its box counted from 1."""
    data = tmp_path / "cars" / "data"
    random = np.random.default_rng(0)
    lists = {"train": [], "test": []}
    for model, (maker, _) in CARS.items():
        for number in range(6):
            year = "unknown" if number == 5 else str(2010 + number)
            name = f"{maker}/{model}/{year}/{model:03x}{number:011x}"
            width, height = 60 + 4 * number, 40
            x1, y1 = 1 + number, 5
            x2, y2 = width - 2 * number, height
            pixels = random.integers(0, 100, (height, width, 3), dtype=np.uint8)
            pixels[y1 - 1 : y2, x1 - 1 : x2] = 255
            for folder in ("image", "label"):
                (data / folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(data / "image" / f"{name}.jpg", quality=95)
            (data / "label" / f"{name}.txt").write_text(f"{-1 if number == 0 else number}\n1\n{x1} {y1} {x2} {y2}\n")
            lists["train" if number < 4 else "test"].append(f"{name}.jpg\n")
    (data / "train_test_split" / "classification").mkdir(parents=True)
    for split, lines in lists.items():
        (data / "train_test_split" / "classification" / f"{split}.txt").write_text("".join(lines))
    (data / "misc").mkdir()
    models = {model: name for model, (_, name) in CARS.items()}
    scipy.io.savemat(
        data / "misc" / "make_model_name.mat", {"make_names": cells(MAKERS, 80), "model_names": cells(models, 12)}
    )
    return tmp_path / "cars"


def test_compcars(cars):
    data = open_data(f"compcars:{cars}", seed=2, progress=False)
    assert data.multitask
    assert data.tasks == {
        "model": ("Audi A4L", "maker 9 V5", "Zhonghua V5 (5)", "Zhonghua V5 (6)", "model 7"),
        "maker": ("Audi", "maker 9", "Zhonghua"),
    }
    assert [len(images) for images in data.splits.values()] == [18, 2, 10]
    listed = (cars / "data/train_test_split/classification/train.txt").read_text().split()
    assert sorted([*data.train.ids, *data.validation.ids]) == sorted(listed)
    makers = list(MAKERS)
    models = list(CARS)
    for images in data.splits.values():
        for sample in images:
            maker, model, _, _ = sample.id.split("/")
            assert sample.target == {"model": models.index(int(model)), "maker": makers.index(int(maker))}
            # The box is where the picture is white, to the pixel.
            white = np.asarray(sample.image).min(axis=2) > 180
            height, width = white.shape
            kept = Preprocessing(size=(height, width), resize="squash", crop_pct=1.0)
            assert np.array_equal(sample.region(kept), white)


def test_compcars_opens_from_data_itself(cars):
    inner = open_data(f"compcars:{cars / 'data'}", progress=False)
    assert inner.record()["fingerprint"] == open_data(f"compcars:{cars}", progress=False).record()["fingerprint"]


def test_compcars_labels_without_a_box(cars):
    label = cars / "data/label/4/1/2010/00100000000000.txt"
    for text, box in (("-1\n0\n", None), ("3\n1\n9 9 4 4\n", None), ("3\n2\n1 2 3 4\n5 6 7 8\n", (0, 1, 3, 4))):
        label.write_text(text)
        data = open_data(f"compcars:{cars}", progress=False)
        samples = [*data.train, *data.validation]
        assert next(sample.box for sample in samples if sample.id == "4/1/2010/00100000000000.jpg") == box


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("train_test_split/classification/train.txt", "4/1/2010/00100000000000.jpg\n", "lists 1 pictures, .* list 20"),
        ("train_test_split/classification/test.txt", "4/../x.jpg\n", r"test.txt' line 1: '4/../x.jpg' is no MAKER"),
        ("train_test_split/classification/test.txt", "\u00e9\n", "no ASCII"),
        ("label/4/1/2010/00100000000000.txt", "1\n1\n3 4\n", "00100000000000.txt' is damaged: a viewpoint"),
        ("label/4/1/2010/00100000000000.txt", "", "is damaged"),
        ("misc/make_model_name.mat", "MATLAB 5.0", "make_model_name.mat' is damaged"),
        ("label/4/1/2010/00100000000000.txt", None, r"1 of the 30 files .*/label' \('4/1/2010/00100000000000.txt'\)"),
        ("misc/make_model_name.mat", None, r"whole copy of Comp-Cars \(missing: 'misc/make_model_name.mat'\)"),
    ],
)
def test_damaged_compcars_are_refused(cars, file, content, says):
    path = cars / "data" / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content.encode())
    with pytest.raises(UserError, match=says) as caught:
        open_data(f"compcars:{cars}", progress=False)
    assert "\n" not in str(caught.value)


def test_missing_cars_are_counted_and_the_first_named(cars):
    for path in (cars / "data/image/78/5").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(UserError, match=r"6 of the 30 files .* \('78/5/2010/.*' and 3 more\)"):
        open_data(f"compcars:{cars}", progress=False)


def test_names_beyond_the_table_are_refused(cars):
    scipy.io.savemat(
        cars / "data/misc/make_model_name.mat", {"make_names": cells(MAKERS, 80), "model_names": cells({}, 6)}
    )
    with pytest.raises(UserError, match="6 model_names, and the lists use number 7"):
        open_data(f"compcars:{cars}", progress=False)


def test_an_archive_in_parts_is_to_be_joined(cars, tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    for name in ("data.zip", "data.z01", "data.z02"):
        (parts / name).write_bytes(b"PK")
    with pytest.raises(UserError, match=r"'data.z01', 'data.z02', 'data.zip'.*zip -F data.zip --out joined.zip"):
        open_data(f"compcars:{parts}")
    with pytest.raises(UserError, match="a file to unpack first"):
        open_data(f"compcars:{parts / 'data.zip'}")
    # Unzipped in part, the archive beside it: the same way out.
    (cars / "data.z01").write_bytes(b"PK")
    (cars / "data/train_test_split/classification/test.txt").unlink()
    for place in (cars, cars / "data"):
        with pytest.raises(UserError, match=r"not all of its content \(missing: '.*test.txt'\); with all parts"):
            open_data(f"compcars:{place}")


HEADER = (
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair "
    "Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male "
    "Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks "
    "Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace "
    "Wearing_Necktie Young"
)
ATTRIBUTES = HEADER.split()
SPLITS = "0000000000001111222222"


def write_celeba(root, pictures="Img/", annotations="Anno/", partition="Eval/"):
    """Write CelebA as published: names padded by a blank, values by one or two; returns what each picture shows."""
    random = np.random.default_rng(1)
    for folder in (f"{pictures}img_align_celeba", annotations, partition):
        (root / folder).mkdir(parents=True, exist_ok=True)
    shown, lines, places = {}, [], []
    for number, split in enumerate(SPLITS, 1):
        name = f"{number:06d}.jpg"
        values = random.choice([-1, 1], 40)
        shown[name] = values
        lines.append(name + "".join(f"{value:3d}" for value in values) + "\n")
        places.append(f"{name} {split}\n")
        face = random.integers(0, 255, (218, 178, 3), dtype=np.uint8)
        Image.fromarray(face).save(root / f"{pictures}img_align_celeba" / name)
    header = f"{len(SPLITS)}\n{HEADER} \n"
    (root / f"{annotations}list_attr_celeba.txt").write_text(header + "".join(lines))
    (root / f"{partition}list_eval_partition.txt").write_text("".join(places))
    return shown


@pytest.fixture
def faces(tmp_path):
    write_celeba(tmp_path / "faces")
    return tmp_path / "faces"


LANDMARKS = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"


def write_landmarks(root, annotations="Anno/"):
    """Write CelebA's landmarks as published, about where aligned faces have them; returns them by picture."""
    random = np.random.default_rng(2)
    usual = np.array([[69, 111], [108, 111], [88, 135], [71, 152], [105, 152]])
    points = {f"{number:06d}.jpg": usual + random.integers(-3, 4, (5, 2)) for number in range(1, len(SPLITS) + 1)}
    lines = [f"{name} " + "  ".join(f"{value:>3d}" for value in values.flatten()) for name, values in points.items()]
    text = f"{len(SPLITS)}\n{LANDMARKS}\n" + "\n".join(lines) + "\n"
    (root / f"{annotations}list_landmarks_align_celeba.txt").write_text(text)
    return points


def test_celebas_points_go_through_the_pictures_geometry(faces):
    assert open_data(f"celeba:{faces}", progress=False).point_names == ()
    assert open_data(f"celeba:{faces}", progress=False).train.all_points(Preprocessing()) is None
    points = write_landmarks(faces)
    data = open_data(f"celeba:{faces}", progress=False)
    assert data.point_names == ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
    kept = Preprocessing(size=(218, 178), resize="squash", crop_pct=1.0)
    for images in data.splits.values():
        found = images.all_points(kept)
        assert found.shape == (len(images), 5, 2)
        for own, name in zip(found, images.ids, strict=True):
            assert np.array_equal(own, points[name])
    # A bright spot on a point of the picture is where the point comes to lie.
    x, y = points["000001.jpg"][2]
    rows, columns = np.mgrid[:218, :178]
    spot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 32)
    picture = Image.fromarray(spot.astype(np.uint8)).convert("RGB")
    for seen in (Preprocessing(), Preprocessing(size=(96, 80), resize="squash"), Preprocessing(size=(64, 128))):
        pixels = np.asarray(seen.image(picture))[..., 0].astype(float)
        rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
        centre = [(columns * pixels).sum() / pixels.sum(), (rows * pixels).sum() / pixels.sum()]
        assert np.allclose(data.train.points(0, seen)[2], centre, atol=0.3)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (f"{len(SPLITS)}\n", "3\n", f"line 1 is '3', and the file names {len(SPLITS)} pictures"),
        ("lefteye_x", "eye_x", "line 2 is not"),
        ("000001.jpg ", "000001.jpg 70000 ", "line 3 is no picture and 10 whole numbers"),
        ("000001.jpg ", "another.jpg ", "lacks 1 of the pictures"),
    ],
)
def test_damaged_landmarks_are_refused(tmp_path, old, new, words):
    write_celeba(tmp_path)
    write_landmarks(tmp_path)
    file = tmp_path / "Anno" / "list_landmarks_align_celeba.txt"
    text = file.read_text().replace(old, new, 1)
    if "70000" in new:
        lines = text.splitlines()
        lines[2] = " ".join(lines[2].split()[:11])
        text = "\n".join(lines)
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        open_data(f"celeba:{tmp_path}", progress=False)


def test_celeba_in_both_layouts(tmp_path):
    shown = write_celeba(tmp_path / "official")
    write_celeba(tmp_path / "vision" / "celeba", "", "", "")
    data = open_data(f"celeba:{tmp_path / 'official'}", progress=False)
    assert list(data.tasks) == ATTRIBUTES
    assert set(data.tasks.values()) == {("no", "yes")}
    assert data.heads == dict.fromkeys(ATTRIBUTES, 2)
    assert [len(images) for images in data.splits.values()] == [12, 4, 6]
    assert data.test.ids == [f"{number:06d}.jpg" for number in range(17, 23)]
    assert data.split_made == "as the data gives it"
    for images in data.splits.values():
        for index, name in enumerate(images.ids):
            assert list(images.targets_of(index).values()) == [int(value == 1) for value in shown[name]]
    assert data.test[0].image.size == (178, 218)
    other = open_data(f"celeba:{tmp_path / 'vision'}", progress=False)
    assert other.record()["fingerprint"] == data.record()["fingerprint"]


def change(file, old, new, count=1):
    def harm(root):
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new, count))

    return harm


def drop(*names):
    def harm(root):
        for name in names:
            (root / name).unlink()

    return harm


def zipped(root):
    folder = root / "Img" / "img_align_celeba"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.with_suffix(".zip").write_bytes(b"PK")


ATTR, PART = "Anno/list_attr_celeba.txt", "Eval/list_eval_partition.txt"


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (
            change(ATTR, "22\n", "23\n"),
            r"list_attr_celeba.txt' says in line 1 that it holds '23' pictures, and 22 lines",
        ),
        (change(ATTR, " Young", ""), "line 2 holds 39 names, not 40"),
        (change(ATTR, "000002.jpg ", "000002.jpg  1 "), "line 4 has 42 columns, not 41"),
        (change(ATTR, "000002.jpg -1", "000002.jpg  0"), "line 4 holds '0', which is neither -1 nor 1"),
        (change(ATTR, "000002.jpg", "000099.jpg"), r"not the same ones \(such as '000099.jpg'\)"),
        (change(PART, "000003.jpg 0", "000003.jpg 3"), "line 3: '000003.jpg 3' is no picture and 0, 1 or 2"),
        (change(PART, "000003.jpg 0", "000003.jpg 1"), "puts 11 pictures into train, and CelebA has 12 there"),
        (change(PART, "000022.jpg 2\n", ""), "names 21 pictures and the attributes 22"),
        (drop(ATTR), "There is no 'list_attr_celeba.txt' in .* 'Anno/'"),
        (
            drop("Img/img_align_celeba/000002.jpg", "Img/img_align_celeba/000005.jpg"),
            "2 of CelebA's 22 .*'000002.jpg', ",
        ),
        (zipped, "img_align_celeba.zip' is not unpacked; unzip it where it lies"),
    ],
)
def test_damaged_celeba_is_refused(faces, harm, says):
    harm(faces)
    with pytest.raises(UserError, match=says) as caught:
        open_data(f"celeba:{faces}", progress=False)
    assert "\n" not in str(caught.value)


def test_a_copy_of_celeba_in_csv_is_not_taken_for_the_official_one(faces):
    (faces / ATTR).rename(faces / "list_attr_celeba.csv")
    with pytest.raises(UserError, match=r"'list_attr_celeba\.csv' is a copy in another form"):
        open_data(f"celeba:{faces}")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("celeba:", "'celeba:PATH'"),
        ("compcars", "'compcars:PATH'"),
        ("CelebA", "'celeba:PATH'"),
        ("CelebA:/data/faces", "Did you mean 'celeba:/data/faces'"),
        ("comp-cars:/data/cars", "Did you mean 'compcars:/data/cars'"),
        ("compcars:/no/such/folder", "'/no/such/folder' of 'compcars:/no/such/folder' does not exist"),
    ],
)
def test_unknown_names_and_folders(spec, says):
    with pytest.raises(UserError, match=says):
        open_data(spec)


def test_the_command_line_checks_them(cars, faces, capsys):
    for spec, told in ((f"compcars:{cars}", "Zhonghua V5 (5)"), (f"celeba:{faces}", "Wearing_Necktie")):
        with pytest.raises(SystemExit) as caught:
            cli.main(["check", spec])
        out = capsys.readouterr().out
        assert not caught.value.code
        assert told in out
        assert "Nothing here harms a training." in out


def test_runs_are_named_after_the_set():
    names = {
        "celeba:/data/faces": "celeba",
        "compcars:cars/data": "compcars",
        "torchvision:ImageNet:/data/ilsvrc": "ImageNet",
        "torchvision:CIFAR10": "CIFAR10",
        "photos/cats": "cats",
        "digits": "digits",
    }
    assert {spec: run_name(spec) for spec in names} == names
