"""One string names the data; out come train, validation and test pictures with their targets."""

from typing import TYPE_CHECKING

from attention_branch.lazy import lazy_names

if TYPE_CHECKING:
    from attention_branch.data.augment import AUGMENTATIONS
    from attention_branch.data.check import Report, check_data
    from attention_branch.data.dataset import DataSet, ImageSet, Sample
    from attention_branch.data.images import find_images, open_image
    from attention_branch.data.loader import ImageLoader, make_loader
    from attention_branch.data.opening import DATA_NAMES, open_data
    from attention_branch.data.regions import transform_mask

__all__ = [
    "AUGMENTATIONS",
    "DATA_NAMES",
    "DataSet",
    "ImageLoader",
    "ImageSet",
    "Report",
    "Sample",
    "check_data",
    "find_images",
    "make_loader",
    "open_data",
    "open_image",
    "transform_mask",
]

lazy_names(
    __name__,
    {
        ".augment": ("AUGMENTATIONS",),
        ".check": ("Report", "check_data"),
        ".dataset": ("DataSet", "ImageSet", "Sample"),
        ".images": ("find_images", "open_image"),
        ".loader": ("ImageLoader", "make_loader"),
        ".opening": ("DATA_NAMES", "open_data"),
        ".regions": ("transform_mask",),
    },
)
