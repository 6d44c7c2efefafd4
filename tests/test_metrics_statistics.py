"""Paired differences and intervals against scipy and closed forms, and metrics gathered over two processes."""

import math
import multiprocessing

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy import stats
from torch import nn

from attention_branch import ABNOutput
from attention_branch.errors import UserError
from attention_branch.metrics import (
    BoxIoU,
    EnergyPointingGame,
    MapDrive,
    MetricResult,
    PointingGame,
    paired_difference,
)
from attention_branch.metrics.statistics import bootstrap_interval


def result(values, digest=None):
    values = torch.tensor(values, dtype=torch.float64)
    known = values[~values.isnan()]
    protocol = {} if digest is None else {"images_sha256": digest}
    return MetricResult(known.mean().item() if len(known) else math.nan, None, len(known), values, protocol)


def test_a_paired_difference_by_hand():
    """Six differences of one sign: of the 64 ways to sign their ranks, two are as far from the middle."""
    first, second = [1.0, 2.5, 4.0, 6.0, 8.5, 11.0, math.nan, 3.0], [0.5, 1.5, 2.5, 4.0, 6.0, 8.0, 1.0, math.nan]
    found = paired_difference(result(first), result(second))
    differences = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert (found.n, found.higher, found.lower, found.equal) == (6, 6, 0, 0)
    assert found.mean == pytest.approx(np.mean(differences))
    assert found.p_value == pytest.approx(2 / 2**6)
    generator = np.random.default_rng(0)
    means = [generator.choice(differences, 6).mean() for _ in range(4000)]
    assert found.interval == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.1)
    mirrored = paired_difference(result(second), result(first))
    assert mirrored.mean == pytest.approx(-found.mean)
    assert mirrored.p_value == pytest.approx(found.p_value)
    assert (mirrored.higher, mirrored.lower) == (0, 6)


def test_a_clear_difference_needs_interval_test_and_images():
    """Of five signs, all alike, a two-sided sign test says 2 / 32 = 0.0625, whatever the bootstrap says."""
    rising = np.arange(1.0, 9.0)
    for count, clear in ((1, False), (2, False), (5, False), (6, True), (8, True)):
        found = paired_difference(result(rising[:count]), result(np.zeros(count)))
        assert found.clear is clear
        assert found.to_dict()["clear"] is clear
        assert count < 2 or found.interval[0] > 0
    # Many zeros make the test approximate, and too sure of itself.
    sparse = paired_difference(result(np.r_[np.ones(5), np.zeros(90)]), result(np.zeros(95)))
    assert sparse.p_value < 0.05
    assert sparse.interval[0] > 0
    assert not sparse.clear
    # Eight small steps up and one large one down: the test is sure, the mean is not.
    mixed = paired_difference(result(np.r_[rising / 100, -0.5]), result(np.zeros(9)))
    assert mixed.interval[0] < 0 < mixed.interval[1]
    assert not mixed.clear
    # Many small ones down and few large ones up: the mean is sure, the test is not.
    skewed = paired_difference(result(np.r_[np.full(20, -0.1), np.full(12, 1.0)]), result(np.zeros(32)))
    assert skewed.interval[0] > 0
    assert skewed.p_value > 0.05
    assert not skewed.clear


def test_zero_differences_are_ranked_and_then_left_out():
    """Pratt's rule with its normal approximation, from the ranks themselves."""
    differences = np.array([0.0, 0.0, 0.0, 1.0, -2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, -0.5] * 3)
    found = paired_difference(result(differences), result(np.zeros(36)))
    assert (found.higher, found.lower, found.equal) == (21, 6, 9)
    ranks = stats.rankdata(np.abs(differences))
    signed = ranks * np.sign(differences)
    # Under the null each rank that is no zero's gets its sign by a fair coin: mean 0, variance the sum of squares.
    z = signed.sum() / math.sqrt((ranks[differences != 0] ** 2).sum())
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-6)
    same = paired_difference(result(differences), result(differences))
    assert (same.p_value, same.mean, same.interval, same.equal) == (None, 0.0, (0.0, 0.0), 36)
    assert same.to_dict()["p_value"] is None


def test_results_of_other_images_have_no_paired_difference():
    with pytest.raises(UserError, match="not of the same images"):
        paired_difference(result([1.0, 2.0]), result([1.0]))
    with pytest.raises(UserError, match="not of the same images"):
        paired_difference(result([1.0, 2.0], "a"), result([1.0, 2.0], "b"))
    assert paired_difference(result([1.0, 2.0], "a"), result([1.0, 2.0])).n == 2
    nothing = paired_difference(result([math.nan]), result([1.0]))
    assert (nothing.n, nothing.interval, nothing.p_value) == (0, None, None)
    assert nothing.to_dict()["mean"] is None


def test_the_interval_of_a_statistic_of_several_columns():
    generator = np.random.default_rng(0)
    values = generator.random((80, 2)) + 0.5

    def ratio(above, below, axis=-1):
        return above.mean(axis) / below.mean(axis)

    found = bootstrap_interval(values, 3, ratio)
    ratios = []
    for _ in range(4000):
        rows = values[generator.integers(0, 80, 80)]
        ratios.append(rows[:, 0].mean() / rows[:, 1].mean())
    assert found == pytest.approx(np.percentile(ratios, [2.5, 97.5]), abs=0.01)


# --- two processes ---


def corners(count):
    """Images, maps whose maximum wanders, and the upper half as object; some images without one."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(count, 6, 6, generator=generator, dtype=torch.float64)
    images = torch.rand(count, 3, 6, 6, generator=generator)
    masks = [None if row % 4 == 3 else torch.arange(36).reshape(6, 6) < 18 for row in range(count)]
    return images, maps, masks


def metrics():
    return [PointingGame(0), PointingGame(0, average="class"), EnergyPointingGame(), BoxIoU(thresholds=5)]


class Brightest(nn.Module):
    """Answers with the brightest place of its map, which is its picture's first channel."""

    is_abn = True
    mechanism = "residual"

    def forward(self, images, attention=None, attention_logits=True):
        maps = images[:, :1] if attention is None else attention
        return ABNOutput(maps.flatten(1), None, maps)


def collect(rows):
    images, maps, masks = (values[rows] for values in corners(10))
    found = metrics()
    for metric in found:
        metric.update(None, images, maps, torch.arange(len(images)) % 2, masks)
    drive = MapDrive()
    drive.update(Brightest().eval(), images, torch.zeros(len(images), dtype=torch.int64))
    return found, drive


def process(rank, meeting, answers):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found, drive = collect(slice(0, 6) if rank == 0 else slice(6, 10))
    gathered = [metric.gather().compute() for metric in found]
    driven = drive.gather().compute()
    if rank == 1:
        numbers = [(one.mean, one.interval, one.n, one.counts, one.values.numpy(), one.protocol) for one in gathered]
        answers.put((numbers, driven.to_dict()))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_hold_what_one_holds(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    started = [context.Process(target=process, args=(rank, tmp_path / "meet", answers)) for rank in range(2)]
    for one in started:
        one.start()
    numbers, driven = answers.get(timeout=120)
    for one in started:
        one.join(60)
        assert one.exitcode == 0
    first, _ = collect(slice(0, 6))
    _, maps, masks = corners(10)
    images, _, _ = corners(10)
    for metric, (mean, interval, n, counts, values, protocol) in zip(first, numbers, strict=True):
        # The same images in the same order, in one process.
        metric.update(None, images[6:], maps[6:], torch.arange(4) % 2, masks[6:])
        alone = metric.compute()
        assert (mean, interval, n, counts) == (alone.mean, alone.interval, alone.n, alone.counts)
        np.testing.assert_array_equal(values, alone.values.numpy())
        assert protocol == alone.protocol
        assert n == 8
    assert driven["n"] == 10
    assert driven["rows"]["own"]["agreement"]["mean"] == 1.0
    assert driven["counts"] == {"unlabelled": 0, "no_other_image": 0}


def test_a_state_merges_into_another_metric():
    images, maps, masks = corners(10)
    whole, first, second = (metrics() for _ in range(3))
    for metric, part, rest in zip(whole, first, second, strict=True):
        metric.update(None, images, maps, torch.arange(10) % 2, masks)
        part.update(None, images[:6], maps[:6], torch.arange(6) % 2, masks[:6])
        rest.update(None, images[6:], maps[6:], torch.arange(6, 10) % 2, masks[6:])
        part.merge(rest.state())
        merged, expected = part.compute(), metric.compute()
        assert (merged.mean, merged.counts, merged.protocol) == (expected.mean, expected.counts, expected.protocol)
        assert f"n = {merged.n})" in repr(merged)
        assert len(repr(merged)) < 120


def test_a_state_of_another_protocol_is_refused_before_anything_is_added():
    images, maps, masks = corners(4)
    metric = PointingGame(0)
    metric.update(None, images, maps, None, masks)
    before = metric.compute()
    for other in (PointingGame(3), EnergyPointingGame(), PointingGame(0, average="class")):
        with pytest.raises(UserError, match="not one of 'pointing game' by the same protocol"):
            metric.merge(other.state())
    assert metric.compute().protocol == before.protocol
    assert metric.compute().n == before.n


def test_without_other_processes_a_gathered_metric_is_a_copy():
    found, drive = collect(slice(0, 6))
    for metric in found:
        again = metric.gather()
        assert again is not metric
        assert again.compute().mean == metric.compute().mean
        again.reset()
        assert metric.compute().n > 0
    copied = drive.gather()
    copied.reset()
    assert drive.compute().n == 6
