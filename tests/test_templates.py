"""Templates and mutual information against loops, closed forms and finite differences in float64."""

import itertools
import math

import numpy as np
import pytest
import torch

from attention_branch.models.interpretable.released import released_loss, released_mask, strengths
from attention_branch.models.interpretable.templates import (
    centroid,
    fits,
    l1_template,
    log_likelihoods,
    log_prior,
    mutual_information_loss,
    own_template_loss,
    own_template_pull,
    peak,
    template_bank,
)


def maps(images=5, filters=3, side=4, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.rand(images, filters, side, side, generator=generator, dtype=torch.float64)


def test_templates_are_those_of_the_paper():
    """T_mu = tau max(1 - beta |[i, j] - mu|_1 / n, -1) for every mu, then T^- = -tau; tau = 0.5 / n^2, beta = 4."""
    n, tau = 5, 0.5 / 25
    bank = template_bank(n, n)
    assert bank.shape == (n * n + 1, n, n)
    for (a, b), (i, j) in itertools.product(itertools.product(range(n), repeat=2), repeat=2):
        wanted = tau * max(1 - 4 * (abs(i - a) + abs(j - b)) / n, -1)
        assert bank[a * n + b, i, j].item() == pytest.approx(wanted, abs=1e-7)
    assert torch.equal(bank[-1], torch.full((n, n), -tau))


def test_the_prior_is_that_of_the_paper():
    n = 6
    alpha = n**2 / (1 + n**2)
    assert math.exp(log_prior(n * n)) == pytest.approx(alpha / n**2)
    assert math.exp(log_prior(n * n)) == pytest.approx(1 - alpha)


def loop_information(x):
    """Return MI(X; T) of one filter's maps (N, h, w), from the definition, in plain numbers."""
    count, n = len(x), x.shape[-1]
    bank = template_bank(n, n).double()
    fit = np.array([[float((image * template).sum()) for template in bank] for image in x])
    joint = np.exp(fit)
    given = joint / joint.sum(0)  # p(x | T)
    prior = 1 / len(bank)
    alone = given.sum(1) * prior
    return sum(
        prior * given[i, t] * math.log(given[i, t] / alone[i]) for i in range(count) for t in range(len(bank))
    ), given, alone, prior, bank  # fmt: skip


def test_mutual_information_equals_its_definition():
    x = maps(scale=20)
    loss = mutual_information_loss(fits(x, template_bank(4, 4).double()))
    for number in range(x.shape[1]):
        assert loss[number].item() == pytest.approx(-loop_information(x[:, number])[0], rel=1e-9)
    assert (loss <= 0).all()
    assert (loss >= -math.log(len(x))).all()


def test_its_gradient_is_the_closed_form():
    """Of -p(T) p(x | T) {log(p(x | T) / p(x)) - KL_T} t: the paper's eq. 4, plus what Z_T itself depends on x."""
    x = maps(scale=20).requires_grad_()
    mutual_information_loss(fits(x, template_bank(4, 4).double())).sum().backward()
    for number in range(x.shape[1]):
        _, given, alone, prior, bank = loop_information(x[:, number].detach())
        ratio = np.log(given / alone[:, None])
        divergence = (given * ratio).sum(0)  # KL(p(x | T) || p(x))
        weight = -prior * given * (ratio - divergence)
        assert np.allclose(x.grad[:, number].numpy(), np.einsum("nt,thw->nhw", weight, bank.numpy()), atol=1e-15)


def test_with_z_held_the_gradient_is_the_paper_s_equation():
    """Sum over T of p(T) t e^{tr(x T)} / Z_T {tr(x T) - log[Z_T p(x)]}, with the sign that lowers the loss."""
    x = maps(filters=1, scale=20)[:, 0].requires_grad_()
    bank = template_bank(4, 4).double()
    fit = torch.einsum("nhw,thw->nt", x, bank)
    z = fit.exp().sum(0).detach()
    given = fit.exp() / z
    alone = given.mean(1)
    (-(given * (given / alone[:, None]).log()).sum() / len(bank)).backward()
    with torch.no_grad():
        paper = torch.einsum("nt,thw->nhw", given / len(bank) * (fit - (z * alone[:, None]).log()), bank)
    assert torch.allclose(x.grad, -paper, atol=1e-15)


def test_its_gradient_agrees_with_finite_differences():
    bank = template_bank(3, 3).double()
    x = maps(images=3, filters=2, side=3, scale=10).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: mutual_information_loss(fits(values, bank)), x, eps=1e-6, atol=1e-9)


def test_the_own_template_s_gradient_is_one_term_of_the_paper_s():
    x = maps(filters=2, scale=20).requires_grad_()
    own = torch.tensor([[0, 16], [3, 5], [16, 16], [7, 2], [11, 0]])
    own_template_loss(fits(x, template_bank(4, 4).double()), own).sum().backward()
    for number in range(2):
        _, given, alone, prior, bank = loop_information(x[:, number].detach())
        for image, template in enumerate(own[:, number].tolist()):
            pull = prior * given[image, template] * math.log(given[image, template] / alone[image])
            assert torch.allclose(x.grad[image, number], -pull * bank[template], atol=1e-16)


def test_large_activations_do_not_overflow():
    scores = fits(maps(scale=1e5).float(), template_bank(4, 4))
    assert scores.abs().max() > 1000  # exp of it is infinite
    given, alone = log_likelihoods(scores)
    assert torch.allclose(given.exp().sum(0), torch.ones(()))
    assert torch.allclose(alone.exp().sum(0), torch.ones(()))
    assert mutual_information_loss(scores).isfinite().all()


def test_one_image_says_nothing():
    scores = fits(maps(images=1, scale=5), template_bank(4, 4).double())
    assert torch.equal(mutual_information_loss(scores), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(own_template_pull(scores, torch.zeros(1, 3, dtype=torch.long)), torch.zeros(1, 3).double())


def test_peaks_and_centres_by_hand():
    x = torch.zeros(1, 3, 3, 4)
    x[0, 0, 1, 2] = 5.0
    x[0, 1, 0, 0], x[0, 1, 2, 3] = 1.0, 1.0  # centre of mass: row 1, column 1.5, rounded up
    assert [part.tolist() for part in peak(x)] == [[[1, 0, 0]], [[2, 0, 0]]]
    assert [part.tolist() for part in centroid(x)] == [[[1, 1, 0]], [[2, 2, 0]]]


def test_a_template_on_a_grid_that_is_no_square():
    found = l1_template(torch.tensor([1]), torch.tensor([2]), (2, 8))[0]
    for i, j in itertools.product(range(2), range(8)):
        assert found[i, j].item() == pytest.approx(max(1 - 4 * (abs(i - 1) / 2 + abs(j - 2) / 8), -1))


def matlab(x, own, other, slope, classes):
    """Return the released code's gradient of maps (h, w, depth, batch), written after it line by line, and its mask."""
    h, w, depth, batch = x.shape
    line_y, line_x = np.linspace(-1, 1, h), np.linspace(-1, 1, w)
    mask = np.zeros_like(x)
    for d, b in itertools.product(range(depth), range(batch)):
        mass = max(x[:, :, d, b].sum(), 1e-9)
        row = max(math.floor((np.arange(1, h + 1)[:, None] * x[:, :, d, b]).sum() / mass + 0.5), 1) - 1
        column = max(math.floor((np.arange(1, w + 1)[None] * x[:, :, d, b]).sum() / mass + 0.5), 1) - 1
        distance = np.abs(line_y - line_y[row])[:, None] + np.abs(line_x - line_x[column])[None]
        mask[:, :, d, b] = np.maximum(1 - distance * slope[d], -1)
    alpha = 0.5
    strength = (x * mask).mean((0, 1))
    reverse = (x * mask[:, :, ::-1, ::-1]).mean((0, 1))
    log_z_pos = alpha * np.log(np.exp(reverse / alpha).mean(1))
    log_z_neg = alpha * np.log(np.exp(-x.mean((0, 1)) / alpha).mean(1))
    gradient = np.zeros_like(x)
    for d in range(depth):
        positives, negatives = np.flatnonzero(own[:, d]), np.flatnonzero(other[:, d])
        pull = np.exp(strength[d, positives] / alpha) * (strength[d, positives] - log_z_pos[d] + alpha)
        size = x[:, :, d, negatives].mean((0, 1))
        push = np.exp(-size / alpha) * (-size - log_z_neg[d] + alpha)
        for number, b in enumerate(positives):
            gradient[:, :, d, b] -= mask[:, :, d, b] * pull[number] / pull.mean() * 0.1 * 1e-5 * 0.5 * classes
        for number, b in enumerate(negatives):
            gradient[:, :, d, b] += push[number] / push.mean() * 0.1 * 1e-5 * 0.5 / (1 - 1 / classes)
    return gradient, mask


def test_the_released_gradient_is_that_of_the_authors_code():
    x = maps(images=6, filters=4, side=5, scale=3).requires_grad_()
    own = torch.rand(6, 4, generator=torch.Generator().manual_seed(3)) < 0.4
    slope = torch.tensor([2.0, 1.5, 3.0, 2.5], dtype=torch.float64)
    mask = released_mask(x.detach(), slope)
    pulls = strengths(x.detach(), mask, own, ~own, slope)
    released_loss(x, mask, pulls, 12).sum().backward()
    gradient, masks = matlab(x.detach().permute(2, 3, 1, 0).numpy(), own.numpy(), ~own.numpy(), slope.numpy(), 12)
    assert np.allclose(mask.permute(2, 3, 1, 0).numpy(), masks)
    assert np.allclose(x.grad.permute(2, 3, 1, 0).numpy(), gradient, rtol=1e-9, atol=1e-18)


def test_the_wanted_slope_is_three_over_the_spread_within_limits():
    x = torch.zeros(2, 3, 9, 9, dtype=torch.float64)
    x[:, 0, 4, 4] = 1.0  # no spread: the steepest
    x[:, 1, 4, 1], x[:, 1, 4, 7], x[:, 1, 4, 4] = 1.0, 1.0, 1.5  # sqrt(18 / 3.5) cells: 1.32, below the least
    x[:, 2, 2, 4], x[:, 2, 6, 4], x[:, 2, 4, 4] = 1.0, 1.0, 4.0  # sqrt(8 / 6) cells: 3 / 1.155 = 2.598
    slope = torch.full((3,), 2.0, dtype=torch.float64)
    everywhere = torch.ones(2, 3, dtype=torch.bool)
    found = strengths(x, released_mask(x, slope), everywhere, ~everywhere, slope).slope
    assert found.tolist() == pytest.approx([3.0, 1.5, 3 / math.sqrt(8 / 6)])
