"""Run an exported agent with only NumPy and onnxruntime.

    from core_agent.onnx_agent import OnnxAgent

    agent = OnnxAgent("agent.onnx")      # written by core_agent.export.export_onnx
    observation, _ = env.reset()
    agent.reset()
    action = agent.act(observation)      # the environment's own observation; the agent remembers

Nothing here imports PyTorch, Stable-Baselines3 or Gymnasium, so they need not be installed. On a
robot it is enough to install numpy, onnxruntime and, with ``pip install --no-deps``, the wheel that
``make build`` writes, or a checkout.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

SINGLE_NAME = "observation"
"""Name of an observation that is no ``Dict``."""
START_NAME = "episode_start"
ONNX_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}
"""ONNX's names that are not NumPy's, with ``tensor()`` around them."""


def need(package: str) -> Any:
    """An optional package.

    :raises ModuleNotFoundError: without it, saying how to install it
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{package} cannot be imported ({error}); install it with: pip install {package}"
        ) from error


def _dtype(entry: Any) -> np.dtype:
    return np.dtype(ONNX_DTYPES.get(entry.type, entry.type[7:-1]))


class OnnxAgent:
    """An exported agent: :meth:`act` for one environment, :meth:`predict` for several.

    :param path: file written by :func:`core_agent.export.export_onnx`
    :raises ValueError: if there is no such file
    :raises ModuleNotFoundError: without onnxruntime
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"path must be a path, got {path!r}")
        runtime = need("onnxruntime")
        if not os.path.isfile(path):
            raise ValueError(
                f"path must be an existing file written by export_onnx, got {str(path)!r}; "
                "write it with core_agent.export.export_onnx(model, path)"
            )
        self.session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        inputs = self.session.get_inputs()
        n_state = len(self.session.get_outputs()) - 1
        self.observation_inputs = {entry.name: entry for entry in inputs[: -n_state - 1]}
        self.state_inputs = inputs[-n_state - 1 : -1]
        self._state: tuple[np.ndarray, ...] | None = None

    def reset(self) -> None:
        """Forget the episode: the next :meth:`act` starts another one."""
        self._state = None

    def act(self, observation: Any) -> np.ndarray:
        """The deterministic action for the next observation of one environment.

        :param observation: as the environment gives it, not batched: an array, or arrays by key;
            images channels last or first
        :return: the action, with the shape and within the bounds of the action space
        :raises ValueError: for an observation of another shape or dtype
        """
        entries = observation if isinstance(observation, dict) else {SINGLE_NAME: observation}
        batch = {name: np.asarray(entry)[None] for name, entry in entries.items()}
        action, self._state = self.predict(batch, self._state)
        return action[0]

    def initial_state(self, n_envs: int) -> tuple[np.ndarray, ...]:
        """The state before the first observation: zeros."""
        return tuple(
            np.zeros((n_envs, *entry.shape[1:]), _dtype(entry)) for entry in self.state_inputs
        )

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Deterministic actions of several environments, and the state for the next call.

        It neither reads nor changes what :meth:`act` remembers.

        :param observation: ``(n, ...)``, or by key; images channels last or first
        :param state: the state that the last call returned; ``None`` resets all environments
        :param episode_start: ``(n,)`` bool: environments to reset
        :raises ValueError: for an observation of another shape or dtype
        """
        entries = observation if isinstance(observation, dict) else {SINGLE_NAME: observation}
        if entries.keys() != self.observation_inputs.keys():
            known = sorted(self.observation_inputs)
            raise ValueError(f"observation must have the keys {known}, got {sorted(entries)}")
        feed = {
            name: self._as_input(name, np.asarray(entry), self.observation_inputs[name])
            for name, entry in entries.items()
        }
        n_envs = len(next(iter(feed.values())))
        if state is None:
            state = self.initial_state(n_envs)
            episode_start = np.ones(n_envs, dtype=bool)
        elif episode_start is None:
            episode_start = np.zeros(n_envs, dtype=bool)
        feed.update(zip([entry.name for entry in self.state_inputs], state))
        feed[START_NAME] = np.asarray(episode_start, dtype=bool)
        action, *next_state = self.session.run(None, feed)
        return action, tuple(next_state)

    @staticmethod
    def _as_input(name: str, value: np.ndarray, entry: Any) -> np.ndarray:
        """``(n, ...)`` in the shape and dtype of an input of the network."""
        shape, dtype = tuple(entry.shape[1:]), _dtype(entry)
        shapes, found = [shape], value.shape[1:]
        if len(shape) == 3:
            shapes.append((*shape[1:], shape[0]))
        if (
            value.ndim == 0
            or found not in shapes
            or not np.can_cast(value.dtype, dtype, "same_kind")
        ):
            allowed = " or ".join(map(str, shapes))
            raise ValueError(
                f"observation must have {name!r} of shape {allowed} and dtype {dtype}, got "
                f"{found} and {value.dtype}"
            )
        if found != shape:
            value = value.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(value, dtype)
