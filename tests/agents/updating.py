"""Agents whose updates are compared: small ones, and all that an update changes."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import LinearSchedule

from core_agent import SACRAD, CoRe, QTOptRAD
from tests.fakes import VECTOR, SavableEnv, policy_name, tiny

FEW = [CoRe, SACRAD, QTOptRAD]


def make_model(algorithm: type, space: Any = VECTOR, **kwargs: Any) -> Any:
    """One with a few episodes in its buffer, and no update made."""
    rate = LinearSchedule(1e-2, 1e-3, 1.0)
    arguments = {**tiny(algorithm), "learning_rate": rate, "gradient_steps": 0, **kwargs}
    model = algorithm(policy_name(space), SavableEnv(space), **arguments).learn(20)
    model.set_logger(Logger(None, []))
    model.gradient_steps = 1
    return model


def update(model: Any, n_updates: int, seed: int = 0) -> list[Any]:
    """The metrics of updates, looked at after the last one."""
    torch.manual_seed(seed)
    metrics = []
    for _ in range(n_updates):
        metrics.append(model._update(model._sample_batch(3)))
        model._n_updates += 1
    return [{name: value.item() for name, value in each.items()} for each in metrics]


def content(model: Any) -> dict[str, torch.Tensor]:
    """All parameters, and the states of all optimisers."""
    found = {name: value.clone() for name, value in model.policy.state_dict().items()}
    for name, optimizer in zip(model.optimizer_names, model.optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            found |= {f"{name} {index} {key}": value.clone() for key, value in state.items()}
    return found


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
