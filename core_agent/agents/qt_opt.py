"""QT-Opt: Q-learning without an actor, on stacks of frames augmented as RAD or DrQ does.

Actions come from the cross-entropy method (:func:`best_actions`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from core_agent.agents.base import POLICY_ALIASES, Collect, Metrics
from core_agent.agents.frame_stack import FrameStackAlgorithm, FrameStackPolicy
from core_agent.networks.actor_critic import Critic
from core_agent.networks.augmentations import random_shift
from core_agent.networks.hardware import Precision
from core_agent.networks.losses import twin_critic_loss
from core_agent.networks.types import Observation, TransitionBatch
from core_agent.validation import SIZE, Check, at_least, check, handed_down


def best_actions(
    value: Callable[[torch.Tensor], torch.Tensor], noise: torch.Tensor, n_elites: int
) -> torch.Tensor:
    """Actions ``(N, A)`` in [-1, 1] of (nearly) the highest value, one for each of ``N`` states.

    Each iteration draws ``S`` candidates from each state's own Gaussian, clipped to the bounds, and
    fits that Gaussian to the best of them; the result is the best candidate of the last iteration.
    The first Gaussian is standard normal (the paper does not say): a third of the draws lie on the
    bounds, as the best torques often do. Source: QT-Opt, arXiv:1806.10293.

    :param value: gives values ``(N, S)`` of candidates ``(N, S, A)``
    :param noise: standard normal ``(I, N, S, A)`` for ``I`` iterations
    :param n_elites: candidates that a Gaussian is fitted to, ``1 <= n_elites <= S``
    """
    mean, std = torch.zeros_like(noise[0, :, :1]), torch.ones_like(noise[0, :, :1])
    for draws in noise:
        candidates = (mean + std * draws).clamp(-1.0, 1.0)
        best = value(candidates).topk(n_elites, dim=1).indices
        elites = candidates.gather(1, best.unsqueeze(-1).expand(-1, -1, candidates.shape[-1]))
        mean, std = elites.mean(dim=1, keepdim=True), elites.std(dim=1, keepdim=True, correction=0)
    return elites[:, 0]


class QTOptPolicy(FrameStackPolicy):
    """Encoder and critics; the action is the one that the first critic values most.

    The arguments are those of :class:`~core_agent.agents.frame_stack.FrameStackPolicy`, and

    :param n_samples: actions that each iteration of the cross-entropy method tries
    :param n_elites: number of the best actions, to which the next iteration's Gaussian is fitted
    :param n_iterations: iterations of the cross-entropy method
    :param exploration_noise: standard deviation of the Gaussian noise added to actions in [-1, 1]
        unless ``deterministic=True``
    :raises ValueError: for a bad argument
    """

    rules: ClassVar[dict[str, Check]] = {
        "n_samples": SIZE,
        "n_elites": SIZE,
        "n_iterations": SIZE,
        "exploration_noise": at_least(0),
    }
    fixed_noise: torch.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule | None = None,
        n_samples: int = 64,
        n_elites: int = 6,
        n_iterations: int = 2,
        exploration_noise: float = 0.2,
        **arguments: Any,
    ) -> None:
        own = dict(
            n_samples=n_samples,
            n_elites=n_elites,
            n_iterations=n_iterations,
            exploration_noise=exploration_noise,
        )
        self.check_arguments(own)
        check(n_elites <= n_samples, "n_elites", f"be at most n_samples={n_samples}", n_elites)
        super().__init__(observation_space, action_space, lr_schedule, **arguments)
        self.constructor_kwargs.update(own)
        self.n_elites, self.exploration_noise = n_elites, exploration_noise
        # Deterministic actions come from these draws, the same for every state and every model.
        generator = torch.Generator().manual_seed(0)
        size = (n_iterations, 1, n_samples, self.action_dim)
        self.register_buffer("fixed_noise", torch.randn(size, generator=generator))

    def draw_noise(self, n_states: int) -> torch.Tensor:
        """Standard normal draws for :meth:`best_actions`, ``(n_iterations, n, n_samples, A)``."""
        n_iterations, _, *size = self.fixed_noise.shape
        return torch.randn(n_iterations, n_states, *size, device=self.device)

    def best_actions(
        self, critic: Critic, features: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Actions ``(n, A)`` that ``critic`` values most at features ``(n, D)``."""

        def value(candidates: torch.Tensor) -> torch.Tensor:
            states = features.unsqueeze(1).expand(-1, candidates.shape[1], -1)
            return critic.first(states, candidates)

        return best_actions(value, noise, self.n_elites)

    def act(self, features: torch.Tensor, deterministic: bool) -> torch.Tensor:
        if deterministic:
            noise = self.fixed_noise.expand(-1, features.shape[0], -1, -1)
            return self.best_actions(self.critic, features, noise)
        actions = self.best_actions(self.critic, features, self.draw_noise(len(features)))
        noisy = actions + self.exploration_noise * torch.randn_like(actions)
        return noisy.clamp(-1.0, 1.0)


class QTOptRAD(FrameStackAlgorithm):
    """Q-learning with actions from the cross-entropy method, and random crops of the images.

    Paper: Kalashnikov et al. 2018, QT-Opt, https://arxiv.org/abs/1806.10293: 64 samples, 2
    iterations, 6 elites, all states of a batch at once; the first of two target critics chooses the
    action, and its value is the lower of both. The augmentation is RAD's, one crop
    (https://arxiv.org/abs/2004.14990). The 'QT-Opt + RAD' of Table 5, arXiv:2112.01163.

    Deviations from QT-Opt: squared errors instead of cross-entropies, as rewards are not 0 or 1;
    two critics trained on the same targets and averaged over time, instead of a second target that
    lags 6,000 steps behind the first; Gaussian noise on the best action for exploration
    (``policy_kwargs=dict(exploration_noise=0.2)``), instead of scripted data and a robot fleet's
    policies; encoder, optimiser, learning rate, batch and moving averages are those of
    :class:`~core_agent.agents.sac_rad.SACRAD`, so that the agents can be compared.

    The arguments are those of :class:`~core_agent.agents.sac_rad.SACRAD`, except those of its actor
    and its temperature; arguments of the cross-entropy method go into ``policy_kwargs``, see
    :class:`QTOptPolicy`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(
        POLICY_ALIASES, QTOptPolicy
    )
    optimizer_names: ClassVar[tuple[str, ...]] = ("critic_optimizer",)
    n_views: ClassVar[int] = 1
    """Augmentations of each transition that targets and losses are averaged over."""
    policy: QTOptPolicy

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 100_000,
        learning_starts: int = 1_000,
        batch_size: int = 512,
        n_stack: int = 3,
        tau: float = 0.01,
        encoder_tau: float = 0.05,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int | None = None,
        update_ratio: float = 1.0,
        max_rollout_steps: int = 1_000,
        collect: Collect = "sequential",
        target_update_freq: int = 2,
        crop_size: float | tuple[int, int] | None = None,
        precision: Precision = "auto",
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(**handed_down(locals()))

    def _make_optimizers(self) -> None:
        self.policy.critic_optimizer = self._adam(self._critic_groups())
        self.policy.optimizer = self.policy.critic_optimizer

    def update(self, batch: TransitionBatch) -> Metrics:
        """One step of encoder and critics and, when due, of their targets."""
        targets = self.target_values(batch)
        metrics = self._descend_critics(self.critic_loss(batch, targets))
        if self._targets_are_due:
            self.update_targets()
        return metrics

    @torch.no_grad()
    def target_values(self, batch: TransitionBatch) -> torch.Tensor:
        """``r + γ (1 - terminated) min Q'(s', argmax Q'(s', ·))`` ``(B,)``, mean over views."""
        policy, views = self.policy, []
        for _ in range(self.n_views):
            features = policy.encoder_target(self.augment(batch.next_observations))
            noise = policy.draw_noise(len(features))
            actions = policy.best_actions(policy.critic_target, features, noise)
            views.append(policy.critic_target(features, actions).amin(dim=0))
        values = torch.stack(views).mean(dim=0)
        return batch.rewards + self.gamma * (1.0 - batch.terminated) * values

    def critic_loss(self, batch: TransitionBatch, targets: torch.Tensor) -> torch.Tensor:
        """The sum of both critics' mean squared errors, averaged over views."""
        losses = []
        for _ in range(self.n_views):
            features = self.policy.encoder(self.augment(batch.observations))
            values = self.policy.critic(features, batch.actions)
            losses.append(twin_critic_loss(values, targets, batch.transition_mask))
        return torch.stack(losses).mean()


class QTOptDrQ(QTOptRAD):
    """QT-Opt with the augmentation of DrQ.

    Paper: Yarats, Kostrikov and Fergus 2021, DrQ, https://arxiv.org/abs/2004.13649: shifts by up to
    4 pixels, targets averaged over K = 2 and losses over M = 2 of them. The 'QT-Opt + DrQ' of
    Table 5, arXiv:2112.01163.

    Deviations: those of :class:`~core_agent.agents.qt_opt.QTOptRAD`; images are shifted after the
    central crop (84 of 100 pixels), as DrQ renders 84 pixels; the target encoder moves at
    ``encoder_tau=0.05``, DrQ's at 0.01; and the encoder's layer norm is not followed by a tanh,
    which DrQ has. The last two are as in ``QTOptRAD``, so that the two rows of Table 5 differ only
    in the augmentation; pass ``encoder_tau=0.01`` for DrQ's value.

    The arguments are those of ``QTOptRAD``.
    """

    n_views: ClassVar[int] = 2

    def augment(self, observation: Observation) -> Observation:
        """The stacks ``(B, ...)`` with each image shifted by a random offset of its own."""
        return self.policy.encoder.map_images(random_shift, observation)
