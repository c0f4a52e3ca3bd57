"""The networks of the agents, and how they act."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import get_device
from torch import nn

from core_agent.agents.sb3_names import GIVEN_BY_THE_AGENT, POLICY_ARGUMENTS
from core_agent.networks.actor_critic import Critic
from core_agent.networks.encoders import (
    SINGLE_KEY,
    ObservationEncoder,
    any_entry,
    as_dict_space,
    check_box,
    check_space,
    fits_space,
    is_image,
)
from core_agent.networks.layers import ACTIVATIONS, Activation
from core_agent.networks.types import Observation
from core_agent.saving.integrity import check_state_dict
from core_agent.saving.safe_loading import RESTRICTED_PICKLE, check_archive, opened, reading
from core_agent.validation import (
    BOOLEAN,
    DEVICE,
    FILE,
    NUMBER,
    SIZES,
    Check,
    Rule,
    as_array,
    check,
    check_keywords,
    choice,
    finite_array,
    optional,
)

ACTOR_RULES: dict[str, Check] = {
    "actor_dims": SIZES,
    "initial_log_ent_coef": NUMBER,
}
"""Rules of policies with an actor and an entropy temperature."""
SelfPolicy = TypeVar("SelfPolicy", bound="StatefulPolicy")

STATELESS_CALLS = 10
"""Number of consecutive calls of ``predict`` without a state that causes a warning."""


class StatefulPolicy(BasePolicy):
    """A policy that carries a state from one call of ``predict`` to the next.

    A subclass has an encoder and two critics. It defines the state before the first observation
    (:meth:`initial_state`), updates it with an observation (:meth:`carry`) and chooses actions
    (:meth:`act`); :meth:`step` does the last two together.

    :param observation_space: images (channels first), vectors or a ``Dict`` of both
    :param action_space: Box with finite bounds
    :param lr_schedule: for SB3's interface; the algorithm makes the optimisers
    :param constructor_kwargs: the other arguments of the subclass, for saving
    :raises ValueError: for a bad argument
    """

    rules: ClassVar[dict[str, Check]] = {
        "observation_space": check_space,
        "action_space": check_box,
        "lr_schedule": optional(Rule("be a function or None", callable)),
        "critic_dims": SIZES,
        "activation": choice(*ACTIVATIONS),
    }
    """Rules of the arguments; those of bases and ``parts`` hold too."""
    parts: ClassVar[tuple[type, ...]] = ()
    """Classes of networks whose arguments are taken as well."""
    critic_optimizer: torch.optim.Optimizer
    critic: Critic
    critic_target: Critic

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule | None,
        constructor_kwargs: dict[str, Any],
    ) -> None:
        given = dict(observation_space=observation_space, action_space=action_space)
        self.check_arguments({**given, "lr_schedule": lr_schedule, **constructor_kwargs})
        super().__init__(observation_space, action_space, squash_output=True)
        self.constructor_kwargs = constructor_kwargs
        self._stateless_calls = 0
        self.action_dim = get_action_dim(action_space)

    def _make_critics(
        self,
        state_dim: int,
        hidden_dims: Sequence[int],
        activation: Activation,
        layer_norm: bool = False,
    ) -> None:
        arguments = (state_dim, self.action_dim, hidden_dims, activation, layer_norm)
        self.critic, self.critic_target = Critic(*arguments), Critic(*arguments)
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.critic_target.requires_grad_(False)

    @property
    @abstractmethod
    def observation_encoder(self) -> ObservationEncoder:
        """What turns observations into features."""

    @property
    @abstractmethod
    def state_names(self) -> tuple[str, ...]:
        """Names of the parts of the state."""

    @abstractmethod
    def first_look(self, observation: PyTorchObs) -> Observation:
        """What the encoder reads of observations ``(n, ...)`` that begin an episode."""

    def targets(self) -> dict[nn.Module, nn.Module]:
        """The target modules, each with the module that it slowly follows."""
        return {self.critic_target: self.critic}

    @abstractmethod
    def initial_state(self, n_envs: int) -> tuple[torch.Tensor, ...]:
        """The state before the first observation: zeros, ``(n_envs, ...)`` each."""

    @abstractmethod
    def carry(
        self,
        observation: PyTorchObs,
        state: tuple[torch.Tensor, ...],
        episode_start: torch.Tensor,
        deterministic: bool,
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """The state updated with an observation, and the features ``(n, D)`` for :meth:`act`.

        :param observation: ``(n, ...)``, images not cropped yet
        :param state: the state after the last step
        :param episode_start: ``(n,)`` bool: environments whose episode starts
        :param deterministic: draw no random number, except with ``sample_when_deterministic``
        """

    @abstractmethod
    def act(self, features: torch.Tensor, deterministic: bool) -> torch.Tensor:
        """Actions ``(n, A)`` in [-1, 1] at features ``(n, D)``.

        :param deterministic: draw no random number: do not explore
        """

    def remember(
        self, state: tuple[torch.Tensor, ...], actions: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """The state once ``actions`` ``(n, A)`` in [-1, 1] are executed."""
        return state

    def step(
        self,
        observation: PyTorchObs,
        state: tuple[torch.Tensor, ...],
        episode_start: torch.Tensor,
        deterministic: bool,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Actions ``(n, A)`` in [-1, 1] and the next state; arguments as in :meth:`carry`."""
        state, features = self.carry(observation, state, episode_start, deterministic)
        actions = self.act(features, deterministic)
        return actions, self.remember(state, actions)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return dict(
            observation_space=self.observation_space,
            action_space=self.action_space,
            **self.constructor_kwargs,
        )

    @classmethod
    def check_arguments(cls, arguments: Mapping[str, Any] | None) -> None:
        """Make sure that these are arguments of the policy, and follow their rules.

        :raises ValueError: if one does not
        """
        check_keywords(
            "policy_kwargs",
            arguments,
            *(cls, *cls.parts),
            without="constructor_kwargs",
            hidden=GIVEN_BY_THE_AGENT,
            instead=POLICY_ARGUMENTS,
        )

    @classmethod
    def load(
        cls: type[SelfPolicy],
        path: str,
        device: torch.device | str = "auto",
        trusted: bool = False,
    ) -> SelfPolicy:
        """Load a policy that ``save`` wrote, without executing anything in the file.

        :param path: file to read
        :param device: device of the networks
        :param trusted: unpickle whatever the file holds, as SB3 does
        :raises UnsafeFileError: if the file asks for names that loading does not allow, or is not
            a saved policy
        """
        FILE("path", path)
        DEVICE("device", device)
        BOOLEAN("trusted", trusted)
        if trusted:
            return super().load(path, device)
        device = get_device(device)
        with opened(path, "pth") as file, reading(path, "a saved policy"):
            check_archive(file)
            saved = torch.load(
                file, map_location=device, weights_only=False, pickle_module=RESTRICTED_PICKLE
            )
            with torch.device("meta"):
                policy = cls(**saved["data"])
            check_state_dict("state_dict", policy.state_dict(), saved["state_dict"])
            if cls.__module__.startswith("core_agent."):
                policy.to_empty(device=device)
            else:  # One of the user's may have tensors that its parameters do not show.
                policy = cls(**saved["data"]).to(device)
            policy.load_state_dict(saved["state_dict"])
        return policy

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> torch.Tensor:
        n_envs = len(any_entry(observation))
        starts = torch.ones(n_envs, dtype=torch.bool, device=self.device)
        return self.step(observation, self.initial_state(n_envs), starts, deterministic)[0]

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Actions for one observation or a batch, and the state to pass to the next call.

        :param observation: one observation, or ``n`` of them stacked; images channels first or last
        :param state: what the last call returned; ``None``: an episode starts
        :param episode_start: ``(n,)`` bool: environments whose episode starts
        :param deterministic: draw no random number, except with ``sample_when_deterministic``
        :return: actions within the bounds of the action space, and the state: arrays ``(n, ...)``
        :raises ValueError: for an ``(observation, info)`` tuple, or a state of another size
        """
        if isinstance(observation, tuple):
            raise ValueError(
                "observation must be an array or a dict, got a tuple; env.reset() of Gymnasium "
                "returns (observation, info): pass only the observation"
            )
        self._check_observation(observation)
        BOOLEAN("deterministic", deterministic)
        self._notice_forgotten_state(state, episode_start)
        observations, vectorized = self.obs_to_tensor(observation)
        n_envs = len(any_entry(observations))
        with torch.no_grad():
            acting_state, starts = self._unpack_state(state, episode_start, n_envs)
            scaled, next_state = self.step(observations, acting_state, starts, deterministic)
        arrays = tuple(part.cpu().numpy() for part in next_state)
        actions = self.to_env_actions(scaled.cpu().numpy())
        return actions if vectorized else actions[0], arrays

    def _check_observation(self, observation: Any) -> None:
        """Make sure that ``observation`` has the shape of the space, alone or stacked.

        :raises ValueError: if it has not
        """
        sub_spaces = as_dict_space(self.observation_space)
        entries = observation if isinstance(observation, dict) else {SINGLE_KEY: observation}
        rule = "be finite, with the keys and shapes of the observation space, alone or stacked"
        fits = entries.keys() == sub_spaces.keys() and all(
            fits_space(entries[key], space) for key, space in sub_spaces.items()
        )
        shapes = {key: getattr(entry, "shape", entry) for key, entry in entries.items()}
        check(fits, "observation", rule, shapes, f"it is {self.observation_space}")

    def _notice_forgotten_state(
        self, state: tuple[np.ndarray, ...] | None, episode_start: np.ndarray | None
    ) -> None:
        """Warn once about repeated calls without a state, a mistake that raises no error."""
        if state is not None or (
            episode_start is not None and np.all(as_array("episode_start", episode_start))
        ):
            if self._stateless_calls < STATELESS_CALLS:
                self._stateless_calls = 0
            return
        self._stateless_calls += 1
        if self._stateless_calls == STATELESS_CALLS:
            warnings.warn(
                f"predict was called {STATELESS_CALLS} times in a row without a state: the "
                "agent then starts again at every step and plays worse; pass the state on: "
                "action, state = model.predict(observation, state, episode_start)",
                UserWarning,
                stacklevel=4,
            )

    def _unpack_state(
        self,
        state: tuple[np.ndarray, ...] | None,
        episode_start: np.ndarray | None,
        n_envs: int,
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        initial = self.initial_state(n_envs)
        if episode_start is not None:
            told = as_array("episode_start", episode_start)
            fits = told.size in (1, n_envs) and told.dtype.kind in "biuf"
            check(fits, "episode_start", f"hold {n_envs} boolean(s)", episode_start)
        if state is None:
            return initial, torch.ones(n_envs, dtype=torch.bool, device=self.device)
        shapes = [tuple(wanted.shape) for wanted in initial]
        several = isinstance(state, (tuple, list))
        found = (
            [as_array("state", part).shape for part in state] if several else type(state).__name__
        )
        check(
            found == shapes,
            "state",
            f"be arrays of shapes {shapes} for {n_envs} observation(s)",
            found,
            "pass the state that the last predict() returned, or None at an episode's start",
        )
        tensors = tuple(
            torch.as_tensor(finite_array("state", part), dtype=wanted.dtype, device=self.device)
            for part, wanted in zip(state, initial)
        )
        if episode_start is None:
            return tensors, torch.zeros(n_envs, dtype=torch.bool, device=self.device)
        starts = torch.as_tensor(np.asarray(episode_start, dtype=bool), device=self.device)
        return tensors, starts.reshape(-1).expand(n_envs)

    def to_env_actions(self, scaled_actions: np.ndarray) -> np.ndarray:
        """Actions ``(n, A)`` in [-1, 1] as the environment takes them: its bounds, shape, dtype."""
        assert isinstance(self.action_space, spaces.Box)
        actions = scaled_actions.reshape(-1, *self.action_space.shape)
        unscaled = self.unscale_action(actions)
        low, high = self.action_space.low, self.action_space.high
        actions = np.clip(unscaled, low, high)
        is_integer = np.issubdtype(self.action_space.dtype, np.integer)
        return (np.rint(actions) if is_integer else actions).astype(self.action_space.dtype)


def policy_for(space: spaces.Space) -> str:
    """The name of the policy that ``"auto"`` selects for observations of ``space``."""
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image(space) else "MlpPolicy"
