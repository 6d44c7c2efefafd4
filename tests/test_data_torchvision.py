import hashlib
import pickle
import struct
import urllib.error
import urllib.request

import numpy as np
import pytest
import scipy.io
from torchvision import datasets

from attention_branch.data import open_data
from attention_branch.errors import UserError

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("ABN_DATA", str(tmp_path))

    def offline(*arguments, **options):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    return tmp_path


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar10(root, monkeypatch, per_batch=20):
    """Write CIFAR-10 in its official format: pickled batches of channel-first rows, and a file of class names."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    pictures = {}
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        data = RANDOM.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        labels = [number % 10 for number in range(per_batch)]
        pictures[name] = data.reshape(per_batch, 3, 32, 32).transpose(0, 2, 3, 1)
        with (folder / name).open("wb") as file:
            pickle.dump({"data": data, "labels": labels}, file)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    with (folder / "batches.meta").open("wb") as file:
        pickle.dump({"label_names": names}, file)
    # The checksums of the official files are replaced by those of the small ones; they are checked all the same.
    train = [[name, md5(folder / name)] for name, _ in datasets.CIFAR10.train_list]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5(folder / "test_batch")]])
    meta = {**datasets.CIFAR10.meta, "md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return pictures


def test_cifar10(root, monkeypatch):
    pictures = write_cifar10(root, monkeypatch)
    data = open_data("torchvision:CIFAR10", seed=1)
    assert data.class_names[3] == "cat"
    assert len(data.class_names) == 10
    assert data.normalization[0] == (0.4914, 0.4822, 0.4465)
    assert [len(images) for images in data.splits.values()] == [90, 10, 20]
    assert list(data.validation.counts()["label"].values()) == [1] * 10
    assert data.test.ids[3] == "CIFAR10/test:3"
    assert all(
        np.array_equal(np.asarray(data.test[number].image), pictures["test_batch"][number]) for number in (0, 19)
    )
    assert data.test.targets.tolist() == [number % 10 for number in range(20)]
    for sample in data.validation:
        number = int(sample.id.split(":")[1])
        assert sample.id.startswith("CIFAR10/train:")
        assert sample.target == number % 20 % 10
        official = pictures[f"data_batch_{number // 20 + 1}"][number % 20]
        assert np.array_equal(np.asarray(sample.image), official)


def test_damaged_files_are_not_read(root, monkeypatch):
    write_cifar10(root, monkeypatch)
    path = root / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:-1])
    damaged = r"damaged \(another MD5 than the published\): 'cifar-10-batches-py/data_batch_2'"
    with pytest.raises(UserError, match=rf"CIFAR10 is not whole in .*{damaged}.* could not be downloaded"):
        open_data("torchvision:CIFAR10")


def test_a_folder_of_ones_own(root, monkeypatch, tmp_path):
    mine = tmp_path / "mine: CIFAR"
    mine.mkdir()
    pictures = write_cifar10(mine, monkeypatch)
    for place in (mine, mine / "cifar-10-batches-py"):
        data = open_data(f"torchvision:CIFAR10:{place}")
        assert data.root == str(mine)
        assert data.test.ids[3] == "CIFAR10/test:3"
        assert np.array_equal(np.asarray(data.test[7].image), pictures["test_batch"][7])
    with pytest.raises(UserError, match="could not be downloaded"):
        open_data("torchvision:CIFAR10")


def test_what_is_wrong_in_a_folder_is_named_and_nothing_is_downloaded(root, monkeypatch, tmp_path):
    write_cifar10(tmp_path, monkeypatch)
    folder = tmp_path / "cifar-10-batches-py"
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda *arguments: pytest.fail("a download"))
    (folder / "batches.meta").write_bytes(b"other")
    with pytest.raises(UserError, match=r"\(damaged [^;]*: 'cifar-10-batches-py/batches.meta'\)") as caught:
        open_data(f"torchvision:CIFAR10:{tmp_path}")
    assert "missing" not in str(caught.value)
    for number in (1, 2, 3, 4):
        (folder / f"data_batch_{number}").unlink()
    with pytest.raises(
        UserError, match=r"missing: '.*data_batch_1', .*_2', .*_3' and 1 more; damaged .*meta'"
    ) as caught:
        open_data(f"torchvision:CIFAR10:{tmp_path}")
    assert "The CIFAR-10 and CIFAR-100 datasets" in str(caught.value)
    assert "unpack 'cifar-10-python.tar.gz' there" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("CIFAR100", "'cifar-100-python/train', 'cifar-100-python/test', 'cifar-100-python/meta'"),
        ("SVHN", "'train_32x32.mat', 'test_32x32.mat'"),
        ("STL10", "'stl10_binary/train_X.bin'"),
        ("FashionMNIST", "'FashionMNIST/raw/train-images-idx3-ubyte'"),
        ("KMNIST", "'KMNIST/raw/train-images-idx3-ubyte'"),
    ],
)
def test_missing_files_are_named_for_every_set(root, name, files):
    empty = root / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=rf"{name} is not whole in '{empty}' \(missing: {files}") as caught:
        open_data(f"torchvision:{name}:{empty}")
    assert "extra" not in str(caught.value)
    with pytest.raises(UserError, match="does not exist"):
        open_data(f"torchvision:{name}:{root / 'none'}")
    with pytest.raises(UserError, match=f"as in 'torchvision:{name}:PATH'"):
        open_data(f"torchvision:{name}:")


def test_mnist(root):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    digits = {}
    for part, count in (("train", 40), ("t10k", 10)):
        digits[part] = RANDOM.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + digits[part].tobytes())
        labels = bytes(number % 10 for number in range(count))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels)
    data = open_data("torchvision:MNIST")
    assert [len(images) for images in data.splits.values()] == [30, 10, 10]
    picture = np.asarray(data.test[4].image)
    assert picture.shape == (28, 28, 3)
    assert np.array_equal(picture[..., 1], digits["t10k"][4])
    assert data.class_names[7] == "7 - seven"
    images = folder / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"MNIST is not whole in .*\(a file cannot be read"):
        open_data(f"torchvision:MNIST:{root}")


def test_svhn(root, monkeypatch):
    pictures = {}
    splits = dict(datasets.SVHN.split_list)
    for split, count in (("train", 40), ("test", 10)):
        pictures[split] = RANDOM.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = np.array([[10 if number % 10 == 0 else number % 10] for number in range(count)], dtype=np.uint8)
        path = root / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": pictures[split], "y": labels})
        splits[split] = [splits[split][0], path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)
    (root / "extra_32x32.mat").write_bytes(b"it is not read")
    data = open_data("torchvision:SVHN")
    assert data.test.targets.tolist() == list(range(10))
    assert data.class_names == [str(number) for number in range(10)]
    assert np.array_equal(np.asarray(data.test[6].image), pictures["test"][..., 6])


def test_without_network_one_sentence_names_the_folder(root):
    with pytest.raises(UserError, match="could not be downloaded") as caught:
        open_data("torchvision:CIFAR100")
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "ABN_DATA" in str(caught.value)
