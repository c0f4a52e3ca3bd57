"""Training as a run in a folder: started once, stopped and resumed at any time.

A folder holds::

    run.json         what the run is
    model.zip        the model when training ended or was interrupted
    checkpoints/     from which the run continues, see core_agent.saving.checkpoint
    tensorboard/     the log
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from core_agent.agents.base import SequenceOffPolicyAlgorithm
from core_agent.agents.loop import PAPER_SIMULATOR_STEPS
from core_agent.agents.presets import get_preset
from core_agent.agents.presets import preset as preset_arguments
from core_agent.agents.registry import get_agent, trained_for
from core_agent.environments.make import find_spec, make_described, make_env, make_vec_env
from core_agent.environments.suite import is_in_suite
from core_agent.runs.callbacks import (
    ExactCheckpointCallback,
    RichProgressCallback,
    ValidationCallback,
)
from core_agent.runs.gating import GatingCallback
from core_agent.saving.checkpoint import NoCheckpointError
from core_agent.validation import check

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"
OF_ONE_ENVIRONMENT = (
    *("domain", "task", "difficulty", "dynamic"),
    *("scale", "distractions", "n_clips", "video_path"),
)
"""Arguments that only apply to the environment for which they were given."""


@dataclass(frozen=True)
class Run:
    """All that decides what a run learns."""

    env_id: str
    agent: str = "core"
    """See :data:`core_agent.agents.registry.AGENTS`."""
    preset: str = "paper"
    seed: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments of the algorithm, in addition to the preset's, which they override."""
    env_arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment, in addition to the preset's, which they override."""
    n_envs: int = 1
    """Number of environments; each in its own process if several, or if ``collect="async"``."""

    def __post_init__(self) -> None:
        taken = sorted({"policy", "env", "seed", "tensorboard_log"} & set(self.arguments))
        rule = "not set policy, env, seed or tensorboard_log, which the run sets"
        check(not taken, "arguments", rule, taken, "a run has a seed of its own (--seed)")


@dataclass(frozen=True)
class Outcome:
    """How :func:`train_run` ended."""

    agent_steps: int
    resumed_at: int | None
    """Agent steps at the checkpoint that the run continued from; ``None`` for a new run."""
    interrupted_by: signal.Signals | None
    """The signal that ended it early."""


def make_environment(
    env_id: str, preset: str, split: str, arguments: dict[str, Any] | None = None
) -> gym.Env:
    """An environment that renders; a DCS one has the preset's arguments and the split's videos.

    :param arguments: arguments of the environment, which override the preset's
    """
    return make_env(env_id, **environment_arguments(env_id, preset, split, arguments or {}))


def environment_arguments(
    env_id: str, preset: str | None, split: str, arguments: dict[str, Any]
) -> dict[str, Any]:
    """The arguments that an environment is made with; presets and splits apply only to DCS ones."""
    if not is_in_suite(env_id):
        return arguments
    from_preset = get_preset(preset).env_arguments if preset else {}
    return {**from_preset, "split": split, **arguments}


def evaluation_environment(
    origin: Any, env_id: str | None, preset: str | None, split: str, arguments: dict[str, Any]
) -> gym.Env:
    """The environment to evaluate a model in: the one that it learned in, with the given changes.

    Another environment of the Distracting Control Suite has the arguments of that one.

    :param origin: the model's attribute ``origin``
    :param env_id: id of another environment; ``None``: the one that the model learned in
    :param preset: preset whose arguments override the recorded ones; ``None``: none
    :param split: split of the background videos
    :param arguments: arguments of the environment, which override all others
    :raises ValueError: if the model does not say where it learned, and ``env_id`` is ``None``; for
        an unknown id
    """
    origin = origin if isinstance(origin, dict) else {}
    known = str(origin.get("env_id"))
    if env_id is not None:
        env_id, kept = find_spec(env_id).id, origin.get("env_arguments")
        kept = kept if isinstance(kept, dict) else {}
        if env_id != known:
            of_suite = is_in_suite(env_id) and is_in_suite(known)
            dropped = OF_ONE_ENVIRONMENT if of_suite else tuple(kept)
            kept = {name: value for name, value in kept.items() if name not in dropped}
        origin = {"env_id": env_id, "env_arguments": kept}
    changes = environment_arguments(env_id or known, preset, split, arguments)
    return make_described(origin, **changes)


@contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Within this context, no other process trains in ``folder``.

    A process that dies releases the folder.

    :param patience: seconds to wait for another process to release the folder
    :raises ValueError: if another process still trains there
    """
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + patience
    with (folder / "lock").open("w") as file:
        while not _try_to_lock(file):
            if time.monotonic() >= until:
                raise ValueError(
                    f"folder must belong to one run at a time, got {str(folder)!r}, where another "
                    "process is training; wait for it, or give another folder"
                )
            time.sleep(0.5)
        yield


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a ``.jsonl`` file; lines that a crash cut short are left out."""
    entries = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError):
            entry = json.loads(line)
            if isinstance(entry, dict) and "agent_steps" in entry:
                entries.append(entry)
    return entries


def is_locked(folder: Path) -> bool:
    """Whether a process trains in ``folder``, as far as this machine can tell."""
    path = folder / "lock"
    if not path.exists():
        return False
    with path.open() as file:
        return not _try_to_lock(file, fcntl.LOCK_SH)


def _try_to_lock(file: TextIO, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step, so that no reader sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def write_run(path: Path, run: Run, env: VecEnv) -> None:
    """Write ``run.json``, with the folder of background videos, which depends on the machine."""
    videos = env.get_attr("video_folder")[0] if env.has_attr("video_folder") else None
    write_whole(path, json.dumps({**asdict(run), "videos": videos}, indent=1))


def check_same_run(path: Path, run: Run) -> None:
    """Make sure that the folder's run is the one that is asked for.

    :param path: of the folder's ``run.json``
    :raises ValueError: naming what differs
    """
    check(path.is_file(), "folder", "hold run.json next to its checkpoints", str(path.parent))
    started = {**asdict(Run(run.env_id)), **json.loads(path.read_text())}
    for name, value in json.loads(json.dumps(asdict(run))).items():
        check(
            started[name] == value,
            name,
            f"be {started[name]!r}, as when the run in {str(path.parent)!r} started",
            value,
            "give another folder to start another run",
        )


def has_checkpoints(folder: Path) -> bool:
    """Whether the run of a folder has begun and can be continued."""
    return any((folder / CHECKPOINTS).glob("checkpoint-*"))


def is_started(run: Run, folder: Path, resume: bool) -> bool:
    """Whether the folder holds checkpoints of the run.

    :param resume: whether checkpoints are allowed, because the run is to be continued
    :raises ValueError: if there are checkpoints and ``resume`` is ``False``, or if they belong to
        another run
    """
    started = has_checkpoints(folder)
    check(
        resume or not started,
        "folder",
        "hold no checkpoints when a run starts",
        str(folder),
        "continue that run (--resume auto) or give another folder",
    )
    if started:
        check_same_run(folder / RUN_FILE, run)
    return started


def train_run(
    run: Run,
    folder: Path,
    total_timesteps: int | None = None,
    simulator_steps: int = PAPER_SIMULATOR_STEPS,
    resume: bool = False,
    checkpoint_every: int = 10_000,
    validate_every: int = 10_000,
    callbacks: list[BaseCallback] | None = None,
    progress: bool = True,
    patience: float = 0.0,
) -> Outcome:
    """Train in a folder, or continue a run that was started there.

    :param run: what to learn
    :param folder: folder of the run; created if missing
    :param total_timesteps: length of the run in agent steps; by default ``simulator_steps`` divided
        by the action repeat
    :param simulator_steps: length of the run if ``total_timesteps`` is ``None``
    :param resume: continue from the newest complete checkpoint in the folder, if there is one
    :param checkpoint_every: agent steps between two checkpoints; 0: only at the end
    :param validate_every: agent steps between two validations; 0: none
    :param callbacks: additional callbacks
    :param progress: show a progress bar
    :param patience: seconds to wait for another process to release the folder
    :raises ValueError: if the folder holds checkpoints and ``resume`` is not set, if they belong to
        another run, or if another process trains there; for a bad argument
    """
    run = replace(run, env_id=find_spec(run.env_id).id)
    started = is_started(run, folder, resume)
    with ExitStack() as stack:
        env = stack.enter_context(closing(training_environments(run)))
        # A constructor refuses bad arguments before anything is written.
        model = None if started else new_model(run, env, folder)
        stack.enter_context(locked(folder, patience))
        # Another process may have started the run while this one waited.
        if model is None or is_started(run, folder, resume):
            model = resume_model(run, env, folder)
        # The command announces the time, and the progress shows what is left of it.
        model._cost_is_told = True
        resumed_at = model.num_timesteps or None
        total = total_timesteps or -(-simulator_steps // model.action_repeat)
        if model.num_timesteps >= total and not model._is_unfinished:
            # The previous process may have died after its last checkpoint, before it saved this.
            if trained_for(folder / "model.zip") < (model.num_timesteps, model._n_updates):
                save_model(model, folder)
            return Outcome(model.num_timesteps, resumed_at, None)
        if resumed_at is None:
            write_run(folder / RUN_FILE, run, env)
        all_callbacks = list(callbacks or [])
        if validate_every:
            other = stack.enter_context(closing(training_environment(run, "val")))
            can_render = other.render_mode == "rgb_array"
            all_callbacks.append(
                ValidationCallback(other, validate_every, video=can_render, seed=run.seed)
            )
        # The last checkpoint comes after what others have to do at the end.
        exact = ExactCheckpointCallback(folder / CHECKPOINTS, checkpoint_every)
        all_callbacks.append(exact)
        if progress:
            loss = "train/model_loss" if run.agent == "core" else "train/critic_loss"
            all_callbacks.append(RichProgressCallback(loss_key=loss))
        if model.policy_kwargs.get("gating"):
            all_callbacks.append(GatingCallback())
        try:
            model.learn(
                max(total - model.num_timesteps, 0),
                callback=all_callbacks,
                log_interval=1,
                reset_num_timesteps=resumed_at is None,
            )
        finally:
            save_model(model, folder)
        received = None if exact.received is None else signal.Signals(exact.received)
        return Outcome(model.num_timesteps, resumed_at, received)


def save_model(model: SequenceOffPolicyAlgorithm, folder: Path) -> None:
    """Write ``model.zip`` in one step: if the disk is full, the file before is kept."""
    temporary = folder / ".model.zip"
    try:
        model.save(temporary)
        temporary.replace(folder / "model.zip")
    finally:
        temporary.unlink(missing_ok=True)


def training_environments(run: Run) -> VecEnv:
    """The environments that a run learns in; those in other processes are restarted on failure."""
    arguments = environment_arguments(run.env_id, run.preset, "train", run.env_arguments)
    agent_arguments = preset_arguments(run.preset, run.agent, **run.arguments)
    apart = agent_arguments.get("collect") == "async"
    return make_vec_env(
        run.env_id, run.n_envs, env_kwargs=arguments, vec_env_kwargs={} if apart else None
    )


def training_environment(run: Run, split: str) -> gym.Env:
    """The environment of a run, on the videos of ``split``."""
    return make_environment(run.env_id, run.preset, split, run.env_arguments)


def new_model(run: Run, env: VecEnv, folder: Path) -> SequenceOffPolicyAlgorithm:
    """The model at the start of a run."""
    arguments = preset_arguments(run.preset, run.agent, env_id=run.env_id, **run.arguments)
    log = str(folder / "tensorboard")
    model = get_agent(run.agent)(
        policy="auto", env=env, seed=run.seed, tensorboard_log=log, **arguments
    )
    model.origin["preset"] = run.preset
    return model


def resume_model(run: Run, env: VecEnv, folder: Path) -> SequenceOffPolicyAlgorithm:
    """The model at the newest complete checkpoint; a new one if none is complete."""
    try:
        model = get_agent(run.agent).resume(folder / CHECKPOINTS, env)
    except NoCheckpointError:
        warnings.warn(f"no checkpoint in {folder} is complete: the run starts again", stacklevel=2)
        return new_model(run, env, folder)
    model.tensorboard_log = str(folder / "tensorboard")  # The folder may have moved.
    return model
