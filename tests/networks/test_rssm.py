"""The recurrent state-space model."""

from __future__ import annotations

import pytest
import torch

from core_agent.networks.rssm import RSSM, to_gaussian
from core_agent.networks.types import Latent

T, B = 5, 3


def make_rssm() -> RSSM:
    torch.manual_seed(0)
    return RSSM(
        8, 2, deter_dim=6, stoch_dim=4, gru_dims=(7, 7), prior_dims=(7,), posterior_dims=(7, 7)
    )


def test_observe_equals_a_plain_loop():
    rssm = make_rssm()
    embed, actions = torch.randn(T, B, 8), torch.randn(T - 1, B, 2)
    noise = torch.randn(T, B, 4)
    rollout = rssm.observe(embed, actions, noise)
    latent = rssm.initial(B)
    for t in range(T):
        deter = latent.deter if t == 0 else rssm.advance(latent, actions[t - 1])
        posterior = rssm.posterior(deter, embed[t])
        latent = Latent(deter, posterior.sample(noise[t]))
        assert torch.allclose(rollout.deter[t], deter, atol=1e-6)
        assert torch.allclose(rollout.posterior.mean[t], posterior.mean, atol=1e-6)
        assert torch.allclose(rollout.posterior.log_std[t], posterior.log_std, atol=1e-6)
        assert torch.allclose(rollout.stoch[t], latent.stoch, atol=1e-6)


@pytest.mark.parametrize("n_steps", [1, 2, T])
@pytest.mark.parametrize("layers", [(7,), (7, 6), (5, 6, 7)])
def test_a_window_has_the_values_and_gradients_of_its_steps(n_steps, layers):
    torch.manual_seed(0)
    rssm = RSSM(8, 2, 6, 4, layers, (7,), layers).double()
    for norm in (rssm.cell.norm, rssm.posterior_mlp.norm):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    embed = torch.randn(n_steps, B, 8, dtype=torch.float64, requires_grad=True)
    actions = torch.randn(n_steps - 1, B, 2, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(n_steps, B, 4, dtype=torch.float64)
    weights = [torch.randn(n_steps, B, d, dtype=torch.float64) for d in (6, 4, 4, 4)]

    def loss_of(deter, mean, log_std, stoch):
        parts = zip(weights, (deter, mean, log_std, stoch))
        return sum((w * part.square()).sum() for w, part in parts)

    rollout = rssm.observe(embed, actions, noise)
    fast = loss_of(rollout.deter, *rollout.posterior, rollout.stoch)
    latent, states = Latent(*(part.double() for part in rssm.initial(B))), []
    for t in range(n_steps):
        deter = latent.deter if t == 0 else rssm.advance(latent, actions[t - 1])
        posterior = to_gaussian(rssm.posterior_mlp(torch.cat([deter, embed[t]], -1)))
        latent = Latent(deter, posterior.sample(noise[t]))
        states.append((deter, *posterior, latent.stoch))
    plain = loss_of(*(torch.stack(part) for part in zip(*states)))
    assert torch.allclose(fast, plain, rtol=1e-12)
    used = [p for n, p in rssm.named_parameters() if not n.startswith("prior")]
    inputs = [embed, actions, *used]
    ours = torch.autograd.grad(fast, inputs, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(plain, inputs, allow_unused=True, materialize_grads=True)
    for a, b in zip(ours, theirs):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def test_a_sequence_starts_from_zero():
    rssm = make_rssm()
    rollout = rssm.observe(torch.randn(T, B, 8), torch.randn(T - 1, B, 2), torch.randn(T, B, 4))
    assert rollout.deter[0].abs().sum() == 0
    assert rollout.deter[1].abs().sum() > 0


def test_the_past_reaches_the_end_and_the_future_does_not_reach_back():
    rssm = make_rssm()
    embed = torch.randn(T, B, 8, requires_grad=True)
    actions, noise = torch.randn(T - 1, B, 2), torch.zeros(T, B, 4)
    rssm.observe(embed, actions, noise).mean()[-1].sum().backward()
    assert embed.grad[0].abs().sum() > 0
    embed.grad = None
    rssm.observe(embed, actions, noise).mean()[0].sum().backward()
    assert embed.grad[1:].abs().sum() == 0


def test_sequences_of_a_batch_do_not_mix():
    rssm = make_rssm()
    embed, actions, noise = torch.randn(T, B, 8), torch.randn(T - 1, B, 2), torch.randn(T, B, 4)
    together = rssm.observe(embed, actions, noise).mean()
    alone = rssm.observe(embed[:, 1:2], actions[:, 1:2], noise[:, 1:2]).mean()
    assert torch.allclose(together[:, 1:2], alone, atol=1e-6)


def test_imagine_follows_the_prior():
    rssm = make_rssm()
    start = Latent(torch.randn(B, 6), torch.randn(B, 4))
    actions, noise = torch.randn(2, B, 2), torch.randn(2, B, 4)
    imagined = rssm.imagine(start, actions, noise)
    deter = rssm.advance(start, actions[0])
    first = Latent(deter, rssm.prior(deter).sample(noise[0]))
    assert torch.allclose(imagined.deter[0], first.deter)
    assert torch.allclose(imagined.stoch[0], first.stoch)
    assert torch.allclose(imagined.deter[1], rssm.advance(first, actions[1]))


def test_log_std_is_clamped():
    gaussian = to_gaussian(torch.tensor([0.0, 0.0, 50.0, -50.0]))
    assert gaussian.log_std.tolist() == [10.0, -10.0]
