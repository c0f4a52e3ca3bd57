"""Fine-tuning a saved model: some parts frozen, some reinitialised.

    model = CoRe.load("easy.zip", env=harder_env)
    reinitialize(model, "actor", "critic")       # new weights for actor and critics
    freeze(model, "world_model.encoder")         # the encoder is not trained
    model.learn(50_000)

Parts are the names of modules of ``model.policy``, with dots, for example ``"world_model"``,
``"world_model.encoder"``, ``"world_model.rssm"``, ``"actor"`` and ``"critic"``; the agents without
a world model have an ``"encoder"``.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from core_agent.agents.base import SequenceOffPolicyAlgorithm
from core_agent.validation import check


def _modules(model: SequenceOffPolicyAlgorithm, parts: tuple[str, ...]) -> Iterator[nn.Module]:
    policy = getattr(model, "policy", None)
    check(isinstance(policy, nn.Module), "model", "be an agent with networks", model)
    assert isinstance(policy, nn.Module)
    modules = dict(policy.named_modules())
    names = sorted(name for name in modules if name and name.count(".") <= 1)
    check(bool(parts), "parts", "name at least one module of model.policy", parts, str(names))
    for part in parts:
        check(
            isinstance(part, str) and bool(part) and part in modules,
            "parts",
            "be modules of model.policy",
            part,
            str(names),
        )
        yield modules[part]


def freeze(model: SequenceOffPolicyAlgorithm, *parts: str) -> None:
    """Stop training some parts.

    The setting is not saved: repeat it after loading.

    :param model: the model
    :param parts: names of modules of ``model.policy``
    :raises ValueError: for an unknown part
    """
    for module in list(_modules(model, parts)):
        module.requires_grad_(False)


def unfreeze(model: SequenceOffPolicyAlgorithm, *parts: str) -> None:
    """Train some parts again; arguments and errors as for :func:`freeze`."""
    for module in list(_modules(model, parts)):
        module.requires_grad_(True)
    for target in model.policy.targets():
        target.requires_grad_(False)


def reinitialize(model: SequenceOffPolicyAlgorithm, *parts: str) -> None:
    """Reinitialise the weights of some parts, and delete their optimiser state.

    The targets of these parts, such as the target critics, are set equal to them.

    :param model: the model
    :param parts: names of modules of ``model.policy``
    :raises ValueError: for an unknown part
    """
    modules = list(_modules(model, parts))
    policy = model.policy
    fresh = type(policy)(**policy._get_constructor_parameters()).to(policy.device)
    fresh_modules = dict(fresh.named_modules())
    for part, module in zip(parts, modules):
        module.load_state_dict(fresh_modules[part].state_dict())
        for parameter in module.parameters():
            for optimizer in model.optimizers:
                optimizer.state.pop(parameter, None)
    reinitialized = {parameter for module in modules for parameter in module.parameters()}
    for target, source in policy.targets().items():
        if reinitialized & set(source.parameters()):
            target.load_state_dict(source.state_dict())
