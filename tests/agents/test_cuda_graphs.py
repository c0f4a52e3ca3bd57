"""Updates as CUDA graphs: with a stand-in for graphs on a CPU, and on a GPU where there is one."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from core_agent import SACRAD, CoRe, RecurrentSAC
from core_agent.agents import cuda_graphs
from core_agent.agents.base import SequenceOffPolicyAlgorithm
from core_agent.agents.cuda_graphs import WARM_UPS
from core_agent.agents.registry import AGENTS
from core_agent.finetuning import freeze
from core_agent.networks.optimization import FiniteGuard
from tests.agents.updating import assert_equal, content, make_model, update
from tests.fakes import BOTH, IMAGE, VECTOR, FakeEnv

ALGORITHMS = list(AGENTS.values())
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CAPTURED = 2 * (WARM_UPS + 1)
"""Updates after which both kinds of updates that feed-forward agents make have been captured."""


class FakeGPU:
    """In place of a GPU's streams: what is recorded runs again at a replay, which then lies."""

    n_captures = 0
    lie: Callable[[], Any] = staticmethod(lambda: None)
    refusal: str | None = None

    def record(self, stream: Any, function: Callable[[], None]) -> Callable[[], None]:
        if self.refusal:
            raise RuntimeError(self.refusal)
        self.n_captures += 1
        return lambda: (function(), self.lie())


@pytest.fixture
def fake_gpu(monkeypatch):
    """Agents on a CPU do as on a GPU."""
    gpu = FakeGPU()
    monkeypatch.setattr(SequenceOffPolicyAlgorithm, "_runs_ahead", True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    monkeypatch.setattr(cuda_graphs, "run_beside", lambda stream, update, batch: update(batch))
    monkeypatch.setattr(cuda_graphs, "record", gpu.record)
    return gpu


def with_and_without_graphs(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Two equal models."""
    captured, plain = make_model(*args, **kwargs), make_model(*args, **kwargs)
    plain._update = plain.update
    return captured, plain


def assert_equal_updates(captured: Any, plain: Any, n_updates: int) -> None:
    assert update(captured, n_updates) == update(plain, n_updates)
    assert_equal(content(captured), content(plain))


def n_kinds(model: Any) -> int:
    """Of updates without overlays: feed-forward agents leave a step out of some."""
    return 1 if isinstance(model, RecurrentSAC) else 2


# ---- replays ----


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_updates_with_graphs_are_those_without_bit_for_bit(algorithm, fake_gpu):
    captured, plain = with_and_without_graphs(algorithm, BOTH)
    assert_equal_updates(captured, plain, CAPTURED + 2)
    for model in (captured, plain):
        model._current_progress_remaining = 0.25
        model._update_learning_rate(model.optimizers)
    assert_equal_updates(captured, plain, 2)
    assert fake_gpu.n_captures == len(captured._graphed_updates._graphs) == n_kinds(captured)


def set_parameters(model: Any) -> None:
    other = make_model(type(model), seed=7)
    other._update = other.update
    update(other, 3, seed=5)
    model.set_parameters(other.get_parameters())


def take_other_batches(model: Any) -> None:
    sample = model._sample_batch
    model._sample_batch = lambda batch_size: sample(batch_size - 1)


CHANGES = {
    "setting": lambda model: setattr(model, "gamma", 0.5),
    "parameters": set_parameters,
    "frozen": lambda model: freeze(model, "encoder"),
    "guard": lambda model: setattr(model, "_guard", FiniteGuard(model.device)),
    "batches": take_other_batches,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_update_is_captured_again_when_what_its_graph_holds_has_changed(change, fake_gpu):
    captured, plain = with_and_without_graphs(SACRAD)
    assert_equal_updates(captured, plain, CAPTURED)
    change(captured)
    change(plain)
    assert_equal_updates(captured, plain, CAPTURED + 2)
    assert fake_gpu.n_captures == 2 * n_kinds(captured)


def test_cuda_graphs_are_used_unless_the_environment_says_no(fake_gpu, monkeypatch):
    contents = []
    for setting, n_captures in (("0", 0), ("1", 1)):
        monkeypatch.setenv("CORE_AGENT_CUDA_GRAPHS", setting)
        model = make_model(CoRe, train_freq=(1, "step"))
        contents.append(content(model.learn(30, reset_num_timesteps=False)))
        assert fake_gpu.n_captures == n_captures
    assert_equal(*contents)


# ---- the proof ----


LIES = {
    "weight": lambda policy: policy.critic.net.weights[0].data.add_(1e-2),
    "step": lambda policy: next(iter(policy.critic_optimizer.state.values()))["step"].add_(1),
    "target": lambda policy: policy.critic_target.net.weights[0].data.mul_(1.01),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_graph_that_does_something_else_is_never_used_and_one_warning_says_so(lie, fake_gpu):
    captured, plain = with_and_without_graphs(SACRAD)
    fake_gpu.lie = lambda: lie(captured.policy)
    with pytest.warns(UserWarning, match="without CUDA graphs.* the replay of one differs") as told:
        assert_equal_updates(captured, plain, CAPTURED + 2)
    assert len(told) == fake_gpu.n_captures == 1


def test_rounding_is_no_lie(fake_gpu):
    captured = make_model(CoRe)
    fake_gpu.lie = lambda: [p.data.mul_(1 + 1e-6) for p in captured.policy.parameters()]
    update(captured, WARM_UPS + 1)
    assert captured._graphed_updates._graphs


def test_an_update_that_cannot_be_captured_runs_without_graphs_and_one_warning_says_so(fake_gpu):
    captured, plain = with_and_without_graphs(SACRAD)
    fake_gpu.refusal = "operation not permitted when stream is capturing"
    with pytest.warns(UserWarning, match=r"without CUDA graphs.* \(operation not perm") as told:
        assert_equal_updates(captured, plain, CAPTURED + 4)
    assert len(told) == 1


def test_saving_between_updates_changes_nothing(fake_gpu, tmp_path):
    captured, plain = with_and_without_graphs(SACRAD)
    update(captured, CAPTURED)
    update(plain, CAPTURED)
    captured.save(tmp_path / "model")
    assert_equal(content(SACRAD.load(tmp_path / "model", env=FakeEnv(VECTOR))), content(plain))
    assert_equal_updates(captured, plain, 4)
    assert fake_gpu.n_captures == n_kinds(captured)
    assert not pickle.loads(pickle.dumps(captured._graphed_updates))._graphs


# ---- on a GPU ----


@needs_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("space", [IMAGE, VECTOR], ids=["image", "vector"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_on_a_gpu_graphs_prove_themselves_and_do_not_wait(algorithm, space, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    captured, plain = with_and_without_graphs(algorithm, space, device="cuda", precision="float32")
    ours, theirs = update(captured, CAPTURED + 4), update(plain, CAPTURED + 4)
    assert len(captured._graphed_updates._graphs) == n_kinds(captured)
    for one, other in zip(ours, theirs):
        assert one == pytest.approx(other, rel=1e-2, abs=1e-3)
    batches = [captured._sample_batch(3) for _ in range(4)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            captured._update(batch)
            captured._n_updates += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")


class WaitingSACRAD(SACRAD):
    """A user's subclass that looks at a loss."""

    def update(self, batch):
        metrics = super().update(batch)
        self.last_loss = metrics["critic_loss"].item()
        return metrics


@needs_gpu
def test_on_a_gpu_an_update_that_waits_runs_without_graphs():
    model = make_model(WaitingSACRAD, IMAGE, device="cuda")
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        model.train(CAPTURED, 3)
    before = content(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train(2, 3)
    assert not torch.equal(*(c["critic.net.weights.0"] for c in (content(model), before)))
    assert torch.rand(3, device="cuda").shape == (3,)
