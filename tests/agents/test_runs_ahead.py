"""On a GPU Python runs ahead: an update copies nothing there and never waits."""

from __future__ import annotations

import pytest
import torch
from stable_baselines3.common.logger import Logger
from torch.optim import adam
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from core_agent import SACRAD, CoRe
from core_agent.agents.base import SequenceOffPolicyAlgorithm
from core_agent.agents.presets import SMALL_CORE, SMALL_LOSSES, SMALL_RECURRENT
from core_agent.agents.registry import AGENTS
from core_agent.finetuning import freeze
from core_agent.networks.optimization import FiniteGuard
from tests.agents.updating import make_model
from tests.fakes import BOTH, TINY, VECTOR, SavableEnv


def test_learning_rates_stay_tensors_on_a_gpu_and_numbers_on_a_cpu(monkeypatch, tmp_path):
    make_model(SACRAD).save(tmp_path / "cpu")
    with monkeypatch.context() as patched:
        patched.setattr(SequenceOffPolicyAlgorithm, "_runs_ahead", True)
        gpu = SACRAD.load(tmp_path / "cpu", env=SavableEnv(VECTOR))
        rates = [group["lr"] for o in gpu.optimizers for group in o.param_groups]
        gpu.set_logger(Logger(None, []))
        gpu._update_learning_rate(gpu.optimizers)
        kept = [group["lr"] for o in gpu.optimizers for group in o.param_groups]
        assert all(one is other and one.shape == () for one, other in zip(rates, kept))
        gpu.save(tmp_path / "gpu")
    cpu = SACRAD.load(tmp_path / "gpu", env=SavableEnv(VECTOR))
    groups = [group for o in cpu.optimizers for group in o.param_groups]
    assert all(type(group["lr"]) is type(group["initial_lr"]) is float for group in groups)
    cpu.learn(20)


class OneDevice(TorchDispatchMode):
    """Inside, no operator may touch the CPU, but for the zero of a norm without gradients."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        if operator is not torch.ops.aten.lift_fresh.default:
            devices = {
                tensor.device.type
                for tensor in tree_leaves((args, kwargs, result))
                if isinstance(tensor, torch.Tensor)
            }
            assert devices <= {"meta"}, operator
        return result


# What preset("small") has on top of the paper, in networks as small as the others here.
NETWORKS = {key: value for key, value in SMALL_CORE.items() if key not in SMALL_RECURRENT}
SMALL = {
    **SMALL_LOSSES,
    "sequence_length": 6,
    "policy_kwargs": {**TINY["policy_kwargs"], **NETWORKS},
}


@pytest.mark.parametrize(
    ("algorithm", "arguments", "frozen"),
    [
        *((one, {}, ()) for one in AGENTS.values()),
        (CoRe, SMALL, ()),
        (CoRe, {}, ("critic",)),
    ],
)
def test_an_update_neither_copies_to_the_device_nor_waits_for_it(
    algorithm, arguments, frozen, monkeypatch
):
    # Tensors of the device "meta" have no values to wait for, and mix with the CPU's as a GPU's do.
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_: None)
    monkeypatch.setattr(SequenceOffPolicyAlgorithm, "_runs_ahead", True)
    model = make_model(algorithm, BOTH, **arguments)
    batch = model._sample_batch(3)
    model.policy.to("meta")
    model.device = torch.device("meta")
    model._guard = FiniteGuard(model.device)
    for group in (group for o in model.optimizers for group in o.param_groups):
        group["lr"] = group["lr"].to("meta")
    if frozen:
        freeze(model, *frozen)
    batch = tree_map(lambda tensor: tensor.to("meta"), batch)
    for _ in range(2):  # optimisers copy nothing but make their states, once
        model.update(batch)
        model._n_updates += 1
    with OneDevice():
        for _ in range(2):
            assert {value.device.type for value in model.update(batch).values()} == {"meta"}
            model._n_updates += 1
