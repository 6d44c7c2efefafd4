"""Names that are imported when they are used: what is offered, and what stays out of memory."""

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import attention_branch

PACKAGES = ["data", "models", "explanations", "report", "evaluation"]

# Everything that the full package needs and the one without torch does not.
BLOCK = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {
            "torch", "torchvision", "timm", "lightning", "datasets", "safetensors", "huggingface_hub", "scipy",
            "sklearn",
        }:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def without_torch(code):
    done = subprocess.run([sys.executable, "-c", BLOCK + code], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_there_and_no_module_hides_it(package):
    module = importlib.import_module(f"attention_branch.{package}")
    for name in module.__all__:
        value = getattr(module, name)
        # The module of the same name was loaded by now; it must not stand where the function or class stands.
        assert not isinstance(value, ModuleType)
        assert getattr(sys.modules[getattr(value, "__module__", module.__name__)], name, value) is value
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


def test_a_function_is_not_hidden_by_its_module():
    importlib.import_module("attention_branch.evaluation.evaluate")
    importlib.import_module("attention_branch.report.strip")
    from attention_branch.evaluation import evaluate
    from attention_branch.report import strip

    assert callable(evaluate)
    assert callable(strip)
    assert attention_branch.metrics is sys.modules["attention_branch.metrics"]


def test_what_needs_no_torch_runs_without_it():
    modules = ["cli", "files", "data.images", "models.preprocessing", "explanations.overlay", "explanations.figure"]
    modules += ["report.page", "report.picture_grid", "report.charts", "report.statements", "progress"]
    code = f"import importlib\nfor name in {modules}: importlib.import_module('attention_branch.' + name)\n"
    code += "from attention_branch.data import find_images, open_image\nfrom attention_branch import Preprocessing\n"
    code += "from PIL import Image\nprint(Preprocessing().array(Image.new('RGB', (9, 8))).shape)"
    assert without_torch(code) == (0, "(3, 224, 224)\n", "")


def test_the_command_line_says_what_is_missing():
    start = "from attention_branch.cli import main\nmain({})"
    status, said, _ = without_torch(start.format(["--help"]))
    assert status == 0
    assert "abn COMMAND" in said
    for arguments in (["train", "photos"], ["evaluate", "run"], ["models"], ["demo"], ["check", "photos"]):
        status, said, problem = without_torch(start.format(arguments))
        assert status == 2, problem
        assert problem.startswith(f"abn: `abn {arguments[0]}` needs "), problem
        assert problem.count("\n") == 1
        assert "pip install ." in problem
