"""Soft actor-critic: what the agents with an actor and a learned temperature share."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, TypeAlias

import torch

from core_agent.agents.base import Metrics, SequenceOffPolicyAlgorithm
from core_agent.agents.policies import ActorPolicy
from core_agent.networks.losses import masked_mean
from core_agent.networks.optimization import descend, frozen
from core_agent.networks.types import SequenceBatch, TransitionBatch
from core_agent.validation import check, check_number, check_positive, is_number

Batch: TypeAlias = SequenceBatch | TransitionBatch


def initial_ent_coef(ent_coef: float | str) -> float | None:
    """The temperature to start with; ``None`` leaves it to the policy.

    :raises ValueError: for anything but ``"auto"``, ``"auto_0.1"`` or a number > 0
    """
    value: Any = ent_coef
    if isinstance(ent_coef, str):
        if ent_coef == "auto":
            return None
        prefix, _, number = ent_coef.partition("_")
        try:
            value = float(number) if prefix == "auto" else None
        except ValueError:
            value = None
    rule = "be 'auto', 'auto_' and a number > 0, or a number > 0"
    check(is_number(value) and value > 0, "ent_coef", rule, ent_coef)
    return float(value)


class SoftActorCritic(SequenceOffPolicyAlgorithm):
    """Actor, temperature and targets of soft actor-critic (arXiv:1812.05905), on state vectors.

    A subclass turns a batch into state vectors, trains its critics and says what else their
    optimiser trains (:meth:`_critic_groups`). Shapes are those of the batch: ``(T - 1, B)`` for
    sequences, ``(B,)`` for transitions, ``(...)`` below.

    :param actor_learning_rate: of the actor
    :param ent_coef: entropy temperature: ``"auto"`` learns it, ``"auto_0.1"`` from 0.1 on; a number
        fixes it
    :param ent_coef_learning_rate: of the entropy temperature
    :param target_entropy: in nats; ``"auto"``: minus the number of actions
    :param max_log_ent_coef: upper bound of the log temperature
    :param arguments: those of :class:`~core_agent.agents.base.SequenceOffPolicyAlgorithm`
    :raises ValueError: for a bad argument, naming it and its rule
    """

    optimizer_names: ClassVar[tuple[str, ...]] = (
        "critic_optimizer",
        "actor_optimizer",
        "ent_coef_optimizer",
    )
    max_actor_grad_norm: ClassVar[float] = math.inf
    max_ent_coef_grad_norm: ClassVar[float] = math.inf
    policy: ActorPolicy

    def __init__(
        self,
        *,
        actor_learning_rate: float,
        ent_coef: float | str,
        ent_coef_learning_rate: float,
        target_entropy: float | str,
        max_log_ent_coef: float,
        **arguments: Any,
    ) -> None:
        check_positive("actor_learning_rate", actor_learning_rate)
        check_positive("ent_coef_learning_rate", ent_coef_learning_rate)
        initial_ent_coef(ent_coef)
        check(
            is_number(target_entropy)
            or (isinstance(target_entropy, str) and target_entropy == "auto"),
            "target_entropy",
            "be a number or 'auto'",
            target_entropy,
        )
        check_number("max_log_ent_coef", max_log_ent_coef)
        super().__init__(**arguments)
        self.actor_learning_rate = actor_learning_rate
        self.ent_coef = ent_coef
        self.ent_coef_learning_rate = ent_coef_learning_rate
        self.target_entropy = target_entropy
        self.max_log_ent_coef = max_log_ent_coef

    def _make_optimizers(self) -> None:
        policy, initial = self.policy, initial_ent_coef(self.ent_coef)
        if initial is not None:
            policy.log_ent_coef.data.fill_(math.log(initial))
        policy.critic_optimizer = self._adam(self._critic_groups())
        # The name under which SB3's tools look for an optimiser.
        policy.optimizer = policy.critic_optimizer
        policy.actor_optimizer = self._adam(
            [dict(params=list(policy.actor.parameters()), lr=self.actor_learning_rate)]
        )
        policy.ent_coef_optimizer = self._adam(
            [dict(params=[policy.log_ent_coef], lr=self.ent_coef_learning_rate)],
            betas=(0.5, 0.999),
        )

    @abstractmethod
    def _critic_groups(self) -> list[dict[str, Any]]:
        """Parameters and learning rates of the critics' optimiser."""

    @property
    def _target_entropy(self) -> float:
        if self.target_entropy == "auto":
            return -float(self.policy.action_dim)
        return float(self.target_entropy)

    @torch.no_grad()
    def target_values(
        self,
        batch: Batch,
        next_states: torch.Tensor,
        noise: torch.Tensor | None = None,
        critic_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``r + γ (1 - terminated) (min Q'(z', a') - α log π(a'|z'))``, ``(...)``.

        Episodes cut by a time limit are not terminated, so their last value counts.

        :param batch: gives rewards and terminations
        :param next_states: ``z'``, ``(..., D)``
        :param noise: standard normal ``(..., A)``; drawn if not given
        :param critic_states: ``z'`` as the target critics read it, if they have an encoder of
            their own
        """
        policy = self.policy
        distribution = policy.actor(next_states)
        if noise is None:
            noise = torch.randn_like(distribution.mean)
        actions, log_prob = distribution.sample(noise)
        read = next_states if critic_states is None else critic_states
        values = policy.critic_target(read, actions).amin(dim=0)
        soft_values = values - policy.log_ent_coef.exp() * log_prob
        return batch.rewards + self.gamma * (1.0 - batch.terminated) * soft_values

    def actor_loss(
        self, batch: Batch, states: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """J_π: mean of ``α log π - min Q`` at detached states, and ``log π`` ``(...)``."""
        distribution = self.policy.actor(states)
        if noise is None:
            noise = torch.randn_like(distribution.mean)
        actions, log_prob = distribution.sample(noise)
        values = self.policy.critic(states, actions).amin(dim=0)
        ent_coef = self.policy.log_ent_coef.detach().exp()
        return masked_mean(ent_coef * log_prob - values, batch.transition_mask), log_prob

    def update_actor(self, batch: Batch, states: torch.Tensor) -> tuple[Metrics, torch.Tensor]:
        with frozen(self.policy.critic):
            loss, log_prob = self.actor_loss(batch, states)
            clipped = self.policy.actor.parameters()
            norm = descend(
                {"actor_loss": loss},
                self.policy.actor_optimizer,
                clipped,
                self.max_actor_grad_norm,
                self._guard,
            )
        return {"actor_loss": loss, "actor_grad_norm": norm}, log_prob.detach()

    def update_ent_coef(self, batch: Batch, log_prob: torch.Tensor) -> Metrics:
        """Move the temperature towards the target entropy; ``log_prob`` ``(...)``."""
        log_ent_coef = self.policy.log_ent_coef
        mean_log_prob = masked_mean(log_prob, batch.transition_mask)
        if not isinstance(self.ent_coef, str):
            return {"ent_coef": log_ent_coef.detach().exp(), "policy_entropy": -mean_log_prob}
        loss = -log_ent_coef.exp() * (mean_log_prob + self._target_entropy)
        optimizer = self.policy.ent_coef_optimizer
        descend(
            {"ent_coef_loss": loss},
            optimizer,
            [log_ent_coef],
            self.max_ent_coef_grad_norm,
            self._guard,
        )
        with torch.no_grad():
            bounded = log_ent_coef.clamp(max=self.max_log_ent_coef)
            log_ent_coef.lerp_(bounded, self._guard.weigh(1.0))
            ent_coef = log_ent_coef.exp()
        return {"ent_coef_loss": loss, "ent_coef": ent_coef, "policy_entropy": -mean_log_prob}
