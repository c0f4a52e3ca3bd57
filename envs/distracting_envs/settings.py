"""Tasks, difficulties, ids and seeds of the environments.

Sources: tables 3 and 4 of the appendix of arXiv:2112.01163, and the configuration of the
``distracting_control`` package for what the paper does not give (ground-plane transparency).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from distracting_envs.checks import check_choice, check_whole

EPISODE_STEPS = 1000
"""Simulator steps in an episode."""

FRAME_HEIGHT, FRAME_WIDTH = 240, 320
"""Pixels of the rendered frame. A square render would cut off the cart-pole's track."""

DISTRACTIONS = ("background", "camera", "color")
SPLITS = ("train", "val")
RENDER_QUALITIES = ("paper", "fast")


@dataclass(frozen=True)
class TaskSettings:
    """Settings of one task."""

    domain: str
    task: str
    action_repeat: int
    ground_plane_alpha: float
    """Opacity of the floor when a video plays behind it, in [0, 1]."""


@dataclass(frozen=True)
class Difficulty:
    """One row of table 4: number of clips, and strength of camera and colour changes."""

    train_clips: int | None
    """None for all clips of the split: 60 and 30 in DAVIS."""
    val_clips: int | None
    scale: float
    """Largest deviation, as a fraction of the largest that makes sense, in [0, 1]."""

    def n_clips(self, split: str) -> int | None:
        """Return the number of clips of a split ("train" or "val"), or None for all."""
        return self.train_clips if split == "train" else self.val_clips


@dataclass(frozen=True)
class EnvSettings:
    """Settings that the id of an environment names."""

    domain: str
    task: str
    difficulty: str | None
    """"easy", "medium" or "hard"; None for the clean task."""
    dynamic: bool


TASKS: Mapping[str, TaskSettings] = MappingProxyType(
    {
        "ball_in_cup-catch": TaskSettings("ball_in_cup", "catch", 4, 0.3),
        "cartpole-swingup": TaskSettings("cartpole", "swingup", 8, 0.3),
        "cheetah-run": TaskSettings("cheetah", "run", 4, 1.0),
        "finger-spin": TaskSettings("finger", "spin", 2, 0.3),
        "reacher-easy": TaskSettings("reacher", "easy", 4, 0.0),
        "walker-walk": TaskSettings("walker", "walk", 2, 1.0),
    }
)

_OTHER_TASKS = """
acrobot-swingup acrobot-swingup_sparse cartpole-balance cartpole-balance_sparse
cartpole-swingup_sparse cartpole-two_poles cartpole-three_poles dog-stand dog-walk dog-trot dog-run
dog-fetch finger-turn_easy finger-turn_hard fish-upright fish-swim hopper-stand hopper-hop
humanoid-stand humanoid-walk humanoid-run humanoid-run_pure_state humanoid_CMU-stand
humanoid_CMU-walk humanoid_CMU-run lqr-lqr_2_1 lqr-lqr_6_2 manipulator-bring_ball
manipulator-bring_peg manipulator-insert_ball manipulator-insert_peg pendulum-swingup
point_mass-easy point_mass-hard quadruped-walk quadruped-run quadruped-escape quadruped-fetch
reacher-hard stacker-stack_2 stacker-stack_4 swimmer-swimmer6 swimmer-swimmer15 walker-stand
walker-run
"""

OTHER_TASKS: tuple[str, ...] = tuple(_OTHER_TASKS.split())
"""The tasks of the dm_control suite that the paper does not use. They are listed here because
importing the suite would load MuJoCo."""

DIFFICULTIES: Mapping[str, Difficulty] = MappingProxyType(
    {
        "easy": Difficulty(train_clips=4, val_clips=4, scale=0.1),
        "medium": Difficulty(train_clips=8, val_clips=8, scale=0.2),
        "hard": Difficulty(train_clips=None, val_clips=None, scale=0.3),
    }
)


def env_id(settings: EnvSettings) -> str:
    """Return the Gymnasium id of ``settings``, such as ``DCS-cheetah-run-easy-dynamic``."""
    name = f"DCS-{settings.domain}-{settings.task}"
    if settings.difficulty is None:
        return f"{name}-clean"
    return f"{name}-{settings.difficulty}-{'dynamic' if settings.dynamic else 'static'}"


def _settings_of(tasks: Iterable[str]) -> dict[str, EnvSettings]:
    """The settings of tasks by id: each task clean and in six distracted settings."""
    table = {}
    for name in tasks:
        domain, task = name.split("-")
        clean = EnvSettings(domain, task, None, dynamic=False)
        distracted = [
            EnvSettings(domain, task, difficulty, dynamic)
            for difficulty in DIFFICULTIES
            for dynamic in (False, True)
        ]
        table.update({env_id(settings): settings for settings in [clean, *distracted]})
    return table


ENV_IDS: tuple[str, ...] = tuple(_settings_of(TASKS))
"""The paper's 42 ids: six tasks, each clean and in six distracted settings."""

ALL_SETTINGS: Mapping[str, EnvSettings] = MappingProxyType(_settings_of([*TASKS, *OTHER_TASKS]))
"""What each registered id means: those of the paper, and of all other tasks of the suite."""


def parse_env_id(name: str) -> EnvSettings:
    """Return the settings of an id.

    :param name: a registered id other than ``DCS-custom``, with or without a leading
        ``distracting_envs:``
    :raises ValueError: if there is no such environment
    """
    bare = name.removeprefix("distracting_envs:") if isinstance(name, str) else None
    if bare not in ALL_SETTINGS:
        raise ValueError(
            f"environment id must be DCS-{{task}}-clean or "
            f"DCS-{{task}}-{{{'|'.join(DIFFICULTIES)}}}-{{static|dynamic}} "
            f"with a task of {', '.join(TASKS)}, or any other domain-task of the dm_control suite; "
            f"got {name!r}"
        )
    return ALL_SETTINGS[bare]


def ground_plane_alpha(domain: str) -> float:
    """Return the opacity of the floor behind which a video plays, in [0, 1].

    Domains outside the paper have ``distracting_control``'s value.
    """
    for task in TASKS.values():
        if task.domain == domain:
            return task.ground_plane_alpha
    return 0.3


def default_action_repeat(domain: str, task: str) -> int:
    """Return the paper's action repeat of a task, or 1 for a task outside the paper."""
    known = TASKS.get(f"{domain}-{task}")
    return known.action_repeat if known else 1


def default_camera(domain: str) -> int:
    """Return the number of the camera that ``distracting_control`` uses for a domain."""
    return 2 if domain == "quadruped" else 0


MAX_WORKERS = 1024
"""Number of environments per split and seed."""

MAX_SEED = 2**32 // (MAX_WORKERS * len(SPLITS))
"""Seeds of experiments must be below this, since NumPy's legacy generator takes 32 bits."""


def env_seed(seed: int, worker: int = 0, split: str = "train") -> int:
    """Return the seed to reset an environment with, different for all arguments.

    Workers, splits and experiments all have different seeds. With ``seed + worker``, in contrast, a
    worker has the same seed as a worker of the next experiment.

    :param seed: seed of the experiment, in [0, MAX_SEED)
    :param worker: number of the environment within its split, in [0, MAX_WORKERS)
    :param split: "train" or "val"
    :raises ValueError: if an argument is out of its range
    """
    check_choice("split", split, SPLITS)
    check_whole("seed", seed, low=0, high=MAX_SEED - 1)
    check_whole("worker", worker, low=0, high=MAX_WORKERS - 1)
    return (seed * MAX_WORKERS + worker) * len(SPLITS) + SPLITS.index(split)
