"""The versions of what a result depends on, of those that are installed."""

import platform
from importlib.metadata import PackageNotFoundError, version

from attention_branch import __version__

LIBRARIES = ("torch", "torchvision", "timm", "pillow")
"""What the answers of a network in PyTorch depend on."""


def versions(*names: str) -> dict[str, str]:
    """Return the versions of this package, of the distributions named that are installed, and of Python."""
    found = {"attention_branch": __version__}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"python": platform.python_version()}
