"""The losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from core_agent.networks import losses
from core_agent.networks.types import Gaussian


def gaussian(mean: float, log_std: float, shape: tuple[int, ...]) -> Gaussian:
    return Gaussian(torch.full(shape, mean), torch.full(shape, log_std))


def test_info_nce_of_identical_logits_is_log_n():
    features = torch.ones(3, 4, 5)
    result = losses.info_nce(features, features, torch.tensor(0.7), torch.ones(3, 4))
    assert result.loss.item() == pytest.approx(math.log(12), rel=1e-6)


def test_info_nce_is_the_mean_of_both_cross_entropies():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2, 3, 4, generator=generator).unbind()
    result = losses.info_nce(x, y, torch.tensor(1.3), torch.ones(2, 3))
    flat_x, flat_y = x.reshape(6, 4), y.reshape(6, 4)
    total = 0.0
    for i in range(6):
        row = [1.3 * float(flat_x[i] @ flat_y[j]) for j in range(6)]
        column = [1.3 * float(flat_x[j] @ flat_y[i]) for j in range(6)]
        total -= 0.5 * (row[i] - math.log(sum(map(math.exp, row))))
        total -= 0.5 * (column[i] - math.log(sum(map(math.exp, column))))
    assert result.loss.item() == pytest.approx(total / 6, rel=1e-5)


def test_info_nce_accuracy_counts_the_pairs_that_score_highest():
    features = torch.eye(4).reshape(2, 2, 4)
    swapped = features.clone()
    swapped[0, 0], swapped[0, 1] = features[0, 1], features[0, 0]
    scale, mask = torch.tensor(5.0), torch.ones(2, 2)
    assert losses.info_nce(features, features, scale, mask).accuracy.item() == 1.0
    assert losses.info_nce(features, swapped, scale, mask).accuracy.item() == 0.5


@pytest.mark.parametrize(
    ("negatives", "n_candidates"), [("all", 12), ("other_sequences", 10), ("same_sequence", 3)]
)
def test_info_nce_candidates_follow_the_choice_of_negatives(negatives, n_candidates):
    # 3 steps x 4 sequences: each pair competes with itself and its negatives.
    features = torch.ones(3, 4, 2)
    result = losses.info_nce(features, features, torch.tensor(1.0), torch.ones(3, 4), negatives)
    assert result.loss.item() == pytest.approx(math.log(n_candidates), rel=1e-6)


def test_info_nce_ignores_padding():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 2, 4, generator=generator).unbind()
    mask = torch.ones(3, 2)
    mask[2] = 0
    scale = torch.tensor(1.0)
    padded = losses.info_nce(x, y, scale, mask)
    short = losses.info_nce(x[:2], y[:2], scale, torch.ones(2, 2))
    assert padded.loss.item() == pytest.approx(short.loss.item(), rel=1e-6)
    assert padded.accuracy.item() == pytest.approx(short.accuracy.item())


def test_info_nce_trains_both_sides():
    x = torch.randn(2, 2, 3, requires_grad=True)
    y = torch.randn(2, 2, 3, requires_grad=True)
    losses.info_nce(x, y, torch.tensor(1.0), torch.ones(2, 2)).loss.backward()
    assert x.grad.abs().sum() > 0
    assert y.grad.abs().sum() > 0


def test_kl_of_equal_gaussians_is_zero():
    p = gaussian(0.3, -0.5, (2, 3))
    assert losses.gaussian_kl(p, p).abs().max().item() < 1e-6


def test_kl_by_hand():
    # KL(N(1, 1) || N(0, 2²)) = log 2 + (1 + 1) / 8 - 1/2, in each of three dimensions.
    kl = losses.gaussian_kl(gaussian(1.0, 0.0, (3,)), gaussian(0.0, math.log(2), (3,)))
    assert kl.item() == pytest.approx(3 * (math.log(2) + 0.25 - 0.5), rel=1e-6)


def test_entropy_of_a_standard_normal():
    entropy = losses.gaussian_entropy(gaussian(0.0, 0.0, (2,)))
    assert entropy.item() == pytest.approx(2 * 0.5 * math.log(2 * math.pi * math.e), rel=1e-6)


def test_balanced_kl_has_the_value_of_the_kl_above_the_free_nats():
    p, q = gaussian(2.0, 0.0, (2, 2, 3)), gaussian(0.0, 0.0, (2, 2, 3))
    loss = losses.balanced_kl(p, q, torch.ones(2, 2))
    assert loss.item() == pytest.approx(6.0)  # 3 dimensions x 2² / 2


def test_balanced_kl_below_the_free_nats_is_one_nat_without_gradient():
    mean = torch.full((1, 1, 2), 0.1, requires_grad=True)
    p, q = Gaussian(mean, torch.zeros(1, 1, 2)), gaussian(0.0, 0.0, (1, 1, 2))
    loss = losses.balanced_kl(p, q, torch.ones(1, 1))
    loss.backward()
    assert loss.item() == 1.0
    assert mean.grad.abs().sum().item() == 0.0


@pytest.mark.parametrize(("balance", "trains_prior"), [(1.0, True), (0.0, False)])
def test_kl_balance_says_which_side_is_trained(balance, trains_prior):
    posterior_mean = torch.full((1, 1, 2), 3.0, requires_grad=True)
    prior_mean = torch.zeros(1, 1, 2, requires_grad=True)
    zeros = torch.zeros(1, 1, 2)
    losses.balanced_kl(
        Gaussian(posterior_mean, zeros), Gaussian(prior_mean, zeros), torch.ones(1, 1), 1.0, balance
    ).backward()
    assert (prior_mean.grad is not None and prior_mean.grad.abs().sum() > 0) == trains_prior
    assert (posterior_mean.grad is not None and posterior_mean.grad.abs().sum() > 0) != trains_prior


def test_reward_loss_is_the_mean_square_or_smooth_l1():
    predictions, rewards = torch.tensor([[0.0, 3.0]]), torch.tensor([[0.5, 1.0]])
    ones = torch.ones(1, 2)
    assert losses.reward_loss(predictions, rewards, ones).item() == pytest.approx((0.25 + 4) / 2)
    smooth = losses.reward_loss(predictions, rewards, ones, smooth=True)
    assert smooth.item() == pytest.approx((0.125 + 1.5) / 2)


def test_inverse_loss_is_half_the_square_summed_over_actions():
    predictions = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    actions = torch.tensor([[[0.0, 2.0], [1.0, 1.0]]])
    assert losses.inverse_loss(predictions, actions, torch.ones(1, 2)).item() == pytest.approx(
        (0.5 * 5 + 0.5 * 2) / 2
    )


def test_masked_mean_of_nothing_is_zero():
    assert losses.masked_mean(torch.ones(3), torch.zeros(3)).item() == 0.0
