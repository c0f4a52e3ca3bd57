"""Callbacks: progress on the terminal, validation with a video, checkpoints, a limit of time."""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from stable_baselines3.common.callbacks import BaseCallback

from core_agent.agents.base import SequenceOffPolicyAlgorithm
from core_agent.agents.metrics import errors_as_warnings
from core_agent.environments.suite import first_seed
from core_agent.runs.evaluation import ENV, EpisodeResult, check_own_observations, play, summarize
from core_agent.runs.video import log_video
from core_agent.saving.resumable import get_env_state
from core_agent.validation import (
    BOOLEAN,
    PATH,
    POSITIVE,
    SEED,
    SIZE,
    TEXT,
    VERBOSE,
    Check,
    NonFiniteError,
    Rule,
    check_arguments,
    instance,
    optional,
    whole,
)

SECONDS_BETWEEN_LINES = 30.0
"""Time between two lines in a log file; on a terminal the bar moves several times a second."""
SECONDS_BETWEEN_FRAMES = 0.2


class RichProgressCallback(BaseCallback):
    """Progress with the mean return of the last episodes, the loss and the time left.

    On a terminal it shows a bar; elsewhere, such as in a log file, it prints a line every 30
    seconds. Both also advance during updates, which take minutes at the paper's sizes. The steps of
    a continued run include those made before.

    :param console: console to draw on; by default standard error
    :param loss_key: key of the logged value to show next to the return
    :param clock: function that returns the time in seconds, such as ``time.perf_counter``
    """

    rules: ClassVar[dict[str, Check]] = {
        "console": optional(instance("be a Console of Rich or None", Console)),
        "loss_key": TEXT,
        "clock": Rule("be a function", callable),
    }

    def __init__(
        self,
        console: Console | None = None,
        loss_key: str = "train/model_loss",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        check_arguments(self.rules, locals())
        super().__init__()
        self.console, self.loss_key, self.clock = console or Console(stderr=True), loss_key, clock
        self._bar: Progress | None = None

    def _on_training_start(self) -> None:
        self._started = self.clock()
        self._total = self.locals["total_timesteps"]
        self._loss: float | None = None
        self._learning_since: tuple[float, float] | None = None
        if self.console.is_terminal:
            text = (TextColumn("{task.description}"), BarColumn(bar_width=None))
            more = (MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*text, *more, console=self.console)
            self._bar.add_task("learning", total=self._total, text="")
            self._bar.start()
        self._ended = threading.Event()
        seconds = SECONDS_BETWEEN_FRAMES if self._bar else SECONDS_BETWEEN_LINES
        threading.Thread(target=self._repeat, args=(seconds,), daemon=True).start()
        if isinstance(self.model, SequenceOffPolicyAlgorithm):
            self.model.when_learning_ends(lambda _: self._stop())

    def _repeat(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            self.show()

    def _on_step(self) -> bool:
        self._loss = self.logger.name_to_value.get(self.loss_key, self._loss)
        learns = self.num_timesteps >= getattr(self.model, "learning_starts", 0)
        if learns and self._learning_since is None:
            self._learning_since = self._steps_done(), self.clock()
        return True

    def _steps_done(self) -> float:
        """Agent steps done; steps whose updates are still due do not count."""
        progress = getattr(self.model, "_progress", None)
        due = progress.updates_due if progress else 0
        updates = getattr(self.model, "_n_updates", 0) + due
        learned_from = self.model.num_timesteps - getattr(self.model, "learning_starts", 0)
        return self.model.num_timesteps - due / max(updates, 1) * max(learned_from, 0)

    def _time_left(self) -> str:
        """By the pace since learning started: the steps before that are faster."""
        if self._learning_since is None or not getattr(self.model, "_n_updates", 0):
            return "–"
        (first, since), done = self._learning_since, self._steps_done()
        if done <= first:
            return "–"
        seconds = (self.clock() - since) / (done - first) * max(0.0, self._total - done)
        return str(timedelta(seconds=round(seconds)))

    def show(self) -> None:
        """Draw the bar or print a line now."""
        episodes = list(self.model.ep_info_buffer or [])[-10:]
        mean_return = f"{np.mean([ep['r'] for ep in episodes]):.0f}" if episodes else "–"
        loss = "–" if self._loss is None else f"{self._loss:.2f}"
        elapsed = timedelta(seconds=round(self.clock() - self._started))
        text = f"return {mean_return}, loss {loss}, {elapsed} elapsed, {self._time_left()} left"
        done = round(self._steps_done())
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=done, text=text)
            return
        updates = getattr(self.model, "_n_updates", 0)
        steps = f"{done:,} of {self._total:,} steps"
        self.console.print(f"{steps}, {updates:,} updates, {text}", highlight=False, soft_wrap=True)

    def _on_training_end(self) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._ended.is_set():
            return
        self._ended.set()
        self.show()
        if self._bar:
            self._bar.stop()


class EpisodeReturns(BaseCallback):
    """Keeps ``(agent steps, seconds, return)`` of every training episode in ``episodes``."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes: list[tuple[int, float, float]] = []

    def _on_training_start(self) -> None:
        self.started = time.perf_counter()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                seconds = time.perf_counter() - self.started
                episode = (self.num_timesteps, seconds, float(info["episode"]["r"]))
                self.episodes.append(episode)
        return True


class ValidationCallback(BaseCallback):
    """Regularly plays episodes on another environment; logs their return, and one as a video.

    If training reaches its end, the last validation follows the last updates, so it evaluates the
    model that is then saved. The callback logs ``validation/return``, its
    ``validation/standard_error`` and, in TensorBoard, the video ``validation/video``.

    :param env: environment with ``render_mode="rgb_array"``
    :param every: agent steps between two validations
    :param n_episodes: episodes in each validation
    :param deterministic: see :meth:`~core_agent.agents.latent.RecurrentPolicy.carry`
    :param video: log the first episode as a video
    :param seed: seed of the run; the validation episodes are the same each time and never those of
        training; ``None``: they differ each time
    """

    rules: ClassVar[dict[str, Check]] = {
        "env": ENV,
        "every": SIZE,
        "n_episodes": SIZE,
        "deterministic": BOOLEAN,
        "video": BOOLEAN,
        "seed": SEED,
    }

    def __init__(
        self,
        env: gym.Env,
        every: int,
        n_episodes: int = 5,
        deterministic: bool = True,
        video: bool = True,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        check_arguments(self.rules, locals())
        self.env, self.every, self.n_episodes = env, every, n_episodes
        self.deterministic, self.video, self.seed = deterministic, video, seed
        self.results: list[tuple[int, float, float]] = []
        """``(agent steps, mean return, standard error)`` of each validation."""
        self.last_episodes: list[EpisodeResult] = []
        """Episodes of the last validation; the first has its frames if ``video`` is set."""

    def _on_training_start(self) -> None:
        check_own_observations(
            self.model, "SB3's EvalCallback can evaluate in an environment with VecNormalize"
        )
        self._total = self.locals["total_timesteps"]
        self._next = next_multiple(self.every, self.model.num_timesteps)

    def _on_step(self) -> bool:
        if self._next <= self.num_timesteps < self._total:
            self._next = next_multiple(self.every, self.num_timesteps)
            self.validate()
        return True

    def _on_training_end(self) -> None:
        unfinished = getattr(self.model, "_is_unfinished", False)
        if self.num_timesteps >= self._total and not unfinished:
            self.validate()
            with errors_as_warnings():
                self.logger.dump(self.num_timesteps)

    def validate(self) -> list[EpisodeResult]:
        """Play and log now; return the episodes, the first with its frames if ``video`` is set."""
        record: bool | Literal["first"] = "first" if self.video else False
        seed = None if self.seed is None else first_seed(self.seed, split="val")
        episodes = play(self.env, self.model, self.n_episodes, self.deterministic, seed, record)
        statistics = summarize(episodes)
        self.last_episodes = episodes
        self.results.append((self.num_timesteps, statistics.mean, statistics.standard_error))
        self.logger.record("validation/return", statistics.mean)
        self.logger.record("validation/standard_error", statistics.standard_error)
        if self.video:
            # Every other frame at half size: TensorBoard shows GIFs, which are large.
            frames = [frame[::2, ::2] for frame in episodes[0].frames[::2]]
            log_video(self.logger, "validation/video", frames, 15, self.num_timesteps)
        return episodes


@contextmanager
def first_signal(act: Callable[[int], Any]) -> Iterator[None]:
    """Within this context, the first SIGINT or SIGTERM calls ``act`` with its number.

    Later signals act as before. Only the main thread can handle signals; elsewhere this does
    nothing. A signal that is already ignored, for example because of ``nohup``, stays ignored.
    """
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = (signal.SIGINT, signal.SIGTERM)
        handlers = {number: signal.getsignal(number) for number in numbers}
        handlers = {n: each for n, each in handlers.items() if each not in (None, signal.SIG_IGN)}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        handlers.clear()

    def note(number: int, frame: object) -> None:
        restore()
        act(number)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield
    finally:
        restore()


class ExactCheckpointCallback(BaseCallback):
    """Writes checkpoints from which the run continues exactly: regularly and when it must stop.

    A checkpoint is written every ``every`` agent steps, at the end, and when the process is asked
    to stop (SIGTERM, SIGINT). If an environment fails or a value becomes NaN or infinite, a
    checkpoint of the last good state is written. If a checkpoint cannot be written, for example
    because the disk is full, a warning reports it, training continues, and it is tried again later.
    For environments that cannot save their state, a checkpoint waits until an episode starts, for
    at most ``every`` steps.

    :param folder: see :meth:`~core_agent.agents.base.SequenceOffPolicyAlgorithm.checkpoint`
    :param every: agent steps between two checkpoints; 0: only at the end
    :param signals: at SIGTERM or SIGINT, write a checkpoint and end :meth:`learn`; a second signal
        acts as if this callback were not there
    :param verbose: 1 prints a line for each checkpoint that is written
    """

    model: SequenceOffPolicyAlgorithm
    rules: ClassVar[dict[str, Check]] = {
        "folder": PATH,
        "every": whole(0),
        "signals": BOOLEAN,
        "verbose": VERBOSE,
    }

    def __init__(
        self, folder: str | Path, every: int = 10_000, signals: bool = True, verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        check_arguments(self.rules, locals())
        self.folder, self.every, self.signals = Path(folder), every, signals
        self.received: int | None = None
        """The signal that ended the run."""
        self.written: list[tuple[int, int]] = []
        """Agent steps and updates at each checkpoint of the last :meth:`learn`."""

    def _on_training_start(self) -> None:
        self.received, self.written = None, []
        self._next = next_multiple(self.every, self.model.num_timesteps)
        self.model.when_learning_ends(self._on_learning_end)
        self._listening = ExitStack()
        if self.signals:
            self._listening.enter_context(first_signal(self._on_signal))

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
        """Write, unless the environments are within an episode that they could not continue."""
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
            last = f"step {self.written[-1][0]}" if self.written else "none written by this run"
            warnings.warn(
                f"the checkpoint at step {self.model.num_timesteps} was not written: {error}; "
                f"earlier checkpoints are unchanged (the last one: {last})",
                stacklevel=2,
            )
            return
        self.written.append(self._progress())
        if self.verbose:
            print(f"step {self.model.num_timesteps}: wrote {path}", flush=True)  # noqa: T201

    def _on_signal(self, number: int) -> None:
        self.received = number
        self.model.at_next_safe_point(self._stop)

    def _stop(self) -> bool:
        """Nothing is written here: :meth:`_on_training_end` follows."""
        return False

    def _on_learning_end(self, error: BaseException | None) -> None:
        self._listening.close()
        failed_env = error is not None and self.model._last_obs is None
        if failed_env or isinstance(error, NonFiniteError):
            self.write()


def next_multiple(every: int, step: int) -> float:
    """The first multiple of ``every`` beyond ``step``; infinity for 0."""
    return (step // every + 1) * every if every else math.inf


class TimeLimitCallback(BaseCallback):
    """Ends training at the first environment step after some time; updates are not cut short.

    :param seconds: wall-clock time from the start of training
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        check_arguments({"seconds": POSITIVE}, locals())
        self.seconds = seconds

    def _on_training_start(self) -> None:
        self._started = time.perf_counter()

    def _on_step(self) -> bool:
        return time.perf_counter() - self._started < self.seconds
