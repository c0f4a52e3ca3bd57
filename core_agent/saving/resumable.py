"""Environments that can be brought back to where they were.

An environment with ``get_state()`` and ``set_state(state)`` is brought back to any step; the state
is plain values: numbers, strings, arrays, nested dicts and lists of them. Of every other one the
random generator is known as it was before the running episode began, so that it can be brought back
to an episode's first observation, bit for bit; within an episode it cannot: a new one begins.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, TypeGuard

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
"""Attributes of wrappers that the future does not follow from."""
_OPENED = (RunningMeanStd, StackedObservations)
"""Objects whose attributes are taken down as a wrapper's are."""


class UnsavableError(TypeError):
    """A wrapper holds something that cannot be taken down."""


def _is_fixed(value: Any) -> bool:
    """Whether it is a space, a dict of spaces, a function or a class."""
    if isinstance(value, dict) and value:
        return all(isinstance(inner, spaces.Space) for inner in value.values())
    return isinstance(value, (spaces.Space, type)) or inspect.isroutine(value)


def _holds_opened(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and any(isinstance(v, _OPENED) for v in value.values())


def get_attributes(thing: Any) -> State:
    """The attributes of an object as plain values.

    :raises UnsavableError: if one of them is an object of an unknown kind
    """
    state: State = {}
    for name, value in vars(thing).items():
        if name in _PLUMBING or _is_fixed(value):
            continue
        if isinstance(value, _OPENED):
            state[name] = get_attributes(value)
        elif _holds_opened(value):
            state[name] = {key: get_attributes(inner) for key, inner in value.items()}
        elif is_plain(value):
            state[name] = deepcopy(value)
        else:
            raise UnsavableError(f"{type(thing).__name__}.{name} is a {type(value).__name__}")
    return state


def set_attributes(thing: Any, state: State) -> None:
    """Set what :func:`get_attributes` gave."""
    for name, value in state.items():
        current = getattr(thing, name, None)
        if isinstance(current, _OPENED):
            set_attributes(current, value)
        elif _holds_opened(current):
            for key, inner in current.items():
                set_attributes(inner, value[key])
        elif isinstance(current, deque) and isinstance(value, list):
            setattr(thing, name, deque(value, current.maxlen))
        elif isinstance(current, tuple) and isinstance(value, list):
            setattr(thing, name, tuple(value))
        else:
            setattr(thing, name, value)


class Resumable(gym.Wrapper):
    """Takes down where an environment stands, and brings it back there.

    To be put around all other wrappers; :func:`make_resumable` does so.

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
        """Plain values, among them ``exact``: whether :meth:`set_state` gets right back here."""
        inner = self.unwrapped
        if hasattr(inner, "get_state") and hasattr(inner, "set_state"):
            try:
                wrappers = [get_attributes(wrapper) for wrapper in self._wrappers()]
            except UnsavableError:
                pass
            else:
                random = self._get_random()
                return dict(exact=True, random=random, wrappers=wrappers, env=inner.get_state())
        if self._start is not None:
            return dict(exact=True, **self._start)
        return dict(exact=False, random=self._get_random(), seed=None)

    def set_state(self, state: State) -> None:
        """Go to where :meth:`get_state` was called, or to a new episode where that is not known."""
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
        """State of the environment's generator; ``None`` if it has one of its own making."""
        generator = getattr(self.unwrapped.np_random, "bit_generator", None)
        return None if generator is None else generator.state

    def _set_random(self, state: State | None) -> None:
        if state is not None:
            self.unwrapped.np_random.bit_generator.state = state


def make_resumable(env: VecEnv) -> None:
    """Put :class:`Resumable` around the environments of a ``DummyVecEnv``, in place.

    Environments in other processes are out of reach: whoever makes them wraps them.
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
    """Where vectorised environments and their wrappers stand, and whether that is ``exact``.

    :param env: what :func:`make_resumable` was called on, or environments that are in
        :class:`Resumable` already
    :param trusted: ``False`` leaves the environments themselves out, as after a fault of theirs
    """
    wrappers = [_attributes_or_none(wrapper) for wrapper in _vec_wrappers(env)]
    reachable = trusted and all(env.env_is_wrapped(Resumable))
    envs = env.env_method("get_state") if reachable else []
    exact = reachable and None not in wrappers and all(state["exact"] for state in envs)
    return dict(exact=exact, wrappers=wrappers, envs=envs)


def _attributes_or_none(wrapper: VecEnvWrapper) -> State | None:
    try:
        return get_attributes(wrapper)
    except UnsavableError:
        return None


def set_env_state(env: VecEnv, state: State) -> None:
    """Bring vectorised environments to what :func:`get_env_state` gave, as far as that goes.

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
        set_attributes(wrapper, attributes or {})
    if all(env.env_is_wrapped(Resumable)):
        for index, each in enumerate(state["envs"]):
            env.env_method("set_state", each, indices=[index])
