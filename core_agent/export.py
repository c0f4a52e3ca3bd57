"""Export of a trained agent's step function to ONNX, to run without PyTorch.

    from core_agent.export import export_onnx
    from core_agent.onnx_agent import OnnxAgent  # needs only onnxruntime and numpy

    export_onnx(model, "agent.onnx")
    action = OnnxAgent("agent.onnx").act(observation)

The function takes the observation of each environment, the state of the last step, and the
environments that start an episode; it returns the actions, within the bounds of the environment,
and the next state. It computes the same as ``model.predict(…, deterministic=True)``, in float32.
A model with ``sample_when_deterministic=True``, as in ``preset("release")``, is exported without
it: the state holds the mean of the stochastic part, not a sample.

=====================  ==================  =====================================================
input                  shape               contents
=====================  ==================  =====================================================
``observation``, or    ``(n, ...)``        the agent's input, images channels first;
the keys of a Dict                         normalised if ``VecNormalize`` did so in training
the state              ``(n, ...)``        from the last step; zeros at first
``episode_start``      ``(n,)``            bool
=====================  ==================  =====================================================

The state of CoRe and RecurrentSAC is ``deter``, ``stoch`` and ``previous_action``. The state of the
other agents is the stack of the last frames: ``stack``, or ``stack_<key>`` for each key of a Dict.
The outputs are ``action`` and the next state, ``next_deter`` and so on.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from core_agent.agents.latent import RecurrentPolicy
from core_agent.agents.policies import StatefulPolicy
from core_agent.networks.encoders import as_dict_space
from core_agent.networks.layers import set_compute_dtype
from core_agent.onnx_agent import START_NAME, need
from core_agent.validation import PATH, check


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
        action = torch.clamp(action, self.low, self.high)
        if not self.low.dtype.is_floating_point:
            action = torch.round(action)
        return action.to(self.low.dtype), *following


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
    :raises ModuleNotFoundError: without onnx or onnxscript, saying how to install them
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
    need("onnx"), need("onnxscript")
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
