"""Schedule, optimiser groups, mixing, tallies, checkpoint files."""

import dataclasses
import errno
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attention_branch.errors import UserError
from attention_branch.models import ABNOutput, Losses, abn_loss
from attention_branch.training import TrainConfig
from attention_branch.training.checkpoints import CheckpointFiles
from attention_branch.training.mixing import Mixed, mix, mixed_loss
from attention_branch.training.optimization import make_optimizer, rate_factor
from attention_branch.training.tally import Tally


def test_cosine_rises_linearly_and_falls_to_zero() -> None:
    factor = rate_factor(TrainConfig(data="d", epochs=10, warmup_epochs=2), steps_per_epoch=5)
    assert [factor(step) for step in range(3)] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert factor(10) == 1
    assert factor(30) == pytest.approx(0.5 * (1 + math.cos(math.pi * 20 / 40)))
    assert factor(50) == pytest.approx(0, abs=1e-12)


def test_steps_drop_at_the_start_of_their_epochs() -> None:
    config = TrainConfig(data="d", epochs=4, schedule="steps", milestones=(1, 3), gamma=0.1)
    factor = rate_factor(config, steps_per_epoch=3)
    assert [factor(step) for step in (0, 2, 3, 8, 9)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_norms_and_biases_are_decayed_only_when_asked() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    config = TrainConfig(data="d", weight_decay=0.1)
    groups = make_optimizer(model, config).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(2, 0.1), (4, 0.0)]
    everything = make_optimizer(model, dataclasses.replace(config, decay_all=True, optimizer="sgd")).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in everything] == [(6, 0.1)]


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0)])
def test_mixed_images_hold_the_share_that_the_loss_uses(alphas: tuple[float, float]) -> None:
    # Constant images, so that an image's mean tells how much of each partner is in it.
    torch.manual_seed(3)
    values = torch.arange(6.0)
    images = values[:, None, None, None].expand(6, 3, 16, 16).contiguous()
    targets = torch.arange(6)
    mixed = mix(images, targets, *alphas)
    assert mixed.neighbours is not None
    assert mixed.neighbours.tolist() == [5, 0, 1, 2, 3, 4]
    expected = mixed.share * values + (1 - mixed.share) * values.roll(1)
    torch.testing.assert_close(mixed.images.mean((1, 2, 3)), expected)
    assert 0 < mixed.share < 1


def test_mixed_loss_is_cross_entropy_to_soft_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, generator=generator)
    targets, neighbours = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([3, 0, 1, 2, 3])
    soft = 0.3 * F.one_hot(targets, 4) + 0.7 * F.one_hot(neighbours, 4)
    loss = mixed_loss(abn_loss, logits, Mixed(logits, targets, neighbours, 0.3), 0.1)
    torch.testing.assert_close(loss.total, F.cross_entropy(logits, soft.float(), label_smoothing=0.1))


def test_no_mixing_leaves_the_batch_and_the_loss_alone() -> None:
    images, targets = torch.rand(2, 3, 4, 4), {"a": torch.tensor([0, -1])}
    mixed = mix(images, targets, 0.0, 0.0)
    assert mixed.images is images
    output = {"a": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}
    assert mixed_loss(abn_loss, output, mixed, 0.0) == abn_loss(output, targets)


def test_tally_counts_hits_of_both_branches_and_leaves_missing_labels_out() -> None:
    tally = Tally()
    tally.reset(torch.device("cpu"))
    logits = {"kind": torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]]), "old": torch.tensor([[1.0], [-1.0], [2.0]])}
    wrong = {"kind": logits["kind"].flip(1), "old": -logits["old"]}
    targets = {"kind": torch.tensor([0, 1, -1]), "old": torch.tensor([1, 1, -1])}
    output = ABNOutput(logits, wrong, torch.zeros(3, 2, 1, 1))
    tally.add(output, targets, Losses(torch.tensor(3.0), torch.tensor(1.0), torch.tensor(2.0)))
    read = tally.read(everywhere=False)
    assert read["accuracy"] == pytest.approx(3 / 4)
    assert read["attention_accuracy"] == pytest.approx(1 / 4)
    assert (read["loss"], read["attention_loss"], read["perception_loss"]) == (3, 1, 2)


def test_a_checkpoint_that_does_not_fit_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, path = CheckpointFiles(), tmp_path / "last.ckpt"
    files.save_checkpoint({"a": torch.ones(2)}, path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(UserError, match="disk is full"):
            files.save_checkpoint({"a": torch.zeros(2)}, path)
    assert files.load_checkpoint(path)["a"].tolist() == [1, 1]
    assert [item.name for item in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a": Evil()}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="no checkpoint of a run"):
        CheckpointFiles().load_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "ran").exists()


def test_mixed_loss_with_a_share_an_image_is_cross_entropy_to_soft_targets() -> None:
    logits, shares = torch.randn(4, 3), torch.tensor([1.0, 0.25, 0.5, 0.0])
    targets, neighbours = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 0, 1, 1])
    one_hot = torch.nn.functional.one_hot
    soft = shares[:, None] * one_hot(targets, 3) + (1 - shares)[:, None] * one_hot(neighbours, 3)
    mixed = Mixed(logits, targets, neighbours, shares)
    wanted = torch.nn.functional.cross_entropy(logits, soft, label_smoothing=0.1)
    assert torch.allclose(mixed_loss(abn_loss, logits, mixed, 0.1).total, wanted)
    assert mixed.owners().tolist() == [0, 0, 2, 1]
