"""Bad values for every public argument, and what is called with them.

A :class:`Subject` is something public with valid arguments; the tables give the bad values of each
argument by its name, which means the same wherever it occurs.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

import core_agent
from core_agent import CoRe, load_agent, preset
from core_agent.agents.latent import RecurrentPolicy
from core_agent.environments.make import make_vec_env
from core_agent.environments.workers import SupervisedSubprocVecEnv
from core_agent.export import export_onnx
from core_agent.finetuning import freeze, reinitialize, unfreeze
from core_agent.networks.world_model import WorldModel
from core_agent.onnx_agent import OnnxAgent
from core_agent.replay.buffer import SequenceReplayBuffer
from core_agent.runs.callbacks import (
    ExactCheckpointCallback,
    RichProgressCallback,
    TimeLimitCallback,
    ValidationCallback,
)
from core_agent.runs.evaluation import play, summarize
from core_agent.validation import argument_names
from distracting_envs import env_seed, parse_env_id
from distracting_envs.env import DistractingControlEnv
from tests.fakes import TINY, VECTOR, FakeEnv, tiny

Values = st.SearchStrategy[Any]
NAN, INF = math.nan, math.inf
ENV_ID = "BadInput-v0"
ACTION = spaces.Box(-1.0, 1.0, (2,), np.float32)

# ---- bad values by kind ----

WORDS = st.sampled_from(["1", "", "many", b"1"])
CONTAINERS = st.sampled_from([[], [1], (1, "x", 2), {}, {"a": 1}, np.zeros(3), {1}])
ODD = st.sampled_from([object(), 1j, len, int, ...])
NO_NUMBERS = st.one_of(WORDS, CONTAINERS, ODD, st.booleans(), st.sampled_from([NAN, INF, -INF]))
NONE = st.none()
FRACTIONS = st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: x != int(x))


def whole(low: int) -> Values:
    return st.one_of(NO_NUMBERS, st.integers(max_value=low - 1), FRACTIONS, st.just(2.0))


def number(low: float = -INF, high: float = INF, low_is_bad: bool = False) -> Values:
    """Anything but a number in [low, high], or in (low, high]."""
    kinds: list[Values] = [NO_NUMBERS]
    if low > -INF:
        kinds += [st.floats(max_value=low, exclude_max=not low_is_bad, allow_nan=False)]
    if high < INF:
        kinds += [st.floats(min_value=high, exclude_min=True, allow_nan=False)]
    return st.one_of(kinds)


def word(*choices: str) -> Values:
    others = st.text(max_size=5).filter(lambda text: text not in choices)
    return st.one_of(others, CONTAINERS, ODD, NAN_OR_BYTES, st.booleans(), st.integers())


NAN_OR_BYTES = st.sampled_from([NAN, b"x", np.array(["a", "b"])])
POSITIVE = number(0.0, low_is_bad=True)
FRACTION = number(0.0, 1.0)
BOOLEAN = st.one_of(WORDS, CONTAINERS, ODD, NONE, st.integers(), st.floats())
TEXT = st.one_of(CONTAINERS, ODD, st.integers(), st.floats(), st.sampled_from(["", b"x"]))
SIZES = st.one_of(
    WORDS,
    ODD,
    NONE,
    st.integers(),
    st.sampled_from([[], (), {}, [0], (64, -1), [1.5], [True], [None], ["64"], [NAN], [[64]]]),
)
SEED = st.one_of(NO_NUMBERS, FRACTIONS, st.integers(max_value=-1), st.integers(min_value=2**32))
DEVICE = st.one_of(CONTAINERS, ODD, st.integers(), st.sampled_from(["", "gpu", "cuda:x", b"cpu"]))
PATH = st.one_of(CONTAINERS, ODD, st.integers(), st.sampled_from(["", b"x", "a\0b", 1.5, True]))
OPTIONS = st.sampled_from([3, "x", [1], {1: 2}, True, NAN, {"unknown": 1}, object()])
THINGS = st.one_of(WORDS, CONTAINERS, ODD, st.integers(), st.floats(), st.booleans())
NO_SHARE = whole(1).filter(lambda size: not (isinstance(size, float) and 0 < size <= 1))
CROP = st.one_of(NO_SHARE, st.sampled_from([(0, 4), (4, -1), (1.5, 2), (4, NAN), (1, 2, 3)]))
NO_ARRAYS = st.sampled_from(["x", [], np.full(3, NAN), np.array(["a"] * 3), object(), [[1], 2]])
# Sizes of observations, actions and latents here are 3, 2 and 10.
OTHER_SIZES = st.integers(4, 7)
OTHER_SHAPES = st.lists(OTHER_SIZES, max_size=4).map(np.zeros)
ARRAYS = st.one_of(NO_ARRAYS, OTHER_SHAPES)
INITIAL_ENT_COEF = st.one_of(
    number(0.0, low_is_bad=True), st.sampled_from(["auto_", "auto_0", "auto_-1", "auto_nan", "x"])
)
PAIRS = [
    (1, "x"),
    (0, "step"),
    (1, 2),
    (1.5, "step"),
    (1, "step", 3),
    (1, []),
    (True, "step"),
    (1,),
]
TRAIN_FREQ = st.one_of(whole(1), st.sampled_from(PAIRS))

LEARNING: dict[str, Values] = {
    "policy": st.one_of(THINGS, st.sampled_from(["NoPolicy", FakeEnv])),
    "env": st.sampled_from([3, [], {}, object(), FakeEnv, VECTOR, "No-v0", "no:No-v0", "", b"x"]),
    "learning_rate": st.one_of(
        number(0.0, low_is_bad=True).filter(lambda value: not callable(value)), NONE
    ),
    **dict.fromkeys(("n_stack", "actor_update_freq", "target_update_freq"), whole(1)),
    "encoder_tau": FRACTION,
    "buffer_size": whole(1),
    "learning_starts": whole(0),
    "batch_size": whole(1),
    "sequence_length": whole(2),
    "tau": FRACTION,
    "gamma": FRACTION,
    "train_freq": st.one_of(TRAIN_FREQ, NONE),
    "gradient_steps": whole(-1),
    "update_ratio": st.one_of(number(0.0), NONE),
    "max_rollout_steps": st.one_of(whole(1), NONE),
    "collect": word("sequential", "async"),
    "overlay": FRACTION,
    "joint_update": BOOLEAN,
    "behavior_updates": whole(1),
    "contrastive_coef": number(0.0),
    "kl_coef": number(0.0),
    "reward_coef": number(0.0),
    "inverse_coef": number(0.0),
    "contrastive_from": word("prior", "posterior"),
    "negatives": word("all", "other_sequences", "same_sequence"),
    "free_nats": number(0.0),
    "kl_balance": FRACTION,
    **dict.fromkeys(("smooth_reward_loss", "contrast_first_frame"), BOOLEAN),
    "contrastive_scale_learning_rate": POSITIVE,
    "critic_learning_rate": POSITIVE,
    "actor_learning_rate": POSITIVE,
    "ent_coef": st.one_of(INITIAL_ENT_COEF, NONE),
    "ent_coef_learning_rate": POSITIVE,
    "target_entropy": st.one_of(NO_NUMBERS, NONE),
    "max_log_ent_coef": st.one_of(NO_NUMBERS, NONE),
    "train_model_with_critic": BOOLEAN,
    "crop_size": CROP,
    "precision": word("auto", "float32", "bfloat16"),
    "action_noise": THINGS,
    "replay_buffer_class": st.one_of(THINGS, st.just(ReplayBuffer)),
    "replay_buffer_kwargs": OPTIONS,
    "stats_window_size": whole(1),
    "tensorboard_log": PATH,
    "policy_kwargs": OPTIONS,
    "verbose": st.one_of(whole(0), st.integers(min_value=3)),
    "seed": SEED,
    "device": DEVICE,
}
NETWORKS: dict[str, Values] = {
    "observation_space": st.one_of(THINGS, NONE),
    "action_space": st.one_of(THINGS, NONE, st.just(spaces.Discrete(3))),
    "lr_schedule": st.one_of(WORDS, CONTAINERS, st.integers()),
    "activation": word("elu", "relu"),
    "initial_log_ent_coef": st.one_of(NO_NUMBERS, NONE),
    **dict.fromkeys(("critic_layer_norm", "sample_when_deterministic", "clamp_samples"), BOOLEAN),
    **dict.fromkeys(("gating", "gate_elu", "center_images"), BOOLEAN),
    **dict.fromkeys(("initial_log_std", "initial_contrastive_scale"), st.one_of(NO_NUMBERS, NONE)),
    "inverse_frames": whole(0),
    "crop_size": CROP,
    "embed_dims": st.one_of(SIZES, st.just([64])),
    **dict.fromkeys(("action_dim", "deter_dim", "stoch_dim", "feature_dim"), whole(1)),
    **dict.fromkeys(("actor_dims", "critic_dims", "gru_dims", "prior_dims"), SIZES),
    **dict.fromkeys(("posterior_dims", "decoder_dims", "head_dims", "vector_dims"), SIZES),
    **dict.fromkeys(("cnn_channels", "cnn_strides"), SIZES),
    **dict.fromkeys(("n_stack", "n_samples", "n_elites", "n_iterations"), whole(1)),
    "exploration_noise": st.one_of(number(0.0), NONE),
}
REPLAY: dict[str, Values] = {
    **{name: LEARNING[name] for name in ("buffer_size", "sequence_length", "seed")},
    **{name: NETWORKS[name] for name in ("observation_space", "action_space")},
    "device": DEVICE,
    "storage_device": DEVICE,
    "n_envs": whole(1),
    "optimize_memory_usage": BOOLEAN,
    "handle_timeout_termination": BOOLEAN,
}
STEP: dict[str, Values] = {
    **dict.fromkeys(("obs", "next_obs"), ARRAYS),
    **dict.fromkeys(
        ("action", "reward", "done"),
        st.one_of(OTHER_SIZES.map(np.zeros), st.sampled_from([[], [[1], 2]])),
    ),
    "infos": st.sampled_from([[], [{}, {}]]),
}
STATES = [3, "x", (), ([[1], 2],) * 3, (np.zeros(3),), (np.zeros((1, 9)),) * 3, np.zeros((1, 3))]
USE: dict[str, Values] = {
    "total_timesteps": whole(1),
    "callback": st.sampled_from([3, "x", [3], [None], {}, 1.5, NAN]),
    "log_interval": whole(1),
    "tb_log_name": TEXT,
    **dict.fromkeys(("reset_num_timesteps", "progress_bar", "print_system_info"), BOOLEAN),
    **dict.fromkeys(("force_reset", "trusted", "truncate_last_traj", "exact_match"), BOOLEAN),
    "deterministic": BOOLEAN,
    "path": st.one_of(PATH, NONE),
    "load_path_or_dict": st.one_of(PATH, NONE).filter(lambda value: not isinstance(value, dict)),
    **dict.fromkeys(
        ("exclude", "include"), st.sampled_from([3, "policy", [3], b"x", NAN, True, object()])
    ),
    "device": DEVICE,
    "custom_objects": st.sampled_from([3, "x", [1], {1: 2}, NAN]),
    "observation": ARRAYS,
    "state": st.sampled_from(STATES),
    "episode_start": st.sampled_from([np.zeros(7), [], "x", np.array(["a"]), object(), [[1], 2]]),
    **dict.fromkeys(("observations", "actions", "latent", "action"), ARRAYS),
    "folder": st.one_of(PATH, NONE),
    "every": st.one_of(whole(0), NONE),
    "signals": BOOLEAN,
    "verbose": st.one_of(whole(0), st.integers(min_value=3), NONE),
}
PLAYING: dict[str, Values] = {
    "env": st.one_of(THINGS, NONE, st.builds(lambda: DummyVecEnv([FakeEnv]))),
    "model": st.one_of(WORDS, CONTAINERS, st.integers(), st.floats(), st.just(object())),
    "every": st.one_of(whole(1), NONE),
    "n_episodes": st.one_of(whole(1), NONE),
    "deterministic": BOOLEAN,
    "video": BOOLEAN,
    "seed": SEED,
    "record": st.one_of(word("first"), NONE).filter(lambda value: not isinstance(value, bool)),
    "results": st.sampled_from([3, "x", [], [3], None, {}, NAN]),
    "seconds": st.one_of(POSITIVE, NONE),
    "console": THINGS,
    "clock": st.one_of(WORDS, CONTAINERS, NONE, st.integers()),
    "loss_key": st.one_of(TEXT, NONE),
    "parts": st.one_of(TEXT, NONE, st.just("no_part")),
    "path": st.one_of(PATH, NONE),
    "names": st.one_of(TEXT, NONE, st.sampled_from(["tiny", "small+tiny"])),
    "policy_kwargs": st.sampled_from([3, "x", [1], {1: 2}, True, NAN]),
}
WORKERS: dict[str, Values] = {
    "env_id": st.one_of(TEXT, NONE, st.sampled_from(["No-v0", "no:No-v0"])),
    "env_fns": st.sampled_from([3, "x", [], [3], [FakeEnv, None], None, FakeEnv]),
    "n_envs": whole(1),
    "seed": SEED,
    "env_kwargs": st.sampled_from([3, "x", [1], {1: 2}, True]),
    "vec_env_kwargs": OPTIONS,
    "start_method": word("fork", "spawn", "forkserver"),
    "timeout": st.one_of(POSITIVE, NONE),
    "max_restarts": st.one_of(whole(0), NONE),
}
SUITE: dict[str, Values] = {
    "domain": st.one_of(TEXT, NONE, st.just("horse")),
    "task": st.one_of(TEXT, NONE, st.just("fly")),
    "difficulty": word("easy", "medium", "hard"),
    "dynamic": BOOLEAN,
    "split": st.one_of(word("train", "val"), NONE),
    "video_path": PATH,
    "distractions": st.one_of(
        st.sampled_from([3, "color", ["fog"], [3], [[]], None, NAN, True, {"color": 1}])
    ),
    "scale": number(0.0, 1.0),
    "n_clips": whole(1),
    "action_repeat": whole(1),
    "image_size": st.one_of(whole(1), NONE),
    "vector_observations": BOOLEAN,
    "render_mode": word("rgb_array"),
    "render_quality": st.one_of(word("paper", "fast"), NONE),
    "memory_cache_gb": st.one_of(number(0.0), NONE),
    "disk_cache_gb": st.one_of(number(0.0), NONE),
    "seed": SEED,
    "worker": st.one_of(whole(0), st.integers(min_value=1024), NONE),
    "name": st.one_of(TEXT, NONE, st.just("DCS-horse-fly-easy-static")),
}

# ---- what is called ----


class Subject(NamedTuple):
    """Something public."""

    call: Callable[..., Any]
    valid: Callable[[], dict[str, Any]]
    """Arguments under which only the bad one is at fault."""
    table: dict[str, Values]
    told: dict[str, str] = {}  # noqa: RUF012
    """What errors call an argument, where it is not its name."""
    signature: Callable[..., Any] | None = None
    """What has the arguments, if ``call`` only leads there."""
    further: tuple[str, ...] = ()
    """Keywords that ``**`` takes."""

    def arguments(self) -> list[str]:
        parameters = inspect.signature(self.signature or self.call).parameters.values()
        hidden = [parameter.name for parameter in parameters if parameter.name.startswith("_")]
        named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        return [n for n in (*named, *self.further) if n not in (*hidden, "self", "cls")]


class CountedEnv(FakeEnv):
    """Counts how often it was made."""

    n_made = 0

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(VECTOR)
        CountedEnv.n_made += 1


@lru_cache(maxsize=1)
def agent() -> CoRe:
    return CoRe("MlpPolicy", FakeEnv(VECTOR), **TINY)


def learning(algorithm: type = CoRe) -> dict[str, Any]:
    return {"policy": "MlpPolicy", "env": ENV_ID, **tiny(algorithm)}


def new_buffer(**changes: Any) -> SequenceReplayBuffer:
    return SequenceReplayBuffer(10, VECTOR, ACTION, device="cpu", **changes)


def with_parts(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda model, parts: function(model, parts)


def networks_of(algorithm: Any) -> Subject:
    """The algorithm with bad sizes of networks, which are found before an environment is made."""
    policy_class = algorithm.policy_aliases["MlpPolicy"]
    names = argument_names(policy_class, *policy_class.parts)
    not_here = {"observation_space", "action_space", "lr_schedule", "constructor_kwargs"}

    def call(**policy_kwargs: Any) -> None:
        algorithm(**{**learning(algorithm), "policy_kwargs": policy_kwargs})

    further = tuple(sorted(names - not_here - {"action_dim"}))
    return Subject(call, dict, NETWORKS, signature=lambda: None, further=further)


def suite() -> dict[str, Any]:
    return dict(domain="cheetah", task="run", difficulty="easy", video_path="builtin")


MODEL_ARGUMENTS = tuple(
    sorted(inspect.signature(WorldModel).parameters.keys() - {"observation_space", "action_dim"})
)
AGENTS = {
    name: getattr(core_agent, name)
    for name in core_agent.__all__
    if inspect.isclass(getattr(core_agent, name))
    and issubclass(getattr(core_agent, name), BaseAlgorithm)
}


def of_agent(name: str, table: dict[str, Values] = USE, **valid: Any) -> Subject:
    """A method of an agent, with arguments under which only the bad one is at fault."""
    call = lambda **kw: getattr(agent(), name)(**kw)  # noqa: E731
    return Subject(call, lambda: valid, table, signature=getattr(CoRe, name))


def of_buffer(name: str, table: dict[str, Values], **valid: Any) -> Subject:
    call = lambda **kw: getattr(new_buffer(), name)(**kw)  # noqa: E731
    return Subject(call, lambda: valid, table, signature=getattr(SequenceReplayBuffer, name))


MODEL = {**PLAYING, "model": st.one_of(PLAYING["model"], NONE)}
SPACES = dict(observation_space=VECTOR, action_space=ACTION)
NO_FILE = {"path": "no_such_file"}
LATENT = np.zeros(10, np.float32)
OBSERVATION = np.zeros((1, 3), np.float32)
TRANSITION = dict(action=np.zeros((1, 2)), reward=np.zeros(1), done=np.zeros(1), infos=[{}])

SUBJECTS: dict[str, Subject] = {
    **{name: Subject(cls, partial(learning, cls), LEARNING) for name, cls in AGENTS.items()},
    **{f"{name}: policy_kwargs": networks_of(cls) for name, cls in AGENTS.items()},
    "replay_buffer_kwargs": Subject(
        lambda **kw: CoRe(**{**learning(), "replay_buffer_kwargs": kw}),
        dict,
        REPLAY,
        signature=SequenceReplayBuffer,
    ),
    "preset": Subject(
        preset,
        lambda: {"names": "small"},
        {**PLAYING, "agent": st.one_of(TEXT, NONE, st.just("sac")), "env_id": TEXT},
        {"names": "preset"},
        further=("policy_kwargs",),
    ),
    "load_agent": Subject(load_agent, lambda: NO_FILE, {**USE, "env": THINGS}),
    "resume": Subject(
        CoRe.resume,
        lambda: {"folder": "no_such_folder", "env": FakeEnv()},
        {**USE, "env": st.one_of(CONTAINERS, ODD, NONE, st.integers())},
    ),
    "load": Subject(CoRe.load, lambda: NO_FILE, {**USE, "env": THINGS}),
    "checkpoint": of_agent("checkpoint"),
    "learn": of_agent("learn", total_timesteps=1),
    "set_random_seed": of_agent("set_random_seed", {"seed": SEED}),
    "save": of_agent("save", path="model"),
    "save_replay_buffer": of_agent("save_replay_buffer", path="replay"),
    "load_replay_buffer": of_agent("load_replay_buffer", **NO_FILE),
    "set_parameters": of_agent("set_parameters", load_path_or_dict="no_such_file"),
    "predict": of_agent("predict", observation=OBSERVATION),
    "encode": of_agent("encode", observations=np.zeros((3, 3)), actions=np.zeros((2, 2))),
    "imagine": of_agent("imagine", latent=LATENT, actions=np.zeros((2, 2))),
    "value": of_agent("value", latent=LATENT, action=np.zeros(2)),
    "SequenceReplayBuffer": Subject(
        SequenceReplayBuffer, lambda: dict(buffer_size=10, **SPACES), REPLAY
    ),
    "SequenceReplayBuffer.add": of_buffer(
        "add", STEP, obs=OBSERVATION, next_obs=OBSERVATION, **TRANSITION
    ),
    "SequenceReplayBuffer.sample": of_buffer(
        "sample", {"batch_size": whole(1), "env": THINGS}, batch_size=1
    ),
    "RecurrentPolicy": Subject(RecurrentPolicy, lambda: SPACES, NETWORKS, further=MODEL_ARGUMENTS),
    "RecurrentPolicy.load": Subject(RecurrentPolicy.load, lambda: NO_FILE, USE),
    "WorldModel": Subject(
        WorldModel, lambda: dict(observation_space=VECTOR, action_dim=2), NETWORKS
    ),
    "ExactCheckpointCallback": Subject(
        ExactCheckpointCallback, lambda: {"folder": "checkpoints"}, USE
    ),
    "RichProgressCallback": Subject(RichProgressCallback, dict, PLAYING),
    "ValidationCallback": Subject(
        ValidationCallback, lambda: dict(env=FakeEnv(), every=1), PLAYING
    ),
    "TimeLimitCallback": Subject(TimeLimitCallback, dict, PLAYING),
    "play": Subject(play, lambda: {"env": FakeEnv()}, PLAYING),
    "summarize": Subject(summarize, dict, PLAYING),
    "export_onnx": Subject(export_onnx, lambda: {"model": agent(), "path": "agent.onnx"}, MODEL),
    "OnnxAgent": Subject(
        OnnxAgent, dict, {"path": st.one_of(PLAYING["path"], st.just("no_such_file"))}
    ),
    **{
        function.__name__: Subject(
            with_parts(function),
            lambda: {"model": agent(), "parts": "actor"},
            MODEL,
            signature=function,
        )
        for function in (freeze, unfreeze, reinitialize)
    },
    "make_vec_env": Subject(
        make_vec_env, lambda: {"env_id": ENV_ID, "n_envs": 2}, WORKERS, {"env_id": "env"}
    ),
    "SupervisedSubprocVecEnv": Subject(
        SupervisedSubprocVecEnv, lambda: {"env_fns": [FakeEnv]}, WORKERS
    ),
    "DistractingControlEnv": Subject(DistractingControlEnv, suite, SUITE),
    "env_seed": Subject(env_seed, lambda: {"seed": 0}, {**SUITE, "seed": st.one_of(SEED, NONE)}),
    "parse_env_id": Subject(parse_env_id, dict, SUITE, {"name": "environment id"}),
}

# ---- trying ----


def pairs() -> list[tuple[str, str]]:
    """Every subject with each of its arguments."""
    return [(name, argument) for name, one in SUBJECTS.items() for argument in one.arguments()]


@contextmanager
def registered() -> Iterator[None]:
    """Inside, the counted environment has an id."""
    gym.register(ENV_ID, entry_point=CountedEnv)
    try:
        yield
    finally:
        del gym.registry[ENV_ID]


SETTINGS = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def try_argument(name: str, argument: str, n_examples: int) -> tuple[int, list[str]]:
    """Try up to so many bad values of one argument: how many, and the complaints."""
    subject, n_tried, complaints = SUBJECTS[name], 0, []

    @settings(SETTINGS, max_examples=n_examples)
    @given(value=subject.table[argument])
    def attempt(value: Any) -> None:
        nonlocal n_tried
        n_tried += 1
        found = complaint(subject, argument, value)
        if found is not None:
            complaints.append(f"{name}: {argument}={value!r} {found}")

    attempt()
    return n_tried, complaints


def complaint(subject: Subject, argument: str, value: Any) -> str | None:
    """What is wrong with how ``value`` was refused; ``None`` if nothing is.

    It must be a ``ValueError`` or ``TypeError`` that names the argument and its rule, before any
    file is written or environment made. The working folder is expected to be empty.
    """
    made = CountedEnv.n_made
    try:
        subject.call(**{**subject.valid(), argument: value})
    except (ValueError, TypeError) as error:
        message = str(error)
    except Exception as error:
        return f"raised {error!r}"
    else:
        return "was accepted"
    if subject.told.get(argument, argument) not in message or " must " not in message:
        return f"was refused with {message!r}"
    if os.listdir():
        return f"left {os.listdir()} behind"
    return "made an environment first" if CountedEnv.n_made > made else None
