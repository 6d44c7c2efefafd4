"""What a command says where the package was installed without torch (attention-branch-onnx)."""

FULL_ONLY = frozenset(
    {"torch", "torchvision", "timm", "lightning", "datasets", "safetensors", "huggingface_hub", "scipy", "sklearn"}
)
"""Modules that attention-branch installs and attention-branch-onnx does not."""


def without(problem: ModuleNotFoundError, command: str) -> str | None:
    """Return the sentence for a command that needs what only the full package installs; None for other modules."""
    missing = (problem.name or "").partition(".")[0]
    if missing not in FULL_ONLY:
        return None
    return (
        f"`abn {command}` needs {missing}, which is not installed here; install the full package (pip install . in the "
        "folder of attention-branch). Without it, explain takes a network that was exported to ONNX: model.onnx."
    )
