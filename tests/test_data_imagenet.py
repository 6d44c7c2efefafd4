"""ImageNet in its official form, in miniature: the archives, what torchvision makes of them, and what is refused."""

import errno
import hashlib
import io
import tarfile
from collections import namedtuple

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision.datasets import imagenet as official

from attention_branch.data import check_data, imagenet, open_data
from attention_branch.errors import UserError

# The order of the table is not that of the ids; two classes share their first word, as ILSVRC's cranes do.
WORDS = {
    "n03126707": "crane",
    "n01440764": "tench, Tinca tinca",
    "n02012849": "crane",
    "n01443537": "goldfish, Carassius auratus",
}
WNIDS = sorted(WORDS)
PER_CLASS = 6
TRUTH = [4, 1, 2, 3, 2, 2, 1, 4]
"""Of the eight validation pictures: the class's place in the table, from 1."""


@pytest.fixture(autouse=True)
def settings(tmp_path_factory, monkeypatch):
    """The checks run as they are, on the counts of the miniature."""
    monkeypatch.setenv("ABN_DATA", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(imagenet, "CLASSES", 4)
    monkeypatch.setattr(imagenet, "IMAGES", {"train": 4 * PER_CLASS, "val": len(TRUTH)})


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def tar(files, mode="w"):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def meta_mat():
    """The devkit's table of synsets: the classes first, then the groups that have children."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    rows = [
        (number, wnid, words, "a gloss", 0, np.zeros((1, 0)), 0)
        for number, (wnid, words) in enumerate(WORDS.items(), 1)
    ]
    rows.append((len(rows) + 1, "n00001740", "entity", "that which exists", 2, np.array([1, 2]), 9))
    table = np.empty((len(rows), 1), dtype=[(name, object) for name in (*fields, "num_train_images")])
    for place, row in enumerate(rows):
        table[place, 0] = (*row, PER_CLASS)
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": table})
    return file.getvalue()


@pytest.fixture
def pictures():
    """All pictures by class and name, as the archives hold them, and the validation pictures in order."""
    train = {
        wnid: {f"{wnid}_{number}.JPEG": jpeg([place, number]) for number in range(PER_CLASS)}
        for place, wnid in enumerate(WNIDS)
    }
    val = {f"ILSVRC2012_val_{number:08d}.JPEG": jpeg([99, number]) for number in range(1, len(TRUTH) + 1)}
    return train, val


@pytest.fixture
def archives(tmp_path, monkeypatch, pictures):
    """A folder with the three official archives, their checksums taken from the miniature."""
    train, val = pictures
    devkit = {
        "ILSVRC2012_devkit_t12/data/meta.mat": meta_mat(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{n}\n" for n in TRUTH).encode(),
    }
    content = {
        "train": tar({f"{wnid}.tar": tar(files) for wnid, files in train.items()}),
        "val": tar(val),
        "devkit": tar(devkit, "w:gz"),
    }
    root = tmp_path / "imagenet"
    root.mkdir()
    known = {}
    for part, (name, _) in official.ARCHIVE_META.items():
        (root / name).write_bytes(content[part])
        known[part] = (name, hashlib.md5(content[part]).hexdigest())
    monkeypatch.setattr(official, "ARCHIVE_META", known)
    return root


@pytest.fixture
def folders(tmp_path, pictures):
    """A folder with `train/WNID` and `val/WNID`, and nothing that names the classes."""
    train, val = pictures
    root = tmp_path / "parsed"
    for wnid, files in train.items():
        (root / "train" / wnid).mkdir(parents=True)
        (root / "val" / wnid).mkdir(parents=True)
        for name, content in files.items():
            (root / "train" / wnid / name).write_bytes(content)
    for number, (name, content) in zip(TRUTH, val.items(), strict=True):
        (root / "val" / list(WORDS)[number - 1] / name).write_bytes(content)
    return root


def spec(root):
    return f"torchvision:ImageNet:{root}"


def test_archives_are_unpacked_once_and_read_as_torchvision_reads_them(archives, pictures, capsys):
    data = open_data(spec(archives), seed=3, validation=0.2)
    said = capsys.readouterr().err
    assert all(f"'{archives / split}', once" in said for split in ("train", "val"))
    assert "hours" in said
    assert data.class_names == ["tench", "goldfish", "crane (n02012849)", "crane (n03126707)"]
    assert data.normalization == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert [len(images) for images in data.splits.values()] == [20, 4, 8]
    assert "test is ImageNet's validation set" in data.split_made
    assert "validation (0.2) cut from train, stratified by class" in data.split_made
    train, val = pictures
    for images in (data.train, data.validation):
        for sample in images:
            split, wnid, name = sample.id.split("/")
            assert (split, wnid) == ("train", WNIDS[sample.target])
            assert images.source.encoded(int(images.rows[sample.index])) == train[wnid][name]
    truth = dict(zip(val, [list(WORDS)[number - 1] for number in TRUTH], strict=True))
    assert {name.split("/")[2]: WNIDS[label] for name, label in zip(data.test.ids, data.test.targets, strict=True)} == (
        truth
    )
    referee = official.ImageNet(str(archives), split="val")
    assert [str(archives / name) for name in data.test.ids] == [path for path, _ in referee.imgs]
    assert data.test.targets.tolist() == referee.targets
    assert sorted(path.name for path in archives.iterdir() if path.is_dir()) == ["train", "val"]
    again = open_data(spec(archives), seed=3, validation=0.2)
    assert capsys.readouterr().err == ""
    assert again.record() == data.record()


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("nothing", WNIDS),
        ("devkit", ["tench", "goldfish", "crane (n02012849)", "crane (n03126707)"]),
        ("archive", ["tench", "goldfish", "crane (n02012849)", "crane (n03126707)"]),
        ("meta.bin", ["tench", "goldfish", "crane (n02012849)", "crane (n03126707)"]),
    ],
)
def test_class_names_come_from_what_there_is(folders, archives, source, names):
    if source == "devkit":
        (folders / "ILSVRC2012_devkit_t12" / "data").mkdir(parents=True)
        (folders / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").write_bytes(meta_mat())
    elif source != "nothing":
        name = official.ARCHIVE_META["devkit"][0]
        (folders / name).write_bytes((archives / name).read_bytes())
        if source == "meta.bin":
            official.parse_devkit_archive(str(folders))
            (folders / name).unlink()
    assert open_data(spec(folders)).class_names == names


def test_pictures_are_not_decoded_on_opening_but_by_check(folders):
    broken = folders / "train" / WNIDS[1] / f"{WNIDS[1]}_3.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    data = open_data(spec(folders))
    assert data.left_out == []
    assert sum(len(images) for images in data.splits.values()) == 4 * PER_CLASS + len(TRUTH)
    assert [name for name, _ in check_data(spec(folders), progress=False).broken] == [
        f"train/{WNIDS[1]}/{WNIDS[1]}_3.JPEG"
    ]


def fewer_classes(root):
    for split in ("train", "val"):
        for path in (root / split / WNIDS[0]).iterdir():
            path.unlink()
        (root / split / WNIDS[0]).rmdir()


def unsorted_validation(root):
    for path in list((root / "val").rglob("*.JPEG")):
        path.rename(root / "val" / path.name)
    for wnid in WNIDS:
        (root / "val" / wnid).rmdir()


def no_validation(root):
    unsorted_validation(root)
    for path in (root / "val").iterdir():
        path.unlink()
    (root / "val").rmdir()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (fewer_classes, r"train' holds 3 class folders, and ImageNet has 4; complete it .* ordinary folder"),
        (lambda root: (root / "train" / WNIDS[2] / f"{WNIDS[2]}_0.JPEG").unlink(), "train' holds 23 JPEG .* has 24"),
        (lambda root: next((root / "val").rglob("*.JPEG")).unlink(), "val' holds 7 JPEG files, and ImageNet has 8"),
        (unsorted_validation, r"val' holds 0 class folders \(8 pictures lie beside them"),
        (no_validation, "neither 'val/' nor 'ILSVRC2012_img_val.tar' and no 'ILSVRC2012_devkit_t12.tar.gz'"),
        (lambda root: (root / "val" / WNIDS[3]).rename(root / "val" / "n99999999"), "n99999999' is no class of"),
        (lambda root: (root / "meta.bin").write_bytes(b"no torch file"), "meta.bin' is damaged; delete it"),
    ],
)
def test_a_copy_that_is_not_whole_is_refused(folders, harm, says):
    harm(folders)
    with pytest.raises(UserError, match=says) as caught:
        open_data(spec(folders))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["train", "val", "devkit"])
def test_a_damaged_archive_is_named_and_leaves_nothing_behind(archives, part):
    damaged = archives / official.ARCHIVE_META[part][0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{damaged.name}' is damaged: its MD5"):
        open_data(spec(archives))
    unfinished = [path.name for path in archives.iterdir() if path.name.startswith(".")]
    assert unfinished == []
    assert (archives / "train").exists() == (part != "train")
    assert not (archives / "val").exists()


def test_an_unpacking_waits_for_room_and_for_another(archives, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(imagenet.shutil, "disk_usage", lambda path: usage(10, 5, 5))
    with pytest.raises(UserError, match=r"0\.0 GB are free; make room"):
        open_data(spec(archives))


def test_an_unpacking_under_way_is_left_alone(archives):
    (archives / ".train.unpacking").mkdir()
    with pytest.raises(UserError, match=r"'ILSVRC2012_img_train\.tar' is being unpacked; wait"):
        open_data(spec(archives))
    assert (archives / ".train.unpacking").exists()


def test_a_full_disk_ends_an_unpacking_in_one_sentence(archives, monkeypatch):
    def full(root, folder):
        (archives / folder / "n01440764.tar").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(archives / folder))

    monkeypatch.setattr(official, "parse_train_archive", full)
    with pytest.raises(UserError, match="disk is full"):
        open_data(spec(archives))
    assert not (archives / "train").exists()
    assert not (archives / ".train.unpacking").exists()


def test_the_folder_must_be_named(tmp_path):
    for name in ("torchvision:ImageNet", "torchvision:ImageNet:", "imagenet"):
        with pytest.raises(UserError, match="'torchvision:ImageNet:PATH'"):
            open_data(name)
    with pytest.raises(UserError, match="does not exist"):
        open_data(spec(tmp_path / "no"))
    with pytest.raises(UserError, match=r"neither 'train/' nor 'ILSVRC2012_img_train\.tar'"):
        open_data(spec(tmp_path))
