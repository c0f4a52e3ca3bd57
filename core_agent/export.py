"""Export of a trained agent's step function to ONNX, to run without PyTorch.

    from core_agent.export import OnnxAgent, export_onnx

    export_onnx(model, "agent.onnx")
    agent = OnnxAgent("agent.onnx")                       # needs only onnxruntime and numpy
    action, state = agent.predict(observation, state, episode_start)

The function takes the observation of each environment, the state of the last step, and the
environments that start an episode; it returns the actions, within the bounds of the environment,
and the next state. It computes the same as ``model.predict(…, deterministic=True)``, in float32.

=====================  ==================  =====================================================
input                  shape               contents
=====================  ==================  =====================================================
``observation``, or    ``(n, ...)``        the agent's input: images channels first, uint8;
the keys of a Dict                         normalised if ``VecNormalize`` did so in training
the state              ``(n, ...)``        from the last step; zeros at first
``episode_start``      ``(n,)``            bool
=====================  ==================  =====================================================

The state of CoRe and RecurrentSAC is ``deter``, ``stoch`` and ``previous_action``; that of the
other agents the stack of the last frames, ``stack``, or ``stack_`` and the key for each key of a
Dict. The outputs are ``action`` and the next state, ``next_deter`` and so on.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from core_agent.agents.latent import RecurrentPolicy
from core_agent.agents.policies import StatefulPolicy
from core_agent.networks.encoders import SINGLE_KEY, as_dict_space
from core_agent.networks.layers import set_compute_dtype
from core_agent.validation import PATH, check

START_NAME = "episode_start"
ONNX_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}
"""ONNX's names that are not NumPy's, with ``tensor()`` around them."""


class StepFunction(nn.Module):
    """One step of a deterministic agent, as tensors in and tensors out.

    :param policy: the trained networks, copied to the CPU in float32
    """

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, policy: StatefulPolicy) -> None:
        super().__init__()
        self.policy = copy.deepcopy(policy).cpu().eval()
        if isinstance(self.policy, RecurrentPolicy):
            self.policy.sample_when_deterministic = False
        set_compute_dtype(self.policy, None)
        self.names = tuple(as_dict_space(policy.observation_space))
        self.is_dict = isinstance(policy.observation_space, spaces.Dict)
        space = policy.action_space
        assert isinstance(space, spaces.Box)
        self.register_buffer("low", torch.as_tensor(space.low))
        self.register_buffer("high", torch.as_tensor(space.high))

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Observations in the order of ``names``, the parts of the state, the starts."""
        n_entries = len(self.names)
        entries = dict(zip(self.names, inputs))
        state, episode_start = inputs[n_entries:-1], inputs[-1]
        observation = entries if self.is_dict else inputs[0]
        actions, following = self.policy.step(observation, state, episode_start, deterministic=True)
        scaled = actions.reshape(-1, *self.low.shape)
        action = self.low + 0.5 * (scaled + 1.0) * (self.high - self.low)
        return torch.clamp(action, self.low, self.high).to(self.low.dtype), *following


def example_inputs(policy: StatefulPolicy, n_envs: int = 2) -> tuple[torch.Tensor, ...]:
    """Inputs of :class:`StepFunction` of the right shapes and types, all zero."""
    observations = []
    for space in as_dict_space(policy.observation_space).values():
        assert space.shape is not None
        observations.append(torch.from_numpy(np.zeros((n_envs, *space.shape), space.dtype)))
    state = (part.cpu() for part in policy.initial_state(n_envs))
    return *observations, *state, torch.ones(n_envs, dtype=torch.bool)


def export_onnx(model: BaseAlgorithm, path: str | Path) -> Path:
    """Write the agent's step function as an ONNX file, for any number of environments.

    :param model: an agent of this package
    :param path: file to write
    :return: the path
    :raises ValueError: for another algorithm's model
    :raises ModuleNotFoundError: without onnx and onnxscript, saying how to install them
    """
    policy = getattr(model, "policy", None)
    check(
        isinstance(policy, StatefulPolicy),
        "model",
        "be an agent of this package",
        type(model).__name__,
    )
    assert isinstance(policy, StatefulPolicy)
    PATH("path", path)
    _need("onnx"), _need("onnxscript")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    function = StepFunction(policy).eval()
    batch = torch.export.Dim("n")
    inputs = example_inputs(policy)
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter emits warnings about itself.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            function,
            inputs,
            str(path),
            input_names=[*function.names, *policy.state_names, START_NAME],
            output_names=["action", *(f"next_{name}" for name in policy.state_names)],
            dynamic_shapes=(tuple({0: batch} for _ in inputs),),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return path


def _need(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{package} cannot be imported ({error}); install it with: pip install {package}"
        ) from error


class OnnxAgent:
    """An exported agent with the interface of ``model.predict``.

    :param path: file written by :func:`export_onnx`
    :raises ValueError: if there is no such file
    :raises ModuleNotFoundError: without onnxruntime
    """

    def __init__(self, path: str | Path) -> None:
        PATH("path", path)
        runtime = _need("onnxruntime")
        check(Path(path).is_file(), "path", "be an exported agent", str(path))
        self.session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        inputs = self.session.get_inputs()
        n_state = len(self.session.get_outputs()) - 1
        self.names = [entry.name for entry in inputs[: -n_state - 1]]
        self.state_inputs = inputs[-n_state - 1 : -1]

    def initial_state(self, n_envs: int) -> tuple[np.ndarray, ...]:
        """The state before the first observation: zeros."""
        return tuple(
            np.zeros((n_envs, *entry.shape[1:]), ONNX_DTYPES.get(entry.type, entry.type[7:-1]))
            for entry in self.state_inputs
        )

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Deterministic actions and the state to pass to the next call.

        :param observation: ``(n, ...)``, or by key; images channels first
        :param state: the state that the last call returned; ``None`` resets all environments
        :param episode_start: ``(n,)`` bool: environments to reset
        """
        entries = observation if isinstance(observation, dict) else {SINGLE_KEY: observation}
        n_envs = len(entries[self.names[0]])
        if state is None:
            state = self.initial_state(n_envs)
            episode_start = np.ones(n_envs, dtype=bool)
        elif episode_start is None:
            episode_start = np.zeros(n_envs, dtype=bool)
        feed = {name: entries[name] for name in self.names}
        feed.update(zip([entry.name for entry in self.state_inputs], state))
        feed[START_NAME] = np.asarray(episode_start, dtype=bool)
        action, *next_state = self.session.run(None, feed)
        return action, tuple(next_state)
