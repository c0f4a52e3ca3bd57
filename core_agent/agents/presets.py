"""Named sets of constructor arguments.

    model = CoRe("CnnPolicy", env, **preset("small"))
    model = CoRe("CnnPolicy", env, **preset("small+core-gating"))
    model = CURL("CnnPolicy", env, **preset("small", "curl"))
    model = CURL("auto", env_id, **preset("paper", "curl", env_id="DCS-cheetah-run-easy-dynamic"))

The defaults of each agent are those of its paper; a preset holds the arguments that differ. Several
presets are combined with ``+``; later ones override earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from core_agent.agents.sb3_names import NET_ARCH
from core_agent.environments.suite import bare_id
from core_agent.validation import OPTIONS, TEXT, check, choice, optional

RECURRENT = ("core", "recurrent_sac")
WITH_ACTOR = ("sacrad", "curl")
WITHOUT_ACTOR = ("qtopt_rad", "qtopt_drq")
AGENT_NAMES = (*RECURRENT, *WITH_ACTOR, *WITHOUT_ACTOR)


@dataclass(frozen=True)
class Preset:
    """What to pass to an agent, and to the environment made for it."""

    description: str
    arguments: Mapping[str, dict[str, Any]]
    """Constructor arguments by the agent's name; other agents cannot use the preset."""
    env_arguments: dict[str, Any] = field(default_factory=dict)
    task_arguments: Mapping[str, Mapping[str, dict[str, Any]]] = field(default_factory=dict)
    """Further constructor arguments by the start of an environment's id, then by agent."""

    def on(self, env_id: str) -> Preset:
        """The preset with the arguments of that environment among its own."""
        arguments = dict(self.arguments)
        for start, by_agent in self.task_arguments.items():
            if bare_id(env_id).startswith(start):
                for agent, for_task in by_agent.items():
                    arguments[agent] = merge(arguments[agent], for_task)
        return replace(self, arguments=arguments)


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of both; the second overrides the first, in ``policy_kwargs`` entry by entry."""
    given = second.get("policy_kwargs") or {}
    overridden = NET_ARCH.values() if "net_arch" in given else ()
    kept = {k: v for k, v in (first.get("policy_kwargs") or {}).items() if k not in overridden}
    policy_kwargs = {**kept, **given}
    merged = {**first, **second}
    return {**merged, "policy_kwargs": policy_kwargs} if policy_kwargs else merged


def combine(first: Preset, second: Preset) -> Preset:
    """Both presets as one, for agents that can use both; the second overrides the first."""
    return Preset(
        f"{first.description}; {second.description}",
        {
            agent: merge(first.arguments[agent], second.arguments[agent])
            for agent in first.arguments
            if agent in second.arguments
        },
        {**first.env_arguments, **second.env_arguments},
    )


def for_agents(
    names: Iterable[str], policy_kwargs: dict[str, Any], **arguments: Any
) -> dict[str, dict[str, Any]]:
    """The same constructor arguments for several agents."""
    return {name: {**arguments, "policy_kwargs": policy_kwargs} for name in names}


def for_core(description: str, **arguments: Any) -> Preset:
    """A preset of CoRe's alone."""
    return Preset(description, {"core": arguments})


SMALL_ENCODER: dict[str, Any] = dict(cnn_channels=(16, 32, 32, 32), cnn_strides=(2, 2, 2, 1))
SMALL_CRITICS: dict[str, Any] = dict(SMALL_ENCODER, critic_dims=(256, 256))
# Short runs: less entropy to unlearn before rewards count.
SMALL_ACTOR: dict[str, Any] = dict(SMALL_CRITICS, actor_dims=(256, 256), initial_log_ent_coef=-4.6)
SMALL_RECURRENT: dict[str, Any] = dict(
    SMALL_ACTOR,
    deter_dim=128,
    stoch_dim=32,
    embed_dims=(128, 128),
    gru_dims=(200, 200),
    prior_dims=(200, 200),
    posterior_dims=(200, 200),
    decoder_dims=(128, 128),
)
# What helps under distraction within a CPU's budget: docs/experiments.md.
SMALL_CORE: dict[str, Any] = dict(
    SMALL_RECURRENT,
    cnn_strides=(2, 2, 1, 1),
    activation="relu",
    critic_layer_norm=True,
    center_images=True,
    initial_log_std=-2.0,
    initial_contrastive_scale=-2.0,
    inverse_frames=4,
)
SMALL_LOSSES: dict[str, Any] = dict(
    learning_rate=1e-3,
    contrastive_coef=0.3,
    inverse_coef=10.0,
    crop_size=0.94,  # 60 of 64 pixels
    overlay=0.4,
    joint_update=True,
    behavior_updates=3,
)
# SAC's (arXiv:1801.01290) two layers of 256 for actor and critics, and a model of half that width.
VECTOR: dict[str, Any] = dict(
    actor_dims=(256, 256),
    critic_dims=(256, 256),
    activation="relu",
    vector_dims=(128,),
    embed_dims=(128, 128),
    deter_dim=128,
    stoch_dim=32,
    gru_dims=(128,),
    prior_dims=(128, 128),
    posterior_dims=(128,),
    decoder_dims=(128, 128),
    head_dims=(128,),
    initial_log_std=-2.0,
)
SMALL_ENV: dict[str, Any] = dict(image_size=64, render_quality="fast")
# Both papers lower the rate on the cheetah: arXiv:2004.14990 and arXiv:2004.04136, appendices.
PAPER_TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "DCS-cheetah-run-": {
        agent: dict(learning_rate=2e-4, actor_learning_rate=2e-4) for agent in WITH_ACTOR
    },
}
SMALL_TASKS: dict[str, dict[str, dict[str, Any]]] = {
    **PAPER_TASKS,
    # Rare rewards: a joint step would hide the model's loss (docs/experiments.md).
    "DCS-ball_in_cup-": {"core": dict(joint_update=False)},
}
DEBUG: dict[str, Any] = dict(batch_size=2, learning_starts=20, buffer_size=1_000, update_ratio=0.05)

SIZES: dict[str, Preset] = {
    "paper": Preset(
        "the text of the papers: the defaults",
        {name: {} for name in AGENT_NAMES},
        task_arguments=PAPER_TASKS,
    ),
    "release": for_core(
        "the authors' experiments where they differ from the text: smooth-L1 for rewards, ReLU in "
        "actor and critics, sampled actions clamped before the log-density, the first frame "
        "contrasted with core-posterior, an ELU before the sigmoid of core-gating's mask, a "
        "sampled state in evaluation",
        smooth_reward_loss=True,
        contrast_first_frame=True,
        policy_kwargs=dict(
            activation="relu", sample_when_deterministic=True, clamp_samples=True, gate_elu=True
        ),
    ),
    "small": Preset(
        "for CPUs: 16 sequences of 16 steps or 128 transitions, 64 pixels, a shallower encoder",
        {
            **for_agents(RECURRENT, SMALL_RECURRENT, batch_size=16, sequence_length=16),
            **for_agents(("core",), SMALL_CORE, batch_size=16, sequence_length=16, **SMALL_LOSSES),
            **for_agents(WITH_ACTOR, SMALL_ACTOR, batch_size=128),
            **for_agents(WITHOUT_ACTOR, SMALL_CRITICS, batch_size=128),
        },
        SMALL_ENV,
        SMALL_TASKS,
    ),
    "vector": Preset(
        "for observations without images: networks of Stable-Baselines3's SAC, 32 sequences of 8 "
        "steps; an update takes at most three times as long as SAC's",
        {
            **for_agents(RECURRENT, VECTOR, batch_size=32, sequence_length=8),
            **for_agents(("core",), VECTOR, batch_size=32, sequence_length=8, joint_update=True),
        },
    ),
    "debug": Preset(
        "runs through everything in seconds and learns nothing",
        {
            **for_agents(RECURRENT, SMALL_RECURRENT, **DEBUG, sequence_length=6),
            **for_agents(WITH_ACTOR, SMALL_ACTOR, **DEBUG, train_freq=(20, "step")),
            **for_agents(WITHOUT_ACTOR, SMALL_CRITICS, **DEBUG, train_freq=(20, "step")),
        },
        SMALL_ENV,
    ),
}

KL_COEFS = ("0.0001", "0.001", "0.01", "0.1", "1")
"""Appendix C.3 compares five values without naming them; these are decades around the paper's."""

ABLATIONS: dict[str, Preset] = {
    "core-fwd": for_core("forward prediction alone (C.1)", reward_coef=0.0, inverse_coef=0.0),
    "core-fwd-inv": for_core("no reward prediction (C.1)", reward_coef=0.0),
    "core-fwd-reward": for_core("no inverse dynamics (C.1)", inverse_coef=0.0),
    "core-no-critic-model": for_core(
        "the critic's loss does not train the model (C.2)",
        train_model_with_critic=False,
        joint_update=False,
    ),
    "core-posterior": for_core(
        "contrastive prediction from the posterior (C.3)", contrastive_from="posterior"
    ),
    "core-gating": for_core(
        "a learned mask over the image (Table 1)", policy_kwargs=dict(gating=True)
    ),
    **{
        f"core-beta-{value}": for_core(f"KL term weighted {value} (C.3)", kl_coef=float(value))
        for value in KL_COEFS
    },
}

PRESETS: dict[str, Preset] = {**SIZES, **ABLATIONS}


def get_preset(names: str, env_id: str | None = None) -> Preset:
    """The preset of that name; several are joined with ``+``, as in ``"small+core-gating"``.

    :param env_id: id of the environment, whose arguments are then among the preset's
    :raises ValueError: for an unknown name
    """
    TEXT("preset", names)
    optional(TEXT)("env_id", env_id)
    chosen = names.split("+")
    for name in chosen:
        choice(*PRESETS)("preset", name)
    presets = (PRESETS[name] for name in chosen)
    return reduce(combine, (each.on(env_id) if env_id else each for each in presets))


def preset(
    names: str, agent: str = "core", *, env_id: str | None = None, **overrides: Any
) -> dict[str, Any]:
    """Constructor arguments of a preset, with ``overrides`` on top; ``policy_kwargs`` are merged.

    :param names: see :func:`get_preset`
    :param agent: name of the agent, see :data:`core_agent.agents.registry.AGENTS`
    :param env_id: id of the environment: some presets have other arguments for a few tasks
    :param overrides: further constructor arguments
    :raises ValueError: for an unknown name, a preset that is not for that agent, or
        ``policy_kwargs`` that are not a dict
    """
    known = get_preset(names, env_id).arguments
    choice(*AGENT_NAMES)("agent", agent)
    OPTIONS("policy_kwargs", overrides.get("policy_kwargs"))
    check(agent in known, "preset", f"be one for {agent!r}", names, f"it is for {tuple(known)}")
    return merge(known[agent], overrides)
