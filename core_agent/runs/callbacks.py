"""Callbacks: progress on the terminal, validation with a video, a limit of time."""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from stable_baselines3.common.callbacks import BaseCallback

from core_agent.runs.evaluation import EpisodeResult, check_env, play, summarize
from core_agent.runs.video import log_video
from core_agent.saving.resumable import get_env_state
from core_agent.validation import (
    NonFiniteError,
    check,
    check_boolean,
    check_integer,
    check_path,
    check_positive,
    check_seed,
    check_size,
    check_text,
    check_verbose,
)

if TYPE_CHECKING:
    from core_agent.agents.base import SequenceOffPolicyAlgorithm


class RichProgressCallback(BaseCallback):
    """A progress bar with the mean return of the last episodes, the loss and the time left.

    :param console: where to draw; by default standard error
    :param loss_key: logged value to show beside the return
    """

    def __init__(self, console: Console | None = None, loss_key: str = "train/model_loss") -> None:
        fits = console is None or isinstance(console, Console)
        check(fits, "console", "be a Console of Rich or None", console)
        check_text("loss_key", loss_key)
        super().__init__()
        self.console = console or Console(stderr=True)
        self.loss_key = loss_key
        self._loss: float | None = None

    def _on_training_start(self) -> None:
        self._progress = Progress(
            TextColumn("[bold]learning"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("return {task.fields[mean_return]}"),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]} left"),
            console=self.console,
        )
        self._progress.start()
        self._first_step = self.model.num_timesteps
        self._task = self._progress.add_task(
            "",
            total=self.locals["total_timesteps"] - self._first_step,
            mean_return="–",
            loss="–",
            left="–",
        )
        self._learning_since: tuple[int, float] | None = None

    def _on_step(self) -> bool:
        self._loss = self.logger.name_to_value.get(self.loss_key, self._loss)
        episodes = list(self.model.ep_info_buffer or [])[-10:]
        self._progress.update(
            self._task,
            completed=self.model.num_timesteps - self._first_step,
            mean_return=f"{np.mean([ep['r'] for ep in episodes]):.0f}" if episodes else "–",
            loss="–" if self._loss is None else f"{self._loss:.2f}",
            left=self._time_left(),
        )
        return True

    def _time_left(self) -> str:
        """By the pace since learning began: warm-up is faster, and updates come in bursts."""
        steps, now = self.model.num_timesteps, time.perf_counter()
        if steps < getattr(self.model, "learning_starts", 0):
            return "–"
        if self._learning_since is None:
            self._learning_since = steps, now
        first, since = self._learning_since
        if not self.model._n_updates or steps == first:
            return "–"
        remaining = self.locals["total_timesteps"] - steps
        minutes, seconds = divmod(round((now - since) / (steps - first) * max(0, remaining)), 60)
        return f"{minutes}:{seconds:02}"

    def _on_training_end(self) -> None:
        self._progress.stop()


class EpisodeReturns(BaseCallback):
    """Remembers every training episode: ``(agent steps, seconds, return)`` in ``episodes``."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes: list[tuple[int, float, float]] = []

    def _on_training_start(self) -> None:
        self._started = time.perf_counter()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                seconds = time.perf_counter() - self._started
                episode = (self.num_timesteps, seconds, float(info["episode"]["r"]))
                self.episodes.append(episode)
        return True


class ValidationCallback(BaseCallback):
    """Plays episodes on another environment now and then; logs their return, and one as a video.

    Logged are ``validation/return``, its ``validation/standard_error`` and, in TensorBoard, the
    video ``validation/video``.

    :param env: environment with ``render_mode="rgb_array"``
    :param every: agent steps between two validations
    :param n_episodes: episodes each time
    :param deterministic: see :meth:`~core_agent.agents.latent.RecurrentPolicy.carry`
    :param video: log the first episode as a video
    :param seed: of the first episode, the same each time
    """

    def __init__(
        self,
        env: gym.Env,
        every: int,
        n_episodes: int = 5,
        deterministic: bool = True,
        video: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_env("env", env)
        check_size("every", every)
        check_size("n_episodes", n_episodes)
        check_boolean("deterministic", deterministic)
        check_boolean("video", video)
        check_seed("seed", seed)
        self.env, self.every, self.n_episodes = env, every, n_episodes
        self.deterministic, self.video, self.seed = deterministic, video, seed
        self.results: list[tuple[int, float, float]] = []
        """``(agent steps, mean return, standard error)`` of each validation."""

    def _on_training_start(self) -> None:
        self._next = next_multiple(self.every, self.model.num_timesteps)

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._next:
            self._next = next_multiple(self.every, self.num_timesteps)
            self.validate()
        return True

    def validate(self) -> list[EpisodeResult]:
        """Play and log now; the episodes, the first with its frames if a video is wanted."""
        record: bool | Literal["first"] = "first" if self.video else False
        episodes = play(
            self.env, self.model, self.n_episodes, self.deterministic, self.seed, record
        )
        statistics = summarize(episodes)
        self.results.append((self.num_timesteps, statistics.mean, statistics.standard_error))
        self.logger.record("validation/return", statistics.mean)
        self.logger.record("validation/standard_error", statistics.standard_error)
        if self.video:
            # Every other frame at half size: TensorBoard shows GIFs, which are large.
            frames = [frame[::2, ::2] for frame in episodes[0].frames[::2]]
            log_video(self.logger, "validation/video", frames, 15, self.num_timesteps)
        return episodes


class ExactCheckpointCallback(BaseCallback):
    """Writes checkpoints that the run can go on from exactly, now and then and when it must stop.

    One is written every so many agent steps, at the end, when the process is asked to stop
    (SIGTERM, SIGINT) and, of the last good state, when an environment fails or something has become
    NaN or infinite. A checkpoint that cannot be written, as on a full disk, is told by a warning
    and tried again; training goes on. Environments that cannot save their state are checkpointed
    when an episode begins, if that comes within ``every`` steps.

    :param folder: see :meth:`~core_agent.agents.base.SequenceOffPolicyAlgorithm.checkpoint`
    :param every: agent steps between two checkpoints; 0: none but at the end
    :param signals: stop :meth:`learn` with a checkpoint at SIGTERM and SIGINT; a second signal acts
        as without this callback
    :param verbose: 1 says when a checkpoint is written
    """

    def __init__(
        self, folder: str | Path, every: int = 10_000, signals: bool = True, verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        check_path("folder", folder)
        check_integer("every", every, 0)
        check_boolean("signals", signals)
        check_verbose("verbose", verbose)
        self.folder, self.every, self.signals = Path(folder), every, signals
        self.received: int | None = None
        """The signal that ended the run."""
        self.written: list[tuple[int, int]] = []
        """Agent steps and updates at each checkpoint."""

    model: SequenceOffPolicyAlgorithm

    def _on_training_start(self) -> None:
        self.received = None
        self._next = next_multiple(self.every, self.model.num_timesteps)
        self.model.when_learning_ends(self._on_learning_end)
        self._handlers: dict[int, Any] = {}
        if self.signals and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                # Whoever has a signal ignored, as nohup does, means it.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._on_signal)

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._next:
            self.model.at_next_safe_point(self._write_if_exact)
        return True

    def _on_training_end(self) -> None:
        if not self.written or self.written[-1] != self._progress():
            self.write()

    def _progress(self) -> tuple[int, int]:
        return self.model.num_timesteps, self.model._n_updates

    def _write_if_exact(self) -> bool:
        """Write, unless the environments are within an episode that they could not go on from."""
        assert self.model.env is not None
        overdue = self.model.num_timesteps >= self._next + self.every
        if overdue or get_env_state(self.model.env)["exact"]:
            self.write()
            self._next = next_multiple(self.every, self.model.num_timesteps)
        return True

    def write(self) -> None:
        """Write a checkpoint; log why if that fails."""
        try:
            path = self.model.checkpoint(self.folder)
        except (OSError, ValueError) as error:
            last = f"the one of step {self.written[-1][0]}" if self.written else "none of this run"
            warnings.warn(
                f"the checkpoint at step {self.model.num_timesteps} was not written: {error}; "
                f"earlier ones ({last}) are as they were",
                stacklevel=2,
            )
            return
        self.written.append(self._progress())
        if self.verbose:
            print(f"step {self.model.num_timesteps}: wrote {path}", flush=True)  # noqa: T201

    def _on_signal(self, number: int, frame: Any) -> None:
        self.received = number
        self._restore_handlers()
        self.model.at_next_safe_point(self._stop)

    def _stop(self) -> bool:
        """Nothing is written here: :meth:`_on_training_end` follows."""
        return False

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _on_learning_end(self, error: BaseException | None) -> None:
        self._restore_handlers()
        failed_env = error is not None and self.model._last_obs is None
        if failed_env or isinstance(error, NonFiniteError):
            self.write()


def next_multiple(every: int, step: int) -> float:
    """The first multiple of ``every`` beyond ``step``; infinity for 0."""
    return (step // every + 1) * every if every else math.inf


class TimeLimitCallback(BaseCallback):
    """Ends training after some time, at the end of the step.

    :param seconds: wall-clock time from the start of training
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        check_positive("seconds", seconds)
        self.seconds = seconds

    def _on_training_start(self) -> None:
        self._started = time.perf_counter()

    def _on_step(self) -> bool:
        return time.perf_counter() - self._started < self.seconds
