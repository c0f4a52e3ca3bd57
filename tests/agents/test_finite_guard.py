"""What is not finite: nothing is learned from it, and it is told, at once or when asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from core_agent import SACRAD, CoRe, QTOptRAD, RecurrentSAC
from core_agent.networks.optimization import FiniteGuard, descend
from core_agent.validation import NonFiniteError
from tests.agents.updating import FEW, assert_equal, content, make_model, update
from tests.fakes import IMAGE

CPU = torch.device("cpu")


@pytest.mark.parametrize("algorithm", FEW)
def test_a_guard_that_defers_changes_no_update(algorithm):
    deferring, plain = make_model(algorithm, IMAGE), make_model(algorithm, IMAGE)
    deferring._guard = FiniteGuard(CPU)
    assert update(deferring, 4) == update(plain, 4)
    assert_equal(content(deferring), content(plain))
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


@pytest.mark.parametrize(
    ("algorithm", "field", "defers"),
    [
        (CoRe, "rewards", True),
        (SACRAD, "observations", True),
        (QTOptRAD, "rewards", True),
        (CoRe, "observations", False),
    ],
)
def test_nothing_changes_from_the_first_update_that_is_not_finite_on(algorithm, field, defers):
    model = make_model(algorithm)
    model._guard = FiniteGuard(CPU if defers else None)
    model.train(2, 3)
    places = [tensor.data_ptr() for tensor in model._guard.tensors()]
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
    # A CUDA graph writes where it did at its capture.
    assert [tensor.data_ptr() for tensor in model._guard.tensors()] == places


def test_the_temperature_stays_where_it_was_before_a_refused_step():
    model = make_model(SACRAD, ent_coef="auto_100", max_log_ent_coef=1.0)
    model._guard = FiniteGuard(CPU)
    poison(model, "rewards", at=1)
    before = model.policy.log_ent_coef.item()
    model.update(model._sample_batch(3))
    assert model.policy.log_ent_coef.item() == before > 1.0


def fail_unnoticed(model: Any) -> None:
    """An update that is not finite and is not reported yet."""
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


@pytest.mark.parametrize("algorithm", [RecurrentSAC, SACRAD])
def test_a_gradient_that_is_not_clipped_is_looked_at_too(algorithm):
    model = make_model(algorithm, IMAGE)
    model.train(1, 3)
    critic = {id(parameter) for parameter in model.policy.critic.parameters()}
    trained = model.policy.critic_optimizer.param_groups
    others = [p for group in trained for p in group["params"] if id(p) not in critic]
    others[0].register_hook(lambda gradient: gradient * torch.nan)
    before = content(model)
    with pytest.raises(NonFiniteError, match=r"^gradient of critic_loss must be finite"):
        model.train(1, 3)
    assert_equal(content(model), before)


def test_a_norm_that_overflows_is_refused_though_clipping_makes_it_0():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight])
    with pytest.raises(NonFiniteError, match=r"^gradient of loss must be finite"):
        descend({"loss": (weight * 1e30).sum()}, optimizer, [weight], 100.0)
    assert weight.tolist() == [1.0, 1.0]


def test_an_optimizer_that_cannot_leave_a_step_out_is_asked_to_wait():
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with pytest.raises(NonFiniteError, match=r"^loss, gradient of loss must"):
        descend({"loss": weight * torch.nan}, optimizer, [weight], 1.0, FiniteGuard(CPU))
    assert weight.item() == 1.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("algorithm", FEW)
def test_on_a_gpu_nothing_changes_from_the_first_update_that_is_not_finite_on(algorithm):
    model = make_model(algorithm, device="cuda")
    model.train(10, 3)
    before = poison(model, "rewards", at=2)
    with pytest.raises(NonFiniteError, match="gradient of"):
        model.train(5, 3)
    assert_equal(content(model), before)
