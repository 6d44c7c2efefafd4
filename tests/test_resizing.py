"""Maps at another size without torch: against torch's own interpolation, up and down."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from attention_branch.arrays import as_array
from attention_branch.explanations.overlay import map_values, to_picture
from attention_branch.explanations.resizing import resized, upsample

SIZES = [(1, 1), (1, 5), (2, 2), (7, 7), (13, 4), (8, 31), (64, 48), (224, 224)]


@pytest.mark.parametrize("source", SIZES)
@pytest.mark.parametrize("target", SIZES)
def test_resizing_is_torchs_bilinear(source, target):
    values = np.random.default_rng(0).standard_normal((2, *source))
    expected = F.interpolate(torch.from_numpy(values)[:, None], size=target, mode="bilinear", align_corners=False)[:, 0]
    assert np.abs(resized(values, *target) - expected.numpy()).max() < 1e-12
    assert resized(values.astype(np.float32), *target).dtype == np.float32
    assert np.allclose(resized(values, *target), upsample(torch.from_numpy(values), *target).numpy(), atol=1e-12)


def test_no_value_leaves_its_maps_range():
    constant = np.full((1, 3, 5), np.float32(0.1) / 3)
    assert np.unique(resized(constant, 32, 47)).tolist() == np.unique(constant).tolist()


def test_tensors_of_any_kind_are_drawn():
    values = torch.rand(4, 5, dtype=torch.bfloat16, requires_grad=True)
    assert np.array_equal(as_array(values), values.detach().double().numpy())
    assert map_values(values, 10, 8).shape == (8, 10)
    image = torch.rand(3, 6, 7) * 1.2 - 0.1
    expected = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(to_picture(image)), expected)
    assert np.array_equal(np.asarray(to_picture(image.numpy())), expected)
    assert np.array_equal(np.asarray(to_picture(image[:1]))[..., 2], expected[..., 0])
