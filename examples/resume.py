"""A run that is stopped and resumed, with your own environment.

    python examples/resume.py

It trains twice: once without an interruption, and once with one in the middle of an episode, after
which a new model resumes from the checkpoint. Both end with the same parameters, bit for bit.
"""

from __future__ import annotations

# Before Stable-Baselines3, whose import of the old gym would print a notice.
from core_agent import RecurrentSAC, preset  # isort: skip

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import torch
from gymnasium.envs.classic_control import PendulumEnv
from stable_baselines3.common.callbacks import BaseCallback

from core_agent.runs.callbacks import ExactCheckpointCallback


class SavablePendulum(PendulumEnv):
    """A pendulum with the two methods that an exact resume needs."""

    def get_state(self) -> dict[str, Any]:
        return {"state": self.state.copy(), "last_u": self.last_u}

    def set_state(self, state: dict[str, Any]) -> None:
        self.state, self.last_u = state["state"], state["last_u"]


def make_env() -> gym.Env:
    return gym.wrappers.TimeLimit(SavablePendulum(), 200)


class Stop(BaseCallback):
    """Ends training at a step, as Ctrl-C, SIGTERM or a time limit do."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        return self.num_timesteps < self.step


def make_model(**changes: Any) -> RecurrentSAC:
    arguments = preset("small", "recurrent_sac", **changes)
    return RecurrentSAC("MlpPolicy", make_env(), seed=0, **arguments)


def main(folder: Path, total: int = 1_600, stop_at: int = 1_310, **changes: Any) -> bool:
    """Whether both runs end with equal parameters.

    :param folder: for the checkpoints
    :param total: agent steps
    :param stop_at: agent steps after which the second run stops
    :param changes: of the preset's arguments
    """
    model = make_model(**changes).learn(total)
    print(f"{model.num_timesteps} steps and {model._n_updates} updates without an interruption")

    stopped = make_model(**changes)
    stopped.learn(total, callback=[ExactCheckpointCallback(folder), Stop(stop_at)])
    print(f"stopped at step {stopped.num_timesteps}, after {stopped._n_updates} updates")

    resumed = RecurrentSAC.resume(folder, make_env())
    resumed.learn(total - resumed.num_timesteps, reset_num_timesteps=False)
    print(f"resumed to step {resumed.num_timesteps}, after {resumed._n_updates} updates")

    first, second = model.policy.state_dict(), resumed.policy.state_dict()
    equal = all(torch.equal(first[name], second[name]) for name in first)
    print("the parameters are equal" if equal else "the parameters differ")
    return equal


if __name__ == "__main__":
    with TemporaryDirectory() as name:
        main(Path(name))
