"""Arguments of SB3's SAC that the agents here do not have, and what to use instead."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from core_agent.validation import argument_names, check

EXPLORATION = "exploration comes from the policy's entropy; pass action_noise for more of it"
ARGUMENTS = {
    "optimize_memory_usage": "the replay buffer stores each frame once in any case",
    "n_steps": "targets look one step ahead; returns over several steps are not available",
    **dict.fromkeys(("use_sde", "sde_sample_freq", "use_sde_at_warmup"), EXPLORATION),
    "target_update_interval": "tau is the rate at which the target networks follow; SACRAD, CURL "
    "and QT-Opt have target_update_freq for the interval",
}
"""What to use instead, by the name of a constructor's argument."""

ENCODER = "cnn_channels, cnn_strides, feature_dim and vector_dims size the encoder"
OPTIMIZER = "every optimiser is Adam; the agent's arguments *learning_rate set its rates"
DISTRIBUTION = "the policy is a Gaussian through tanh whose standard deviation is learned"
POLICY_ARGUMENTS = {
    "net_arch": "give a list of layer sizes, or dict(pi=[...], qf=[...]): they become actor_dims "
    "and critic_dims",
    "activation_fn": "use activation='relu' or activation='elu'",
    **dict.fromkeys(("features_extractor_class", "features_extractor_kwargs"), ENCODER),
    "share_features_extractor": "actor and critics read the same features",
    "normalize_images": "images of bytes are divided by 255, others are taken as they are",
    **dict.fromkeys(("optimizer_class", "optimizer_kwargs"), OPTIMIZER),
    "n_critics": "there are two critics",
    "use_sde": EXPLORATION,
    **dict.fromkeys(("log_std_init", "use_expln", "clip_mean"), DISTRIBUTION),
}
"""What to use instead, by the name of an entry of ``policy_kwargs``."""

NO_HER = (
    "the agents' own buffer takes images, vectors and Dict observations; hindsight experience "
    "replay (HER) is not available, use it with stable_baselines3.SAC"
)
"""What to use instead of another class of replay buffers."""

GIVEN_BY_THE_AGENT = {
    *("observation_space", "action_space", "action_dim", "lr_schedule"),
    *("buffer_size", "device", "n_envs"),
}
"""Arguments of policies and replay buffers that the agent passes itself, not ``*_kwargs``."""


def naming_unknown_arguments(constructor: Callable[..., None]) -> Callable[..., None]:
    """Wrap a constructor so that its error for an unknown argument says what to use instead.

    The error is a ``TypeError``, as usual in Python.
    """
    known = inspect.signature(constructor).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return constructor  # It hands them on.

    @wraps(constructor)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs.keys() - known.keys():
            similar = difflib.get_close_matches(name, known, 1)
            own = [each for each in known if each != "self" and not each.startswith("_")]
            hint = f"did you mean {similar[0]}?" if similar else f"its arguments are {own}"
            agent, value = type(self).__name__, kwargs[name]
            raise TypeError(
                f"{name} must be an argument of {agent}, got {value!r}; {ARGUMENTS.get(name, hint)}"
            )
        constructor(self, *args, **kwargs)

    return checked


NET_ARCH = {"pi": "actor_dims", "qf": "critic_dims"}
"""The layer sizes that the entries of ``net_arch`` stand for."""


def translate(policy_kwargs: Any, policy_class: type) -> Any:
    """``policy_kwargs`` with ``net_arch`` replaced by the layer sizes that a policy takes.

    :param policy_kwargs: as given; anything but a dict with ``net_arch`` is returned unchanged
    :param policy_class: class of the policy that takes them
    :raises ValueError: if ``net_arch`` does not have SAC's form, or the sizes are given as well
    """
    if not isinstance(policy_kwargs, dict) or "net_arch" not in policy_kwargs:
        return policy_kwargs
    sizes = {key: name for key, name in NET_ARCH.items() if name in argument_names(policy_class)}
    others = {name: value for name, value in policy_kwargs.items() if name != "net_arch"}
    given = policy_kwargs["net_arch"]
    by_key: dict[str, Any] = given if isinstance(given, dict) else dict.fromkeys(sizes, given)
    check(
        by_key.keys() == sizes.keys()
        and all(isinstance(dims, (list, tuple)) for dims in by_key.values()),
        "net_arch",
        f"be a list of layer sizes or a dict of them with the keys {tuple(sizes)}",
        given,
    )
    both = sorted(set(sizes.values()) & set(others))
    check(not both, "net_arch", "be given without the sizes that it stands for", both)
    return {**others, **{sizes[key]: tuple(dims) for key, dims in by_key.items()}}
