"""The Distracting Control Suite as Gymnasium environments.

Importing the package registers ``DCS-{domain}-{task}-{difficulty}-{static|dynamic}`` and
``DCS-{domain}-{task}-clean`` for the six tasks of the paper (the 42 ``ENV_IDS``) and for all other
tasks of the dm_control suite; ``DCS-custom`` takes the task as arguments.
``gymnasium.make("distracting_envs:DCS-cheetah-run-easy-dynamic")`` needs no import, not even in
worker processes.

The import is light: MuJoCo and OpenGL load when the first environment is made.
"""

from gymnasium.envs.registration import register, registry

from distracting_envs.quiet import hide_gym_notice
from distracting_envs.settings import (
    ALL_SETTINGS,
    ENV_IDS,
    TASKS,
    EnvSettings,
    TaskSettings,
    env_seed,
    parse_env_id,
)

__all__ = [
    "ENV_IDS",
    "TASKS",
    "EnvSettings",
    "TaskSettings",
    "env_seed",
    "parse_env_id",
]

_ENTRY_POINT = "distracting_envs.wrappers:make"

GENERIC_ID = "DCS-custom"
"""Any task and strength, as in ``make("DCS-custom", domain="hopper", task="hop", scale=0.25)``."""


def register_all() -> None:
    """Register the ids with Gymnasium; a second call does nothing."""
    if GENERIC_ID in registry:
        return
    for env_id, settings in ALL_SETTINGS.items():
        register(
            id=env_id,
            entry_point=_ENTRY_POINT,
            kwargs={
                "domain": settings.domain,
                "task": settings.task,
                "difficulty": settings.difficulty,
                "dynamic": settings.dynamic,
            },
        )
    register(id=GENERIC_ID, entry_point=_ENTRY_POINT)


hide_gym_notice()
register_all()
