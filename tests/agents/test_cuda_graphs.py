"""Updates as CUDA graphs: with a stand-in for graphs on a CPU, and on a GPU where there is one."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import LinearSchedule
from torch.optim import adam
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from core_agent import SACRAD, CoRe, QTOptRAD
from core_agent.agents import cuda_graphs
from core_agent.agents.base import SequenceOffPolicyAlgorithm
from core_agent.agents.cuda_graphs import WARM_UPS, GraphedUpdates
from core_agent.agents.registry import AGENTS
from core_agent.finetuning import freeze, refresh
from core_agent.networks.optimization import FiniteGuard, descend
from core_agent.validation import NonFiniteError
from tests.fakes import BOTH, IMAGE, VECTOR, FakeEnv, SavableEnv, policy_name, tiny

ALGORITHMS = list(AGENTS.values())
FEW = [CoRe, SACRAD, QTOptRAD]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CAPTURED = 2 * (WARM_UPS + 1)
"""Updates after which both kinds of updates that feed-forward agents make have been captured."""
CPU = torch.device("cpu")


class FakeStream:
    """In place of ``SideStream`` on a CPU: a replay makes the update again, and then lies."""

    devices: ClassVar[list[torch.device]] = []  # The CPU's random state is always kept.
    n_captures: ClassVar[int] = 0
    lie: ClassVar[Callable[[], None] | None] = None
    refusal: ClassVar[str | None] = None

    def __init__(self, device: torch.device) -> None:
        pass

    def run(self, update: Callable[[Any], Any], batch: Any) -> Any:
        return update(batch)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        if self.refusal:
            raise RuntimeError(self.refusal)

        def replay() -> None:
            function()
            if FakeStream.lie is not None:
                FakeStream.lie()

        FakeStream.n_captures += 1
        return replay


@pytest.fixture
def fake_gpu(monkeypatch):
    """Agents on a CPU do as on a GPU; gives the class that counts captures."""
    monkeypatch.setattr(SequenceOffPolicyAlgorithm, "_runs_ahead", True)
    monkeypatch.setattr(cuda_graphs, "SideStream", FakeStream)
    for name, value in dict(n_captures=0, lie=None, refusal=None).items():
        monkeypatch.setattr(FakeStream, name, value)
    return FakeStream


def make_model(algorithm: type, space: Any = VECTOR, **kwargs: Any) -> Any:
    """One with a few episodes in its buffer, and no update made."""
    arguments = {
        **tiny(algorithm),
        "learning_rate": LinearSchedule(1e-2, 1e-3, 1.0),
        "gradient_steps": 0,
        **kwargs,
    }
    model = algorithm(policy_name(space), SavableEnv(space), **arguments)
    model.learn(20)
    model.set_logger(Logger(None, []))
    model.gradient_steps = 1
    return model


def with_and_without_graphs(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Two equal models."""
    captured, plain = make_model(*args, **kwargs), make_model(*args, **kwargs)
    plain._update = plain.update
    return captured, plain


def update(model: Any, n_updates: int, batch_size: int = 3, seed: int = 0) -> list[Any]:
    """The metrics of updates, looked at after the last one."""
    torch.manual_seed(seed)
    metrics = []
    for _ in range(n_updates):
        metrics.append(model._update(model._sample_batch(batch_size)))
        model._n_updates += 1
    return [{name: value.item() for name, value in each.items()} for each in metrics]


def content(model: Any) -> dict[str, torch.Tensor]:
    """All parameters, and the states of all optimisers."""
    found = {name: value.clone() for name, value in model.policy.state_dict().items()}
    for name, optimizer in zip(model.optimizer_names, model.optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            found |= {f"{name} {index} {key}": value.clone() for key, value in state.items()}
    return found


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_equal_updates(captured: Any, plain: Any, n_updates: int, **kwargs: Any) -> None:
    assert update(captured, n_updates, **kwargs) == update(plain, n_updates, **kwargs)
    assert_equal(content(captured), content(plain))


def n_kinds(model: Any) -> int:
    return 2 if model.update_kind else 1


# ---- replays ----


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_updates_with_graphs_are_those_without_bit_for_bit(algorithm, fake_gpu):
    captured, plain = with_and_without_graphs(algorithm, BOTH)
    assert_equal_updates(captured, plain, CAPTURED + 2)
    for model in (captured, plain):
        model._current_progress_remaining = 0.25
        model._update_learning_rate(model.optimizers)
    assert_equal_updates(captured, plain, 2)
    assert fake_gpu.n_captures == n_kinds(captured)
    assert len(captured._graphed_updates._graphs) == n_kinds(captured)


def set_gamma(model: Any) -> None:
    model.gamma = 0.5


def set_parameters(model: Any) -> None:
    other = make_model(type(model), seed=7)
    other._update = other.update
    update(other, 3, seed=5)
    model.set_parameters(other.get_parameters())


def freeze_encoder(model: Any) -> None:
    freeze(model, "encoder" if hasattr(model.policy, "encoder") else "world_model.encoder")


def refresh_critic(model: Any) -> None:
    torch.manual_seed(1)
    refresh(model, "critic")


def replace_guard(model: Any) -> None:
    model._guard = FiniteGuard(model.device)


def take_other_batches(model: Any) -> None:
    sample = model._sample_batch
    model._sample_batch = lambda batch_size: sample(batch_size - 1)


CHANGES = [
    set_gamma,
    set_parameters,
    freeze_encoder,
    refresh_critic,
    replace_guard,
    take_other_batches,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("algorithm", [CoRe, SACRAD])
def test_an_update_is_captured_again_when_what_its_graph_holds_has_changed(
    algorithm, change, fake_gpu
):
    captured, plain = with_and_without_graphs(algorithm)
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


def test_a_cpu_knows_no_graphs(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "SideStream", None)
    model = make_model(CoRe)
    model.train(WARM_UPS + 2, 3)
    assert all(type(group["lr"]) is float for o in model.optimizers for group in o.param_groups)


# ---- the proof ----


def move_a_weight(model: Any, batch: Any) -> None:
    model.policy.critic.net.weights[0].data.add_(1e-2)


def miscount(model: Any, batch: Any) -> None:
    next(iter(model.policy.critic_optimizer.state.values()))["step"].add_(1)


def make_another_update(model: Any, batch: Any) -> None:
    model.update(batch)


@pytest.mark.parametrize("lie", [move_a_weight, miscount, make_another_update])
def test_a_graph_that_does_something_else_is_never_used_and_one_warning_says_so(lie, fake_gpu):
    captured, plain = with_and_without_graphs(SACRAD)
    batch, _ = (model._sample_batch(3) for model in (captured, plain))
    fake_gpu.lie = staticmethod(lambda: lie(captured, batch))
    with pytest.warns(UserWarning, match="without CUDA graphs.* a replay of one does not") as told:
        assert_equal_updates(captured, plain, CAPTURED + 2)
    assert len(told) == 1
    assert fake_gpu.n_captures == 1


def test_rounding_is_no_lie(fake_gpu):
    captured = make_model(CoRe)
    fake_gpu.lie = staticmethod(
        lambda: [p.data.mul_(1 + 1e-6) for p in captured.policy.parameters()]
    )
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
    copied = pickle.loads(pickle.dumps(captured._graphed_updates))
    assert vars(copied).keys() == vars(GraphedUpdates()).keys() and not copied._graphs


@pytest.mark.parametrize("algorithm", FEW)
def test_learning_rates_stay_tensors_on_a_gpu_and_numbers_on_a_cpu(
    algorithm, monkeypatch, tmp_path
):
    make_model(algorithm).save(tmp_path / "cpu")
    with monkeypatch.context() as patched:
        patched.setattr(SequenceOffPolicyAlgorithm, "_runs_ahead", True)
        gpu = algorithm.load(tmp_path / "cpu", env=SavableEnv(VECTOR))
        rates = [group["lr"] for o in gpu.optimizers for group in o.param_groups]
        gpu.set_logger(Logger(None, []))
        gpu._update_learning_rate(gpu.optimizers)
        kept = [group["lr"] for o in gpu.optimizers for group in o.param_groups]
        assert all(one is other and one.shape == () for one, other in zip(rates, kept))
        gpu.save(tmp_path / "gpu")
    cpu = algorithm.load(tmp_path / "gpu", env=SavableEnv(VECTOR))
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


@pytest.mark.parametrize(
    ("algorithm", "frozen"), [*((one, ()) for one in ALGORITHMS), (CoRe, ("critic",))]
)
def test_an_update_neither_copies_to_the_device_nor_waits_for_it(
    algorithm, frozen, fake_gpu, monkeypatch
):
    # Tensors of the device "meta" have no values to wait for, and mix with the CPU's as a GPU's do.
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_: None)
    model = make_model(algorithm, BOTH)
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


# ---- what is not finite ----


@pytest.mark.parametrize("algorithm", FEW)
def test_a_guard_that_defers_changes_no_update(algorithm):
    deferring, plain = make_model(algorithm, IMAGE), make_model(algorithm, IMAGE)
    deferring._guard = FiniteGuard(CPU)
    assert_equal_updates(deferring, plain, 4)
    deferring._guard.check()


def poison(model: Any, field: str, at: int) -> dict[str, torch.Tensor]:
    """Let one batch hold NaN; what is returned gets what the model held before it."""
    sample, before, n_batches = model._sample_batch, {}, 0

    def sample_poisoned(batch_size: int) -> Any:
        nonlocal n_batches
        batch = sample(batch_size)
        n_batches += 1
        if n_batches == at:
            before.update(content(model))
            getattr(batch, field).view(-1)[0] = torch.nan
        return batch

    model._sample_batch = sample_poisoned
    return before


@pytest.mark.parametrize(("field", "graphs"), [("rewards", "1"), ("observations", "0")])
@pytest.mark.parametrize("algorithm", FEW)
def test_nothing_changes_from_the_first_update_that_is_not_finite_on(
    algorithm, field, graphs, fake_gpu, monkeypatch
):
    monkeypatch.setenv("CORE_AGENT_CUDA_GRAPHS", graphs)
    model = make_model(algorithm)
    model.train(CAPTURED, 3)
    before = poison(model, field, at=2)
    first = "model_loss" if algorithm is CoRe else "critic_loss"
    with pytest.raises(NonFiniteError, match=f"^{first}, .*gradient of {first} must be") as error:
        model.train(5, 3)
    assert "actor" not in str(error.value)
    assert_equal(content(model), before)
    # The fault is told once; what follows is learned from, and the next one is told too.
    model.train(2, 3)
    assert not torch.equal(*(c["critic.net.weights.0"] for c in (content(model), before)))
    poison(model, field, at=1)
    with pytest.raises(NonFiniteError, match=f"^{first}, "):
        model.train(1, 3)


def test_the_temperature_stays_where_it_was_before_a_refused_step():
    model = make_model(SACRAD, ent_coef="auto_100", max_log_ent_coef=1.0)
    model._guard = FiniteGuard(CPU)
    poison(model, "rewards", at=1)
    before = model.policy.log_ent_coef.item()
    model.update(model._sample_batch(3))
    assert model.policy.log_ent_coef.item() == before > 1.0


def fail_unnoticed(model: Any) -> None:
    """An update that is not finite, which nobody was told of yet."""
    model._guard = FiniteGuard(CPU)
    batch = model._sample_batch(3)
    model.update(batch._replace(rewards=batch.rewards * torch.nan))


def test_no_checkpoint_hides_a_failure(tmp_path):
    model = make_model(CoRe)
    fail_unnoticed(model)
    with pytest.raises(NonFiniteError, match="model_loss"):
        model.checkpoint(tmp_path)
    assert not list(tmp_path.iterdir())
    model.checkpoint(tmp_path)


def test_failures_are_told_before_anything_is_done_at_a_safe_point():
    model, done = make_model(CoRe), []
    model.at_next_safe_point(lambda: done.append(True) or True)
    fail_unnoticed(model)
    with pytest.raises(NonFiniteError, match="model_loss"):
        model._reach_safe_point()
    assert done == []


def test_an_optimizer_that_cannot_leave_a_step_out_is_asked_to_wait():
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with pytest.raises(NonFiniteError, match=r"^loss, gradient of loss must"):
        descend({"loss": weight * torch.nan}, optimizer, [weight], 1.0, FiniteGuard(CPU))
    assert weight.item() == 1.0


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


@needs_gpu
@pytest.mark.parametrize("algorithm", FEW)
def test_on_a_gpu_nothing_changes_from_the_first_update_that_is_not_finite_on(algorithm):
    model = make_model(algorithm, device="cuda")
    model.train(CAPTURED, 3)
    before = poison(model, "rewards", at=2)
    with pytest.raises(NonFiniteError, match="gradient of"):
        model.train(5, 3)
    assert_equal(content(model), before)
