"""Soft actor-critic (arXiv:1812.05905) on state vectors: what the agents with an actor compute.

A shape written ``(...)`` below is that of the batch: ``(T - 1, B)`` for sequences, ``(B,)`` for
transitions.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol, TypeAlias

import torch

from core_agent.agents.base import Metrics
from core_agent.networks.losses import masked_mean
from core_agent.networks.optimization import FiniteGuard, descend, frozen
from core_agent.networks.types import SequenceBatch, TransitionBatch
from core_agent.validation import NUMBER, POSITIVE, Check, Rule, check, is_number

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
    rule = "be 'auto', 'auto_' followed by a number > 0, or a number > 0"
    check(is_number(value) and value > 0, "ent_coef", rule, ent_coef)
    return float(value)


SAC_RULES: dict[str, Check] = {
    "actor_learning_rate": POSITIVE,
    "ent_coef": lambda name, value: initial_ent_coef(value),
    "ent_coef_learning_rate": POSITIVE,
    "target_entropy": Rule(
        "be a number or 'auto'",
        lambda value: is_number(value) or (isinstance(value, str) and value == "auto"),
    ),
    "max_log_ent_coef": NUMBER,
}
"""Rules of the arguments that agents with an actor share."""


class SoftAgent(Protocol):
    """An agent with an actor and a temperature, as the functions below see it."""

    policy: Any
    ent_coef: float | str
    actor_learning_rate: float
    ent_coef_learning_rate: float
    target_entropy: float | str
    max_log_ent_coef: float
    max_actor_grad_norm: ClassVar[float]
    max_ent_coef_grad_norm: ClassVar[float]
    gamma: float
    _guard: FiniteGuard

    def _adam(self, groups: list[dict[str, Any]], **kwargs: Any) -> torch.optim.Adam: ...


def make_optimizers(agent: SoftAgent, critic_groups: list[dict[str, Any]]) -> None:
    """Set the optimisers of critics, actor and temperature, and the first temperature.

    :param critic_groups: parameters and learning rates of the critics' optimiser
    """
    policy, initial = agent.policy, initial_ent_coef(agent.ent_coef)
    if initial is not None:
        policy.log_ent_coef.data.fill_(math.log(initial))
    policy.critic_optimizer = agent._adam(critic_groups)
    # The name under which SB3's tools look for an optimiser.
    policy.optimizer = policy.critic_optimizer
    actor = dict(params=list(policy.actor.parameters()), lr=agent.actor_learning_rate)
    policy.actor_optimizer = agent._adam([actor])
    ent_coef = dict(params=[policy.log_ent_coef], lr=agent.ent_coef_learning_rate)
    # β₁ = 0.5, as in the appendix of arXiv:2112.01163 and in CURL.
    policy.ent_coef_optimizer = agent._adam([ent_coef], betas=(0.5, 0.999))


@torch.no_grad()
def soft_targets(
    agent: SoftAgent,
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
    :param critic_states: ``z'`` as the target critics read it, if they have an encoder of their own
    """
    policy = agent.policy
    distribution = policy.actor(next_states)
    if noise is None:
        noise = torch.randn_like(distribution.mean)
    actions, log_prob = distribution.sample(noise)
    read = next_states if critic_states is None else critic_states
    values = policy.critic_target(read, actions).amin(dim=0)
    soft_values = values - policy.log_ent_coef.exp() * log_prob
    return batch.rewards + agent.gamma * (1.0 - batch.terminated) * soft_values


def actor_loss(
    agent: SoftAgent, batch: Batch, states: torch.Tensor, noise: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """J_π: mean of ``α log π - min Q`` at detached states, and ``log π`` ``(...)``."""
    policy = agent.policy
    distribution = policy.actor(states)
    if noise is None:
        noise = torch.randn_like(distribution.mean)
    actions, log_prob = distribution.sample(noise)
    values = policy.critic(states, actions).amin(dim=0)
    ent_coef = policy.log_ent_coef.detach().exp()
    return masked_mean(ent_coef * log_prob - values, batch.transition_mask), log_prob


def update_actor(
    agent: SoftAgent, batch: Batch, states: torch.Tensor, noise: torch.Tensor | None = None
) -> tuple[Metrics, torch.Tensor]:
    """One step of the actor on J_π; also the detached ``log π`` ``(...)``."""
    policy = agent.policy
    with frozen(policy.critic):
        loss, log_prob = actor_loss(agent, batch, states, noise)
        norm = descend(
            {"actor_loss": loss},
            policy.actor_optimizer,
            policy.actor.parameters(),
            agent.max_actor_grad_norm,
            agent._guard,
        )
    return {"actor_loss": loss, "actor_grad_norm": norm}, log_prob.detach()


def update_temperature(agent: SoftAgent, batch: Batch, log_prob: torch.Tensor) -> Metrics:
    """One step of the temperature α on ``-α (mean log π + target entropy)``, unless it is fixed."""
    log_ent_coef = agent.policy.log_ent_coef
    mean_log_prob = masked_mean(log_prob, batch.transition_mask)
    if not isinstance(agent.ent_coef, str):
        return {"ent_coef": log_ent_coef.detach().exp(), "policy_entropy": -mean_log_prob}
    target = agent.target_entropy
    entropy = -float(agent.policy.action_dim) if target == "auto" else float(target)
    loss = -log_ent_coef.exp() * (mean_log_prob + entropy)
    descend(
        {"ent_coef_loss": loss},
        agent.policy.ent_coef_optimizer,
        [log_ent_coef],
        agent.max_ent_coef_grad_norm,
        agent._guard,
    )
    with torch.no_grad():
        bounded = log_ent_coef.clamp(max=agent.max_log_ent_coef)
        # As it is, if the guard has refused a step.
        log_ent_coef.lerp_(bounded, agent._guard.weigh(1.0))
        ent_coef = log_ent_coef.exp()
    return {"ent_coef_loss": loss, "ent_coef": ent_coef, "policy_entropy": -mean_log_prob}
