"""Updates as CUDA graphs: emulated on a CPU, and on a GPU where there is one."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import pytest
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import LinearSchedule
from torch.optim import adam
from torch.utils._python_dispatch import TorchDispatchMode

from core_agent import SACRAD, CoRe, QTOptRAD
from core_agent.agents import cuda_graphs
from core_agent.agents.base import SequenceOffPolicyAlgorithm
from core_agent.agents.cuda_graphs import WARM_UPS, CapturedUpdate, room_for
from core_agent.agents.registry import AGENTS
from core_agent.finetuning import freeze, refresh
from core_agent.networks.optimization import FiniteGuard, descend
from core_agent.networks.types import TransitionBatch
from core_agent.validation import NonFiniteError
from tests.agents.emulation import EmulatedStream, tensors
from tests.fakes import BOTH, IMAGE, VECTOR, FakeEnv, SavableEnv, policy_name, tiny

ALGORITHMS = list(AGENTS.values())
FEW = [CoRe, SACRAD, QTOptRAD]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CAPTURED = 2 * (WARM_UPS + 1)
"""Updates after which both kinds of updates that feed-forward agents make have been captured."""
CPU = torch.device("cpu")


@pytest.fixture
def emulated_gpu(monkeypatch):
    """Agents on a CPU do as on a GPU; gives the class that counts captures."""
    monkeypatch.setattr(SequenceOffPolicyAlgorithm, "_runs_ahead", True)
    monkeypatch.setattr(cuda_graphs, "SideStream", EmulatedStream)
    monkeypatch.setattr(EmulatedStream, "n_captures", 0)
    return EmulatedStream


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


@pytest.mark.parametrize("space", [IMAGE, VECTOR, BOTH], ids=["image", "vector", "both"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_replayed_updates_are_the_eager_ones_bit_for_bit(algorithm, space, emulated_gpu):
    captured, plain = with_and_without_graphs(algorithm, space)
    assert_equal_updates(captured, plain, CAPTURED + 4)
    assert emulated_gpu.n_captures == n_kinds(captured)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_replays_follow_the_learning_rate(algorithm, emulated_gpu):
    captured, plain = with_and_without_graphs(algorithm)
    assert_equal_updates(captured, plain, CAPTURED + 2)
    for model in (captured, plain):
        model._current_progress_remaining = 0.25
        model._update_learning_rate(model.optimizers)
    assert_equal_updates(captured, plain, 4)
    assert emulated_gpu.n_captures == n_kinds(captured)


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


@pytest.mark.parametrize(
    "change", [set_gamma, set_parameters, freeze_encoder, refresh_critic, replace_guard]
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_update_is_captured_anew_when_what_its_graph_holds_has_changed(
    algorithm, change, emulated_gpu
):
    captured, plain = with_and_without_graphs(algorithm)
    assert_equal_updates(captured, plain, CAPTURED)
    change(captured)
    change(plain)
    assert_equal_updates(captured, plain, CAPTURED + 2)
    assert emulated_gpu.n_captures == 2 * n_kinds(captured)


@pytest.mark.parametrize("algorithm", FEW)
def test_an_update_is_captured_anew_for_batches_of_another_size(algorithm, emulated_gpu):
    captured, plain = with_and_without_graphs(algorithm, IMAGE)
    assert_equal_updates(captured, plain, CAPTURED)
    assert_equal_updates(captured, plain, CAPTURED + 2, batch_size=2)
    assert emulated_gpu.n_captures == 2 * n_kinds(captured)


def test_room_for_a_batch_keeps_the_order_in_memory():
    images = torch.zeros(2, 4, 5, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    entries = {"image": images, "vector": torch.zeros(2, 3)}
    room = room_for(TransitionBatch(entries, torch.zeros(2, 1), entries, *[torch.zeros(2)] * 2))
    assert isinstance(room, TransitionBatch) and isinstance(room.observations, dict)
    assert room.observations["image"].stride() == images.stride()
    assert room.observations["image"].data_ptr() != images.data_ptr()


@pytest.mark.parametrize("algorithm", FEW)
def test_a_run_with_graphs_is_the_run_without(algorithm, emulated_gpu, monkeypatch):
    contents = []
    for setting in ("1", "0"):
        monkeypatch.setenv("CORE_AGENT_CUDA_GRAPHS", setting)
        model = make_model(algorithm, train_freq=(1, "step"))
        contents.append(content(model.learn(30, reset_num_timesteps=False)))
        assert emulated_gpu.n_captures == n_kinds(model)
    assert_equal(*contents)


def test_a_cpu_knows_no_graphs(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "SideStream", None)
    model = make_model(CoRe)
    model.train(WARM_UPS + 2, 3)
    assert all(type(group["lr"]) is float for o in model.optimizers for group in o.param_groups)


class WaitingSACRAD(SACRAD):
    """A user's subclass that looks at a loss."""

    def update(self, batch):
        metrics = super().update(batch)
        self.last_loss = metrics["critic_loss"].item()
        return metrics


def test_an_update_that_waits_goes_on_without_graphs_and_says_so_once(emulated_gpu):
    captured, plain = with_and_without_graphs(WaitingSACRAD)
    with pytest.warns(UserWarning, match=r"without CUDA graphs.*_local_scalar_dense") as caught:
        assert_equal_updates(captured, plain, CAPTURED + 4)
    assert len(caught) == 1
    assert emulated_gpu.n_captures == 0


@pytest.mark.parametrize("algorithm", FEW)
def test_saving_amid_updates_changes_nothing(algorithm, emulated_gpu, tmp_path):
    captured, plain = with_and_without_graphs(algorithm)
    update(captured, CAPTURED)
    update(plain, CAPTURED)
    captured.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=FakeEnv(VECTOR))
    assert_equal(content(loaded), content(plain))
    assert_equal_updates(captured, plain, 4)
    assert emulated_gpu.n_captures == n_kinds(captured)


def test_a_copy_of_captured_updates_starts_from_the_beginning(emulated_gpu):
    model = make_model(CoRe)
    update(model, CAPTURED)
    copied = pickle.loads(pickle.dumps(model._captured_update))
    assert vars(copied).keys() == vars(CapturedUpdate()).keys()
    assert not copied._recordings and model._captured_update._recordings


@pytest.mark.parametrize("algorithm", ALGORITHMS)
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


def to_meta(field: Any) -> Any:
    if isinstance(field, dict):
        return {key: value.to("meta") for key, value in field.items()}
    return field.to("meta")


class OneDevice(TorchDispatchMode):
    """Inside, no operator may touch the CPU, but for the zero of a norm without gradients."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        if operator is not torch.ops.aten.lift_fresh.default:
            devices = {tensor.device.type for tensor in tensors((args, kwargs, result))}
            assert devices <= {"meta"}, operator
        return result


@pytest.mark.parametrize("frozen", [(), ("critic",)], ids=["all", "critic frozen"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_update_neither_copies_to_the_device_nor_waits_for_it(
    algorithm, frozen, emulated_gpu, monkeypatch
):
    # Tensors of the device "meta" have no values to wait for, and mix with the CPU's as a GPU's do.
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_: None)
    model = make_model(algorithm, BOTH)
    batch = room_for(model._sample_batch(3))
    model.policy.to("meta")
    model.device = torch.device("meta")
    model._guard = FiniteGuard(model.device)
    for group in (group for o in model.optimizers for group in o.param_groups):
        group["lr"] = group["lr"].to("meta")
    if frozen:
        freeze(model, *frozen)
    batch = type(batch)(*(to_meta(field) for field in batch))
    for _ in range(2):  # optimisers copy nothing but make their states, once
        model.update(batch)
        model._n_updates += 1
    with OneDevice():
        for _ in range(2):
            assert {value.device.type for value in model.update(batch).values()} == {"meta"}
            model._n_updates += 1


# ---- what is not finite ----


@pytest.mark.parametrize("algorithm", ALGORITHMS)
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


@pytest.mark.parametrize("graphs", ["1", "0"])
@pytest.mark.parametrize("field", ["rewards", "observations"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_changes_from_the_first_update_that_is_not_finite_on(
    algorithm, field, graphs, emulated_gpu, monkeypatch
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
@pytest.mark.parametrize("space", [IMAGE, VECTOR], ids=["image", "vector"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_on_a_gpu_replayed_updates_are_the_eager_ones(algorithm, space, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    captured, plain = with_and_without_graphs(algorithm, space, device="cuda", precision="float32")
    ours, theirs = update(captured, CAPTURED + 4), update(plain, CAPTURED + 4)
    assert len(captured._captured_update._recordings) == n_kinds(captured)
    for one, other in zip(ours, theirs):
        assert one == pytest.approx(other, rel=1e-2, abs=1e-3)
    for name, value in content(plain).items():
        torch.testing.assert_close(content(captured)[name], value, rtol=1e-2, atol=1e-3)


@needs_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_on_a_gpu_replayed_updates_do_not_wait(algorithm):
    model = make_model(algorithm, IMAGE, device="cuda")
    update(model, CAPTURED)
    batches = [model._sample_batch(3) for _ in range(4)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            model._update(batch)
            model._n_updates += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_on_a_gpu_an_update_that_waits_goes_on_without_graphs():
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
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_on_a_gpu_nothing_changes_from_the_first_update_that_is_not_finite_on(algorithm):
    model = make_model(algorithm, device="cuda")
    model.train(CAPTURED, 3)
    before = poison(model, "rewards", at=2)
    with pytest.raises(NonFiniteError, match="gradient of"):
        model.train(5, 3)
    assert_equal(content(model), before)
