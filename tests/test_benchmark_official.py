"""Building the authors' networks from a checkout: which arguments they get, and that nothing is left behind."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def code():
    spec = importlib.util.spec_from_file_location("official_code", BENCHMARKS / "official_code.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose networks are the arguments they were called with, and whose package is called `models` too."""
    for family, names in {"cifar": ("resnet", "wrn", "densenet", "resnext"), "imagenet": ("resnet18",)}.items():
        folder = tmp_path / "models" / family
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("from .resnet import *\n")
        lines = [f"def {name}(**options): return ('{name}', options)" for name in names]
        (folder / "resnet.py").write_text("\n".join(lines) + "\n")
    (tmp_path / "models" / "__init__.py").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "depth"), [("resnet20", 20), ("resnet32", 32), ("resnet65b", 44), ("resnet83b", 56), ("resnet164b", 110)]
)
def test_depths_are_the_authors(code, checkout, name, depth):
    assert code.official_network(checkout, name, 10) == ("resnet", {"num_classes": 10, "depth": depth})


def test_other_families(code, checkout):
    assert code.official_network(checkout, "wrn_28_10", 3)[1]["widen_factor"] == 10
    assert code.official_network(checkout, "densenet_bc_100_12", 3)[1]["growthRate"] == 12
    assert code.official_network(checkout, "resnext29_8x64d", 3)[1]["cardinality"] == 8
    assert code.official_network(checkout, "resnet18", 3) == ("resnet18", {"num_classes": 3})


def test_nothing_is_left_behind(code, checkout, monkeypatch):
    mine = ModuleType("models")
    monkeypatch.setitem(sys.modules, "models", mine)
    before = list(sys.path)
    code.official_network(checkout, "resnet20", 10)
    assert sys.modules["models"] is mine
    assert "models.cifar" not in sys.modules
    assert sys.path == before
    assert not list(checkout.rglob("__pycache__"))


def test_refusals(code, checkout, tmp_path):
    with pytest.raises(ValueError, match="does not build 'resnet110'"):
        code.official_network(checkout, "resnet110", 10)
    with pytest.raises(FileNotFoundError, match="give a checkout"):
        code.official_network(tmp_path / "nothing", "resnet20", 10)


def test_the_digest_depends_on_names_and_contents(code, checkout):
    first = code.source_digest(checkout)
    (checkout / "models" / "__init__.py").write_text("# changed\n")
    second = code.source_digest(checkout)
    (checkout / "models" / "__init__.py").rename(checkout / "models" / "other.py")
    assert len({first, second, code.source_digest(checkout)}) == 3
