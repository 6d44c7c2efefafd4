"""Numbers for maps: each with its n, its interval and the protocol it was measured by."""

from typing import TYPE_CHECKING

from attention_branch.lazy import lazy_names

if TYPE_CHECKING:
    from attention_branch.metrics.collapse import collapse_alarm
    from attention_branch.metrics.distraction import Distraction, distraction
    from attention_branch.metrics.drive import MapDrive, map_drive
    from attention_branch.metrics.drive_result import MapDriveResult
    from attention_branch.metrics.faithfulness import Deletion, Insertion, InsertionMinusDeletion
    from attention_branch.metrics.filters import location_instability, part_centres, part_interpretability
    from attention_branch.metrics.grid import GridPointingGame, Mosaics, grid_mosaics
    from attention_branch.metrics.localisation import BoxIoU, EnergyPointingGame
    from attention_branch.metrics.masking import ADCC, AverageDrop, AverageGain, IncreaseInConfidence
    from attention_branch.metrics.metric import Metric
    from attention_branch.metrics.pointing import PointingGame
    from attention_branch.metrics.regions import box_masks
    from attention_branch.metrics.road import Road
    from attention_branch.metrics.sanity import Randomization, branch_randomization, cascading_randomization
    from attention_branch.metrics.shape import Entropy, GiniSparsity
    from attention_branch.metrics.stability import MaxSensitivity
    from attention_branch.metrics.statistics import MetricResult, PairedDifference, paired_difference

__all__ = [
    "ADCC",
    "AverageDrop",
    "AverageGain",
    "BoxIoU",
    "Deletion",
    "Distraction",
    "EnergyPointingGame",
    "Entropy",
    "GiniSparsity",
    "GridPointingGame",
    "IncreaseInConfidence",
    "Insertion",
    "InsertionMinusDeletion",
    "MapDrive",
    "MapDriveResult",
    "MaxSensitivity",
    "Metric",
    "MetricResult",
    "Mosaics",
    "PairedDifference",
    "PointingGame",
    "Randomization",
    "Road",
    "box_masks",
    "branch_randomization",
    "cascading_randomization",
    "collapse_alarm",
    "distraction",
    "grid_mosaics",
    "location_instability",
    "map_drive",
    "paired_difference",
    "part_centres",
    "part_interpretability",
]

lazy_names(
    __name__,
    {
        ".collapse": ("collapse_alarm",),
        ".distraction": ("Distraction", "distraction"),
        ".drive": ("MapDrive", "map_drive"),
        ".drive_result": ("MapDriveResult",),
        ".faithfulness": ("Deletion", "Insertion", "InsertionMinusDeletion"),
        ".filters": ("location_instability", "part_centres", "part_interpretability"),
        ".grid": ("GridPointingGame", "Mosaics", "grid_mosaics"),
        ".localisation": ("BoxIoU", "EnergyPointingGame"),
        ".masking": ("ADCC", "AverageDrop", "AverageGain", "IncreaseInConfidence"),
        ".metric": ("Metric",),
        ".pointing": ("PointingGame",),
        ".regions": ("box_masks",),
        ".road": ("Road",),
        ".sanity": ("Randomization", "branch_randomization", "cascading_randomization"),
        ".shape": ("Entropy", "GiniSparsity"),
        ".stability": ("MaxSensitivity",),
        ".statistics": ("MetricResult", "PairedDifference", "paired_difference"),
    },
)
