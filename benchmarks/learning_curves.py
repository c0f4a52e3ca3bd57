"""Learning curves of every agent on a quick task, as one picture.

    python benchmarks/learning_curves.py --json runs/curves.json --output runs/curves.png
    python benchmarks/learning_curves.py --env pendulum --agents recurrent_sac sb3_sac --steps 10000
    python benchmarks/learning_curves.py --agents core --collect async
    python benchmarks/learning_curves.py --agents core curl --seeds 0 --env DCS-cheetah-run-clean
    python benchmarks/learning_curves.py --agents core recurrent_sac --compare-precisions

Tasks:

- ``dots``: a white dot must be moved onto a green one in a 64-pixel image; 50 steps, the return is
  at most 50.
- ``pendulum``: Pendulum-v1 without its angular velocity. Random actions return about -1200, a
  solved task about -150.
- a Distracting Control id.

Agents have the preset's arguments or, on ``pendulum``, those in ``core_agent/configs`` if there are
any; ``sb3_sac`` is Stable-Baselines3's SAC with its defaults, except 1,000 steps before learning
and a buffer of ``--steps``; where observations are images, it gets three stacked frames. A run that
takes longer than ``--minutes`` is stopped. A Distracting Control task is
evaluated on validation videos. Lines are means over seeds of the mean return of the last 10
episodes. The JSON file is written after every run. ``--compare-precisions`` computes the values of
the trained agent in float32 and in bfloat16, for the recurrent agents.
"""

from __future__ import annotations

# Before Stable-Baselines3, whose import of the old gym would print a notice.
from core_agent import preset  # isort: skip

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import yaml
from gymnasium import spaces
from measuring import add_common_options, save_json, start
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import LinearSchedule

from core_agent.agents.presets import RECURRENT, get_preset
from core_agent.agents.registry import AGENTS
from core_agent.environments.make import make_env
from core_agent.environments.workers import SupervisedSubprocVecEnv
from core_agent.networks.encoders import SINGLE_KEY
from core_agent.networks.hardware import PRECISIONS
from core_agent.networks.layers import set_compute_dtype
from core_agent.runs.callbacks import EpisodeReturns, TimeLimitCallback
from core_agent.runs.evaluation import play, summarize
from core_agent.runs.plotting import plot_runs, running_mean
from core_agent.zoo import CONFIGS

DOTS, PENDULUM, SB3_SAC = "dots", "pendulum", "sb3_sac"
EPISODE_STEPS = 50
PENDULUM_ENTRY = "PendulumNoVel-v1"
"""rl-zoo's id of the task in ``core_agent/configs``."""


class Dots(gym.Env):
    """A white dot that must be moved onto a green one in the middle, seen from above."""

    size, dot = 64, 8

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (self.size, self.size, 3), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def observe(self) -> np.ndarray:
        picture = np.zeros((self.size, self.size, 3), np.uint8)
        for place, colour in ((np.zeros(2), (0, 255, 0)), (self.place, (255, 255, 255))):
            # Dots keep a distance of 12 pixels from the border, which crops remove.
            x, y = (12 + (place + 1) / 2 * (self.size - 24 - self.dot)).astype(int)
            picture[y : y + self.dot, x : x + self.dot] = colour
        return picture

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1.0, 1.0, 2)
        self.n_steps = 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.place = np.clip(self.place + 0.2 * action, -1.0, 1.0)
        self.n_steps += 1
        reward = 1.0 - float(np.abs(self.place).mean())
        return self.observe(), reward, False, self.n_steps >= EPISODE_STEPS, {}


class WithoutVelocity(gym.ObservationWrapper):
    """Cosine and sine of the pendulum's angle, ``(2,)``."""

    def __init__(self) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[:2]


class StackedFrames(gym.wrappers.TransformObservation):
    """The last ``n`` images as one, ``(H, W, n * C)``."""

    def __init__(self, env: gym.Env, n: int = 3) -> None:
        space = env.observation_space
        assert isinstance(space, spaces.Box)
        stacked = spaces.Box(0, 255, (*space.shape[:2], n * space.shape[2]), np.uint8)
        frames = gym.wrappers.FrameStackObservation(env, n)
        super().__init__(frames, lambda images: np.concatenate(images, axis=-1), stacked)


def make_task(env_id: str, preset_name: str, agent: str = "", split: str = "train") -> gym.Env:
    """An environment that records its returns."""
    env: gym.Env
    if env_id == DOTS:
        env = Dots()
    elif env_id == PENDULUM:
        env = WithoutVelocity()
    else:
        env = make_env(env_id, split=split, **get_preset(preset_name).env_arguments)
    has_images = len(env.observation_space.shape or ()) == 3
    return Monitor(StackedFrames(env) if agent == SB3_SAC and has_images else env)


def arguments_of(agent: str, options: argparse.Namespace) -> dict[str, Any]:
    """Constructor arguments of one of our agents."""
    config = yaml.safe_load((CONFIGS / f"{agent}.yml").read_text())
    if options.env != PENDULUM or PENDULUM_ENTRY not in config:
        return preset(options.preset, agent, learning_starts=options.learning_starts)
    arguments = dict(config[PENDULUM_ENTRY])
    del arguments["policy"], arguments["n_timesteps"]
    arguments["train_freq"] = tuple(arguments["train_freq"])
    rate = float(arguments["learning_rate"].removeprefix("lin_"))
    return {**arguments, "learning_rate": LinearSchedule(rate, 0.0, 1.0)}


def make_model(agent: str, seed: int, options: argparse.Namespace) -> BaseAlgorithm:
    """The agent on the task, not trained."""
    make = partial(make_task, options.env, options.preset, agent)
    env: Any = SupervisedSubprocVecEnv([make]) if options.collect == "async" else make()
    if agent == SB3_SAC:
        policy = "CnnPolicy" if len(env.observation_space.shape) == 3 else "MlpPolicy"
        return SAC(policy, env, learning_starts=1_000, buffer_size=options.steps, seed=seed)
    return AGENTS[agent](
        policy="auto",
        env=env,
        seed=seed,
        device=options.device,
        collect=options.collect,
        precision=options.precision,
        **arguments_of(agent, options),
    )


def train(agent: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of one run."""
    model = make_model(agent, seed, options)
    returns, started = EpisodeReturns(), time.perf_counter()
    limit = TimeLimitCallback(60.0 * options.minutes)
    model.learn(options.steps, callback=[returns, limit], log_interval=None)
    seconds = time.perf_counter() - started
    model.get_env().close()  # type: ignore[union-attr]
    env = make_task(options.env, options.preset, agent, split="val")
    evaluation = summarize(play(env, model, options.episodes, seed=10_000))
    env.close()
    compared = compare_precisions(model, options.episodes) if options.compare_precisions else {}
    return {
        **compared,
        "episodes": returns.episodes,
        "agent_steps": model.num_timesteps,
        "updates": model._n_updates,
        "seconds": seconds,
        "return": evaluation.mean,
        "standard_error": evaluation.standard_error,
    }


def compare_precisions(model: Any, n_episodes: int) -> dict[str, float]:
    """Mean Q of the last episodes of the replay buffer, and how much bfloat16 changes it."""
    values = []
    for dtype in (None, torch.bfloat16):
        set_compute_dtype(model.policy, dtype)
        for episode in list(model.replay_buffer.episodes)[-n_episodes:]:
            frames = {key: value.cpu().numpy() for key, value in episode.frames.items()}
            actions = model.policy.to_env_actions(episode.actions)
            latents = model.encode(frames.get(SINGLE_KEY, frames), actions)
            values.append(model.value(latents[:-1], actions))
    exact, rough = np.split(np.concatenate(values), 2)
    return {
        "mean_q": float(exact.mean()),
        "changed_q": float(np.abs(rough - exact).mean()),
        "most_changed_q": float(np.abs(rough - exact).max()),
    }


def mean_curve(runs: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Agent steps and mean returns over runs, up to the end of the shortest."""
    curves = [running_mean([value for *_, value in run["episodes"]]) for run in runs]
    length = min(len(curve) for curve in curves)
    steps = [at for at, *_ in runs[0]["episodes"]][:length]
    return steps, np.mean([curve[:length] for curve in curves], axis=0).tolist()


def draw(path: Path, results: dict[str, dict[str, Any]], random_return: float) -> None:
    """One line for each agent, one for random actions."""
    names = {**{name: cls.__name__ for name, cls in AGENTS.items()}, SB3_SAC: "SAC (SB3)"}
    curves = {names[agent]: mean_curve(list(runs.values())) for agent, runs in results.items()}
    last = max(steps[-1] for steps, _ in curves.values())
    curves["random actions"] = ([0, last], [random_return, random_return])
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_runs(path, "return, mean of the last 10 episodes", {"": curves})


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print, write and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_common_options(parser)
    choices = (*AGENTS, SB3_SAC)
    parser.add_argument("--agents", nargs="+", choices=choices, default=list(AGENTS))
    parser.add_argument("--env", default=DOTS, help="dots, pendulum or an id; default: %(default)s")
    parser.add_argument("--preset", default="small", help="default: %(default)s")
    parser.add_argument("--collect", choices=("sequential", "async"), default="sequential")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of our agents")
    parser.add_argument("--steps", type=int, default=1_500, help="default: %(default)s")
    parser.add_argument("--learning-starts", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--minutes", type=float, default=5.0, help="limit of one run")
    parser.add_argument("--episodes", type=int, default=20, help="of the evaluation at the end")
    parser.add_argument("--compare-precisions", action="store_true", help="see above")
    parser.add_argument("--output", type=Path, default=Path("learning_curves.png"))
    options = parser.parse_args(arguments)
    if options.compare_precisions and not set(options.agents) <= set(RECURRENT):
        parser.error(f"--compare-precisions needs --agents among {RECURRENT}")
    machine = start(options)
    env = make_task(options.env, options.preset, split="val")
    random_return = summarize(play(env, None, options.episodes, seed=10_000)).mean
    env.close()
    print(f"random actions on {options.env}: {random_return:.1f}")
    results: dict[str, dict[str, Any]] = {}
    for seed in options.seeds:
        for agent in options.agents:
            run = train(agent, seed, options)
            results.setdefault(agent, {})[str(seed)] = run
            cut = "" if run["agent_steps"] >= options.steps else ", stopped by --minutes"
            print(
                f"{agent:13} seed {seed}: {run['return']:6.1f} ± {run['standard_error']:.1f} "
                f"after {run['agent_steps']} steps, {run['updates']} updates, "
                f"{run['seconds']:.0f} s{cut}",
                flush=True,
            )
            if options.compare_precisions:
                q, mean, most = (run[f"{name}_q"] for name in ("mean", "changed", "most_changed"))
                print(f"  Q {q:.2f}, bfloat16 changes it by {mean:.4f}, at most by {most:.4f}")
            figures = {"env": options.env, "preset": options.preset, "machine": machine}
            figures |= {"collect": options.collect, "precision": options.precision}
            figures |= {"random_return": random_return, "agents": results}
            save_json(options.json, figures)
    draw(options.output, results, random_return)
    print(f"figure: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
