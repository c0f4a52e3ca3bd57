"""The Distracting Control Suite as Gymnasium environments.

Importing the package registers 42 ids, ``DCS-{domain}-{task}-{difficulty}-{static|dynamic}`` and
``DCS-{domain}-{task}-clean``, and ``DCS-custom`` for any other task of the dm_control suite.
``gymnasium.make("distracting_envs:DCS-cheetah-run-easy-dynamic")`` needs no import, also in worker
processes.

The import is light: MuJoCo and OpenGL load when the first environment is made.
"""

from distracting_envs.quiet import hide_gym_notice
from distracting_envs.registration import register_all
from distracting_envs.seeding import env_seed
from distracting_envs.settings import ENV_IDS, TASKS, EnvSettings, TaskSettings, parse_env_id

__all__ = [
    "ENV_IDS",
    "TASKS",
    "EnvSettings",
    "TaskSettings",
    "env_seed",
    "parse_env_id",
]

hide_gym_notice()
register_all()
