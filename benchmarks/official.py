"""Are the networks here the authors'? Their code and `load_official` on the same random checkpoint.

    git clone https://github.com/machine-perception-robotics-group/attention_branch_network
    python benchmarks/official.py --official attention_branch_network
    python benchmarks/official.py --official attention_branch_network --networks resnet164b resnet50

Each network of the authors' code gets random weights and batch norms with random statistics, is saved as their
training scripts save it (DataParallel's names, optimizer and all) and loaded with `load_official`; both then answer the
same images. The record, the largest absolute differences in float32 and float64, goes to
benchmarks/records/DATE-official/equality.json and is extended network by network.
"""

import argparse
import datetime
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

import attention_branch as ab
from attention_branch.files import write_json
from official_code import NETWORKS, SOURCE, image_size, official_network, source_digest

ANSWERS = ("logits", "attention_logits", "map")


def unsettle(model: nn.Module, images: Tensor) -> None:
    """Give every batch norm random statistics near the true ones and a random scale and shift, as training would."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)
            norm.momentum = 1.0  # one pass in training mode sets the statistics to those of its batch
        model.train()(images)
        for norm in norms:
            norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_var *= 0.8 + 0.4 * torch.rand_like(norm.running_var)
    model.eval()


def checkpoint(model: nn.Module) -> dict[str, object]:
    """Return what the authors' training scripts save after an epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    weights = nn.DataParallel(model).state_dict()
    return {"epoch": 1, "state_dict": weights, "acc": 1.0, "best_acc": 1.0, "optimizer": optimizer.state_dict()}


def theirs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the authors' answer by our names."""
    with torch.no_grad():
        scores, logits, attention = model(images)
    return dict(zip(ANSWERS, (logits, scores, attention[0] if isinstance(attention, list) else attention), strict=True))


def ours(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return our answer."""
    with torch.no_grad():
        return dict(zip(ANSWERS, model(images), strict=True))


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest absolute difference of each answer."""
    return {key: float((one[key].double() - other[key].double()).abs().max()) for key in ANSWERS}


def compare(directory: str, name: str, num_classes: int, batch: int) -> dict[str, object]:
    """Return the largest absolute differences of a network's answers in float32 and float64."""
    torch.manual_seed(0)
    official = official_network(directory, name, num_classes)
    images = torch.randn(batch, 3, image_size(name), image_size(name), dtype=torch.float64)
    unsettle(official, images.float())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pth.tar"
        torch.save(checkpoint(official), path)
        model = ab.load_official(path, name)
    found: dict[str, object] = {
        "name": name,
        "num_classes": num_classes,
        "image_size": image_size(name),
        "parameters": {
            "theirs": sum(p.numel() for p in official.parameters()),
            "ours": sum(p.numel() for p in model.parameters()),
        },
    }
    answers = {}
    for precision, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        answers[precision] = theirs(official.to(dtype), images.to(dtype))
        found[precision] = differences(answers[precision], ours(model.to(dtype), images.to(dtype)))
    found["theirs_float32_to_float64"] = differences(answers["float32"], answers["float64"])
    found["range"] = {key: [float(value.min()), float(value.max())] for key, value in answers["float64"].items()}
    return found


def main() -> None:
    """Compare every network and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", required=True, help="folder of a checkout of the authors' code")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    if not (Path(options.official) / "models" / "cifar").is_dir():
        parser.error(f"--official is no checkout of {SOURCE}: '{options.official}' has no models/cifar")
    folder = Path(__file__).parent / "records" / f"{datetime.date.today():%Y-%m-%d}-official"
    path = Path(options.out) if options.out else folder / "equality.json"
    record = {
        "command": "python benchmarks/official.py --official DIR",
        "authors_code": {"source": SOURCE, "sha256_of_models": source_digest(options.official)},
        "versions": {name: version(name) for name in ("torch", "timm")} | {"python": platform.python_version()},
        "protocol": f"random weights and batch-norm statistics (seed 0), {options.batch} random images, eval mode; "
        "largest absolute difference between the authors' answer and that of the network load_official returns; beside "
        "it the authors' own rounding (their float32 against their float64) and the range of their answer",
        "networks": [],
    }
    for name in options.networks:
        found = compare(options.official, name, 1000 if image_size(name) == 224 else 100, options.batch)
        record["networks"].append(found)
        write_json(path, record)
        for precision in ("float32", "float64"):
            line = "  ".join(f"{key} {value:.1e}" for key, value in found[precision].items())
            print(f"{name:20} {precision}  {line}", flush=True)
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
