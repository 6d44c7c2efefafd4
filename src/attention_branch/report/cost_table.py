"""What `abn info` prints: the costs of a network with and without its branch, and where the gate sits."""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_costs(found: dict[str, Any], console: Console) -> None:
    """Print what `models.cost.describe` found."""
    height, width = found["image_size"]
    answers = f"{found['attributes']} yes/no attributes" if "attributes" in found else f"{found['num_classes']} classes"
    table = Table(title=f"{found['name']}, {answers}, {height}x{width} pixels", title_justify="left")
    for heading, side in (("network", "left"), ("parameters", "right"), ("multiply-adds", "right"), ("ratio", "right")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    for kind, row in found["networks"].items():
        label = {"plain": "plain backbone", "alone": "the system"}.get(kind, f"ABN, {kind} branch")
        table.add_row(
            label, f"{row['parameters'] / 1e6:.3f} M", f"{row['multiply_adds'] / 1e6:,.1f} M", f"{row['ratio']:.3f}"
        )
    console.print(table)
    if "alone" in found["networks"]:
        console.print("A system of its own: no attention branch is put on it.")
        return
    console.print(f"map:      {found['map_size'][0]}x{found['map_size'][1]} positions, one map for all classes")
    console.print(f"features: output of {found['features']}")
    console.print(f"gate:     {', '.join(found['gates'])} - {found['why']}", soft_wrap=True)
    console.print(f"proof:    random maps in [1, 2] move the logits by {found['effect']:.3f} (needs more than 0.001)")
    for kind, note in found["stages"].items():
        console.print(f"{kind + ':':<9} {note}", soft_wrap=True)
