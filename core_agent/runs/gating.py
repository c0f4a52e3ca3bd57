"""Pictures of what the optional gate lets through (Table 1, arXiv:2112.01163)."""

from __future__ import annotations

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from core_agent.agents.base import SequenceOffPolicyAlgorithm
from core_agent.agents.policies import StatefulPolicy
from core_agent.networks.encoders import as_dict
from core_agent.networks.layers import ImageEncoder
from core_agent.runs.video import log_picture
from core_agent.validation import SIZE, check, check_arguments


def gating_pictures(
    policy: StatefulPolicy, observation: np.ndarray | dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Each gate's view of an observation: the image, the mask and their product next to each other.

    :param policy: with gates
    :param observation: one observation, or several, of which the first is drawn; images channels
        first or last
    :return: ``(H, 3 W, 3)``, uint8, by key of the observation, cropped as in acting; of stacked
        frames the last one is drawn
    :raises ValueError: for a policy without gates
    """
    encoders = policy.observation_encoder.image_encoders
    gates = {key: encoder for key, encoder in encoders.items() if encoder.gate is not None}
    check(bool(gates), "policy", "have gates", "none", "pass policy_kwargs=dict(gating=True)")
    observations, _ = policy.obs_to_tensor(observation)
    with torch.no_grad():
        entries = as_dict(policy.first_look(observations))
        return {key: _picture(encoder, entries[key][:1]) for key, encoder in gates.items()}  # type: ignore[arg-type]


def _picture(encoder: ImageEncoder, image: torch.Tensor) -> np.ndarray:
    """Image ``(1, C, H, W)``, mask and product, as ``(H, 3 W, 3)``."""
    assert encoder.gate is not None
    prepared = encoder.prepare(image) / encoder.max_value
    mask = encoder.gate(prepared)
    n_shown = 3 if prepared.shape[1] % 3 == 0 else 1
    shown = prepared[:, -n_shown:]
    panels = [shown, mask, mask * shown]
    row = torch.cat([panel.expand(-1, 3, -1, -1) for panel in panels], dim=-1)[0]
    return (255.0 * row.float().clamp(0.0, 1.0)).round().byte().permute(1, 2, 0).cpu().numpy()


class GatingCallback(BaseCallback):
    """Regularly logs to TensorBoard what the gates do to the current training observation.

    Each tag is ``gating/`` followed by the key of the image.

    :param every: agent steps between two pictures
    :raises ValueError: at the start of training, if the agent has no gate
    """

    def __init__(self, every: int = 5_000) -> None:
        super().__init__()
        check_arguments({"every": SIZE}, locals())
        self.every = every

    def _on_training_start(self) -> None:
        self._next = self.num_timesteps + self.every
        self.show()

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._next:
            self._next += self.every
            self.show()
        return True

    def show(self) -> None:
        """Log the pictures now."""
        assert isinstance(self.model, SequenceOffPolicyAlgorithm)
        observation = self.model._last_obs
        assert observation is not None and not isinstance(observation, tuple)
        for key, picture in gating_pictures(self.model.policy, observation).items():
            log_picture(self.logger, f"gating/{key}", picture, self.num_timesteps)
