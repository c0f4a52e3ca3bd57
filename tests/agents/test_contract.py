"""What a drop-in Stable-Baselines3 algorithm must do, beyond what the other files test."""

from __future__ import annotations

import inspect
import io
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger, configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)

from core_agent import SACRAD, CoRe, QTOptRAD
from core_agent.agents.registry import AGENTS
from core_agent.replay.buffer import SequenceReplayBuffer
from tests.fakes import BOTH, IMAGE, VECTOR, FakeEnv, policy_name, tiny

ALGORITHMS = list(AGENTS.values())
POLICIES = [CoRe, SACRAD, QTOptRAD]  # one agent for each kind of policy
STEP, EPISODE = TrainFrequencyUnit.STEP, TrainFrequencyUnit.EPISODE
GREY = spaces.Box(0, 255, (9, 12, 1), np.uint8)
CHANNELS_FIRST = spaces.Box(0, 255, (3, 10, 8), np.uint8)
TWO_IMAGES = spaces.Dict({"left": IMAGE, "right": GREY, "speed": VECTOR})
SPACES = {
    "channels last": IMAGE,
    "grey, not square": GREY,
    "channels first": CHANNELS_FIRST,
    "vector": VECTOR,
    "one number": spaces.Box(-1, 1, (1,), np.float64),
    "image and vector": BOTH,
    "two images and a vector": TWO_IMAGES,
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(3),
}


def make_model(space: spaces.Space = VECTOR, algorithm: type = CoRe, env: Any = None, **kwargs):
    env = FakeEnv(space) if env is None else env
    return algorithm(policy_name(space), env, **{**tiny(algorithm), **kwargs})


def parameters(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.policy.parameters()])


class CountingEnv(FakeEnv):
    """Observes the number of the step that it is at; counts its resets."""

    def __init__(self, length: int = 6, terminates: bool = False) -> None:
        super().__init__(spaces.Box(0, 1e6, (1,), np.float32), length, terminates)
        self.resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        self.resets += 1
        return super().reset(seed=seed)

    def observe(self) -> np.ndarray:
        return np.array([1000 * self.resets + self.step_count], np.float32)


def assert_windows_hold_consecutive_frames(buffer: SequenceReplayBuffer) -> None:
    for episode in buffer.episodes:
        steps = episode.frames["observation"][:, 0].numpy()
        assert (np.diff(steps) == 1).all(), steps


# ---- base class and constructor ----


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_is_an_off_policy_algorithm_with_sacs_common_arguments(algorithm):
    assert issubclass(algorithm, OffPolicyAlgorithm)
    ours = inspect.signature(algorithm.__init__).parameters
    ignored = {"target_update_interval", "optimize_memory_usage", "n_steps"}
    theirs = {
        name
        for name in inspect.signature(SAC.__init__).parameters
        if name not in ignored and "sde" not in name
    }
    if not hasattr(algorithm, "update_actor"):
        theirs -= {"ent_coef", "target_entropy"}
    assert theirs <= set(ours)
    assert list(ours)[1:6] == ["policy", "env", "learning_rate", "buffer_size", "learning_starts"]


ARGUMENTS: dict[str, Any] = dict(
    learning_rate=2e-4,
    buffer_size=50,
    learning_starts=5,
    batch_size=2,
    tau=0.1,
    gamma=0.9,
    train_freq=(3, "step"),
    gradient_steps=2,
    update_ratio=0.25,
    max_rollout_steps=20,
    collect="async",
    crop_size=7,
    precision="float32",
    action_noise=NormalActionNoise(np.zeros(2), np.ones(2)),
    replay_buffer_class=SequenceReplayBuffer,
    replay_buffer_kwargs=dict(handle_timeout_termination=False),
    tensorboard_log=None,
    verbose=0,
    seed=3,
)
ACTOR_ARGUMENTS: dict[str, Any] = dict(
    actor_learning_rate=3e-3,
    ent_coef="auto_0.2",
    ent_coef_learning_rate=4e-3,
    target_entropy=-1.5,
    max_log_ent_coef=1.0,
)
RECURRENT_ARGUMENTS: dict[str, Any] = dict(
    ACTOR_ARGUMENTS,
    sequence_length=3,
    critic_learning_rate=2e-3,
    overlay=0.3,
    behavior_updates=2,
    train_model_with_critic=False,
)
MODEL_ARGUMENTS: dict[str, Any] = dict(
    contrastive_coef=0.5,
    joint_update=False,
    kl_coef=0.1,
    reward_coef=0.5,
    inverse_coef=0.25,
    contrastive_from="posterior",
    negatives="other_sequences",
    free_nats=0.5,
    kl_balance=0.8,
    smooth_reward_loss=True,
    contrast_first_frame=True,
    contrastive_scale_learning_rate=1e-2,
)
STACK_ARGUMENTS: dict[str, Any] = dict(n_stack=2, encoder_tau=0.2, target_update_freq=3)
SACRAD_ARGUMENTS: dict[str, Any] = dict(ACTOR_ARGUMENTS, **STACK_ARGUMENTS, actor_update_freq=1)
OWN_ARGUMENTS: dict[str, dict[str, Any]] = {
    "core": {**RECURRENT_ARGUMENTS, **MODEL_ARGUMENTS},
    "recurrent_sac": RECURRENT_ARGUMENTS,
    "sacrad": SACRAD_ARGUMENTS,
    "curl": SACRAD_ARGUMENTS,
    "qtopt_rad": STACK_ARGUMENTS,
    "qtopt_drq": STACK_ARGUMENTS,
}


@pytest.mark.parametrize("name", AGENTS)
def test_every_argument_is_taken_by_keyword_and_kept_under_its_name(name):
    algorithm = AGENTS[name]
    policy_kwargs = tiny(algorithm)["policy_kwargs"]
    arguments = {**ARGUMENTS, **OWN_ARGUMENTS[name], "policy_kwargs": policy_kwargs}
    env = SubprocVecEnv([FakeEnv], start_method="fork")
    model = algorithm(policy="CnnPolicy", env=env, stats_window_size=7, device="cpu", **arguments)
    expected = set(inspect.signature(algorithm.__init__).parameters)
    expected -= {"self", "policy", "env", "device", "stats_window_size", "_init_setup_model"}
    assert set(arguments) == expected
    for argument, value in arguments.items():
        kept = getattr(model, argument)
        assert kept == (TrainFreq(3, STEP) if argument == "train_freq" else value), argument
    assert model._stats_window_size == 7
    assert model.device == torch.device("cpu")
    model.learn(20)
    env.close()
    assert model._n_updates > 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_model_can_be_set_up_later(algorithm):
    model = make_model(algorithm=algorithm, _init_setup_model=False)
    assert not hasattr(model, "policy") or model.policy is None
    model._setup_model()
    model._setup_model()
    model.learn(14)
    assert model._n_updates > 0


@pytest.mark.parametrize(
    ("train_freq", "expected"),
    [
        (4, TrainFreq(4, STEP)),
        ((2, "episode"), TrainFreq(2, EPISODE)),
        ([5, "step"], TrainFreq(5, STEP)),
        (TrainFreq(1, EPISODE), TrainFreq(1, EPISODE)),
    ],
)
def test_train_freq_takes_every_form_and_survives_saving(train_freq, expected):
    model = make_model(train_freq=train_freq)
    assert model.train_freq == expected
    assert reload(model).train_freq == expected


def test_a_schedule_may_start_at_zero():
    model = make_model(learning_rate=lambda left: 1e-3 * (1.0 - left))
    before = parameters(model).clone()
    model.learn(20)
    assert torch.isfinite(parameters(model)).all()
    assert not torch.equal(parameters(model), before)


# ---- learn ----


@pytest.mark.parametrize("algorithm", POLICIES)
def test_learn_returns_the_model_and_twice_starts_again(algorithm):
    env = CountingEnv()
    model = make_model(env=env, algorithm=algorithm)
    assert model.learn(12) is model
    assert env.resets == 3  # at the start and after each episode
    model.learn(12)
    assert model.num_timesteps == 12
    assert env.resets == 6
    assert model.replay_buffer.size() == 24
    assert_windows_hold_consecutive_frames(model.replay_buffer)


@pytest.mark.parametrize("algorithm", POLICIES)
def test_going_on_neither_resets_nor_forgets_nor_changes_the_log_folder(algorithm, tmp_path):
    env = CountingEnv(length=100)
    model = make_model(
        env=env, algorithm=algorithm, train_freq=(4, "step"), tensorboard_log=str(tmp_path)
    )
    model.learn(12, tb_log_name="run")
    state = [part.copy() for part in model._last_states]
    model.learn(8, reset_num_timesteps=False, tb_log_name="run")
    assert model.num_timesteps == 20
    assert env.resets == 1
    assert len(model.replay_buffer.episodes) == 1
    assert any(not np.array_equal(a, b) for a, b in zip(state, model._last_states))
    assert_windows_hold_consecutive_frames(model.replay_buffer)
    assert [path.name for path in tmp_path.iterdir()] == ["run_1"]
    model.learn(4, tb_log_name="run")
    assert {path.name for path in tmp_path.iterdir()} == {"run_1", "run_2"}


def test_a_loaded_model_continues_in_the_same_log_folder(tmp_path):
    model = make_model(tensorboard_log=str(tmp_path / "logs")).learn(6)
    loaded = reload(model, env=FakeEnv(VECTOR))
    loaded.learn(6, reset_num_timesteps=False)
    assert loaded.num_timesteps == 12
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["CoRe_1"]


class StopOnce(BaseCallback):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def _on_step(self) -> bool:
        return self.num_timesteps != self.after


@pytest.mark.parametrize("algorithm", POLICIES)
@pytest.mark.parametrize("stop_after", [9, 12])  # in the middle of an episode, and at its end
def test_nothing_is_lost_when_a_callback_stops_and_training_resumes(stop_after, algorithm):
    model = make_model(env=CountingEnv(), algorithm=algorithm)
    model.learn(30, callback=StopOnce(stop_after))
    assert model.num_timesteps == stop_after
    assert model.replay_buffer.size() == stop_after
    model.learn(12, reset_num_timesteps=False)
    assert_windows_hold_consecutive_frames(model.replay_buffer)
    assert model.replay_buffer.size() == model.num_timesteps


@pytest.mark.parametrize("algorithm", POLICIES)
@pytest.mark.parametrize(
    ("vec_env_cls", "n_envs"), [(DummyVecEnv, 1), (DummyVecEnv, 4), (SubprocVecEnv, 2)]
)
def test_one_to_four_environments(vec_env_cls, n_envs, algorithm):
    env = make_vec_env(FakeEnv, n_envs, vec_env_cls=vec_env_cls, env_kwargs=dict(length=5))
    model = make_model(IMAGE, algorithm, env)
    counter = Steps()
    try:
        model.learn(10 * n_envs, callback=counter)
    finally:
        env.close()
    assert model.num_timesteps == n_envs * counter.n_steps == 10 * n_envs
    assert model._n_updates > 0
    assert torch.isfinite(parameters(model)).all()


class Steps(BaseCallback):
    n_steps = 0

    def _on_step(self) -> bool:
        self.n_steps += 1
        assert self.model.num_timesteps == self.n_steps * self.training_env.num_envs
        return True


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        *((algorithm, name) for algorithm in POLICIES for name in SPACES),
        *((algorithm, "image and vector") for algorithm in ALGORITHMS if algorithm not in POLICIES),
    ],
)
def test_learns_acts_on_any_batch_and_reloads_on_any_space(algorithm, name):
    space = SPACES[name]
    model = make_model(space, algorithm).learn(20)
    assert model._n_updates > 0
    assert torch.isfinite(parameters(model)).all()
    space.seed(0)
    samples = [space.sample() for _ in range(3)]
    batch: Any = np.stack(samples) if not isinstance(space, spaces.Dict) else None
    if batch is None:
        batch = {key: np.stack([sample[key] for sample in samples]) for key in space}
    actions, state = model.predict(batch, deterministic=True)
    assert actions.shape == (3, 2)
    assert actions.dtype == np.float32
    assert all(isinstance(part, np.ndarray) and len(part) == 3 for part in state)
    action, _ = model.predict(samples[0], deterministic=True)
    assert model.action_space.contains(action)
    assert np.allclose(action, actions[0], atol=1e-5)
    assert np.array_equal(action, reload(model).predict(samples[0], deterministic=True)[0])


@pytest.mark.parametrize("algorithm", POLICIES)
@pytest.mark.parametrize(("n_envs", "terminates"), [(1, True), (3, False)])
def test_episodes_of_one_step_without_warm_up(n_envs, terminates, algorithm):
    env = make_vec_env(FakeEnv, n_envs, env_kwargs=dict(length=1, terminates=terminates))
    model = make_model(
        IMAGE, algorithm, env, learning_starts=0, gradient_steps=1, train_freq=(1, "episode")
    ).learn(3 * n_envs)
    assert model._n_updates == 3
    assert torch.isfinite(parameters(model)).all()


def test_matrices_of_actions_and_other_bounds():
    class MatrixEnv(FakeEnv):
        def __init__(self) -> None:
            super().__init__(VECTOR)
            low = np.array([[-3.0, 0.0], [1.0, -1.0]])
            self.action_space = spaces.Box(low, low + 2.0, dtype=np.float64)

        def step(self, action):
            assert self.action_space.contains(action), action
            self.step_count += 1
            return self.observe(), float(action.sum()), False, self.step_count == 6, {}

    model = make_model(env=MatrixEnv()).learn(18)
    assert model._n_updates > 0
    action, _ = model.predict(np.zeros(3, np.float32))
    assert model.action_space.contains(action)


def test_action_noise_follows_the_number_of_environments():
    noise = NormalActionNoise(np.zeros(2), np.ones(2))
    three = make_model(env=make_vec_env(lambda: FakeEnv(VECTOR), 3), action_noise=noise).learn(18)
    for n_envs in (1, 2):
        loaded = reload(three, env=make_vec_env(lambda: FakeEnv(VECTOR), n_envs)).learn(12)
        assert loaded._last_states[2].shape == (n_envs, 2)


# ---- callbacks ----


def test_evaluating_and_stopping_at_a_threshold(tmp_path):
    stop = StopTrainingOnRewardThreshold(reward_threshold=-1e9)
    callback = EvalCallback(
        VecTransposeImage(make_vec_env(FakeEnv, 2)),
        callback_on_new_best=stop,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        n_eval_episodes=2,
        eval_freq=10,
        verbose=0,
    )
    model = make_model(IMAGE).learn(100, callback=callback)
    assert model.num_timesteps == 10
    assert len(CoRe.load(tmp_path / "best_model").predict(np.zeros((2, 3, 8, 8), np.uint8))[0]) == 2
    assert (tmp_path / "evaluations.npz").exists()


def test_checkpoints_hold_model_buffer_and_statistics(tmp_path):
    env = VecNormalize(make_vec_env(lambda: FakeEnv(VECTOR), 2))
    callback = CheckpointCallback(
        5, str(tmp_path), "core", save_replay_buffer=True, save_vecnormalize=True
    )
    make_model(env=env).learn(24, callback=callback)
    normalized = VecNormalize.load(
        str(tmp_path / "core_vecnormalize_20_steps.pkl"),
        make_vec_env(lambda: FakeEnv(VECTOR), 2),
    )
    loaded = CoRe.load(tmp_path / "core_20_steps", env=normalized)
    loaded.load_replay_buffer(tmp_path / "core_replay_buffer_20_steps.pkl")
    assert loaded.num_timesteps == 20
    stored = loaded.replay_buffer.size()
    assert stored in (18, 20)  # SB3 calls the callback before it stores the step
    loaded.learn(12, reset_num_timesteps=False)
    assert loaded.num_timesteps >= 32
    assert loaded.replay_buffer.size() == stored + loaded.num_timesteps - 20


def test_sb3s_other_callbacks_and_lists_of_them():
    every = Steps()
    stop = StopTrainingOnMaxEpisodes(max_episodes=3)
    callbacks = [EveryNTimesteps(4, CallbackList([])), stop, every]
    assert make_model().learn(100, callback=callbacks).num_timesteps == 18


def test_callbacks_see_the_names_of_sb3s_collect_rollouts():
    seen = {}
    model = make_model()
    model.learn(6, callback=lambda local, _: seen.update(local) or True)
    names = {"env", "callback", "train_freq", "replay_buffer", "action_noise", "learning_starts"}
    names |= {"log_interval", "actions", "buffer_actions", "new_obs", "rewards", "dones", "infos"}
    assert names | {"total_timesteps"} <= set(seen)
    assert seen["self"] is model and seen["n_steps"] == 6


def test_a_rollout_may_be_collected_without_learn():
    model = make_model().learn(12)
    callback = model._init_callback(None)
    rollout = model.collect_rollouts(model.env, callback, TrainFreq(4, STEP), model.replay_buffer)
    assert rollout.episode_timesteps == 4
    assert model.num_timesteps == model.replay_buffer.size() == 16


def test_the_progress_bar_runs_to_its_end():
    pytest.importorskip("tqdm")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "rich is experimental")
        make_model().learn(12, progress_bar=True)


# ---- logger ----


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_two_keys_are_alike_once_truncated(algorithm, capsys):
    class Keys(KVWriter):
        def write(self, key_values, key_excluded, step=0):
            keys.update(key_values)

        def close(self):
            pass

    keys: dict[str, Any] = {}
    model = make_model(algorithm=algorithm, verbose=1)
    model.set_logger(Logger(None, [Keys()]))
    model.learn(30, log_interval=1)
    names = [key.partition("/")[2] for key in keys]
    assert len({name[:30] for name in names}) == len(names)
    wanted = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "train/critic_loss", "time/fps"}
    if hasattr(algorithm, "update_actor"):
        wanted |= {"train/actor_loss", "train/ent_coef_loss"}
    assert wanted | {"time/time_elapsed"} <= set(keys)
    assert all(np.isfinite(value) for value in keys.values())
    model.set_logger(configure(None, ["stdout"]))
    model.learn(30, log_interval=1)
    assert "ep_rew_mean" in capsys.readouterr().out


# ---- wrappers ----


@pytest.mark.parametrize("algorithm", POLICIES)
@pytest.mark.parametrize("n_envs", [1, 2])
def test_normalised_dicts_with_images(n_envs, algorithm):
    venv = make_vec_env(lambda: FakeEnv(BOTH), n_envs)
    env = VecNormalize(venv, norm_obs_keys=["vector"])
    model = make_model(BOTH, algorithm, env).learn(24)
    frames = model.replay_buffer.episodes[0].frames
    assert frames["image"].dtype == torch.uint8
    raw = np.stack([model.replay_buffer.episodes[0].rewards])
    assert np.allclose(raw[0], 2.0 * model.replay_buffer.episodes[0].actions[:, 0], atol=1e-5)
    assert torch.isfinite(parameters(model)).all()
    mean, _ = evaluate_policy(model, model.get_env(), 2)
    assert np.isfinite(mean)


def test_normalised_images_are_refused():
    env = VecNormalize(make_vec_env(FakeEnv, 1))
    with pytest.raises(ValueError, match="env must leave images as they are"):
        make_model(IMAGE, env=env)
    model = make_model(IMAGE, env=VecNormalize(make_vec_env(FakeEnv, 1), norm_obs=False))
    assert model.learn(14)._n_updates > 0
    with pytest.raises(ValueError, match="env must leave images as they are"):
        model.set_env(env)


def test_frames_stacked_above_the_normaliser_are_refused():
    env = VecFrameStack(VecNormalize(make_vec_env(lambda: FakeEnv(VECTOR), 1)), 2)
    with pytest.raises(ValueError, match="env must give observations of shape"):
        make_model(env=env).learn(6)
    below = VecNormalize(VecFrameStack(make_vec_env(lambda: FakeEnv(VECTOR), 1), 2))
    assert make_model(env=below).learn(14)._n_updates > 0


def test_stacked_frames_of_images_dicts_and_vectors():
    for space in (IMAGE, BOTH, VECTOR, CHANNELS_FIRST):
        env = VecFrameStack(make_vec_env(lambda s=space: FakeEnv(s), 2), 3)
        model = make_model(space, env=env).learn(24)
        assert model._n_updates > 0
        action, _ = model.predict(env.reset())
        assert action.shape == (2, 2)


class NanEnv(FakeEnv):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, float("nan") if self.step_count == 3 else reward, *rest


def test_vec_check_nan_reports_and_healthy_runs_pass():
    def check(env: type[gym.Env]) -> CoRe:
        checked = VecCheckNan(make_vec_env(lambda: env(VECTOR), 1), raise_exception=True)
        return make_model(env=checked).learn(14)

    assert check(FakeEnv)._n_updates > 0
    with pytest.raises(ValueError, match="nan"):
        check(NanEnv)


def test_videos_are_recorded(tmp_path):
    pytest.importorskip("moviepy")
    env = VecVideoRecorder(
        make_vec_env(FakeEnv, 1), str(tmp_path), lambda step: step == 0, video_length=4
    )
    make_model(IMAGE, env=env).learn(12)
    env.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


# ---- predict ----


@pytest.mark.parametrize("algorithm", POLICIES)
def test_predict_leaves_training_as_it_was(algorithm):
    results = []
    for n_calls in (0, 5):
        model = make_model(
            algorithm=algorithm, env=FakeEnv(VECTOR, length=50), train_freq=(5, "step")
        ).learn(20)
        for _ in range(n_calls):
            model.predict(np.zeros((4, 3), np.float32), deterministic=True)
        results.append(parameters(model.learn(20, reset_num_timesteps=False)))
    assert torch.equal(*results)


# ---- saving and loading ----


def reload(model, **kwargs):
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return type(model).load(file, device="cpu", **kwargs)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_zip_has_sb3s_layout_and_loads_into_a_living_model(algorithm, tmp_path):
    model = make_model(algorithm=algorithm).learn(14)
    model.save(tmp_path / "model")
    assert model.policy.optimizer in model.optimizers
    names = set(zipfile.ZipFile(tmp_path / "model.zip").namelist())
    expected = {"data", "policy.pth", "_stable_baselines3_version", "system_info.txt"}
    expected |= {f"policy.{name}.pth" for name in algorithm.optimizer_names}
    assert names - {"pytorch_variables.pth"} == expected
    other = make_model(algorithm=algorithm, seed=5)
    assert not torch.equal(parameters(model), parameters(other))
    other.set_parameters(str(tmp_path / "model.zip"), device="cpu")
    assert torch.equal(parameters(model), parameters(other))
    other.set_parameters(model.get_parameters(), exact_match=True)


def test_saving_may_exclude_and_include(tmp_path):
    model = make_model().learn(6)
    model.tag = "kept"
    model.save(tmp_path / "a", exclude=["tag", "ep_info_buffer"])
    model.save(tmp_path / "b", include=["replay_buffer"])
    assert not hasattr(CoRe.load(tmp_path / "a"), "tag")
    loaded = CoRe.load(tmp_path / "b")
    assert loaded.tag == "kept"
    assert loaded.replay_buffer.size() == 6


def test_arguments_given_to_load_win_over_the_saved_ones():
    model = make_model().learn(14)
    loaded = reload(
        model,
        env=FakeEnv(VECTOR),
        learning_rate=1e-5,
        critic_learning_rate=2e-5,
        batch_size=2,
        train_freq=3,
    )
    loaded.learn(14)
    groups = [group["lr"] for group in loaded.policy.critic_optimizer.param_groups]
    assert groups == pytest.approx([2e-5, 1e-5])
    assert loaded.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)
    assert loaded.batch_size == 2


@pytest.mark.parametrize("algorithm", [CoRe, SACRAD])
def test_a_checkpoint_of_a_gpu_trains_on_a_cpu(algorithm):
    # What a GPU's checkpoint holds besides tensors: Adam's options for CUDA graphs.
    model = make_model(algorithm=algorithm).learn(14)
    for optimizer in model.optimizers:
        for group in optimizer.param_groups:
            group["capturable"] = True
    loaded = reload(model, env=FakeEnv(VECTOR))
    for optimizer in loaded.optimizers:
        assert not any(group["capturable"] for group in optimizer.param_groups)
    assert loaded.learn(14)._n_updates > model._n_updates


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_models_and_buffers_move_between_gpu_and_cpu(algorithm, tmp_path):
    model = make_model(IMAGE, algorithm, device="cuda").learn(20)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = algorithm.load(tmp_path / "model", env=FakeEnv(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(14, reset_num_timesteps=False)
    assert loaded._n_updates > model._n_updates
    loaded.save(tmp_path / "back")
    again = algorithm.load(tmp_path / "back", env=FakeEnv(), device="cuda")
    assert again.learn(14)._n_updates > loaded._n_updates


@pytest.mark.parametrize("algorithm", POLICIES)
def test_the_place_in_an_episode_is_saved(algorithm):
    model = make_model(
        algorithm=algorithm, env=FakeEnv(VECTOR, length=50), train_freq=(4, "step")
    ).learn(12)
    env = FakeEnv(VECTOR, length=50)
    loaded = reload(model, env=env, force_reset=False)
    assert all(np.array_equal(a, b) for a, b in zip(loaded._last_states, model._last_states))
    assert np.array_equal(loaded._last_obs, model._last_obs)


def test_set_env_continues_in_another_environment():
    model = make_model().learn(12)
    other = FakeEnv(VECTOR)
    model.set_env(other)
    model.learn(6, reset_num_timesteps=False)
    assert len(other.actions) == 6
    assert model.num_timesteps == 18
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(FakeEnv(IMAGE))


@pytest.mark.parametrize("truncates", [True, False])
def test_episodes_of_a_loaded_buffer_end_there_unless_they_are_to_continue(tmp_path, truncates):
    model = make_model(env=FakeEnv(VECTOR, length=50), train_freq=(4, "step")).learn(12)
    model.save_replay_buffer(tmp_path / "buffer")
    model.learn(4, reset_num_timesteps=False)
    model.load_replay_buffer(tmp_path / "buffer", truncates)
    model.learn(8, reset_num_timesteps=False)
    lengths = [episode.n_steps for episode in model.replay_buffer.episodes]
    assert lengths == ([12, 8] if truncates else [20])


def test_a_buffer_of_other_environments_is_taken_over(tmp_path):
    make_model(env=make_vec_env(lambda: FakeEnv(VECTOR), 3)).learn(15).save_replay_buffer(
        tmp_path / "buffer"
    )
    model = make_model()
    model.load_replay_buffer(tmp_path / "buffer")
    stored = model.replay_buffer.size()
    model.learn(12)
    assert model.replay_buffer.size() == stored + 12


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_huge_buffer_costs_nothing_before_it_fills():
    def resident() -> int:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return 4096 * int(pages)

    before = resident()
    make_model(spaces.Box(0, 255, (100, 100, 3), np.uint8), buffer_size=10**8, crop_size=8)
    assert resident() - before < 200e6
