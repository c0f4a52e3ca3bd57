"""The exported step function against ``predict``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import SAC

from core_agent import SACRAD, CoRe, QTOptRAD, RecurrentSAC
from core_agent.export import StepFunction, example_inputs, export_onnx
from core_agent.onnx_agent import OnnxAgent
from tests.fakes import BOTH, IMAGE, TINY, TINY_POLICY, VECTOR, FakeEnv, policy_name, tiny


def make_model(space: spaces.Space, algorithm: type = CoRe, **kwargs):
    env = FakeEnv(space, **kwargs)
    return algorithm(policy_name(space), env, **tiny(algorithm)).learn(14)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function: a model, and the file to which it was exported, each once."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def export(space: spaces.Space, algorithm: type):
        name = f"{policy_name(space)}-{algorithm.__name__}"
        if name not in done:
            model = make_model(space, algorithm)
            done[name] = model, export_onnx(model, folder / "new" / f"{name}.onnx")
        return done[name]

    return export


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
    [
        (BOTH, CoRe),
        (BOTH, SACRAD),
        pytest.param(VECTOR, RecurrentSAC, marks=pytest.mark.slow),
        pytest.param(IMAGE, QTOptRAD, marks=pytest.mark.slow),
    ],
)
def test_onnxruntime_reproduces_predict(space, algorithm, exported):
    model, path = exported(space, algorithm)
    agent = OnnxAgent(path)
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


@pytest.mark.slow
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


# ---- the exported agent in one environment ----

ON_A_ROBOT = """
import sys
for name in ("torch", "stable_baselines3", "gymnasium"):
    sys.modules[name] = None  # as if it were not installed

import numpy as np
from core_agent.onnx_agent import OnnxAgent

played = np.load("played.npz")
agent = OnnxAgent(sys.argv[1])
for _ in range(2):
    agent.reset()
    actions = [
        agent.act({"image": image, "vector": vector})
        for image, vector in zip(played["image"], played["vector"])
    ]
    assert np.allclose(actions, played["actions"], atol=1e-5)
for name in ("torch", "stable_baselines3", "gymnasium"):
    assert sys.modules[name] is None
"""


@pytest.mark.parametrize("algorithm", [CoRe, SACRAD])
def test_an_exported_agent_acts_where_nothing_else_is_installed(algorithm, exported, tmp_path):
    model, path = exported(BOTH, algorithm)
    observations = [BOTH.sample() for _ in range(5)]  # images channels last
    actions, state = [], None
    for observation in observations:
        action, state = model.predict(observation, state, deterministic=True)
        actions.append(action)
    frames = {key: np.stack([o[key] for o in observations]) for key in BOTH}
    np.savez(tmp_path / "played.npz", actions=actions, **frames)
    root = Path(__file__).parents[1]
    paths = os.pathsep.join([str(root), str(root / "envs")])
    done = subprocess.run(
        [sys.executable, "-c", ON_A_ROBOT, str(path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("space", "algorithm"), [(IMAGE, QTOptRAD), (VECTOR, RecurrentSAC)])
def test_an_exported_agent_takes_what_the_environment_gives(space, algorithm, exported):
    model, path = exported(space, algorithm)
    agent, env, state = OnnxAgent(path), FakeEnv(space), None
    observation, _ = env.reset(seed=0)
    first, over = agent.act(observation), False
    agent.reset()
    while not over:
        expected, state = model.predict(observation, state, deterministic=True)
        action = agent.act(observation)
        assert env.action_space.contains(action)
        assert np.allclose(action, expected, atol=1e-5)
        observation, _, _, over, _ = env.step(action)
    agent.reset()
    assert np.array_equal(agent.act(env.reset(seed=0)[0]), first)


def test_an_exported_agent_names_a_bad_observation(exported):
    agent = OnnxAgent(exported(IMAGE, QTOptRAD)[1])
    for observation, found in (
        (np.zeros((8, 8, 4), np.uint8), r"\(3, 8, 8\) or \(8, 8, 3\) .* got \(8, 8, 4\)"),
        (np.zeros((8, 8, 3), np.float32), "dtype uint8, got .* float32"),
        ({"image": np.zeros((8, 8, 3), np.uint8)}, r"keys \['observation'\], got \['image'\]"),
        (3, "got .* int64"),
    ):
        with pytest.raises(ValueError, match=f"observation must have .*{found}"):
            agent.act(observation)


def test_the_agents_are_imported_when_they_are_asked_for():
    program = (
        "import sys, core_agent\n"
        "assert 'stable_baselines3' not in sys.modules and 'mujoco' not in sys.modules\n"
        "import gymnasium\n"
        "assert 'DCS-cheetah-run-clean' in gymnasium.registry\n"
        "assert set(core_agent.__all__) <= set(dir(core_agent))\n"
        "for name in core_agent.__all__: getattr(core_agent, name)\n"
        "assert core_agent.CoRe.__module__ == 'core_agent.agents.core'\n"
        "try: core_agent.SAC\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "module 'core_agent' has no attribute 'SAC'\n", done.stderr
