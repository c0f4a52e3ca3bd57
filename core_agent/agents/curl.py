"""CURL: SAC + RAD whose encoder also learns to match crops of the same frames."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from core_agent.agents.base import POLICY_ALIASES, Metrics
from core_agent.agents.sac_rad import SACRAD, SACRADPolicy
from core_agent.networks.losses import InfoNCE, bilinear_info_nce
from core_agent.networks.optimization import descend
from core_agent.networks.types import TransitionBatch


class CURLPolicy(SACRADPolicy):
    """The networks of :class:`~core_agent.agents.sac_rad.SACRADPolicy` and the bilinear similarity.

    The key encoder is the target encoder. The arguments are those of ``SACRADPolicy``.
    """

    contrastive_optimizer: torch.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(observation_space, action_space, lr_schedule, **arguments)
        n_features = self.encoder.out_dim
        self.similarity = nn.Parameter(torch.rand(n_features, n_features))


class CURL(SACRAD):
    """SAC + RAD whose encoder learns from a contrastive loss too.

    Two crops of the same stack are each other's positives, the other stacks of the batch the
    negatives; keys come from the target encoder, a moving average (``encoder_tau``).
    Paper: Laskin, Srinivas and Abbeel 2020, https://arxiv.org/abs/2004.04136; the defaults are its
    values. The 'CURL' of Table 5, arXiv:2112.01163.

    Deviations from the paper: those of :class:`~core_agent.agents.sac_rad.SACRAD`; and one
    optimiser makes one step on the contrastive loss, while the published code steps the encoder
    twice on it, with two optimisers. On vectors there is nothing to crop, and the loss compares an
    encoder with its own moving average.

    The arguments are those of :class:`~core_agent.agents.sac_rad.SACRAD`; ``learning_rate`` is that
    of the contrastive loss too.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(
        POLICY_ALIASES, CURLPolicy
    )
    optimizer_names: ClassVar[tuple[str, ...]] = (
        *SACRAD.optimizer_names,
        "contrastive_optimizer",
    )
    max_contrastive_grad_norm: ClassVar[float] = SACRAD.max_critic_grad_norm
    policy: CURLPolicy

    def _make_optimizers(self) -> None:
        super()._make_optimizers()
        parameters = [*self.policy.encoder.parameters(), self.policy.similarity]
        self.policy.contrastive_optimizer = self._adam(
            [dict(params=parameters, lr=self.base_learning_rate)]
        )

    def update(self, batch: TransitionBatch) -> Metrics:
        """One step as SAC + RAD makes it, then one on the contrastive loss."""
        return {**super().update(batch), **self.update_contrastive(batch)}

    def contrastive_loss(self, batch: TransitionBatch) -> InfoNCE:
        """InfoNCE between two crops of each stack."""
        queries = self.policy.encoder(self.augment(batch.observations))
        with torch.no_grad():
            keys = self.policy.encoder_target(self.augment(batch.observations))
        return bilinear_info_nce(queries, keys, self.policy.similarity)

    def update_contrastive(self, batch: TransitionBatch) -> Metrics:
        """One step of encoder and similarity on the contrastive loss."""
        result, optimizer = self.contrastive_loss(batch), self.policy.contrastive_optimizer
        clipped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = descend(
            {"contrastive_loss": result.loss},
            optimizer,
            clipped,
            self.max_contrastive_grad_norm,
            self._guard,
        )
        return {
            "contrastive_loss": result.loss,
            "contrastive_accuracy": result.accuracy,
            "contrastive_grad_norm": norm,
        }
