"""Registration of the environments with Gymnasium."""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

from distracting_envs.settings import ENV_IDS, parse_env_id

_ENTRY_POINT = "distracting_envs.env:DistractingControlEnv"

GENERIC_ID = "DCS-custom"
"""Any dm_control suite task: ``gymnasium.make("DCS-custom", domain="hopper", task="hop", ...)``."""


def register_all() -> None:
    """Register the ids of :data:`ENV_IDS` and :data:`GENERIC_ID`; a second call does nothing."""
    if GENERIC_ID in registry:
        return
    for env_id in ENV_IDS:
        settings = parse_env_id(env_id)
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
