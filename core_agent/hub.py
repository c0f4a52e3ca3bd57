"""Sharing trained agents on the Hugging Face Hub.

    from core_agent.hub import load_from_hub, push_to_hub

    push_to_hub(model, "owner/cheetah")
    model = load_from_hub("owner/cheetah", env="auto")

A repository holds

================  ==================================================================================
``model.zip``     the model as ``model.save`` writes it
``config.json``   agent, environment, preset, arguments, seed, steps, versions
``results.json``  the return of each evaluation episode, and the interval of their mean
``replay.mp4``    the first of these episodes, if the environment renders
``README.md``     the model card: the same for people, with metadata for the Hub
================  ==================================================================================
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
from scipy import stats
from stable_baselines3.common.utils import check_for_correct_spaces

from core_agent.agents.base import SequenceOffPolicyAlgorithm
from core_agent.agents.registry import AGENTS, load_agent
from core_agent.environments.make import as_plain, describe
from core_agent.environments.suite import clips_name, first_seed
from core_agent.runs.evaluation import check_own_observations, play, standard_error
from core_agent.runs.training import evaluation_environment
from core_agent.runs.video import FRAMES_PER_SECOND, write_mp4
from core_agent.saving.checkpoint import library_versions
from core_agent.validation import (
    BOOLEAN,
    SEED,
    TEXT,
    Check,
    Rule,
    check_arguments,
    instance,
    optional,
    whole,
)

MODEL, CONFIG, RESULTS = "model.zip", "config.json", "results.json"
VIDEO, CARD = "replay.mp4", "README.md"
LEVEL = 0.95
RULES: dict[str, Check] = {
    "model": instance("be an agent of this package", SequenceOffPolicyAlgorithm),
    "repo": Rule(
        "be the owner and the name of a repository",
        lambda value: isinstance(value, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", value),
        "for example 'owner/cheetah'",
    ),
    "env": Rule(
        "be an environment, an id or None",
        lambda value: value is None or isinstance(value, (str, gym.Env)),
        "for a vectorised environment, pass one of its environments, such as env.envs[0]",
    ),
    "n_episodes": whole(2),
    "seed": SEED,
    "private": BOOLEAN,
    "licence": optional(TEXT),
    "token": optional(TEXT),
    "revision": optional(TEXT),
}


class Interval(NamedTuple):
    """Mean return over episodes, and its interval (Student's t, :data:`LEVEL`)."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} ({self.low:.1f} to {self.high:.1f})"


class Evaluation(NamedTuple):
    """Returns of an agent and of random actions in the same environment."""

    env_id: str
    videos: str
    """``"builtin"``, or the name of the folder, such as ``"DAVIS"``; empty without videos."""
    seed: int
    returns: list[float]
    random_returns: list[float]
    frames: list[np.ndarray]
    """Of the agent's first episode; none if the environment does not render."""
    fps: float


def interval(returns: Sequence[float]) -> Interval:
    """The mean of at least two returns, with its interval."""
    mean = float(np.mean(returns))
    half = float(standard_error(returns) * stats.t.ppf((1 + LEVEL) / 2, len(returns) - 1))
    return Interval(mean, mean - half, mean + half)


def push_to_hub(
    model: SequenceOffPolicyAlgorithm,
    repo: str,
    env: gym.Env | str | None = None,
    n_episodes: int = 20,
    seed: int = 0,
    private: bool = False,
    licence: str | None = None,
    token: str | None = None,
) -> str:
    """Evaluate an agent and upload it, with a model card and a video.

    :param model: the agent
    :param repo: ``"owner/name"``; created if missing
    :param env: where to evaluate: an environment, an id, or ``None`` for the environment that the
        model learned in; with an id or ``None``, Distracting Control shows validation videos
    :param n_episodes: episodes to play with the deterministic policy, and as many again with random
        actions
    :param seed: seed of the evaluation
    :param private: whether the repository is private if it is created here
    :param licence: licence of the model, in the Hub's spelling, such as ``"mit"``
    :param token: access token of the Hub; by default the one that ``hf auth login`` has stored
    :return: the address of the upload
    :raises ValueError: for a bad argument, or an environment that does not fit the model
    :raises ModuleNotFoundError: without huggingface_hub
    """
    check_arguments(RULES, locals())
    way_out = "its statistics are not part of a model file: train with norm_obs=False to share it"
    check_own_observations(model, way_out)
    api = _hub().HfApi(token=token)
    with ExitStack() as stack:
        if not isinstance(env, gym.Env):
            origin = {**model.origin, **describe(model.env)}
            made = evaluation_environment(origin, env, None, "val", {})
            env = stack.enter_context(closing(made))
        wrapped = model._wrap_env(env, verbose=0)
        check_for_correct_spaces(wrapped, model.observation_space, model.action_space)
        # If writing is not allowed, this fails now, not after minutes of evaluation.
        api.create_repo(repo, private=private, exist_ok=True)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        evaluation = evaluate(model, env, n_episodes, seed)
        write_package(folder, model, write_card(model, repo, evaluation, licence), evaluation)
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=f"{type(model).__name__}, evaluated"
        )
    return str(done.commit_url)


def load_from_hub(
    repo: str,
    env: Any = None,
    revision: str | None = None,
    token: str | None = None,
    device: str = "auto",
) -> SequenceOffPolicyAlgorithm:
    """A model from the Hub, loaded without running any code in the file.

    :param repo: ``"owner/name"``
    :param env: as in :func:`~core_agent.agents.registry.load_agent`
    :param revision: branch, tag or commit; by default the newest
    :param token: of the Hub, for a private repository
    :param device: of the networks
    :raises UnsafeFileError: for a file that asks for more than loading allows
    :raises ValueError: for a bad argument
    :raises ModuleNotFoundError: without huggingface_hub
    """
    check_arguments({name: RULES[name] for name in ("repo", "revision", "token")}, locals())
    path = _hub().hf_hub_download(repo, MODEL, revision=revision, token=token)
    return load_agent(path, env, device=device)


def evaluate(
    model: SequenceOffPolicyAlgorithm, env: gym.Env, n_episodes: int, seed: int
) -> Evaluation:
    """Play with an agent and at random; arguments as in :func:`push_to_hub`."""
    start = first_seed(seed, split="val")
    record: Literal["first", False] = "first" if env.render_mode == "rgb_array" else False
    played = play(env, model, n_episodes, seed=start, record=record)
    at_random = play(env, None, n_episodes, seed=start)
    videos = env.get_wrapper_attr("video_folder") if env.has_wrapper_attr("video_folder") else ""
    return Evaluation(
        env_id=env.spec.id if env.spec else type(env.unwrapped).__name__,
        videos=clips_name(videos),
        seed=seed,
        returns=[episode.episode_return for episode in played],
        random_returns=[episode.episode_return for episode in at_random],
        # H.264 takes even heights and widths alone.
        frames=[f[: f.shape[0] // 2 * 2, : f.shape[1] // 2 * 2] for f in played[0].frames],
        fps=env.metadata.get("render_fps") or FRAMES_PER_SECOND,
    )


def write_package(
    folder: Path, model: SequenceOffPolicyAlgorithm, card: str, evaluation: Evaluation
) -> None:
    """Write the files of a repository."""
    model.save(folder / MODEL)
    (folder / CARD).write_text(card)
    (folder / CONFIG).write_text(json.dumps(describe_model(model), indent=1))
    results = evaluation._asdict()
    frames, fps = results.pop("frames"), results.pop("fps")
    results["interval"] = interval(evaluation.returns)._asdict()
    (folder / RESULTS).write_text(json.dumps({"deterministic": True, **results}, indent=1))
    if frames:
        write_mp4(folder / VIDEO, frames, fps)


def describe_model(model: SequenceOffPolicyAlgorithm) -> dict[str, Any]:
    """How a model was made, as plain data."""
    elsewhere = {"env", "policy", "tensorboard_log", "verbose", "device"}
    names = inspect.signature(type(model)).parameters.keys() - elsewhere
    arguments = model.origin.get("env_arguments", {})
    shown = {key: value for key, value in arguments.items() if key != "video_path"}
    return {
        "agent": type(model).__name__,
        **{**model.origin, "env_arguments": shown},
        "agent_steps": model.num_timesteps,
        "updates": model._n_updates,
        "arguments": as_plain({k: v for k, v in sorted(vars(model).items()) if k in names}),
        "versions": library_versions(),
    }


def write_card(
    model: SequenceOffPolicyAlgorithm, repo: str, evaluation: Evaluation, licence: str | None
) -> str:
    """The model card as Markdown, with the Hub's metadata."""
    hub, name, env_id = _hub(), type(model).__name__, evaluation.env_id
    short = {agent.__name__: key for key, agent in AGENTS.items()}.get(name, name)
    agent, learning = interval(evaluation.returns), "reinforcement-learning"
    result = hub.EvalResult(
        task_type=learning,
        task_name=learning,
        dataset_type=env_id,
        dataset_name=env_id,
        metric_type="mean_reward",
        metric_name="mean_reward",
        metric_value=str(agent),
    )
    metadata = hub.ModelCardData(
        library_name="core-agent",
        pipeline_tag=learning,
        license=licence,
        model_name=repo.split("/")[1],
        tags=[learning, "stable-baselines3", "world-model", short, env_id],
        eval_results=[result],
    )
    videos = f", {evaluation.videos} videos" if evaluation.videos else ""
    preset = f", preset `{model.origin['preset']}`" if model.origin.get("preset") else ""
    return f"""---
{metadata.to_yaml()}
---

# {name} on {env_id}

| | return per episode |
|---|---|
| this agent | {agent} |
| random actions | {interval(evaluation.random_returns)} |

Mean and {LEVEL:.0%} interval (Student's t) over {len(evaluation.returns)} episodes{videos},
deterministic policy. Trained for {model.num_timesteps:,} agent steps, {model._n_updates:,} updates,
seed {model.seed}{preset}. `{RESULTS}` has every return, `{CONFIG}` the arguments and versions.

```python
from core_agent.hub import load_from_hub

model = load_from_hub("{repo}")
action, state = model.predict(observation, state, episode_start, deterministic=True)
```
"""


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"huggingface_hub cannot be imported ({error}); install it with: "
            "pip install 'core-agent[hub]'"
        ) from error
