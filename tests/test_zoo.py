"""rl-zoo, unmodified: real runs of a few dozen steps, each in a process of its own.

rl-zoo patches Gymnasium at its import, so it is kept out of the process of the tests. The import
takes seconds: one process makes it, and a fork of it runs each command.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import av
import gymnasium as gym
import pytest
import yaml
from stable_baselines3.common.vec_env import DummyVecEnv, VecVideoRecorder

from core_agent import CURL, CoRe, RecurrentSAC
from core_agent.agents.registry import AGENTS
from core_agent.zoo import (
    COMMANDS,
    CONFIGS,
    SAMPLERS,
    convert_parameters,
    main,
    with_defaults,
)
from distracting_envs import ENV_IDS, TASKS
from tests.fakes import VECTOR, FakeEnv, tiny

ROOT = Path(__file__).parents[1]
NEEDS_ZOO = "needs rl_zoo3: pip install -e '.[zoo]'"
needs_zoo = pytest.mark.skipif(find_spec("rl_zoo3") is None, reason=NEEDS_ZOO)
ZOO_KEYS = {"n_timesteps", "policy"}
DISTRACTING_ID = "DCS-cartpole-swingup-easy-dynamic"


def n_frames(video: Path) -> int:
    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0))


SERVER = """
import json, os, runpy, sys
import core_agent
import rl_zoo3.enjoy, rl_zoo3.train
for line in sys.stdin:
    folder, arguments = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.chdir(folder)
    for number, name in enumerate((os.devnull, "output", "output")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    sys.argv = ["zoo", *arguments]
    runpy.run_module("core_agent.zoo", run_name="__main__")
    sys.exit()
"""


@pytest.fixture(scope="module")
def zoo():
    """A function that runs a command in a folder, and returns what it printed."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    paths = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'envs'}"}
    with subprocess.Popen([sys.executable, "-c", SERVER], env=paths, **pipes) as server:

        def run(folder: Path, *arguments: str, fails: bool = False) -> str:
            server.stdin.write(json.dumps([str(folder), arguments]) + "\n")
            server.stdin.flush()
            status = int(server.stdout.readline())
            output = (folder / "output").read_text()
            (folder / "output").unlink()
            assert (status != 0) == fails, output
            return output

        yield run


@pytest.fixture(scope="module")
def trained(zoo, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    arguments = ["--algo", "core", "--env", "Pendulum-v1", "-conf", str(CONFIGS / "core.yml")]
    often = ["--eval-freq", "200", "--eval-episodes", "1", "--save-freq", "300"]
    zoo(folder, "train", *arguments, *often, "--seed", "1", "--save-replay-buffer")
    return folder


@needs_zoo
def test_train_leaves_what_rl_zoo_leaves(trained):
    run = trained / "logs/core/Pendulum-v1_1"
    for name in ("Pendulum-v1.zip", "best_model.zip", "evaluations.npz", "replay_buffer.pkl"):
        assert (run / name).exists(), name
    assert (run / "rl_model_300_steps.zip").exists()
    model = CoRe.load(run / "Pendulum-v1.zip")
    assert model.num_timesteps == 400
    assert model._n_updates == 4
    assert model.sequence_length == 4


@needs_zoo
def test_resume_continues_from_model_and_buffer(zoo, trained):
    saved = trained / "logs/core/Pendulum-v1_1/Pendulum-v1.zip"
    more = ["-i", str(saved), "-n", "200", "--eval-freq", "-1"]
    output = zoo(trained, "train", "--algo", "core", "--env", "Pendulum-v1", *more)
    assert "Loading replay buffer" in output
    assert (trained / "logs/core/Pendulum-v1_2/Pendulum-v1.zip").exists()


@needs_zoo
def test_enjoy_plays_with_the_state_carried(zoo, trained):
    arguments = ["--algo", "core", "--env", "Pendulum-v1", "-f", "logs", "--exp-id", "1"]
    output = zoo(trained, "enjoy", *arguments, "-n", "210", "--no-render")
    assert "Episode Reward" in output


@needs_zoo
def test_optimize_searches_with_a_sampler(zoo, tmp_path):
    arguments = ["--algo", "core", "--env", "Pendulum-v1", "-n", "210", "--optimize"]
    more = ["--n-trials", "2", "--n-startup-trials", "1", "--n-evaluations", "1"]
    small = ["-params", "learning_starts:20", "train_freq:100", "gradient_steps:1"]
    output = zoo(
        tmp_path, "train", *arguments, *more, "--eval-episodes", "1", "--no-optim-plots", *small
    )
    assert "Number of finished trials:  2" in output
    assert "Best trial" in output
    assert list((tmp_path / "logs/core").glob("report_*.csv"))


@pytest.fixture(scope="module")
def distracted(zoo, tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("distracted")
    arguments = ["--algo", "recurrent_sac", "--env", DISTRACTING_ID]
    fast = ["--env-kwargs", "image_size:40", "render_quality:'fast'"]
    tiny = "policy_kwargs:dict(actor_dims=(8,),critic_dims=(8,),cnn_channels=(4,),cnn_strides=(2,))"
    small = ["learning_starts:8", "train_freq:10", "gradient_steps:1", "batch_size:2", tiny]
    run = ["-n", "30", "--eval-freq", "20", "--eval-episodes", "1", "-params", *small]
    return folder, zoo(folder, "train", *arguments, *fast, *run)


@needs_zoo
def test_distracting_control_trains_and_is_validated(distracted):
    folder, output = distracted
    assert "'split': 'val'" in output
    run_folder = folder / f"logs/recurrent_sac/{DISTRACTING_ID}_1"
    model = RecurrentSAC.load(run_folder / "best_model.zip")
    assert model.observation_space.shape == (3, 40, 40)


@needs_zoo
def test_record_video_writes_what_the_agent_does(zoo, distracted):
    folder, _ = distracted
    arguments = ["--algo", "recurrent_sac", "--env", DISTRACTING_ID, "-f", "logs"]
    zoo(folder, "record_video", *arguments, "-n", "12")
    (video,) = (folder / f"logs/recurrent_sac/{DISTRACTING_ID}_1/videos").glob("*.mp4")
    assert 12 <= n_frames(video) <= 13


@needs_zoo
def test_recorders_of_gymnasium_and_stable_baselines3_work(tmp_path):
    def make():
        return gym.make(DISTRACTING_ID, render_mode="rgb_array", image_size=40)

    env = gym.wrappers.RecordVideo(make(), str(tmp_path / "one"), video_length=3)
    env.reset(seed=0)
    for _ in range(4):
        env.step(env.action_space.sample())
    env.close()
    envs = VecVideoRecorder(
        DummyVecEnv([make]), str(tmp_path / "many"), lambda step: step == 0, video_length=3
    )
    envs.reset()
    for _ in range(4):
        envs.step([envs.action_space.sample()])
    envs.close()
    for folder in ("one", "many"):
        (video,) = (tmp_path / folder).glob("*.mp4")
        assert 3 <= n_frames(video) <= 4


@needs_zoo
def test_a_feed_forward_agent_stacks_its_frames_itself(zoo, tmp_path):
    arguments = ["--algo", "curl", "--env", "Pendulum-v1", "--eval-freq", "-1"]
    zoo(tmp_path, "train", *arguments, "-n", "300", "-params", "n_stack:2")
    model = CURL.load(tmp_path / "logs/curl/Pendulum-v1_1/Pendulum-v1.zip")
    assert model.observation_space.shape == (3,)
    assert model.policy.encoder.spaces["observation"].shape == (6,)
    assert model._n_updates == 2  # int(0.02 * 50) after steps 250 and 300


@needs_zoo
def test_mistakes_are_one_line(zoo, tmp_path):
    arguments = ["--algo", "core", "--env", "DCS-cheetah-run-easy"]
    output = zoo(tmp_path, "train", *arguments, fails=True)
    assert "Error: DCS-cheetah-run-easy not found in gym registry, you maybe meant DCS-" in output
    assert "Traceback" not in output


def test_an_unknown_command_is_named():
    with pytest.raises(
        ValueError, match=r"command must be one of \('train', 'enjoy', 'record_video'\), got 'plot'"
    ):
        main(["plot"])
    assert COMMANDS == ("train", "enjoy", "record_video")


# ---- configurations ----


def read_config(algorithm: str) -> dict:
    return yaml.safe_load((CONFIGS / f"{algorithm}.yml").read_text())


def test_the_configurations_lie_next_to_the_examples_too():
    assert (ROOT / "configs/core.yml").read_text() == (CONFIGS / "core.yml").read_text()


@pytest.mark.parametrize("algorithm", AGENTS)
def test_all_environments_have_the_papers_length(algorithm):
    config = read_config(algorithm)
    assert len(ENV_IDS) == 42
    for env_id in ENV_IDS:
        task = next(task for name, task in TASKS.items() if env_id.startswith(f"DCS-{name}-"))
        assert config[env_id]["n_timesteps"] == 500_000 // task.action_repeat
        assert config[env_id]["policy"] == "CnnPolicy"
    assert config["Pendulum-v1"] == config["debug"]


@pytest.mark.parametrize("algorithm", AGENTS)
def test_the_values_are_the_constructors_defaults(algorithm):
    signature = inspect.signature(AGENTS[algorithm].__init__).parameters
    values = read_config(algorithm)["paper"]
    for name in values.keys() - ZOO_KEYS:
        value = tuple(values[name]) if isinstance(values[name], list) else values[name]
        assert value == signature[name].default, name
        assert type(value) is type(signature[name].default), name
    rates = {name for name in signature if name.endswith(("learning_rate", "_coef"))}
    assert rates - {"max_log_ent_coef"} <= set(values)


@pytest.mark.parametrize("algorithm", ["sacrad", "curl"])
def test_the_cheetah_has_its_papers_learning_rate(algorithm):
    config = read_config(algorithm)
    for env_id in ENV_IDS:
        rates = [config[env_id][name] for name in ("learning_rate", "actor_learning_rate")]
        assert rates == [2e-4 if "cheetah" in env_id else 1e-3] * 2


# ---- what is added to rl-zoo's arguments ----


def test_the_configuration_is_found_where_none_is_named():
    added = with_defaults("train", ["--algo", "core", "--env", "Pendulum-v1"])
    assert added[-2:] == ["--conf-file", str(CONFIGS / "core.yml")]
    for arguments in (["--algo", "sac"], ["--algo", "core", "-conf", "mine.yml"]):
        assert with_defaults("train", arguments) == arguments


def test_distracting_control_is_evaluated_on_validation_videos_and_has_no_window():
    arguments = ["--algo", "sac", "--env", "DCS-cheetah-run-easy-static"]
    assert with_defaults("train", arguments)[-2:] == ["--eval-env-kwargs", "split:'val'"]
    own = [*arguments, "--env-kwargs", "image_size:64", "split:'train'"]
    assert with_defaults("train", own)[-3:] == [
        "--eval-env-kwargs",
        "image_size:64",
        "split:'val'",
    ]
    chosen = [*arguments, "--eval-env-kwargs", "split:'train'"]
    assert with_defaults("train", chosen) == chosen
    assert with_defaults("enjoy", arguments)[-1] == "--no-render"


def test_sampled_parameters_become_constructor_arguments():
    arguments = convert_parameters(
        {"one_minus_gamma": 0.01, "batch_size_pow": 4, "sequence_length_pow": 5, "tau": 0.1}
    )
    assert arguments == {"gamma": 0.99, "batch_size": 16, "sequence_length": 32, "tau": 0.1}


@pytest.mark.parametrize("algorithm", AGENTS)
def test_every_sampled_argument_is_one_of_the_constructors(algorithm):
    class LowestTrial:
        def suggest_float(self, name, low, high, log):
            return low

        def suggest_int(self, name, low, high):
            return low

    sampled = SAMPLERS[algorithm](LowestTrial(), 1, 1, {})
    model = AGENTS[algorithm](
        "MlpPolicy", FakeEnv(VECTOR), **{**tiny(AGENTS[algorithm]), **sampled, "buffer_size": 50}
    )
    assert model.gamma == 0.998
    assert model.batch_size == sampled["batch_size"]


def test_a_missing_zoo_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'core-agent\[zoo\]'"):
        main(["train"])
