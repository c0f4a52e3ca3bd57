"""What SACRAD, CURL, QTOptRAD and QTOptDrQ compute, by hand on small numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from core_agent import CURL, SACRAD, QTOptDrQ, QTOptRAD
from core_agent.agents.qt_opt import best_actions
from core_agent.agents.soft_actor_critic import actor_loss, update_actor
from core_agent.networks.losses import bilinear_info_nce
from core_agent.networks.types import TransitionBatch
from tests.fakes import VECTOR, FakeEnv, tiny

AGENTS = [SACRAD, CURL, QTOptRAD, QTOptDrQ]


def make_model(algorithm: type, space=VECTOR, **kwargs):
    policy = "MlpPolicy" if space is VECTOR else "CnnPolicy"
    return algorithm(policy, FakeEnv(space), **{**tiny(algorithm), **kwargs})


def two_transitions() -> TransitionBatch:
    """Rewards 1 and 0; the second one ends its episode."""
    return TransitionBatch(
        observations=torch.randn(2, 9),
        actions=torch.zeros(2, 2),
        next_observations=torch.randn(2, 9),
        rewards=torch.tensor([1.0, 0.0]),
        terminated=torch.tensor([0.0, 1.0]),
    )


def make_constant(model, values: tuple[float, float], target_values: tuple[float, float]) -> None:
    """Let critics and targets give the same values everywhere."""
    for critic, constants in (
        (model.policy.critic, values),
        (model.policy.critic_target, target_values),
    ):
        for parameter in critic.parameters():
            nn.init.zeros_(parameter)
        critic.net.biases[-1].data.copy_(torch.tensor(constants).view(2, 1, 1))


# ---- SAC + RAD ----


def test_sacrads_critic_loss_by_hand():
    model = make_model(SACRAD)
    make_constant(model, (1.0, 2.0), (3.0, 5.0))
    for parameter in model.policy.actor.parameters():
        nn.init.zeros_(parameter)
    # The actor's mean is 0, its log-std -10 + 12/2 = -4; at zero noise, with two actions,
    # log π = 2 (4 - log(2π)/2).
    log_prob = 2.0 * (4.0 - 0.5 * math.log(2.0 * math.pi))
    target = 1.0 + 0.99 * (3.0 - 0.1 * log_prob)
    first = (1.0 - target) ** 2 + (2.0 - target) ** 2
    second = 1.0**2 + 2.0**2  # terminated: the target is the reward, 0
    loss = model.critic_loss(two_transitions(), torch.zeros(2, 2))
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)


def test_sacrads_actor_loss_by_hand():
    model = make_model(SACRAD)
    make_constant(model, (1.0, 2.0), (3.0, 5.0))
    for parameter in model.policy.actor.parameters():
        nn.init.zeros_(parameter)
    loss, log_prob = actor_loss(model, two_transitions(), torch.randn(2, 8), torch.zeros(2, 2))
    expected = 2.0 * (4.0 - 0.5 * math.log(2.0 * math.pi))
    assert log_prob.tolist() == pytest.approx([expected] * 2, rel=1e-5)
    assert loss.item() == pytest.approx(0.1 * expected - 1.0, rel=1e-5)


def test_the_critics_loss_trains_the_encoder_and_the_actors_does_not():
    model = make_model(SACRAD)
    model.critic_loss(two_transitions()).backward()
    assert any(p.grad.any() for p in model.policy.encoder.parameters())
    assert all(p.grad is None for p in model.policy.encoder_target.parameters())
    model.policy.zero_grad(set_to_none=True)
    batch = two_transitions()
    with torch.no_grad():
        features = model.policy.encoder(batch.observations)
    update_actor(model, batch, features)
    touched = {n for n, p in model.policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched
    assert all(name.startswith("actor.") for name in touched)


def test_actor_and_targets_wait_for_their_turn():
    model = make_model(SACRAD, actor_update_freq=2, target_update_freq=3)
    metrics = []
    moved = []
    for step in range(6):
        model._n_updates = step
        before = [p.clone() for p in model.policy.encoder_target.parameters()]
        metrics.append(model.update(two_transitions()))
        after = model.policy.encoder_target.parameters()
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, after)))
    assert ["actor_loss" in each for each in metrics] == [True, False] * 3
    assert moved == [True, False, False] * 2


def test_updates_are_counted_one_by_one():
    model = make_model(SACRAD, train_freq=(1, "episode"), update_ratio=0.5).learn(12)
    seen = []
    model.update = lambda batch: seen.append(model._n_updates) or {}
    model.train(3, 2)
    assert seen == [3, 4, 5]


def test_metrics_that_come_now_and_then_are_means_of_those_that_came():
    from core_agent.agents.metrics import MetricMeans

    means = MetricMeans()
    means.add({"critic": torch.tensor(1.0), "actor": torch.tensor(6.0)})
    means.add({"critic": torch.tensor(3.0)})
    assert means.compute() == {"critic": 2.0, "actor": 6.0}


@pytest.mark.parametrize("algorithm", AGENTS)
def test_targets_follow_at_their_own_rates(algorithm):
    model = make_model(algorithm, tau=0.01, encoder_tau=0.05)
    policy = model.policy
    with torch.no_grad():
        for parameter in [*policy.critic.parameters(), *policy.encoder.parameters()]:
            parameter.add_(1.0)
    critic = [p.clone() for p in policy.critic_target.parameters()]
    encoder = [p.clone() for p in policy.encoder_target.parameters()]
    model.update_targets()
    for old, new in zip(critic, policy.critic_target.parameters()):
        assert torch.allclose(new, old + 0.01, atol=1e-6)
    for old, new in zip(encoder, policy.encoder_target.parameters()):
        assert torch.allclose(new, old + 0.05, atol=1e-6)


# ---- CURL ----


def test_the_bilinear_loss_by_hand():
    identity = torch.eye(2)
    # Logits of 3 for the own key and 0 for the other one.
    result = bilinear_info_nce(identity, identity, 3.0 * identity)
    assert result.loss.item() == pytest.approx(math.log(1.0 + math.exp(-3.0)), rel=1e-5)
    assert result.accuracy == 1.0
    swapped = bilinear_info_nce(identity, identity.flip(0), 3.0 * identity)
    assert swapped.loss.item() == pytest.approx(math.log(1.0 + math.exp(3.0)), rel=1e-5)
    assert swapped.accuracy == 0.0
    # q W k is not symmetric: W takes the first query to the second key.
    weight = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    logits = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    expected = -torch.log_softmax(logits, dim=1).diagonal().mean()
    assert bilinear_info_nce(identity, identity, weight).loss.item() == pytest.approx(
        expected.item()
    )


def test_equal_keys_leave_the_loss_of_a_guess():
    keys = torch.ones(4, 3)
    result = bilinear_info_nce(torch.randn(4, 3), keys, torch.rand(3, 3))
    assert result.loss.item() == pytest.approx(math.log(4), rel=1e-5)


def test_the_contrastive_loss_trains_encoder_and_similarity_alone():
    model = make_model(CURL)
    model.update_contrastive(two_transitions())
    touched = {n for n, p in model.policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert "similarity" in touched
    assert all(name == "similarity" or name.startswith("encoder.") for name in touched)
    assert len(touched) > 1


def test_queries_and_keys_are_two_crops_of_the_same_stack():
    from tests.fakes import IMAGE

    model = make_model(CURL, IMAGE).learn(10)
    crops = []
    augment = model.augment
    model.augment = lambda observation: crops.append(augment(observation)) or crops[-1]
    batch = model.replay_buffer.sample_stacks(32, 3)
    seen = []
    model.policy.encoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model.policy.encoder_target.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model.contrastive_loss(batch)
    assert [id(entry) for entry in seen] == [id(crop) for crop in crops]
    assert not torch.equal(*crops)


# ---- QT-Opt ----


def quadratic(target: torch.Tensor):
    """Values of candidates ``(N, S, A)``, highest at ``target`` ``(N, A)``."""
    return lambda candidates: -(candidates - target.unsqueeze(1)).square().sum(dim=-1)


def test_the_cross_entropy_method_finds_the_maximum_of_a_quadratic():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(50, 2, generator=generator) * 2 - 1
    noise = torch.randn(12, 50, 64, 2, generator=generator)
    distances = [
        (best_actions(quadratic(target), noise[:n], 6) - target).norm(dim=-1) for n in (1, 2, 12)
    ]
    means = [distance.mean().item() for distance in distances]
    assert means[0] > means[1] > means[2]
    assert means[1] < 0.1
    assert distances[2].median() < 0.001


def test_the_cross_entropy_method_reaches_the_bounds():
    noise = torch.randn(2, 8, 64, 1, generator=torch.Generator().manual_seed(0))
    best = best_actions(lambda candidates: candidates.sum(dim=-1), noise, 6)
    assert torch.equal(best, torch.ones(8, 1))


def test_one_iteration_takes_the_best_sample():
    noise = torch.tensor([0.1, -0.7, 0.4, 5.0]).view(1, 1, 4, 1)
    target = torch.tensor([[-0.5]])
    assert best_actions(quadratic(target), noise, 2).item() == pytest.approx(-0.7)


def test_the_second_iteration_fits_a_gaussian_to_the_elites():
    first = torch.tensor([0.2, 0.4, -0.9, -1.0])
    second = torch.tensor([1.0, 0.0, -1.0, 3.0])
    noise = torch.stack([first, second]).view(2, 1, 4, 1)
    # Elites 0.2 and 0.4: mean 0.3, deviation 0.1; candidates 0.4, 0.3, 0.2 and 0.6.
    best = best_actions(quadratic(torch.tensor([[0.58]])), noise, 2)
    assert best.item() == pytest.approx(0.6)


def test_every_state_is_searched_as_if_it_were_alone():
    target = torch.rand(5, 2) * 2 - 1
    noise = torch.randn(2, 5, 64, 2)
    together = best_actions(quadratic(target), noise, 6)
    for n in range(5):
        alone = best_actions(quadratic(target[n : n + 1]), noise[:, n : n + 1], 6)
        assert torch.equal(together[n], alone[0])


def test_deterministic_actions_draw_no_random_number_and_others_do():
    model = make_model(QTOptRAD)
    features = torch.randn(4, model.policy.encoder.out_dim)
    before = torch.get_rng_state()
    actions = model.policy.act(features, deterministic=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(actions, model.policy.act(features, deterministic=True))
    explored = model.policy.act(features, deterministic=False)
    assert not torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(actions, explored)
    assert explored.abs().max() <= 1.0


def test_exploration_is_the_best_action_and_noise():
    quiet = dict(tiny(QTOptRAD)["policy_kwargs"], exploration_noise=0.0)
    policy = make_model(QTOptRAD, policy_kwargs=quiet).policy
    features = torch.randn(3, policy.encoder.out_dim)
    torch.manual_seed(0)
    explored = policy.act(features, deterministic=False)
    torch.manual_seed(0)
    best = policy.best_actions(policy.critic, features, policy.draw_noise(3))
    assert torch.equal(explored, best)


def test_the_defaults_are_qt_opts():
    policy = make_model(QTOptRAD).policy
    assert policy.draw_noise(5).shape == (2, 5, 64, 2)
    assert policy.n_elites == 6


def test_qt_opts_loss_by_hand():
    model = make_model(QTOptRAD)
    make_constant(model, (1.0, 2.0), (5.0, 3.0))
    batch = two_transitions()
    targets = model.target_values(batch)
    assert targets.tolist() == pytest.approx([1.0 + 0.99 * 3.0, 0.0])
    first = (1.0 - 3.97) ** 2 + (2.0 - 3.97) ** 2
    second = 1.0**2 + 2.0**2
    loss = model.critic_loss(batch, targets)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)


class LinearCritic(nn.Module):
    """Values ``feature ± action``: the first critic likes high actions, the second low ones."""

    def forward(self, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        state, action = features[..., 0], actions.sum(dim=-1)
        return torch.stack([state + action, state - action])

    def first(self, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return self(features, actions)[0]


def with_views(algorithm: type, offsets: list[float]):
    """An agent that reads its observations as features, each view of them moved by an offset."""
    model = make_model(algorithm)
    for name in ("encoder", "encoder_target"):
        setattr(model.policy, name, nn.Identity())
    for name in ("critic", "critic_target"):
        setattr(model.policy, name, LinearCritic())
    remaining = iter(offsets)
    model.augment = lambda observation: observation + next(remaining)
    return model


def test_the_target_is_the_lower_value_of_the_action_that_the_first_target_prefers():
    model, batch = with_views(QTOptRAD, [0.0]), two_transitions()
    # The first prefers both actions at 1, where the values are s + 2 and s - 2.
    expected = 1.0 + 0.99 * (batch.next_observations[0, 0] - 2.0)
    assert model.target_values(batch)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_drq_averages_targets_over_two_views_and_losses_over_two_others():
    model, batch = with_views(QTOptDrQ, [0.0, 3.0, 1.0, 2.0]), two_transitions()
    targets = model.target_values(batch)
    expected = 1.0 + 0.99 * (batch.next_observations[0, 0] + 1.5 - 2.0)
    assert targets[0].item() == pytest.approx(expected.item(), rel=1e-5)
    loss = model.critic_loss(batch, torch.zeros(2))
    state = batch.observations[:, 0]
    # Both critics give s + offset at action 0.
    by_view = [2.0 * (state + offset).square().mean() for offset in (1.0, 2.0)]
    assert loss.item() == pytest.approx(sum(by_view).item() / 2, rel=1e-5)


def test_rad_takes_one_view_and_drq_two():
    for algorithm, n_views in ((QTOptRAD, 1), (QTOptDrQ, 2)):
        model, seen = make_model(algorithm), []
        model.augment = lambda observation, seen=seen: seen.append(observation) or observation
        batch = two_transitions()
        model.update(batch)
        assert len(seen) == 2 * n_views
        assert all(entry is batch.next_observations for entry in seen[:n_views])
        assert all(entry is batch.observations for entry in seen[n_views:])


def test_elites_are_samples():
    with pytest.raises(ValueError, match="n_elites must be at most n_samples=64"):
        make_model(QTOptRAD, policy_kwargs={"n_elites": 65})


# ---- learning ----


@pytest.mark.parametrize("algorithm", AGENTS)
def test_critics_come_to_know_a_reward(algorithm):
    """The reward is the first action, the discount 0: Q(s, a) must become a."""
    model = make_model(algorithm, gamma=0.0, learning_starts=64, batch_size=32, learning_rate=1e-2)
    model.learn(65)
    model.train(300, 32)
    batch = model.replay_buffer.sample_stacks(64, 3)
    with torch.no_grad():
        features = model.policy.encoder(batch.observations)
        values = model.policy.critic(features, batch.actions)
    assert (values - batch.rewards).square().mean() < 0.1 * batch.rewards.var()
