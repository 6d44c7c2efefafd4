"""The published numbers, as they stand in the paper's tables; nothing here was measured by us.

Fukui, Hirakawa, Yamashita, Fujiyoshi, "Attention Branch Network", CVPR 2019 (arXiv 1812.10025). How they came about:
the authors' logs show the best epoch on the test set, one seed, and "ResNet-44, -56, -110" of 65, 83 and 164 layers.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One number of a table: top-1 error or accuracy in percent, or a count of attributes."""

    table: str
    row: str
    column: str
    value: float
    unit: str
    own: bool = False
    """Whether the authors ran the baseline themselves (the tables' asterisk)."""

    @property
    def printed(self) -> str:
        """Return the number as the table prints it."""
        if self.unit == COUNT:
            return f"{self.value:g}"
        if self.table == "table2":
            text = _TABLE2[self.row][_SETS.index(self.column)]
            assert text is not None
            return text
        return f"{self.value:.{1 if self.table == 'table3' else 2}f}"


ERROR, ACCURACY, COUNT = "error %", "accuracy %", "of 40"

_MECHANISMS = ("g(x)", "g(x)*M(x)", "g(x)*(1+M(x))")
_TABLE1 = {
    "ResNet20": (31.47, 30.61, 30.46),
    "ResNet32": (30.13, 28.34, 27.91),
    "ResNet44": (25.90, 24.83, 25.59),
    "ResNet56": (25.61, 24.22, 24.07),
    "ResNet110": (24.14, 23.28, 22.82),
}

_SETS = ("CIFAR10", "CIFAR100", "SVHN", "ImageNet")
# None where the table has a dash; "*" for the authors' own run of a baseline.
_TABLE2: dict[str, tuple[str | None, ...]] = {
    "VGGNet": (None, None, None, "31.2"),
    "VGGNet+BN": (None, None, None, "26.24*"),
    "ResNet": ("6.43", "24.14*", "2.18*", "22.19*"),
    "VGGNet+CAM": (None, None, None, "33.4"),
    "VGGNet+BN+CAM": (None, None, None, "27.42*"),
    "ResNet+CAM": (None, None, None, "22.11*"),
    "WideResNet": ("4.00", "19.25", "2.42*", "21.9"),
    "DenseNet": ("4.51", "22.27", "2.07*", "22.2"),
    "ResNeXt": ("3.84*", "18.32*", "2.16*", "22.4"),
    "Attention": ("3.90", "20.45", None, "21.76"),
    "AttentionNeXt": (None, None, None, "21.20"),
    "SENet": (None, None, None, "21.57"),
    "VGGNet+BN+ABN": (None, None, None, "25.55"),
    "ResNet+ABN": ("4.91", "22.82", "1.86", "21.37"),
    "WideResNet+ABN": ("3.78", "18.12", "2.24", None),
    "DenseNet+ABN": ("4.17", "21.63", "2.01", None),
    "ResNeXt+ABN": ("3.80", "17.70", "2.01", None),
    "SENet+ABN": (None, None, None, "20.77"),
}

_TASKS = ("model", "maker")
_TABLE3 = {
    "VGG16": (85.9, 90.4),
    "ResNet101": (90.2, 90.1),
    "VGG16+ABN": (90.7, 92.9),
    "ResNet101+ABN": (97.1, 98.1),
}

AVERAGE, ODDS = "average accuracy", "odds"
_TABLE4 = {
    "FaceTracer": (81.13, 40),
    "PANDA-1": (85.43, 39),
    "LNet+ANet": (87.30, 37),
    "MOON": (90.93, 29),
    "ResNet101": (90.69, 27),
    "ABN": (91.07, None),
}


def _all() -> tuple[Published, ...]:
    found = [
        Published("table1", row, column, value, ERROR)
        for row, values in _TABLE1.items()
        for column, value in zip(_MECHANISMS, values, strict=True)
    ]
    found += [
        Published("table2", row, column, float(value.rstrip("*")), ERROR, own=value.endswith("*"))
        for row, values in _TABLE2.items()
        for column, value in zip(_SETS, values, strict=True)
        if value is not None
    ]
    found += [
        Published("table3", row, column, value, ACCURACY)
        for row, values in _TABLE3.items()
        for column, value in zip(_TASKS, values, strict=True)
    ]
    for row, (average, odds) in _TABLE4.items():
        found.append(Published("table4", row, AVERAGE, average, ACCURACY))
        if odds is not None:
            found.append(Published("table4", row, ODDS, odds, COUNT))
    return tuple(found)


PUBLISHED = _all()
TABLES = {
    "table1": "Table 1. Attention mechanisms, CIFAR-100, top-1 error (%)",
    "table2": "Table 2. Image classification, top-1 error (%)",
    "table3": "Table 3. Fine-grained recognition, Comp-Cars, accuracy (%)",
    "table4": "Table 4. Facial attributes, CelebA, accuracy (%) and attributes won",
}
