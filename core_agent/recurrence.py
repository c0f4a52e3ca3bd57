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


def _steps(*tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Each tensor's entries along the first axis, as views."""
    return [tensor.unbind(0) for tensor in tensors]


def _elu_slope(result: torch.Tensor) -> torch.Tensor:
    return result.clamp(max=0.0).add_(1.0)


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
        last = buffer(n_steps, 2 * stoch_dim)
        gru_hidden = [
            buffer(n_steps - 1, w.shape[0]) for w in (from_stoch, *(w for w, _ in gru_layers))
        ]
        posterior_hidden = [
            buffer(n_steps, w.shape[0]) for w in (from_deter, *(w for w, _ in posterior_layers))
        ]
        cell_in = buffer(n_steps - 1, cell.shape[1])
        gates_in = buffer(n_steps - 1, 3 * deter_dim)
        reset, candidate, update = (buffer(n_steps - 1, deter_dim) for _ in range(3))
        statistics, gates, stat_moments, gate_moments = [], [], [], []

        # Views are made once, not at every step: at small sizes they cost as much as the products.
        deter_at, stoch_at, last_at, noise_at = _steps(deters, stochs, last, noise)
        cell_in_at, gates_in_at, reset_at, candidate_at, update_at = _steps(
            cell_in, gates_in, reset, candidate, update
        )
        gru_at, posterior_at = _steps(*gru_hidden), _steps(*posterior_hidden)
        embed_at, action_at = _steps(embed_part, action_part)
        stoch_in, deter_in, cell_t = from_stoch.t(), from_deter.t(), cell.t()
        gru_rest = [(w.t(), b, h) for (w, b), h in zip(gru_layers, gru_at[1:])]
        posterior_rest = [(w.t(), b, h) for (w, b), h in zip(posterior_layers, posterior_at[1:])]
        last_weight, last_bias = last_layer[0].t(), last_layer[1]

        deters[0] = 0.0
        for t in range(n_steps):
            if t > 0:
                s = t - 1
                x = F.elu_(torch.addmm(action_at[s], stoch_at[s], stoch_in, out=gru_at[0][s]))
                for weight, bias, hidden in gru_rest:
                    x = F.elu_(torch.addmm(bias, x, weight, out=hidden[s]))
                torch.cat([x, deter_at[s]], dim=-1, out=cell_in_at[s])
                torch.mm(cell_in_at[s], cell_t, out=gates_in_at[s])
                normalized, *moments = torch.native_layer_norm(
                    gates_in_at[s], [3 * deter_dim], cell_scale, cell_shift, LAYER_NORM_EPS
                )
                gates.append(normalized)
                gate_moments.append(moments)
                r, c, u = normalized.chunk(3, dim=-1)
                torch.sigmoid(r, out=reset_at[s])
                torch.mul(reset_at[s], c, out=candidate_at[s]).tanh_()
                torch.sub(u, 1.0, out=update_at[s]).sigmoid_()
                torch.lerp(deter_at[s], candidate_at[s], update_at[s], out=deter_at[t])
            x = F.elu_(torch.addmm(embed_at[t], deter_at[t], deter_in, out=posterior_at[0][t]))
            for weight, bias, hidden in posterior_rest:
                x = F.elu_(torch.addmm(bias, x, weight, out=hidden[t]))
            torch.addmm(last_bias, x, last_weight, out=last_at[t])
            normalized, *moments = torch.native_layer_norm(
                last_at[t], [2 * stoch_dim], stats_scale, stats_shift, LAYER_NORM_EPS
            )
            statistics.append(normalized)
            stat_moments.append(moments)
            mean, log_std = normalized.chunk(2, dim=-1)
            std = log_std.clamp(*LOG_STD_RANGE).exp_()
            torch.addcmul(mean, std, noise_at[t], out=stoch_at[t])

        ctx.n_gru, ctx.n_posterior = n_gru, len(posterior_layers)
        stats = torch.stack(statistics)
        moments = [torch.stack(m) for pairs in (gate_moments, stat_moments) for m in zip(*pairs)]
        if n_steps == 1:
            moments = [embed_part.new_empty(0, batch, 1) for _ in range(2)] + moments
        candidate_in = torch.stack(gates).chunk(3, dim=-1)[1] if gates else candidate
        ctx.save_for_backward(
            noise, deters, stochs, stats, last, cell_in, gates_in, reset, candidate, update,
            candidate_in, *moments, *gru_hidden, *posterior_hidden, *tensors,
        )  # fmt: skip
        return deters, stats, stochs

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
        # What the loop multiplies gradients with is worked out for all steps at once.
        candidate_slope = update * (1.0 - candidate.square())
        reset_slope = candidate_in * reset * (1.0 - reset)
        update_slope = (candidate - deters[:-1]) * update * (1.0 - update)
        slopes = _steps(
            sample_slope, candidate_slope, reset_slope, update_slope, reset, 1.0 - update
        )
        sample_at, candidate_at, reset_slope_at, update_at, reset_at, kept_at = slopes
        gru_slopes = _steps(*(_elu_slope(hidden) for hidden in gru_hidden))
        posterior_slopes = _steps(*(_elu_slope(hidden) for hidden in posterior_hidden))
        gru_weights = [from_stoch, *(weight for weight, _ in gru_layers)]
        posterior_weights = [from_deter, *(weight for weight, _ in posterior_layers)]

        grad_stats = grad_statistics.clone()
        grad_last, grad_gates_in = torch.empty_like(last), torch.empty_like(gates_in)
        grad_gates = torch.empty_like(gates_in)
        grad_posterior = [torch.empty_like(hidden) for hidden in posterior_hidden]
        grad_gru = [torch.empty_like(hidden) for hidden in gru_hidden]
        grad_stats_at, last_at, gates_in_at = _steps(grad_stats, last, gates_in)
        grad_mean_at, grad_log_std_at = _steps(*grad_stats.chunk(2, dim=-1))
        grad_gates_at, grad_gates_in_at, grad_last_at = _steps(grad_gates, grad_gates_in, grad_last)
        grad_r_at, grad_c_at, grad_u_at = _steps(*grad_gates.chunk(3, dim=-1))
        grad_posterior_at, grad_gru_at = _steps(*grad_posterior), _steps(*grad_gru)
        grad_deter_at, grad_stoch_at = _steps(grad_deters, grad_stochs)
        stat_mean_at, stat_rstd_at = _steps(stat_mean, stat_rstd)
        gate_mean_at, gate_rstd_at = _steps(gate_mean, gate_rstd)

        carry_deter = torch.zeros_like(deters[0])
        carry_stoch = torch.zeros_like(stochs[0])
        for t in reversed(range(n_steps)):
            grad_stoch = grad_stoch_at[t] + carry_stoch
            grad_mean_at[t].add_(grad_stoch)
            grad_log_std_at[t].addcmul_(grad_stoch, sample_at[t])
            grad = _layer_norm_backward(
                grad_stats_at[t], last_at[t], stat_mean_at[t], stat_rstd_at[t], stats_scale
            )
            grad_last_at[t].copy_(grad)
            grad = grad @ last_layer[0]
            for index in range(len(posterior_weights) - 1, -1, -1):
                torch.mul(grad, posterior_slopes[index][t], out=grad_posterior_at[index][t])
                grad = grad_posterior_at[index][t] @ posterior_weights[index]
            grad_deter = grad_deter_at[t] + carry_deter + grad
            if t == 0:
                break
            s = t - 1
            grad_pre = grad_deter * candidate_at[s]
            torch.mul(grad_pre, reset_slope_at[s], out=grad_r_at[s])
            torch.mul(grad_pre, reset_at[s], out=grad_c_at[s])
            torch.mul(grad_deter, update_at[s], out=grad_u_at[s])
            grad = _layer_norm_backward(
                grad_gates_at[s], gates_in_at[s], gate_mean_at[s], gate_rstd_at[s], cell_scale
            )
            grad_gates_in_at[s].copy_(grad)
            grad, carry_deter = (grad @ cell).split([gru_dim, deters.shape[-1]], dim=-1)
            carry_deter = torch.addcmul(carry_deter, grad_deter, kept_at[s])
            for index in range(len(gru_weights) - 1, -1, -1):
                torch.mul(grad, gru_slopes[index][s], out=grad_gru_at[index][s])
                grad = grad_gru_at[index][s] @ gru_weights[index]
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
