"""Which of timm's families can be gated: the smallest member of each, built, proved and trained for one step.

    python benchmarks/families.py                    # all families, some ten minutes on two cores
    python benchmarks/families.py --families vit swin_transformer

The record goes to benchmarks/records/DATE-families/families.json and is extended family by family; a family that
stands there already is not run again.
"""

import argparse
import datetime
import json
import platform
import resource
import time
from importlib.metadata import version
from pathlib import Path

import timm
import torch
from timm.models._registry import _module_to_models

import attention_branch as ab
from attention_branch.files import write_json

# Networks with more than this many bytes of weights are left out: the proof runs in float64 on a copy.
LARGEST = 120e6


def smallest(family: str) -> tuple[str, int] | None:
    """Return the member of a family with the fewest weights, and their number; None if all are too large."""
    best: tuple[str, int] | None = None
    for name in sorted(_module_to_models[family]):
        with torch.device("meta"):
            try:
                count = sum(p.numel() for p in timm.create_model(name).parameters())
            except Exception:
                continue  # some cannot be built without data; another member stands for the family
        if best is None or count < best[1]:
            best = (name, count)
    return best if best and best[1] <= LARGEST else None


def trial(name: str) -> dict[str, object]:
    """Build, prove and train one step; return what happened."""
    began = time.perf_counter()
    try:
        model = ab.create_model(name, num_classes=3)
        size = model.config.fixed_size or (64, 64)
        if model.config.smallest_side > 64:
            size = model.preprocessing.size
        output = model(torch.randn(2, 3, *size))
        ab.abn_loss(output, torch.tensor([0, 1])).total.backward()
    except ab.UserError as refused:
        return {"works": False, "said": str(refused)}
    except Exception as failed:
        return {"works": False, "crashed": f"{type(failed).__name__}: {failed}"[:300]}
    made = model.construction
    return {
        "works": True,
        "features": model.place.features,
        "gates": list(model.place.gates),
        "map_size": list(made.map_size),
        "effect": made.proof.effect,
        "resumable": bool(model.place.tail),
        "stage": made.stage_note,
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    """Try every family and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=sorted(_module_to_models))
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    folder = Path(__file__).parent / "records" / f"{datetime.date.today():%Y-%m-%d}-families"
    path = Path(options.out) if options.out else folder / "families.json"
    done = json.loads(path.read_text())["families"] if path.exists() else {}
    torch.manual_seed(0)
    for family in options.families:
        if family in done:
            continue
        member = smallest(family)
        if member is None:
            done[family] = {"works": None, "said": f"no member with at most {LARGEST / 1e6:.0f} M weights"}
        else:
            done[family] = {"name": member[0], "parameters": member[1], **trial(member[0])}
        write_json(
            path,
            {
                "command": "python benchmarks/families.py",
                "versions": {name: version(name) for name in ("torch", "timm")} | {"python": platform.python_version()},
                "families": done,
            },
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{family:28} {done[family].get('name', ''):36} {done[family]['works']}  {peak:.1f} GiB", flush=True)
    tried = [entry for entry in done.values() if entry["works"] is not None]
    print(f"{sum(bool(entry['works']) for entry in tried)} of {len(tried)} families can be gated. Written to {path}")


if __name__ == "__main__":
    main()
