"""The exported step function against ``predict``."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import SAC

from core_agent import SACRAD, CoRe, QTOptRAD, RecurrentSAC
from core_agent.export import OnnxAgent, StepFunction, example_inputs, export_onnx
from tests.fakes import BOTH, IMAGE, TINY, TINY_POLICY, VECTOR, FakeEnv, policy_name, tiny


def make_model(space: spaces.Space, algorithm: type = CoRe, **kwargs):
    env = FakeEnv(space, **kwargs)
    return algorithm(policy_name(space), env, **tiny(algorithm)).learn(14)


def observations(model, n: int, seed: int):
    space = model.observation_space  # channels first
    space.seed(seed)
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([s[key] for s in samples]) for key in space}
    return np.stack(samples)


def assert_same_episodes(predict, model, n_envs: int = 3, n_steps: int = 6) -> None:
    """Both play the same steps, an episode beginning amid them, within 1e-5."""
    state = other_state = None
    for step in range(n_steps):
        starts = np.array([step == 0 or (step == 3 and env == 1) for env in range(n_envs)])
        batch = observations(model, n_envs, step)
        action, state = model.predict(batch, state, starts, deterministic=True)
        other, other_state = predict(batch, other_state, starts)
        assert other.dtype == action.dtype
        assert np.allclose(action, other, atol=1e-5)
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(state, other_state))


@pytest.mark.parametrize("algorithm", [CoRe, SACRAD, QTOptRAD])
@pytest.mark.parametrize("space", [IMAGE, VECTOR, BOTH, spaces.Discrete(3)])
def test_the_step_function_reproduces_predict(space, algorithm):
    model = make_model(space, algorithm)
    function = StepFunction(model.policy)

    def predict(batch, state, starts):
        entries = batch.values() if isinstance(batch, dict) else [batch]
        parts = state or [part.numpy() for part in model.policy.initial_state(len(starts))]
        arrays = [*entries, *parts, starts]
        with torch.no_grad():
            action, *next_state = function(*(torch.as_tensor(array) for array in arrays))
        return action.numpy(), tuple(part.numpy() for part in next_state)

    assert_same_episodes(predict, model)


@pytest.mark.parametrize(
    ("space", "algorithm"),
    [(VECTOR, RecurrentSAC), (BOTH, CoRe), (BOTH, SACRAD), (IMAGE, QTOptRAD)],
)
def test_onnxruntime_reproduces_predict(space, algorithm, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model = make_model(space, algorithm)
    agent = OnnxAgent(export_onnx(model, tmp_path / "new" / "agent.onnx"))
    for n_envs in (1, 3):
        assert_same_episodes(agent.predict, model, n_envs)
    batch = observations(model, 2, 0)
    action, state = agent.predict(batch)
    expected, expected_state = model.predict(batch, deterministic=True)
    assert np.allclose(action, expected, atol=1e-5)
    action, _ = agent.predict(batch, state)
    assert np.allclose(
        action, model.predict(batch, expected_state, deterministic=True)[0], atol=1e-5
    )


def test_the_papers_networks_on_its_images_too(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    space = spaces.Box(0, 255, (100, 100, 3), np.uint8)
    model = CoRe("CnnPolicy", FakeEnv(space), buffer_size=10, precision="bfloat16", device="cpu")
    path = export_onnx(model, tmp_path / "agent.onnx")
    n_acting = sum(p.numel() for p in model.policy.actor.parameters())
    n_acting += sum(p.numel() for p in model.policy.world_model.filter_parameters())
    assert path.stat().st_size < 1.1 * 4 * n_acting  # no critics, no heads
    agent = OnnxAgent(path)
    exact = CoRe("CnnPolicy", FakeEnv(space), buffer_size=10, precision="float32", device="cpu")
    exact.policy.load_state_dict(model.policy.state_dict())
    assert_same_episodes(agent.predict, exact, n_envs=2, n_steps=4)


def test_the_model_is_left_as_it_is():
    model = make_model(VECTOR)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    StepFunction(model.policy)(*example_inputs(model.policy))
    assert all(torch.equal(before[k], v) for k, v in model.policy.state_dict().items())
    assert model.policy.training == make_model(VECTOR).policy.training


def test_sampled_evaluation_exports_the_mean():
    arguments = {**TINY, "policy_kwargs": {**TINY_POLICY, "sample_when_deterministic": True}}
    function = StepFunction(CoRe("MlpPolicy", FakeEnv(VECTOR), **arguments).policy)
    inputs = example_inputs(function.policy)
    assert all(torch.equal(a, b) for a, b in zip(function(*inputs), function(*inputs)))


def test_other_algorithms_are_refused(tmp_path):
    with pytest.raises(ValueError, match="model must be an agent of this package, got 'SAC'"):
        export_onnx(SAC("MlpPolicy", FakeEnv(VECTOR), buffer_size=10), tmp_path / "agent.onnx")


def test_missing_packages_say_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match="pip install onnx"):
        export_onnx(make_model(VECTOR), tmp_path / "agent.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match="pip install onnxruntime"):
        OnnxAgent(tmp_path / "agent.onnx")
