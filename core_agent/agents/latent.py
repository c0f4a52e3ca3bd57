"""The latent state: the policy that carries it, and what a user can ask of it.

A latent is the vector that actor and critics read, ``deter_dim + stoch_dim`` numbers: the
deterministic state and the mean of the stochastic one. The state that ``predict`` returns under
``deterministic=True`` holds the same, ``np.concatenate(state[:2], axis=-1)``, unless the policy has
``sample_when_deterministic=True``: then it holds a sample.

The functions :func:`encode`, :func:`imagine` and :func:`value` take and return numpy arrays and
draw no random number. Actions are those of the environment, in its bounds; observations are those
that ``predict`` takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from core_agent.agents.policies import ACTOR_RULES, StatefulPolicy
from core_agent.networks.actor_critic import Actor
from core_agent.networks.encoders import (
    SINGLE_KEY,
    ObservationEncoder,
    as_dict_space,
    fits_space,
)
from core_agent.networks.layers import Activation
from core_agent.networks.types import ActingState, Latent, Observation
from core_agent.networks.world_model import WorldModel
from core_agent.validation import BOOLEAN, Check, as_array, check, finite_array

FRAMES_AT_ONCE = 256
"""Images that the encoder takes in one go, to bound its memory."""


class Imagination(NamedTuple):
    """What is expected to follow a latent; ``H`` is the number of actions."""

    latents: np.ndarray
    """``(H, ..., latent_dim)``: after each action."""
    rewards: np.ndarray
    """``(H, ...)``: predicted for each action."""


class RecurrentPolicy(StatefulPolicy):
    """World model, actor and critics in one module; acts with a latent state carried along.

    ``predict`` takes and returns the state as a tuple of three numpy arrays: deterministic part,
    stochastic part and the action executed last (in [-1, 1]).

    :param observation_space: images (channels first), vectors or a ``Dict`` of both
    :param action_space: Box with finite bounds
    :param lr_schedule: for SB3's interface; the algorithm makes the optimisers
    :param actor_dims: hidden layers of the actor
    :param critic_dims: hidden layers of each critic
    :param activation: activation of actor and critics
    :param critic_layer_norm: normalise the input of each activation of the critics, which keeps
        their values from diverging where rewards are rare (arXiv:2302.02948)
    :param initial_log_ent_coef: initial log of the entropy temperature
    :param sample_when_deterministic: carry a sample of the stochastic state, not its mean, under
        ``deterministic=True`` too, as the authors did in their evaluation
    :param clamp_samples: clamp sampled actions to ±(1 - 1e-7) before their log-density is taken, as
        in the authors' experiments
    :param model_kwargs: passed to :class:`~core_agent.networks.world_model.WorldModel`
    :raises ValueError: for a bad argument
    """

    rules: ClassVar[dict[str, Check]] = {
        **ACTOR_RULES,
        **dict.fromkeys(
            ("critic_layer_norm", "sample_when_deterministic", "clamp_samples"), BOOLEAN
        ),
    }
    parts: ClassVar[tuple[type, ...]] = (WorldModel,)
    actor_optimizer: torch.optim.Optimizer
    ent_coef_optimizer: torch.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule | None = None,
        actor_dims: Sequence[int] = (1024, 1024, 1024),
        critic_dims: Sequence[int] = (1024, 1024, 1024),
        activation: Activation = "elu",
        critic_layer_norm: bool = False,
        initial_log_ent_coef: float = -2.3,
        sample_when_deterministic: bool = False,
        clamp_samples: bool = False,
        **model_kwargs: Any,
    ) -> None:
        own = dict(
            actor_dims=actor_dims,
            critic_dims=critic_dims,
            activation=activation,
            critic_layer_norm=critic_layer_norm,
            initial_log_ent_coef=initial_log_ent_coef,
            sample_when_deterministic=sample_when_deterministic,
            clamp_samples=clamp_samples,
        )
        super().__init__(observation_space, action_space, lr_schedule, {**own, **model_kwargs})
        self.sample_when_deterministic = sample_when_deterministic
        self.world_model = WorldModel(observation_space, self.action_dim, **model_kwargs)
        latent_dim = self.world_model.latent_dim
        self.actor = Actor(latent_dim, self.action_dim, actor_dims, activation, clamp_samples)
        self._make_critics(latent_dim, critic_dims, activation, critic_layer_norm)
        self.log_ent_coef = nn.Parameter(torch.tensor(initial_log_ent_coef))

    @property
    def observation_encoder(self) -> ObservationEncoder:
        return self.world_model.encoder

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("deter", "stoch", "previous_action")

    def first_look(self, observation: PyTorchObs) -> Observation:
        return self.world_model.encoder.center_crop(observation)

    def initial_state(self, n_envs: int) -> ActingState:
        """The state before the first observation: zeros."""
        deter, stoch = self.world_model.rssm.initial(n_envs)
        return ActingState(deter, stoch, deter.new_zeros(n_envs, self.action_dim))

    def carry(
        self,
        observation: PyTorchObs,
        state: tuple[torch.Tensor, ...],
        episode_start: torch.Tensor,
        deterministic: bool,
    ) -> tuple[ActingState, torch.Tensor]:
        """Filter one observation of each environment; the features are the latents' means.

        Training carries a sample of the stochastic state, ``deterministic=True`` its mean. The
        latter is a deviation: the authors carry a sample in evaluation too
        (``sample_when_deterministic=True``).
        """
        model, last = self.world_model, ActingState(*state)
        embed = model.embed(model.encoder(model.encoder.center_crop(observation)))
        deter = model.rssm.advance(Latent(last.deter, last.stoch), last.action)
        # The first frame of an episode is filtered from h = 0, as that of a training window is.
        deter = deter.masked_fill(episode_start.unsqueeze(-1), 0.0)
        posterior = model.rssm.posterior(deter, embed)
        stoch = posterior.mean
        if self.sample_when_deterministic or not deterministic:
            stoch = posterior.sample(torch.randn_like(posterior.mean))
        return ActingState(deter, stoch, last.action), Latent(deter, posterior.mean).flatten()

    def act(self, features: torch.Tensor, deterministic: bool) -> torch.Tensor:
        return self.actor.choose(features, deterministic)

    def remember(self, state: tuple[torch.Tensor, ...], actions: torch.Tensor) -> ActingState:
        return ActingState(*state)._replace(action=actions)


def encode(
    policy: RecurrentPolicy,
    observations: np.ndarray | Mapping[str, np.ndarray],
    actions: np.ndarray,
) -> np.ndarray:
    """Latents of complete episodes, filtered from their first frame.

    :param observations: ``(T, ...)`` of one episode or ``(T, B, ...)`` of ``B`` episodes of
        the same length; images channels first or last; by key for ``Dict`` observations
    :param actions: ``(T - 1, A)`` or ``(T - 1, B, A)``: ``actions[t]`` leads from frame ``t``
        to frame ``t + 1``; an action after the last frame is allowed and ignored
    :return: ``(T, latent_dim)`` or ``(T, B, latent_dim)``, float32
    :raises ValueError: for shapes that do not fit
    """
    tensors, lead = _frames(policy, observations)
    scaled = _scaled(policy, actions, lead[1:])[: lead[0] - 1]
    check(
        len(scaled) == lead[0] - 1,
        "actions",
        f"be {lead[0] - 1} for {lead[0]} frames, each leading to the next",
        len(scaled),
    )
    batch = (lead[0], lead[1] if len(lead) == 2 else 1)
    model = policy.world_model
    with torch.no_grad():
        features = []
        for start in range(0, batch[0] * batch[1], FRAMES_AT_ONCE):
            part = slice(start, start + FRAMES_AT_ONCE)
            chunk = (
                {name: value[part] for name, value in tensors.items()}
                if isinstance(tensors, dict)
                else tensors[part]
            )
            features.append(model.encoder(model.encoder.center_crop(chunk)))
        rollout = model.observe(
            torch.cat(features).unflatten(0, batch),
            scaled.reshape(batch[0] - 1, batch[1], policy.action_dim),
            torch.zeros(*batch, model.rssm.stoch_dim, device=policy.device),
        )
    return rollout.mean().reshape(*lead, -1).cpu().numpy()


def value(policy: RecurrentPolicy, latent: np.ndarray, action: np.ndarray) -> np.ndarray:
    """The lower of both critics' values: discounted returns that include SAC's entropy bonus.

    :param latent: ``(..., latent_dim)``
    :param action: ``(..., A)``
    :return: ``(...)``, float32
    :raises ValueError: for shapes that do not fit
    """
    latents = _latents(policy, latent)
    actions = _scaled(policy, action, latents.shape[:-1], time=False)
    with torch.no_grad():
        values = policy.critic(
            latents.reshape(-1, latents.shape[-1]), actions.reshape(-1, actions.shape[-1])
        )
    return values.amin(dim=0).reshape(latents.shape[:-1]).cpu().numpy()


def imagine(policy: RecurrentPolicy, latent: np.ndarray, actions: np.ndarray) -> Imagination:
    """Latents and rewards that the model expects to follow a latent, open loop.

    The stochastic state is carried as the mean of its prior.

    :param latent: ``(latent_dim,)``, or ``(B, latent_dim)`` for ``B`` rollouts at once
    :param actions: ``(H, A)`` or ``(H, B, A)``
    :return: latents and rewards; the rewards are meaningless if the model has not learned them
        (``reward_coef=0``)
    :raises ValueError: for shapes that do not fit
    """
    latents = _latents(policy, latent)
    check(latents.ndim in (1, 2), "latent", "have one axis or two", tuple(latents.shape))
    batch = tuple(latents.shape[:-1])
    scaled = _scaled(policy, actions, batch)
    model, flat = policy.world_model, latents.reshape(-1, latents.shape[-1])
    start = Latent(*flat.split([model.rssm.deter_dim, model.rssm.stoch_dim], dim=-1))
    n_steps, n_rollouts = len(scaled), len(flat)
    check(n_steps >= 1, "actions", "be at least one", n_steps)
    with torch.no_grad():
        rolled = model.rssm.imagine(
            start,
            scaled.reshape(n_steps, n_rollouts, -1),
            torch.zeros(n_steps, n_rollouts, model.rssm.stoch_dim, device=flat.device),
        ).flatten()
        rewards = model.reward(rolled)
    return Imagination(
        rolled.reshape(n_steps, *batch, -1).cpu().numpy(),
        rewards.reshape(n_steps, *batch).cpu().numpy(),
    )


def _frames(
    policy: RecurrentPolicy, observations: np.ndarray | Mapping[str, np.ndarray]
) -> tuple[Observation, tuple[int, ...]]:
    """Observations ``(N, ...)`` as the encoder takes them, and the axes that make up ``N``."""
    entries = observations if isinstance(observations, Mapping) else {SINGLE_KEY: observations}
    arrays = {key: as_array("observations", entry) for key, entry in entries.items()}
    sub_spaces = as_dict_space(policy.observation_space)
    check(
        arrays.keys() == sub_spaces.keys(),
        "observations",
        f"have the keys {sorted(sub_spaces)}",
        sorted(arrays),
    )
    key, space = next(iter(sub_spaces.items()))
    n_axes = arrays[key].ndim - len(space.shape or ())
    check(
        n_axes in (1, 2),
        "observations",
        "have one axis for time, and may have a second one for episodes, before those of "
        f"the observation space, {space.shape}",
        arrays[key].shape,
    )
    lead = arrays[key].shape[:n_axes]
    fits = all(
        arrays[name].shape[:n_axes] == lead
        and fits_space(arrays[name].reshape(-1, *arrays[name].shape[n_axes:]), sub)
        for name, sub in sub_spaces.items()
    )
    shapes = {name: array.shape for name, array in arrays.items()}
    check(fits, "observations", f"be finite and of {policy.observation_space}", shapes)
    flat = {name: array.reshape(-1, *array.shape[n_axes:]) for name, array in arrays.items()}
    is_dict = isinstance(policy.observation_space, spaces.Dict)
    tensors, _ = policy.obs_to_tensor(flat if is_dict else flat[SINGLE_KEY])
    return tensors, lead


def _latents(policy: RecurrentPolicy, latent: np.ndarray) -> torch.Tensor:
    latent_dim = policy.world_model.latent_dim
    tensor = torch.as_tensor(finite_array("latent", latent), device=policy.device)
    check(
        tensor.shape[-1:] == (latent_dim,),
        "latent",
        f"have a last axis of {latent_dim}",
        tuple(tensor.shape),
        "encode(observations, actions) gives latents",
    )
    return tensor


def _scaled(
    policy: RecurrentPolicy, actions: np.ndarray, batch: tuple[int, ...], time: bool = True
) -> torch.Tensor:
    """Actions ``(n, *batch, ...)`` of the environment, or ``(*batch, ...)``, in [-1, 1]."""
    name, shape = "actions" if time else "action", policy.action_space.shape
    array = finite_array(name, actions)
    assert shape is not None
    lead = array.shape[: array.ndim - len(shape)]
    fits = lead[1:] == batch and len(lead) == 1 + len(batch) if time else lead == batch
    check(
        fits and array.shape[len(lead) :] == shape,
        name,
        f"have the shape {('n', *batch, *shape) if time else (*batch, *shape)}",
        array.shape,
    )
    scaled = policy.scale_action(array).reshape(*lead, policy.action_dim)
    return torch.as_tensor(scaled.astype(np.float32), device=policy.device)
