"""The versions of what a result depends on, of those that are installed."""

import platform
from importlib.metadata import PackageNotFoundError, version

from attention_branch import __version__

LIBRARIES = ("torch", "torchvision", "timm", "pillow")
"""What the answers of a network in PyTorch depend on."""


def versions(*names: str) -> dict[str, str]:
    """Return the versions of this package, of Python, and of the distributions named (LIBRARIES) that are installed."""
    found = {"attention_branch": __version__}
    for name in names or LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"python": platform.python_version()}
