"""The RSSM's recurrence with its gradient worked out by hand.

Autograd would keep a graph of some 70 nodes for each step and add up the gradient of every weight
matrix at every step, a product of rank ``B`` each time. Here each step's backward pass computes
what the next one needs, and each weight's gradient is one product over all steps at the end. The
values are those of :meth:`~core_agent.rssm.RSSM.advance` and
:meth:`~core_agent.rssm.RSSM.posterior`, step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LOG_STD_RANGE = (-10.0, 10.0)
LAYER_NORM_EPS = 1e-5


class RecurrentWeights(NamedTuple):
    """Everything that the loop multiplies with."""

    from_stoch: torch.Tensor
    """``(G, S)``: the stochastic state's columns of the GRU network's first layer."""
    gru_layers: Sequence[nn.Linear]
    """The other layers of the network in front of the GRU."""
    cell: torch.Tensor
    """``(3 D, G + D)``"""
    cell_norm: nn.LayerNorm
    from_deter: torch.Tensor
    """``(P, D)``: the deterministic state's columns of the posterior's first layer."""
    posterior_layers: Sequence[nn.Linear]
    """The other layers of the posterior, the last one linear."""
    posterior_norm: nn.LayerNorm

    def flatten(self) -> list[torch.Tensor]:
        tensors = [self.from_stoch, self.cell, self.cell_norm.weight, self.cell_norm.bias]
        tensors += [self.from_deter, self.posterior_norm.weight, self.posterior_norm.bias]
        for layer in [*self.gru_layers, *self.posterior_layers]:
            tensors += [layer.weight, layer.bias]
        return tensors


def recur(
    embed_part: torch.Tensor,
    action_part: torch.Tensor,
    noise: torch.Tensor,
    weights: RecurrentWeights,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Filter ``T`` steps from ``h = 0``.

    :param embed_part: ``(T, B, P)``, what the features add to the posterior's first layer
    :param action_part: ``(T - 1, B, G)``, what the actions add to the GRU network's first layer
    :param noise: ``(T, B, S)``, standard normal
    :param weights: of the recurrent networks
    :return: deterministic states ``(T, B, D)``, statistics of the posterior ``(T, B, 2 S)``
        (mean and log standard deviation, not clamped yet) and its samples ``(T, B, S)``
    """
    n_gru = len(weights.gru_layers)
    return _Recurrence.apply(embed_part, action_part, noise, n_gru, *weights.flatten())


def _layers(tensors: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(tensors[::2], tensors[1::2]))


def _elu_backward(grad: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.elu_backward(grad, 1.0, 1.0, 1.0, True, result)


def _layer_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, w: torch.Tensor
) -> torch.Tensor:
    """Gradient of the input alone."""
    size = [x.shape[-1]]
    result = torch.ops.aten.native_layer_norm_backward(
        grad, x, size, mean, rstd, w, None, [True, False, False]
    )
    return result[0]


def _layer_norm_weight_grads(
    grad: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of scale and shift over all steps at once."""
    normalized = (x - mean) * rstd
    return (grad * normalized).sum(dim=(0, 1)), grad.sum(dim=(0, 1))


def _weight_grad(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``(out, in)`` from ``(T, B, out)`` and ``(T, B, in)``: one product over all steps."""
    return grad.flatten(0, 1).t() @ x.flatten(0, 1)


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embed_part: torch.Tensor,
        action_part: torch.Tensor,
        noise: torch.Tensor,
        n_gru: int,
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        from_stoch, cell, cell_scale, cell_shift = tensors[:4]
        from_deter, stats_scale, stats_shift = tensors[4:7]
        layers = _layers(tensors[7:])
        gru_layers, (*posterior_layers, last_layer) = layers[:n_gru], layers[n_gru:]
        n_steps, batch, _ = embed_part.shape
        deter_dim, stoch_dim = from_deter.shape[1], from_stoch.shape[1]

        def buffer(steps: int, dim: int) -> torch.Tensor:
            return embed_part.new_empty(steps, batch, dim)

        deters, stochs = buffer(n_steps, deter_dim), buffer(n_steps, stoch_dim)
        statistics = buffer(n_steps, 2 * stoch_dim)
        last = buffer(n_steps, 2 * stoch_dim)
        gru_hidden = [
            buffer(n_steps - 1, w.shape[0]) for w in (from_stoch, *(w for w, _ in gru_layers))
        ]
        posterior_hidden = [
            buffer(n_steps, w.shape[0]) for w in (from_deter, *(w for w, _ in posterior_layers))
        ]
        cell_in = buffer(n_steps - 1, cell.shape[1])
        gates_in = buffer(n_steps - 1, 3 * deter_dim)
        reset, candidate, update, candidate_in = (buffer(n_steps - 1, deter_dim) for _ in range(4))
        gate_stats, stat_stats = [], []
        deters[0] = 0.0
        for t in range(n_steps):
            if t > 0:
                x = torch.addmm(
                    action_part[t - 1], stochs[t - 1], from_stoch.t(), out=gru_hidden[0][t - 1]
                )
                F.elu_(x)
                for (weight, bias), hidden in zip(gru_layers, gru_hidden[1:]):
                    x = F.elu_(torch.addmm(bias, x, weight.t(), out=hidden[t - 1]))
                torch.cat([x, deters[t - 1]], dim=-1, out=cell_in[t - 1])
                torch.mm(cell_in[t - 1], cell.t(), out=gates_in[t - 1])
                gates, *moments = torch.native_layer_norm(
                    gates_in[t - 1], [3 * deter_dim], cell_scale, cell_shift, LAYER_NORM_EPS
                )
                gate_stats.append(moments)
                r, c, u = gates.chunk(3, dim=-1)
                torch.sigmoid(r, out=reset[t - 1])
                candidate_in[t - 1] = c
                torch.mul(reset[t - 1], c, out=candidate[t - 1]).tanh_()
                torch.sub(u, 1.0, out=update[t - 1]).sigmoid_()
                torch.lerp(deters[t - 1], candidate[t - 1], update[t - 1], out=deters[t])
            x = torch.addmm(embed_part[t], deters[t], from_deter.t(), out=posterior_hidden[0][t])
            F.elu_(x)
            for (weight, bias), hidden in zip(posterior_layers, posterior_hidden[1:]):
                x = F.elu_(torch.addmm(bias, x, weight.t(), out=hidden[t]))
            torch.addmm(last_layer[1], x, last_layer[0].t(), out=last[t])
            normalized, *moments = torch.native_layer_norm(
                last[t], [2 * stoch_dim], stats_scale, stats_shift, LAYER_NORM_EPS
            )
            stat_stats.append(moments)
            statistics[t] = normalized
            mean, log_std = normalized.chunk(2, dim=-1)
            torch.addcmul(mean, log_std.clamp(*LOG_STD_RANGE).exp_(), noise[t], out=stochs[t])

        ctx.n_gru, ctx.n_posterior = n_gru, len(posterior_layers)
        moments = [torch.stack(m) for pairs in (gate_stats, stat_stats) for m in zip(*pairs)]
        if not gate_stats:
            moments = [embed_part.new_empty(0, batch, 1) for _ in range(2)] + moments
        ctx.save_for_backward(
            noise, deters, stochs, statistics, last, cell_in, gates_in, reset, candidate, update,
            candidate_in, *moments, *gru_hidden, *posterior_hidden, *tensors,
        )  # fmt: skip
        return deters, statistics, stochs

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        grad_deters: torch.Tensor,
        grad_statistics: torch.Tensor,
        grad_stochs: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        saved = list(ctx.saved_tensors)
        noise, deters, stochs, statistics, last, cell_in, gates_in, reset, candidate, update = (
            saved[:10]
        )
        candidate_in, gate_mean, gate_rstd, stat_mean, stat_rstd = saved[10:15]
        gru_hidden = saved[15 : 16 + ctx.n_gru]
        posterior_hidden = saved[16 + ctx.n_gru : 17 + ctx.n_gru + ctx.n_posterior]
        tensors = saved[17 + ctx.n_gru + ctx.n_posterior :]
        from_stoch, cell, cell_scale, _ = tensors[:4]
        from_deter, stats_scale, _ = tensors[4:7]
        layers = _layers(tensors[7:])
        gru_layers, (*posterior_layers, last_layer) = layers[: ctx.n_gru], layers[ctx.n_gru :]
        n_steps, _, stoch_dim = stochs.shape
        gru_dim = gru_hidden[-1].shape[-1]

        log_std = statistics[..., stoch_dim:]
        low, high = LOG_STD_RANGE
        inside = (log_std >= low) & (log_std <= high)
        sample_slope = torch.where(inside, log_std.clamp(low, high).exp() * noise, 0.0)
        grad_stats = grad_statistics.clone()
        grad_last = torch.empty_like(last)
        grad_posterior = [torch.empty_like(hidden) for hidden in posterior_hidden]
        grad_gru = [torch.empty_like(hidden) for hidden in gru_hidden]
        grad_gates, grad_gates_in = torch.empty_like(gates_in), torch.empty_like(gates_in)
        carry_deter = torch.zeros_like(deters[0])
        carry_stoch = torch.zeros_like(stochs[0])
        for t in reversed(range(n_steps)):
            grad_stoch = grad_stochs[t] + carry_stoch
            grad_stats[t, :, :stoch_dim] += grad_stoch
            grad_stats[t, :, stoch_dim:].addcmul_(grad_stoch, sample_slope[t])
            grad_last[t] = _layer_norm_backward(
                grad_stats[t], last[t], stat_mean[t], stat_rstd[t], stats_scale
            )
            grad = grad_last[t] @ last_layer[0]
            for index in range(len(posterior_layers), -1, -1):
                grad_posterior[index][t] = _elu_backward(grad, posterior_hidden[index][t])
                grad = grad_posterior[index][t] @ (
                    posterior_layers[index - 1][0] if index > 0 else from_deter
                )
            grad_deter = grad_deters[t] + carry_deter + grad
            if t == 0:
                break
            s = t - 1
            r, c, u = reset[s], candidate[s], update[s]
            grad_pre = grad_deter * u * (1.0 - c * c)
            grad_r, grad_c, grad_u = grad_gates[s].chunk(3, dim=-1)
            torch.mul(grad_pre * candidate_in[s], r * (1.0 - r), out=grad_r)
            torch.mul(grad_pre, r, out=grad_c)
            torch.mul(grad_deter * (c - deters[s]), u * (1.0 - u), out=grad_u)
            grad_gates_in[s] = _layer_norm_backward(
                grad_gates[s], gates_in[s], gate_mean[s], gate_rstd[s], cell_scale
            )
            grad, carry_deter = (grad_gates_in[s] @ cell).split([gru_dim, deters.shape[-1]], dim=-1)
            carry_deter = carry_deter + grad_deter * (1.0 - u)
            for index in range(len(gru_layers), -1, -1):
                grad_gru[index][s] = _elu_backward(grad, gru_hidden[index][s])
                grad = grad_gru[index][s] @ (gru_layers[index - 1][0] if index > 0 else from_stoch)
            carry_stoch = grad

        cell_scale_grads = _layer_norm_weight_grads(grad_gates, gates_in, gate_mean, gate_rstd)
        stats_scale_grads = _layer_norm_weight_grads(grad_stats, last, stat_mean, stat_rstd)
        weight_grads = [
            _weight_grad(grad_gru[0], stochs[:-1]),
            _weight_grad(grad_gates_in, cell_in),
            *cell_scale_grads,
            _weight_grad(grad_posterior[0], deters),
            *stats_scale_grads,
        ]
        pairs = [
            *zip(grad_gru[1:], gru_hidden),
            *zip([*grad_posterior[1:], grad_last], posterior_hidden),
        ]
        for grad, x in pairs:
            weight_grads += [_weight_grad(grad, x), grad.sum(dim=(0, 1))]
        return (grad_posterior[0], grad_gru[0], None, None, *weight_grads)
