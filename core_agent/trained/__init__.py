"""Trained agents that come with the package. Imports ``runs`` and all below it.

Each agent is two files next to this module: ``NAME.npz`` holds the parameters that acting needs
(no critics, optimisers or replay), ``NAME.md`` is its model card, whose front matter says how the
agent was made and what it returns.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import yaml
from gymnasium import spaces

from core_agent.agents.base import SequenceOffPolicyAlgorithm
from core_agent.agents.presets import preset as preset_arguments
from core_agent.agents.registry import AGENTS, get_agent, load_agent
from core_agent.environments.suite import check_window, first_seed
from core_agent.runs.evaluation import play, standard_error
from core_agent.runs.training import (
    OF_ONE_ENVIRONMENT,
    environment_arguments,
    evaluation_environment,
)
from core_agent.runs.video import (
    FRAMES_PER_SECOND,
    captioned,
    prepare_video,
    side_by_side,
    write_video,
)
from core_agent.table5.paper import parse_setting
from core_agent.validation import check

FOLDER = Path(__file__).parent
WAY_OUT = "core-agent train trains your own; core-agent watch also takes the folder of a run"
NOT_FOR_ACTING = ("critic.", "critic_target.", "encoder_target.")
"""Prefixes of the parameters that acting does not need."""


@dataclass(frozen=True)
class ModelCard:
    """How a trained agent was made, and how well it does."""

    env_id: str
    agent: str
    preset: str
    seed: int
    agent_steps: int
    simulator_steps: int
    updates: int
    returns: list[float]
    """Of the evaluation episodes: validation videos, deterministic policy."""
    random_return: float
    """Mean return of uniformly random actions in the same episodes."""
    videos: str
    processor: str
    commit: str
    arguments: dict[str, Any]
    """Of the agent, on top of the preset's."""
    licence: str = "MIT"

    @property
    def mean(self) -> float:
        """Mean return of the evaluation episodes."""
        return float(np.mean(self.returns))

    @property
    def standard_error(self) -> float:
        """Standard error of :attr:`mean`."""
        return standard_error(self.returns)

    def to_markdown(self) -> str:
        """The card as Markdown, with the fields as YAML front matter."""
        fields = yaml.safe_dump(json.loads(json.dumps(asdict(self))), sort_keys=False)
        return f"""---
{fields}---
# {self.agent} on {self.env_id}

Return per episode of 1,000 simulator steps: {self.mean:.0f} ± {self.standard_error:.0f} (mean and
standard error of {len(self.returns)} episodes, validation videos, deterministic policy); random
actions return {self.random_return:.0f}. Trained for {self.simulator_steps:,} simulator steps
({self.agent_steps:,} agent steps, {self.updates:,} updates) with seed {self.seed}, preset
`{self.preset}`, {self.videos} videos, on {self.processor}, at commit {self.commit}.
"""


def trained_names() -> tuple[str, ...]:
    """The ids of the environments for which the package includes a trained agent."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.npz")))


def read_card(name: str) -> ModelCard:
    """The model card of a trained agent.

    :param name: one of :func:`trained_names`
    :raises ValueError: for an unknown name
    """
    names = trained_names()
    check(name in names, "name", f"be one of {names}", name, WAY_OUT)
    front_matter = (FOLDER / f"{name}.md").read_text().split("---\n")[1]
    return ModelCard(**yaml.safe_load(front_matter))


def load_trained(name: str) -> SequenceOffPolicyAlgorithm:
    """A trained agent for acting: ``predict``, ``encode`` and ``imagine`` work as after training.

    Its critics are untrained, because the file does not contain them.

    :param name: id of the environment, one of :func:`trained_names`
    :raises ValueError: for an unknown name
    """
    card = read_card(name)
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        arrays = dict(file)
    arguments = preset_arguments(card.preset, card.agent, env_id=name, **card.arguments)
    env_arguments = environment_arguments(name, card.preset, "train", {})
    made = {"env_id": name, "env_arguments": env_arguments, "wrappers": []}
    origin = {"preset": card.preset, **made}
    with closing(evaluation_environment(origin, None, None, "val", {})) as env:
        model = get_agent(card.agent)("CnnPolicy", env, seed=card.seed, device="cpu", **arguments)
    fill(model, arrays)
    model.env = None
    model.origin, model.num_timesteps, model._n_updates = origin, card.agent_steps, card.updates
    return model


def acting_parameters(model: SequenceOffPolicyAlgorithm) -> dict[str, torch.Tensor]:
    """Parameters and buffers that acting needs, by name."""
    state = model.policy.state_dict().items()
    return {name: value for name, value in state if not name.startswith(NOT_FOR_ACTING)}


@torch.no_grad()
def fill(model: SequenceOffPolicyAlgorithm, arrays: dict[str, np.ndarray]) -> None:
    """Give a model the parameters in ``arrays``.

    :raises ValueError: if they are not those that the model acts with
    """
    own = acting_parameters(model)
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    found = {name: value.shape for name, value in arrays.items()}
    check(found == shapes, "the file", "hold the parameters of the card's preset", sorted(found))
    for name, value in own.items():
        value.copy_(torch.from_numpy(arrays[name]))


def save_trained(model: SequenceOffPolicyAlgorithm, card: ModelCard, folder: Path) -> None:
    """Write a trained agent and its card, as :func:`load_trained` reads them.

    :param model: the trained agent
    :param card: how it was trained; its ``env_id`` is the name of both files
    :param folder: created if missing
    :raises ValueError: for a model that is not the card's agent, or whose observation is not an
        image
    """
    expected = AGENTS[card.agent].__name__
    check(type(model).__name__ == expected, "model", f"be a {expected}", type(model).__name__)
    space = model.observation_space
    check(isinstance(space, spaces.Box), "model", "observe images alone", space)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: value.cpu().numpy() for name, value in acting_parameters(model).items()}
    np.savez_compressed(folder / f"{card.env_id}.npz", allow_pickle=False, **arrays)
    (folder / f"{card.env_id}.md").write_text(card.to_markdown())


class NextTo(gym.Wrapper):
    """Shows other frames to the right of what the environment renders.

    :param env: renders ``(H, W, 3)`` frames
    :param frames: of the same height; the last one stays
    """

    def __init__(self, env: gym.Env, frames: list[np.ndarray]) -> None:
        super().__init__(env)
        self._frames, self._index = frames, 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._index = 0
        return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._index += 1
        return super().step(action)

    def render(self) -> Any:
        frame = self._frames[min(self._index, len(self._frames) - 1)]
        return np.concatenate([np.asarray(super().render()), frame], axis=1)


def find_agent(agent: str) -> SequenceOffPolicyAlgorithm:
    """The agent of a run or of a file, or one that comes with the package.

    :param agent: path of a run's folder or of a saved model, or one of :func:`trained_names`
    :raises ValueError: if there is no such agent
    """
    if agent not in trained_names() and (Path(agent).exists() or Path(f"{agent}.zip").exists()):
        return load_agent(agent)
    return load_trained(agent)


def without_distractions(origin: dict[str, Any]) -> dict[str, Any] | None:
    """The clean twin of an environment, in the same form; ``None`` where there is none."""
    setting = parse_setting(str(origin.get("env_id")))
    if not setting.difficulty:
        return None
    arguments = origin.get("env_arguments", {}).items()
    kept = {name: value for name, value in arguments if name not in OF_ONE_ENVIRONMENT}
    return {**origin, "env_id": f"DCS-{setting.task}-clean", "env_arguments": kept}


def watch(agent: str, output: Path, seed: int = 0, window: bool = False) -> float:
    """Play one episode of an agent, next to one without distractions if its task has any.

    :param agent: see :func:`find_agent`
    :param output: the .mp4 or .gif to write, unless it is shown in a window
    :param seed: of the episodes
    :param window: show it in a window instead, which needs pygame and a display
    :return: the return under distraction
    :raises ValueError: if there is no such agent
    """
    if window:
        check_window()
    else:
        prepare_video("output", output)
    model = find_agent(agent)
    twin, clean = without_distractions(model.origin), None
    seed = first_seed(seed, split="val")
    if twin is not None:
        with closing(evaluation_environment(twin, None, None, "val", {})) as env:
            clean = play(env, model, 1, seed=seed, record=True)[0]
    with closing(evaluation_environment(model.origin, None, None, "val", {})) as env:
        if window:
            shown = gym.wrappers.HumanRendering(NextTo(env, clean.frames) if clean else env)
            return play(shown, model, 1, seed=seed)[0].episode_return
        result = play(env, model, 1, seed=seed, record=True)[0]
    frames = result.frames
    if clean:
        frames = side_by_side(
            captioned(frames, f"distracted: return {result.episode_return:.0f}"),
            captioned(clean.frames, f"clean: return {clean.episode_return:.0f}"),
        )
    write_video(output, frames, FRAMES_PER_SECOND)
    return result.episode_return
