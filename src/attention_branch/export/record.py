"""What an exported file says of itself: all that a reader needs to prepare pictures and to name the answers."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from attention_branch import __version__
from attention_branch.export.named_outputs import Output
from attention_branch.models.network import Network
from attention_branch.onnx_cut import IMAGES
from attention_branch.versions import versions

FORMAT = 1
_LIBRARIES = ("torch", "timm", "pillow", "onnx", "onnxscript", "onnxruntime")


def details_of(network: Network, outputs: Sequence[Output], weights: str, source: str) -> dict[str, Any]:
    """Return a file's details as plain values for JSON; what is measured is added by the exporter."""
    config = network.config
    details = {
        "format": FORMAT,
        "library": "attention-branch",
        "source": source,
        "backbone": config.name,
        "is_abn": network.is_abn,
        "mechanism": config.mechanism,
        "branch": config.branch,
        "map_form": config.map_form if network.is_abn else None,
        "map_range": list(network.map_range) if network.is_abn and network.map_range else None,
        "perception": config.perception if network.is_abn and config.heads else None,
        "num_classes": config.num_classes,
        "heads": config.heads,
        "class_names": config.class_names,
        "preprocessing": network.preprocessing.to_dict(),
        "input": {"name": IMAGES, "size": list(network.preprocessing.size)},
        "outputs": [{"name": item.name, "kind": item.kind, "head": item.head} for item in outputs],
        "weights_sha256": weights,
        "versions": versions(*_LIBRARIES),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    # As a reader will find them: lists for tuples.
    return json.loads(json.dumps(details, allow_nan=False))


def plain_text(details: dict[str, Any], parity: str) -> dict[str, str]:
    """Return the main details as text, for people who look at the file with another program."""
    height, width = details["input"]["size"]
    prepared = details["preprocessing"]
    names = details["class_names"]
    if isinstance(names, dict):
        listed = "; ".join(f"{head}: {', '.join(of_head)}" for head, of_head in names.items())
    else:
        listed = ", ".join(names or [])
    kind = f"Attention Branch Network, {details['mechanism']}, {details['branch']}" if details["is_abn"] else "plain"
    return {
        "network": f"{details['backbone']} ({kind})",
        "input": f"{IMAGES} (N, 3, {height}, {width}) float32, RGB in [0, 1] minus {tuple(prepared['mean'])} over "
        f"{tuple(prepared['std'])}",
        "outputs": ", ".join(item["name"] for item in details["outputs"]),
        "classes": listed or str(details["num_classes"] or details["heads"]),
        "precision": details["precision"],
        "checked": parity,
        "made_by": f"attention-branch {__version__}",
    }
