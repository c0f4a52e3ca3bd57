"""Environments that can be restored to where they were.

An environment with ``get_state()`` and ``set_state(state)`` can be restored to any step; the state
must be plain values: numbers, strings, arrays, nested dicts and lists of them. For any other
environment, only the state of its random generator before the current episode is saved. It can be
restored, bit for bit, to the first observation of an episode; at any later step, a new episode
starts instead.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from core_agent.saving.archive import is_plain
from core_agent.validation import check

State = dict[str, Any]

_PLUMBING = frozenset(
    {"env", "venv", "_cached_spec", "_metadata", "_saved_kwargs", "class_attributes"}
    | {"results_writer", "metadata", "reset_infos", "_seeds", "_options"}
)
"""Attributes of wrappers that do not affect later steps."""
_OPENED = (RunningMeanStd, StackedObservations)
"""Classes whose objects are saved like wrappers: attribute by attribute."""


def _is_fixed(value: Any) -> bool:
    """Whether it is a space, a dict of spaces, a function or a class."""
    if isinstance(value, dict) and value:
        return all(isinstance(inner, spaces.Space) for inner in value.values())
    return isinstance(value, (spaces.Space, type)) or inspect.isroutine(value)


def _saved(value: Any) -> Any:
    """The value of an attribute as plain values.

    :raises TypeError: if it is an object of an unknown kind
    """
    if isinstance(value, _OPENED):
        return get_attributes(value)
    if isinstance(value, dict):
        value = {key: _saved(inner) for key, inner in value.items()}
    if not is_plain(value):
        raise TypeError(f"a {type(value).__name__} cannot be saved")
    return deepcopy(value)


def _restored(current: Any, saved: Any) -> Any:
    """A saved value in the form of the current one; what is opened is restored in place."""
    if isinstance(current, _OPENED):
        set_attributes(current, saved)
        return current
    if isinstance(current, dict) and isinstance(saved, dict):
        return {key: _restored(current.get(key), inner) for key, inner in saved.items()}
    if isinstance(current, deque) and isinstance(saved, list):
        return deque(saved, current.maxlen)
    return tuple(saved) if isinstance(current, tuple) and isinstance(saved, list) else saved


def get_attributes(thing: Any) -> State:
    """The attributes of an object as plain values.

    :raises TypeError: if one of them is an object of an unknown kind
    """
    return {
        name: _saved(value)
        for name, value in vars(thing).items()
        if name not in _PLUMBING and not _is_fixed(value)
    }


def set_attributes(thing: Any, state: State) -> None:
    """Set what :func:`get_attributes` gave."""
    for name, value in state.items():
        setattr(thing, name, _restored(getattr(thing, name, None), value))


class Resumable(gym.Wrapper):
    """Saves and restores the state of an environment.

    It must be the outermost wrapper; :func:`make_resumable` adds it there.

    :param env: any Gymnasium environment
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._start: State | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._start = None if options else {"random": self._get_random(), "seed": seed}
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._start = None
        return self.env.step(action)

    def get_state(self) -> State:
        """The state as plain values; ``exact`` says whether :meth:`set_state` restores it fully."""
        inner = self.unwrapped
        if hasattr(inner, "get_state") and hasattr(inner, "set_state"):
            try:
                wrappers = [get_attributes(wrapper) for wrapper in self._wrappers()]
            except TypeError:
                pass
            else:
                random = self._get_random()
                return dict(exact=True, random=random, wrappers=wrappers, env=inner.get_state())
        if self._start is not None:
            return dict(exact=True, **self._start)
        return dict(exact=False, random=self._get_random(), seed=None)

    def set_state(self, state: State) -> None:
        """Restore what :meth:`get_state` gave; start a new episode where that is not exact."""
        inner: Any = self.unwrapped
        if "env" not in state:
            self._set_random(state["random"])
            self.reset(seed=state["seed"])
            return
        self.env.reset()
        for wrapper, attributes in zip(self._wrappers(), state["wrappers"], strict=True):
            set_attributes(wrapper, attributes)
        inner.set_state(state["env"])
        self._set_random(state["random"])
        self._start = None

    def _wrappers(self) -> Iterator[gym.Wrapper]:
        env = self.env
        while isinstance(env, gym.Wrapper):
            yield env
            env = env.env

    def _get_random(self) -> State | None:
        """State of the environment's generator; ``None`` if that is not one of NumPy's."""
        generator = getattr(self.unwrapped.np_random, "bit_generator", None)
        return None if generator is None else generator.state

    def _set_random(self, state: State | None) -> None:
        if state is not None:
            self.unwrapped.np_random.bit_generator.state = state


def make_resumable(env: VecEnv) -> None:
    """Put :class:`Resumable` around the environments of a ``DummyVecEnv``, in place.

    Environments in other processes are out of reach: wrap them where they are made.
    """
    inner = env.unwrapped
    if isinstance(inner, DummyVecEnv):
        inner.envs = [
            each if isinstance(each, Resumable) else Resumable(each) for each in inner.envs
        ]


def _vec_wrappers(env: VecEnv) -> Iterator[VecEnvWrapper]:
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv


def get_env_state(env: VecEnv, trusted: bool = True) -> State:
    """The state of vectorised environments and their wrappers, and whether that is ``exact``.

    :param env: what :func:`make_resumable` was called on, or environments that are in
        :class:`Resumable` already
    :param trusted: ``False`` leaves out the environments themselves, for example if one has failed
    """
    exact = trusted and all(env.env_is_wrapped(Resumable))
    envs = env.env_method("get_state") if exact else []
    exact = exact and all(state["exact"] for state in envs)
    wrappers: list[State] = []
    for wrapper in _vec_wrappers(env):
        try:
            wrappers.append(get_attributes(wrapper))
        except TypeError:
            wrappers.append({})
            exact = False
    return dict(exact=exact, wrappers=wrappers, envs=envs)


def set_env_state(env: VecEnv, state: State) -> None:
    """Restore vectorised environments to what :func:`get_env_state` gave, as far as it is known.

    :raises ValueError: if these are in other wrappers
    """
    make_resumable(env)
    wrappers = list(_vec_wrappers(env))
    check(
        len(wrappers) == len(state["wrappers"]),
        "env",
        f"be in {len(state['wrappers'])} wrapper(s) of vectorised environments, as at the "
        "checkpoint",
        [type(wrapper).__name__ for wrapper in wrappers],
        "wrap it in the same way",
    )
    for wrapper, attributes in zip(wrappers, state["wrappers"]):
        set_attributes(wrapper, attributes)
    if all(env.env_is_wrapped(Resumable)):
        for index, each in enumerate(state["envs"]):
            env.env_method("set_state", each, indices=[index])
