"""The loss against closed forms and hand-made cases."""

import math

import pytest
import torch
import torch.nn.functional as F

import attention_branch as ab
from attention_branch.models.loss import head_losses


def output(logits, attention_logits):
    return ab.ABNOutput(logits, attention_logits, torch.zeros(len(logits), 1, 2, 2))


def test_sum_of_two_cross_entropies_by_hand():
    losses = ab.abn_loss(output(torch.zeros(2, 4), torch.tensor([[0.0, math.log(3)]] * 2)), torch.tensor([0, 1]))
    assert losses.perception.item() == pytest.approx(math.log(4))
    assert losses.attention.item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)
    assert losses.total.item() == pytest.approx(losses.perception.item() + losses.attention.item())


def test_a_plain_network_has_no_attention_loss():
    losses = ab.abn_loss(torch.zeros(2, 4), torch.tensor([0, 1]))
    assert losses.attention.item() == 0
    assert losses.total.item() == pytest.approx(math.log(4))


def test_missing_labels_are_left_out_of_the_mean():
    logits = torch.randn(5, 3, dtype=torch.float64)
    losses = head_losses(logits, torch.tensor([0, -1, 2, -1, 1]))
    wanted = F.cross_entropy(logits[[0, 2, 4]].float(), torch.tensor([0, 2, 1]))
    assert losses["label"].item() == pytest.approx(wanted.item())
    assert head_losses(logits, torch.full((5,), -1))["label"].item() == 0


def test_missing_labels_send_no_gradient():
    logits = torch.randn(3, 2, requires_grad=True)
    head_losses(logits, torch.tensor([-1, 1, -1]))["label"].backward()
    assert logits.grad[[0, 2]].abs().max() == 0
    assert logits.grad[1].abs().max() > 0


def test_heads_are_summed_and_masked_one_by_one():
    scores = {"hair": torch.randn(4, 3), "young": torch.randn(4, 1), "hat": torch.randn(4, 2)}
    targets = {
        "hair": torch.tensor([0, 2, -1, 1]),
        "young": torch.tensor([1, -1, 0, -1]),
        "hat": torch.full((4,), -1),
    }
    wanted = F.cross_entropy(scores["hair"][[0, 1, 3]], torch.tensor([0, 2, 1])) + F.binary_cross_entropy(
        torch.sigmoid(scores["young"][[0, 2], 0]), torch.tensor([1.0, 0.0])
    )
    assert ab.abn_loss(scores, targets).total.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_soft_targets_and_label_smoothing_are_pytorchs():
    logits, hard = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    soft = torch.softmax(torch.randn(6, 5), 1)
    assert ab.abn_loss(logits, soft).total.item() == pytest.approx(F.cross_entropy(logits, soft).item())
    smoothed = ab.abn_loss(logits, hard, label_smoothing=0.1).total
    assert smoothed.item() == pytest.approx(F.cross_entropy(logits, hard, label_smoothing=0.1).item())


def test_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        losses = ab.abn_loss(torch.randn(4, 3).bfloat16(), torch.tensor([0, 1, 2, 0]))
    assert losses.total.dtype == torch.float32


def test_wrong_heads_are_named():
    with pytest.raises(ValueError, match="hat"):
        ab.abn_loss({"hat": torch.zeros(1, 2)}, {"hair": torch.tensor([0])})


def test_weights_multiply_each_images_loss_before_the_mean() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64)
    targets, weights = torch.tensor([0, 2, -1, 1]), torch.tensor([0.5, 1.0, 9.0, 0.0])
    each = -logits.float().log_softmax(1)
    wanted = (0.5 * each[0, 0] + each[1, 2]) / 3
    assert torch.allclose(ab.abn_loss(logits, targets, weights=weights).total, wanted)
    soft = torch.nn.functional.one_hot(targets.clamp_min(0), 3).double()
    assert torch.allclose(
        ab.abn_loss(logits[[0, 1, 3]], soft[[0, 1, 3]], weights=weights[[0, 1, 3]]).total, wanted, atol=1e-6
    )
