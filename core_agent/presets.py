"""Named sets of constructor arguments.

    model = CoRe("CnnPolicy", env, **preset("small"))

The defaults of :class:`~core_agent.core.CoRe` are the paper's text; a preset holds what differs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from core_agent.validation import check_choice, check_options


@dataclass(frozen=True)
class Preset:
    """What to pass to an algorithm, and to the environment made for it."""

    description: str
    arguments: dict[str, Any] = field(default_factory=dict)
    env_arguments: dict[str, Any] = field(default_factory=dict)


SMALL_POLICY: dict[str, Any] = dict(
    # Short runs: less entropy to unlearn before rewards count.
    initial_log_ent_coef=-4.6,
    deter_dim=128,
    stoch_dim=32,
    embed_dims=(128, 128),
    gru_dims=(200, 200),
    prior_dims=(200, 200),
    posterior_dims=(200, 200),
    decoder_dims=(128, 128),
    cnn_channels=(16, 32, 32, 32),
    cnn_strides=(2, 2, 2, 1),
    actor_dims=(256, 256),
    critic_dims=(256, 256),
)

PRESETS: dict[str, Preset] = {
    "paper": Preset("the text of the paper: the defaults"),
    "release": Preset(
        "the authors' experiments where they differ from the text",
        dict(
            smooth_reward_loss=True,
            policy_kwargs=dict(activation="relu", sample_when_deterministic=True),
        ),
    ),
    "small": Preset(
        "for CPUs: 16 sequences of 16 steps, 64 pixels, a shallower encoder",
        dict(batch_size=16, sequence_length=16, policy_kwargs=SMALL_POLICY),
        dict(image_size=64, render_quality="fast"),
    ),
    "debug": Preset(
        "runs through everything in seconds and learns nothing",
        dict(
            batch_size=2,
            sequence_length=4,
            learning_starts=20,
            buffer_size=1_000,
            update_ratio=0.05,
            policy_kwargs=SMALL_POLICY,
        ),
        dict(image_size=64, render_quality="fast"),
    ),
}


def get_preset(name: str) -> Preset:
    """The preset of that name.

    :raises ValueError: for an unknown name
    """
    check_choice("preset", name, tuple(PRESETS))
    return PRESETS[name]


def preset(name: str, **overrides: Any) -> dict[str, Any]:
    """Constructor arguments of a preset, with ``overrides`` on top; ``policy_kwargs`` are merged.

    :raises ValueError: for an unknown name, or for ``policy_kwargs`` that are no dict
    """
    arguments = dict(get_preset(name).arguments)
    own = overrides.pop("policy_kwargs", None)
    check_options("policy_kwargs", own)
    policy_kwargs = {**arguments.get("policy_kwargs", {}), **(own or {})}
    if policy_kwargs:
        arguments["policy_kwargs"] = policy_kwargs
    return {**arguments, **overrides}
