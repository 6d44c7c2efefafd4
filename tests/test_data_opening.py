import pytest
from PIL import Image

from attention_branch.data import DATA_NAMES, open_data
from attention_branch.errors import UserError


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("digit", "Did you mean 'digits'"),
        ("cifar10", "Did you mean .*'torchvision:CIFAR10'"),
        ("torchvision:cifar10", "Did you mean .*'torchvision:CIFAR10'"),
        ("torchvision:ImageNet22k", "known are CIFAR10"),
        ("torchvison:CIFAR10", "'torchvision:CIFAR10'"),
        ("hf:", "needs the name"),
        ("hf:some/name:colour=red", "'colour=red'"),
        ("/no/such/place/photos", "'/no/such/place'"),
        ("zzzz", "give a folder of class folders"),
    ],
)
def test_unknown_names_are_answered_with_near_ones(spec, says):
    with pytest.raises(UserError, match=says) as caught:
        open_data(spec)
    assert "\n" not in str(caught.value)


def test_a_mistyped_folder_is_answered_with_its_neighbour(tmp_path, monkeypatch):
    (tmp_path / "flowers").mkdir()
    with pytest.raises(UserError, match=r"does not exist.*'flowers'"):
        open_data(tmp_path / "flower")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="Did you mean 'flowers'"):
        open_data("flowes")


def test_files_that_are_no_data(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "one.png")
    (tmp_path / "all.zip").write_bytes(b"PK")
    (tmp_path / "weights.pkl").write_bytes(b"\x80\x04.")
    for name, says in (("one.png", "a single picture"), ("all.zip", "to unpack first"), ("weights.pkl", "not read")):
        with pytest.raises(UserError, match=says):
            open_data(tmp_path / name)


def test_names_are_listed():
    assert "digits" in DATA_NAMES
    assert "torchvision:CIFAR100" in DATA_NAMES
