"""Replay of complete episodes, each frame stored once, sampled as windows of consecutive frames."""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize

from core_agent.networks.encoders import (
    SINGLE_KEY,
    as_dict_space,
    check_box,
    check_observations,
    check_space,
    frame_bytes,
    is_image,
    stack_frames,
)
from core_agent.networks.types import Observation, SequenceBatch, TransitionBatch
from core_agent.replay.episode import Episode
from core_agent.validation import (
    BOOLEAN,
    DEVICE,
    SEED,
    SIZE,
    Check,
    as_array,
    check,
    check_arguments,
    whole,
)

GPU_MEMORY_SHARE = 0.5
"""Frames are kept on the GPU if the full buffer takes at most this share of its free memory."""
BUFFER_RULES: dict[str, Check] = {
    "buffer_size": SIZE,
    "observation_space": check_space,
    "action_space": check_box,
    **dict.fromkeys(("device", "storage_device"), DEVICE),
    "n_envs": SIZE,
    **dict.fromkeys(("optimize_memory_usage", "handle_timeout_termination"), BOOLEAN),
    "sequence_length": whole(2),
    "seed": SEED,
}
"""The rule of each argument of :class:`SequenceReplayBuffer`."""


class SequenceReplayBuffer(ReplayBuffer):
    """Stores each frame once and samples windows that never leave their episode.

    To draw a window, an episode is chosen uniformly, then a start in it uniformly. Once there are
    as many episodes as windows in a batch, no episode is drawn twice, because a frame that occurs
    twice would be a false negative of the contrastive loss. The more an episode falls short of
    ``sequence_length`` frames, the less often it is drawn; its windows are padded with zeros and
    masked. Memory is allocated as episodes grow. Running episodes are sampled too; one that reaches
    an eighth of its environment's share of the buffer continues as a new episode from that frame.

    :param buffer_size: number of steps kept, over all environments; the oldest episodes go first
    :param observation_space: images channels first
    :param action_space: Box
    :param device: device of the batches
    :param n_envs: number of environments that add transitions at the same time
    :param optimize_memory_usage: for SB3's interface; each frame is stored once in any case
    :param handle_timeout_termination: treat ``info["TimeLimit.truncated"]`` as no termination
    :param sequence_length: frames in a window, ``T``
    :param seed: of the buffer's own generator
    :param storage_device: where frames are kept; ``"auto"``: on the GPU if they fit there
    :raises ValueError: for a bad argument
    """

    rules: ClassVar[dict[str, Check]] = BUFFER_RULES

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        sequence_length: int = 32,
        seed: int | None = None,
        storage_device: torch.device | str = "auto",
    ) -> None:
        check_arguments(self.rules, locals())
        # The parent would allocate every frame twice and at once, so only its fields are set.
        self.buffer_size = buffer_size
        self.observation_space = observation_space
        self.action_space = action_space
        self.obs_shape = observation_space.shape  # type: ignore[assignment]
        self.action_dim = get_action_dim(action_space)
        self.device = get_device(device)
        self.n_envs = n_envs
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = handle_timeout_termination
        self.sequence_length = sequence_length
        self.spaces = as_dict_space(observation_space)
        self.is_dict = isinstance(observation_space, spaces.Dict)
        self.generator = np.random.default_rng(seed)
        self.storage_device = self._choose_storage(storage_device)
        self.max_episode_steps = max(sequence_length, buffer_size // (8 * n_envs))
        self.reset()

    def _choose_storage(self, wanted: torch.device | str) -> torch.device:
        if wanted != "auto":
            return torch.device(wanted)
        if self.device.type != "cuda":
            return torch.device("cpu")
        free, _ = torch.cuda.mem_get_info(self.device)
        fits = self.buffer_size * frame_bytes(self.observation_space) <= GPU_MEMORY_SHARE * free
        return self.device if fits else torch.device("cpu")

    def reset(self) -> None:
        """Forget every episode."""
        self.episodes: deque[Episode] = deque()
        self.running: list[Episode | None] = [None] * self.n_envs
        self.n_steps = 0
        self.n_episodes_begun = 0

    @property
    def pos(self) -> int:  # type: ignore[override]
        return self.n_steps

    @property
    def full(self) -> bool:  # type: ignore[override]
        """Whether the oldest episodes have gone."""
        return len(self.episodes) < self.n_episodes_begun

    def size(self) -> int:
        """Number of steps stored, over all environments."""
        return self.n_steps

    def _split(self, observation: np.ndarray | dict[str, np.ndarray], env: int) -> dict[str, Any]:
        """One environment's observation by key, images channels last."""
        entries = observation if isinstance(observation, dict) else {SINGLE_KEY: observation}
        frame = {}
        for key, space in self.spaces.items():
            value = np.asarray(entries[key][env])
            if is_image(space):
                value = value.transpose(1, 2, 0)
            frame[key] = torch.from_numpy(np.array(value, dtype=space.dtype, copy=None))
        return frame

    def add(
        self,
        obs: np.ndarray | dict[str, np.ndarray],
        next_obs: np.ndarray | dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Add one step of every environment.

        :param obs: ``(n_envs, ...)``; read only at the first step of an episode, because at later
            steps the buffer already has it
        :param next_obs: ``(n_envs, ...)``; at the end of an episode, its last observation
        :param action: ``(n_envs, A)`` in [-1, 1]
        :param reward: ``(n_envs,)``
        :param done: ``(n_envs,)``
        :param infos: one for each environment; ``"episode_lost"``: the step never happened, see
            :class:`~core_agent.environments.workers.SupervisedSubprocVecEnv`
        :raises ValueError: for another number of environments, or of actions
        """
        sizes = dict(action=self.n_envs * self.action_dim, reward=self.n_envs, done=self.n_envs)
        for name, value in dict(action=action, reward=reward, done=done).items():
            size = as_array(name, value).size
            check(size == sizes[name], name, f"have {sizes[name]} entries", value)
        check(len(infos) == self.n_envs, "infos", f"be {self.n_envs} dicts", infos)
        for name, observation in dict(obs=obs, next_obs=next_obs).items():
            check_observations(name, observation, self.observation_space, self.n_envs)
        actions = np.asarray(action).reshape(self.n_envs, self.action_dim)
        for env in range(self.n_envs):
            episode = self.running[env]
            if infos[env].get("episode_lost", False):
                # Its environment was restarted: the episode ends at its last step, not at this one.
                if episode is not None:
                    self._finish(env, terminated=False)
                continue
            if episode is None:
                episode = self._begin(env, self._split(obs, env))
            episode.append(self._split(next_obs, env), actions[env], float(reward[env]))
            self.n_steps += 1
            if done[env]:
                time_limit = infos[env].get("TimeLimit.truncated", False)
                self._finish(env, not (self.handle_timeout_termination and time_limit))
            elif episode.n_steps >= self.max_episode_steps:
                self._finish(env, terminated=False)
                self._begin(env, episode.last_frame)  # It continues as a new one.
        self._evict()

    def _begin(self, env: int, first: dict[str, torch.Tensor]) -> Episode:
        episode = Episode(first, self.action_dim, self.storage_device, self.n_episodes_begun)
        self.n_episodes_begun += 1
        self.running[env] = episode
        self.episodes.append(episode)
        return episode

    def _finish(self, env: int, terminated: bool) -> None:
        episode = self.running[env]
        assert episode is not None
        episode.finish(terminated)
        self.running[env] = None

    def _evict(self) -> None:
        while self.n_steps > self.buffer_size and len(self.episodes) > self.n_envs:
            oldest = next(ep for ep in self.episodes if not any(ep is run for run in self.running))
            self.episodes.remove(oldest)
            self.n_steps -= oldest.n_steps

    def end_episodes(self) -> None:
        """Close the episodes that are running, as the environments were reset from outside."""
        for env, episode in enumerate(self.running):
            if episode is not None:
                self._finish(env, terminated=False)

    def set_n_envs(self, n_envs: int) -> None:
        """Take steps of another number of environments from now on."""
        self.end_episodes()
        self.n_envs = n_envs
        self.running = [None] * n_envs

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not torch.cuda.is_available():
            self.device = self.storage_device = torch.device("cpu")

    def _stored_episodes(self) -> list[Episode]:
        """Those with a step.

        :raises RuntimeError: if there is none
        """
        episodes = [episode for episode in self.episodes if episode.n_steps > 0]
        if not episodes:
            raise RuntimeError(
                "the replay buffer is empty: collect at least one step before sampling, "
                "for example with learning_starts > 0"
            )
        return episodes

    def sample(  # type: ignore[override]
        self, batch_size: int, env: VecNormalize | None = None
    ) -> SequenceBatch:
        """Draw ``batch_size`` windows.

        :param batch_size: number of windows, ``B``
        :param env: normalises observations and rewards, which are stored raw
        :return: ``T = sequence_length`` frames each, on the buffer's device
        :raises RuntimeError: if nothing is stored yet
        """
        SIZE("batch_size", batch_size)
        check(env is None or isinstance(env, VecNormalize), "env", "be a VecNormalize or None", env)
        episodes = self._stored_episodes()
        chosen = self._draw_episodes(episodes, batch_size)
        lengths = np.array([min(self.sequence_length, ep.n_steps + 1) for ep in chosen])
        n_frames = np.array([episode.n_steps + 1 for episode in chosen])
        starts = self.generator.integers(n_frames - lengths + 1)
        frames = {key: self._gather_frames(key, chosen, starts, lengths) for key in self.spaces}
        n_transitions = self.sequence_length - 1
        actions = np.zeros((n_transitions, batch_size, self.action_dim), dtype=np.float32)
        rewards = np.zeros((n_transitions, batch_size), dtype=np.float32)
        terminated = np.zeros((n_transitions, batch_size), dtype=np.float32)
        mask = np.zeros((self.sequence_length, batch_size), dtype=np.float32)
        for b, (episode, start, length) in enumerate(zip(chosen, starts, lengths)):
            steps = slice(start, start + length - 1)
            actions[: length - 1, b] = episode.actions[steps]
            rewards[: length - 1, b] = episode.rewards[steps]
            if episode.terminated and start + length == episode.n_steps + 1:
                terminated[length - 2, b] = 1.0
            mask[:length, b] = 1.0
        if env is not None:
            frames = self._normalize_frames(frames, env)
            rewards = env.normalize_reward(rewards).astype(np.float32)
        observations: Observation = frames if self.is_dict else frames[SINGLE_KEY]
        return SequenceBatch(
            observations,
            *(self._to_device(array) for array in (actions, rewards, terminated, mask)),
        )

    def _draw_episodes(self, episodes: list[Episode], batch_size: int) -> list[Episode]:
        """Episodes for a batch: each at most once if there are enough of them.

        All have the same weight, except those shorter than a window, such as one that has just
        started: their weight is the share of a window's transitions that they have.
        """
        n_steps = np.array([episode.n_steps for episode in episodes])
        weights = np.minimum(n_steps / (self.sequence_length - 1), 1.0)
        several, share = len(episodes) < batch_size, weights / weights.sum()
        drawn = self.generator.choice(len(episodes), batch_size, replace=several, p=share)
        return [episodes[index] for index in drawn]

    def sample_stacks(
        self, batch_size: int, n_frames: int, env: VecNormalize | None = None
    ) -> TransitionBatch:
        """Draw ``batch_size`` transitions, with stacks of the last ``n_frames`` frames.

        They are drawn uniformly, each at most once if there are enough of them.

        A stack never reaches into another episode: near the start of an episode, or of a part of a
        long episode that was split, the first frame is repeated in place of missing ones.

        :param batch_size: number of transitions, ``B``
        :param n_frames: frames in a stack
        :param env: normalises observations and rewards, which are stored raw
        :raises RuntimeError: if nothing is stored yet
        """
        episodes = self._stored_episodes()
        ends = np.cumsum([episode.n_steps for episode in episodes])
        drawn = self.generator.choice(ends[-1], batch_size, replace=ends[-1] < batch_size)
        indices = np.searchsorted(ends, drawn, side="right")
        chosen = [episodes[index] for index in indices]
        steps = [int(n) for n in drawn - ends[indices] + [episode.n_steps for episode in chosen]]
        pairs = list(zip(chosen, steps))
        actions = np.stack([episode.actions[step] for episode, step in pairs])
        rewards = np.array([episode.rewards[step] for episode, step in pairs], np.float32)
        terminated = np.array(
            [episode.terminated and step == episode.n_steps - 1 for episode, step in pairs],
            np.float32,
        )
        windows = {key: self._gather_windows(key, chosen, steps, n_frames) for key in self.spaces}
        if env is not None:
            windows = self._normalize_frames(windows, env)
            rewards = env.normalize_reward(rewards).astype(np.float32)
        before, after = (
            {key: stack_frames([*window[part]]) for key, window in windows.items()}
            for part in (slice(None, -1), slice(1, None))
        )
        return TransitionBatch(
            before if self.is_dict else before[SINGLE_KEY],
            self._to_device(actions),
            after if self.is_dict else after[SINGLE_KEY],
            self._to_device(rewards),
            self._to_device(terminated),
        )

    def _gather_windows(
        self, key: str, episodes: list[Episode], steps: list[int], n_frames: int
    ) -> torch.Tensor:
        """Frames ``(n_frames + 1, B, ...)`` of one key up to the one that each step leads to."""
        first = episodes[0].frames[key]
        shape = (n_frames + 1, len(episodes), *first.shape[1:])
        windows = self._staging_area(shape, first)
        for b, (episode, step) in enumerate(zip(episodes, steps)):
            start = step + 1 - n_frames
            window = episode.frames[key][max(0, start) : step + 2]
            n_missing = max(0, -start)
            windows[:n_missing, b] = window[0]
            windows[n_missing:, b] = window
        return self._delivered(key, windows)

    def _gather_frames(
        self, key: str, episodes: list[Episode], starts: np.ndarray, lengths: np.ndarray
    ) -> torch.Tensor:
        """Windows ``(T, B, ...)`` of one key, zero where padded; images channels first."""
        first = episodes[0].frames[key]
        shape = (self.sequence_length, len(episodes), *first.shape[1:])
        frames = self._staging_area(shape, first)
        for b, (episode, start, length) in enumerate(zip(episodes, starts, lengths)):
            frames[:length, b] = episode.frames[key][start : start + length]
            frames[length:, b] = 0
        return self._delivered(key, frames)

    def _delivered(self, key: str, frames: torch.Tensor) -> torch.Tensor:
        """Frames on the buffer's device; images, stored channels last, as channels first."""
        frames = frames.to(self.device, non_blocking=True)
        return frames.permute(0, 1, 4, 2, 3) if is_image(self.spaces[key]) else frames

    def _staging_area(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Room for a batch of frames such as ``like``, where they are stored."""
        pinned = self.device.type == "cuda" and like.device.type == "cpu"
        return torch.empty(shape, dtype=like.dtype, device=like.device, pin_memory=pinned)

    def _normalize_frames(
        self, observations: dict[str, torch.Tensor], env: VecNormalize
    ) -> dict[str, torch.Tensor]:
        flat = {key: value.flatten(0, 1).cpu().numpy() for key, value in observations.items()}
        normalized = env.normalize_obs(flat if self.is_dict else flat[SINGLE_KEY])
        by_key = normalized if isinstance(normalized, dict) else {SINGLE_KEY: normalized}
        return {
            key: torch.as_tensor(value, device=self.device).unflatten(
                0, observations[key].shape[:2]
            )
            for key, value in by_key.items()
        }

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
