"""When agents collect and when they learn."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn, TrainFreq
from stable_baselines3.common.vec_env import VecEnv

from core_agent.agents.arguments import RULES
from core_agent.agents.collection import Progress, vectorized_noise
from core_agent.agents.metrics import UpdateLog, errors_as_warnings
from core_agent.agents.presets import RECURRENT
from core_agent.agents.savable import SavableAlgorithm
from core_agent.agents.transitions import store_transition
from core_agent.networks.encoders import as_dict_space, is_image
from core_agent.networks.hardware import memory_advice
from core_agent.replay.buffer import SequenceReplayBuffer
from core_agent.saving.resumable import make_resumable
from core_agent.validation import check, check_arguments, whole

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="LearningLoop")

PAPER_SIMULATOR_STEPS = 500_000
N_TIMED_UPDATES = 3
LONGEST_TIMING = 5.0
"""Seconds after which timing stops, even with fewer updates."""
LONG_RUN = 3_600.0
"""A run whose updates take more seconds than this on a CPU gets a warning."""
MANY_FRAMES = 4_096
"""A run whose batches hold more frames than this gets a warning; the paper's batch holds 1,024."""


class LearningLoop(SavableAlgorithm):
    """Rollouts and updates in turn, each of which may be stopped and resumed."""

    memory_settings: ClassVar[tuple[str, ...]] = ("batch_size",)
    """Arguments that the memory of an update grows with."""
    update_ratio: float
    max_rollout_steps: int
    replay_buffer: SequenceReplayBuffer | None
    _last_states: tuple[np.ndarray, ...] | None
    _progress: Progress
    _awaiting: list[Callable[[], bool]]
    _endings: list[Callable[[BaseException | None], None]]
    _stopping: bool
    _updates_per_second: float
    _updates_per_step = 0.0
    _first_updates: list[float] | None = None
    """Seconds that the first updates of :meth:`learn` took; ``None`` when no more are timed."""
    _cost_is_told = False

    def learn(
        self: SelfAlgorithm,
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfAlgorithm:
        """Collect and learn.

        :param total_timesteps: agent steps to take, summed over all environments; learning can end
            within an episode. By default the paper's 500,000 simulator steps, if the environment
            has an ``action_repeat``
        :param callback: SB3 callback(s), called after every ``env.step``
        :param log_interval: episodes between two log entries; ``None``: no logging of episodes
        :param tb_log_name: name of the run for TensorBoard; by default the algorithm's name
        :param reset_num_timesteps: ``False`` continues where the last call ended
        :param progress_bar: show SB3's progress bar
        :return: the model itself
        :raises ValueError: without an environment, or if ``total_timesteps`` has no default for it
        """
        if total_timesteps is None:
            check(
                self.env is not None and self.env.has_attr("action_repeat"),
                "total_timesteps",
                "be given for environments other than the Distracting Control Suite",
                None,
                "for example learn(100_000)",
            )
            total_timesteps = PAPER_SIMULATOR_STEPS // self.action_repeat
        # 0 completes what a run was doing when it was stopped.
        lowest = 0 if self._is_unfinished and not reset_num_timesteps else 1
        whole(lowest)("total_timesteps", total_timesteps)
        check_arguments(RULES, locals())
        name = tb_log_name or type(self).__name__
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, name, progress_bar
        )
        error: BaseException | None = None
        try:
            callback.on_training_start(locals(), globals())
            with memory_advice(**{name: getattr(self, name) for name in self.memory_settings}):
                self._alternate(total_timesteps, callback, log_interval)
            callback.on_training_end()
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._first_updates = None
            endings, self._endings, self._awaiting = self._endings, [], []
            for ending in reversed(endings):
                ending(error)
        return self

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        check(
            self.env is not None,
            "env",
            "be set before learn()",
            None,
            "pass env= to the constructor or to load(), or call set_env()",
        )
        assert self.env is not None and self.replay_buffer is not None
        n_envs, progress = self.env.num_envs, self._progress
        self._collector.check_environments(self.env)
        make_resumable(self.env)
        continues = not reset_num_timesteps and self._last_obs is not None
        if not continues:
            # The environments are about to be reset: what runs there ends here.
            self.replay_buffer.end_episodes()
            self._last_states = None
            progress.begin_rollout(n_envs)
            self._collector.renew(self.policy)
        if reset_num_timesteps or not self.replay_buffer.size():
            progress.forget_updates()
        if self.replay_buffer.n_envs != n_envs:
            self.replay_buffer.set_n_envs(n_envs)
        noise = vectorized_noise(self.action_noise, n_envs)
        # SB3 would reset the noise, also in the middle of an episode.
        self.action_noise = None if continues else noise
        result = super()._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        self.action_noise = noise
        return result

    def _alternate(
        self, total_timesteps: int, callback: BaseCallback, log_interval: int | None
    ) -> None:
        """Collect and update in turn, from where an earlier call was stopped."""
        assert self.env is not None and isinstance(self.train_freq, TrainFreq)
        assert self.replay_buffer is not None
        progress, self._stopping = self._progress, False
        self._first_updates = None if self._cost_is_told else []
        while not self._stopping and (self.num_timesteps < total_timesteps or self._is_unfinished):
            all_collected = self.num_timesteps >= total_timesteps and not progress.steps
            if progress.updates_due and (all_collected or self._collector.updates_in_between):
                self.train(progress.updates_due, self.batch_size)
                continue
            rollout = self.collect_rollouts(
                self.env,
                callback,
                self.train_freq,
                self.replay_buffer,
                self.action_noise,
                self.learning_starts,
                log_interval,
            )
            if not rollout.continue_training:
                break
            if self.num_timesteps > self.learning_starts:
                n_steps = rollout.episode_timesteps
                n_updates = self._gradient_steps_after(n_steps)
                self._updates_per_step = n_updates / n_steps
                progress.add_updates(n_updates, n_steps // self.n_envs)
            self._reach_safe_point()
        self._stopping = False

    @property
    def _is_unfinished(self) -> bool:
        """Whether :meth:`learn` was stopped within a rollout or the updates after it."""
        return self._progress.is_unfinished

    def _gradient_steps_after(self, n_steps: int) -> int:
        """Updates after ``n_steps`` agent steps of all environments together."""
        if self.gradient_steps is None:
            due = self._progress.fraction_due + self.update_ratio * n_steps
            self._progress.fraction_due = due % 1.0
            return int(due)
        return n_steps if self.gradient_steps < 0 else self.gradient_steps

    def _learned_once(self, started: float) -> None:
        """Count an update that started at ``started``; once enough are timed, warn if costly."""
        self._n_updates += 1
        self._progress.updates_due -= 1
        if self._first_updates is None:
            return
        self._first_updates.append(time.perf_counter() - started)
        enough = len(self._first_updates) >= N_TIMED_UPDATES
        if enough or sum(self._first_updates) >= LONGEST_TIMING:
            seconds, self._first_updates = min(self._first_updates), None
            self._warn_of_cost(seconds)

    def _warn_of_cost(self, seconds: float) -> None:
        """Warn if the run takes long, at ``seconds`` per update, or its batches are large."""
        n_steps = max(0, self._total_timesteps - self.num_timesteps)
        n_updates = self._progress.updates_due + round(n_steps * self._updates_per_step)
        is_long = self.device.type == "cpu" and n_updates * seconds > LONG_RUN
        sizes = {name: getattr(self, name) for name in self.memory_settings}
        n_frames = math.prod(sizes.values())
        if not is_long and n_frames <= MANY_FRAMES:
            return
        self._cost_is_told = True
        took = (
            f"; at {seconds:.3g} s each, the {n_updates:,} updates that are left take about "
            f"{n_updates * seconds / 3600:.2g} hours on this CPU"
            if self.device.type == "cpu"
            else ""
        )
        times = " × ".join(f"{name}={value}" for name, value in sizes.items())
        ratio = "update_ratio" if self.gradient_steps is None else "gradient_steps"
        warnings.warn(
            f"updates are expensive: a batch holds {n_frames:,} frames ({times}){took}. Use "
            f"{self._cheaper_preset}, or lower {', '.join(sizes)} or {ratio}",
            stacklevel=2,
        )

    @property
    def _cheaper_preset(self) -> str:
        """How to ask for networks and batches that suit a CPU."""
        from core_agent.agents.registry import AGENTS  # it knows all agents, and they know this

        names = {agent: name for name, agent in AGENTS.items()}
        agent = next(names[base] for base in type(self).__mro__ if base in names)
        has_images = any(map(is_image, as_dict_space(self.observation_space).values()))
        size = "vector" if agent in RECURRENT and not has_images else "small"
        return f'preset("{size}")' if agent == "core" else f'preset("{size}", "{agent}")'

    def at_next_safe_point(self, action: Callable[[], bool]) -> None:
        """Call ``action`` once, at the next point between two steps or updates of :meth:`learn`.

        At that point the last step is stored and the last update is complete. Callbacks and signal
        handlers, which run in the middle of a step or update, request a checkpoint in this way.

        :param action: returns whether to continue; ``False`` ends :meth:`learn`
        """
        self._awaiting.append(action)

    def when_learning_ends(self, action: Callable[[BaseException | None], None]) -> None:
        """Call ``action`` when :meth:`learn` ends, with the error that ended it, or ``None``."""
        self._endings.append(action)

    def _reach_safe_point(self) -> None:
        if self._awaiting:
            self._guard.check()
        while self._awaiting:
            if not self._awaiting.pop(0)():
                self._stopping = True

    def _log_updates(self, updates: UpdateLog) -> None:
        """Log the means of the metrics since the last time.

        :raises NonFiniteError: if one of the updates has failed
        """
        if updates.n_updates == 0:
            return
        self._guard.check()
        for name, value in updates.means.compute().items():
            self.logger.record(f"train/{name}", value)
        self._updates_per_second = updates.updates_per_second()
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        updates.restart()

    def dump_logs(self) -> None:
        """Write the log, with simulator steps and updates per second next to SB3's keys."""
        self.logger.record("time/simulator_steps", self.num_timesteps * self.action_repeat)
        self.logger.record("time/updates_per_second", self._updates_per_second)
        with errors_as_warnings():
            super().dump_logs()

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """Step the environments until it is time for updates, as :attr:`collect` says."""
        return self._collector.collect(
            self,
            env,
            callback,
            train_freq,
            replay_buffer,
            action_noise,
            learning_starts,
            log_interval,
        )

    def _store_transition(self, replay_buffer: ReplayBuffer, *step: Any) -> None:
        store_transition(self, replay_buffer, *step)

    @property
    def action_repeat(self) -> int:
        """Simulator steps that one agent step takes; 1 where the environment does not say."""
        if self.env is None or not self.env.has_attr("action_repeat"):
            return 1
        return int(self.env.get_attr("action_repeat")[0])
