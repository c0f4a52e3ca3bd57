"""Small environments and sizes for tests: seconds, not minutes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from core_agent import SACRAD, RecurrentSAC
from core_agent.agents.latent import RecurrentPolicy
from core_agent.networks.types import SequenceBatch

HANGS_AFTER = 3_600
"""Seconds after which a process that a test waits for counts as hanging, on the busiest machine."""

TINY_ENCODER: dict[str, Any] = dict(
    feature_dim=5, vector_dims=(8, 8, 8), cnn_channels=(4,), cnn_strides=(2,)
)
TINY_MODEL: dict[str, Any] = dict(
    deter_dim=6,
    stoch_dim=4,
    embed_dims=(8, 8),
    gru_dims=(8, 8),
    prior_dims=(8, 8, 8),
    posterior_dims=(8, 8),
    decoder_dims=(8, 8),
    head_dims=(8, 8),
    **TINY_ENCODER,
)
TINY_POLICY: dict[str, Any] = dict(actor_dims=(8, 8), critic_dims=(8, 8), **TINY_MODEL)
# float32, so that values are compared in the same digits on every processor.
TINY_ANY: dict[str, Any] = dict(
    batch_size=3, learning_starts=8, buffer_size=200, precision="float32", seed=0, device="cpu"
)
TINY: dict[str, Any] = dict(policy_kwargs=TINY_POLICY, sequence_length=4, **TINY_ANY)
TINY_CRITICS: dict[str, Any] = dict(critic_dims=(8, 8), **TINY_ENCODER)
TINY_STACKS: dict[str, Any] = dict(policy_kwargs=TINY_CRITICS, **TINY_ANY)
TINY_ACTOR_STACKS: dict[str, Any] = dict(
    policy_kwargs=dict(actor_dims=(8, 8), **TINY_CRITICS), **TINY_ANY
)


def tiny(algorithm: type) -> dict[str, Any]:
    """Arguments that make any agent small."""
    if issubclass(algorithm, RecurrentSAC):
        return TINY
    return TINY_ACTOR_STACKS if issubclass(algorithm, SACRAD) else TINY_STACKS


IMAGE = spaces.Box(0, 255, (8, 8, 3), np.uint8)
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
BOTH = spaces.Dict({"image": IMAGE, "vector": VECTOR})


def policy_name(space: spaces.Space) -> str:
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if len(space.shape or ()) == 3 else "MlpPolicy"


class FakeEnv(gym.Env):
    """Episodes of fixed length with random observations; the reward is the first action.

    Frames count up from the environment's ``first_frame``, so that a test can tell which episode
    and step a frame comes from: pixel (0, 0, 0) is the step.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        observation_space: spaces.Space = IMAGE,
        length: int = 6,
        terminates: bool = False,
        n_actions: int = 2,
        bound: float = 2.0,
    ) -> None:
        self.observation_space = observation_space
        self.action_space = spaces.Box(-bound, bound, (n_actions,), np.float32)
        self.length, self.terminates = length, terminates
        self.render_mode = "rgb_array"
        self.actions: list[np.ndarray] = []

    def observe(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.step_count = 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        self.actions.append(action)
        self.step_count += 1
        over = self.step_count >= self.length
        terminated, truncated = over and self.terminates, over and not self.terminates
        return self.observe(), float(action[0]), terminated, truncated, {}

    def render(self) -> np.ndarray:
        return np.zeros((16, 16, 3), np.uint8)


class SavableEnv(FakeEnv):
    """One that can be brought back to any step."""

    def get_state(self) -> dict[str, Any]:
        random = self.np_random.bit_generator.state
        return {"step_count": self.step_count, "random": random}

    def set_state(self, state: dict[str, Any]) -> None:
        self.step_count = state["step_count"]
        self.np_random.bit_generator.state = state["random"]


def random_batch(
    n_steps: int = 4,
    n_sequences: int = 3,
    n_actions: int = 2,
    image_size: int = 7,
    seed: int = 0,
) -> SequenceBatch:
    """A batch of random images, cropped already."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(
        0,
        256,
        (n_steps, n_sequences, 3, image_size, image_size),
        dtype=torch.uint8,
        generator=generator,
    )
    shape = (n_steps - 1, n_sequences)
    return SequenceBatch(
        observations=images,
        actions=torch.rand(*shape, n_actions, generator=generator) * 2 - 1,
        rewards=torch.rand(*shape, generator=generator),
        terminated=torch.zeros(shape),
        mask=torch.ones(n_steps, n_sequences),
    )


class OwnPolicy(RecurrentPolicy):
    """A user's subclass."""
