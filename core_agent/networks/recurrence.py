"""The RSSM's recurrence with its gradient worked out by hand.

Autograd would keep a graph of some 70 nodes for each step and add up the gradient of every weight
matrix at every step, a product of rank ``B`` each time. Here each step's backward pass computes
what the next one needs, and each weight's gradient is one product over all steps at the end. The
values are those of :meth:`~core_agent.networks.rssm.RSSM.advance` and
:meth:`~core_agent.networks.rssm.RSSM.posterior`, step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LOG_STD_RANGE = (-10.0, 10.0)
LAYER_NORM_EPS = 1e-5

Layer = tuple[torch.Tensor, torch.Tensor]
"""Weight and bias."""


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


class _Parts(NamedTuple):
    """:class:`RecurrentWeights` as plain tensors."""

    from_stoch: torch.Tensor
    cell: torch.Tensor
    cell_scale: torch.Tensor
    cell_shift: torch.Tensor
    from_deter: torch.Tensor
    stats_scale: torch.Tensor
    stats_shift: torch.Tensor
    gru: list[Layer]
    posterior: list[Layer]

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor], n_gru: int) -> _Parts:
        """From what :meth:`RecurrentWeights.flatten` gives."""
        from_stoch, cell, cell_scale, cell_shift = tensors[:4]
        from_deter, stats_scale, stats_shift = tensors[4:7]
        layers = list(zip(tensors[7::2], tensors[8::2]))
        return cls(
            from_stoch,
            cell,
            cell_scale,
            cell_shift,
            from_deter,
            stats_scale,
            stats_shift,
            layers[:n_gru],
            layers[n_gru:],
        )


def _hidden_layers(x: torch.Tensor, layers: Sequence[Layer]) -> list[torch.Tensor]:
    """``ELU(x)`` and the ELU of every layer on it."""
    hidden = [F.elu_(x)]
    for weight, bias in layers:
        hidden.append(F.elu_(F.linear(hidden[-1], weight, bias)))
    return hidden


def _advance(
    action_part: torch.Tensor, deter: torch.Tensor, stoch: torch.Tensor, parts: _Parts
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The next ``h``, ``(B, D)``, and what its gradient needs."""
    first = torch.addmm(action_part, stoch, parts.from_stoch.t())
    hidden = _hidden_layers(first, parts.gru)
    cell_in = torch.cat([hidden[-1], deter], dim=-1)
    gates_in = cell_in @ parts.cell.t()
    gates, mean, rstd = torch.native_layer_norm(
        gates_in, gates_in.shape[-1:], parts.cell_scale, parts.cell_shift, LAYER_NORM_EPS
    )
    reset, candidate_in, update = gates.chunk(3, dim=-1)
    reset = torch.sigmoid(reset)
    candidate = torch.tanh(reset * candidate_in)
    update = torch.sigmoid(update - 1.0)
    trace = (cell_in, gates_in, mean, rstd, reset, candidate_in, candidate, update, *hidden)
    return torch.lerp(deter, candidate, update), trace


def _infer(
    embed_part: torch.Tensor, deter: torch.Tensor, noise: torch.Tensor, parts: _Parts
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """Statistics ``(B, 2 S)`` of the posterior at ``h``, its sample ``(B, S)``, and what their
    gradient needs."""
    *layers, last_layer = parts.posterior
    hidden = _hidden_layers(torch.addmm(embed_part, deter, parts.from_deter.t()), layers)
    last = F.linear(hidden[-1], *last_layer)
    statistics, mean, rstd = torch.native_layer_norm(
        last, last.shape[-1:], parts.stats_scale, parts.stats_shift, LAYER_NORM_EPS
    )
    center, log_std = statistics.chunk(2, dim=-1)
    stoch = torch.addcmul(center, log_std.clamp(*LOG_STD_RANGE).exp_(), noise)
    return statistics, stoch, (last, mean, rstd, *hidden)


def _stack(steps: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """Each of the steps' tensors over all steps."""
    return [torch.stack(tensors) for tensors in zip(*steps)]


def _elu_slope(result: torch.Tensor) -> torch.Tensor:
    return result.clamp(max=0.0).add_(1.0)


def _layer_norm_backward(
    grad: torch.Tensor, normed: tuple[torch.Tensor, ...], weight: torch.Tensor
) -> torch.Tensor:
    """Gradient of the input alone; ``normed`` is the input, its mean and reciprocal deviation."""
    x, mean, rstd = normed
    result = torch.ops.aten.native_layer_norm_backward(
        grad, x, x.shape[-1:], mean, rstd, weight, None, [True, False, False]
    )
    return result[0]


def _layer_norm_weight_grads(
    grad: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of scale and shift over all steps at once."""
    normalized = (x - mean) * rstd
    return (grad * normalized).sum(dim=(0, 1)), grad.sum(dim=(0, 1))


def _hidden_layers_backward(
    grad: torch.Tensor, weights: Sequence[torch.Tensor], slopes: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Gradients of the first layer's input, and of what each activation was applied to."""
    grads = []
    for weight, slope in zip(reversed(weights), reversed(slopes)):
        grad = grad * slope
        grads.append(grad)
        grad = grad @ weight
    return grad, grads[::-1]


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
        parts = _Parts.of(tensors, n_gru)
        deter = embed_part.new_zeros(embed_part.shape[1], parts.from_deter.shape[1])
        deters: list[torch.Tensor] = []
        statistics: list[torch.Tensor] = []
        stochs: list[torch.Tensor] = []
        advances, infers = [], []
        for t, (embed_t, noise_t) in enumerate(zip(embed_part, noise)):
            if t > 0:
                deter, advance = _advance(action_part[t - 1], deter, stochs[-1], parts)
                advances.append(advance)
            stats, stoch, infer = _infer(embed_t, deter, noise_t, parts)
            infers.append(infer)
            deters.append(deter)
            statistics.append(stats)
            stochs.append(stoch)
        if not advances:  # a single frame: for the shapes of what has no steps then
            no_action = action_part.new_zeros(action_part.shape[1:])
            advances.append(_advance(no_action, deter, stochs[-1], parts)[1])
        advance_trace = [part[: len(action_part)] for part in _stack(advances)]
        infer_trace = _stack(infers)
        results = torch.stack(deters), torch.stack(statistics), torch.stack(stochs)
        ctx.n_gru, ctx.sizes = n_gru, [4, len(tensors), len(infer_trace), len(advance_trace)]
        ctx.save_for_backward(noise, *results, *tensors, *infer_trace, *advance_trace)
        return results

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        grad_deters: torch.Tensor,
        grad_statistics: torch.Tensor,
        grad_stochs: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        results, tensors, infer_trace, advance_trace = ([*islice(saved, n)] for n in ctx.sizes)
        noise, deters, statistics, stochs = results
        parts = _Parts.of(tensors, ctx.n_gru)
        last, stat_mean, stat_rstd, *posterior_hidden = infer_trace
        cell_in, gates_in, gate_mean, gate_rstd = advance_trace[:4]
        reset, candidate_in, candidate, update, *gru_hidden = advance_trace[4:]

        # Whatever is known before the loop is worked out for all steps at once.
        log_std = statistics.chunk(2, dim=-1)[1]
        low, high = LOG_STD_RANGE
        inside = (log_std >= low) & (log_std <= high)
        infer_steps = list(
            zip(
                grad_deters,
                grad_statistics,
                grad_stochs,
                torch.where(inside, log_std.clamp(low, high).exp() * noise, 0.0),
                zip(last, stat_mean, stat_rstd),
                zip(*(_elu_slope(hidden) for hidden in posterior_hidden)),
            )
        )
        advance_steps = list(
            zip(
                update * (1.0 - candidate.square()),
                candidate_in * reset * (1.0 - reset),
                reset,
                (candidate - deters[:-1]) * update * (1.0 - update),
                1.0 - update,
                zip(gates_in, gate_mean, gate_rstd),
                zip(*(_elu_slope(hidden) for hidden in gru_hidden)),
            )
        )
        gru_weights = [parts.from_stoch, *(weight for weight, _ in parts.gru)]
        *posterior_layers, (last_weight, _) = parts.posterior
        posterior_weights = [parts.from_deter, *(weight for weight, _ in posterior_layers)]
        sizes = [gru_weights[-1].shape[0], deters.shape[-1]]

        infer_grads, advance_grads = [], []
        carry_deter, carry_stoch = torch.zeros_like(deters[0]), torch.zeros_like(stochs[0])
        for t in reversed(range(len(deters))):
            grad_deter, grad_stats, grad_stoch, sample_slope, normed, slopes = infer_steps[t]
            grad_stoch = grad_stoch + carry_stoch
            grad_stats = grad_stats + torch.cat([grad_stoch, grad_stoch * sample_slope], dim=-1)
            grad_last = _layer_norm_backward(grad_stats, normed, parts.stats_scale)
            grad, grad_hidden = _hidden_layers_backward(
                grad_last @ last_weight, posterior_weights, slopes
            )
            infer_grads.append((grad_stats, grad_last, *grad_hidden))
            grad_deter = grad_deter + carry_deter + grad
            if t == 0:
                break
            candidate_slope, reset_slope, r, update_slope, kept, normed, slopes = advance_steps[
                t - 1
            ]
            grad_pre = grad_deter * candidate_slope
            grad_gates = torch.cat(
                [grad_pre * reset_slope, grad_pre * r, grad_deter * update_slope], dim=-1
            )
            grad_gates_in = _layer_norm_backward(grad_gates, normed, parts.cell_scale)
            grad, carry_deter = (grad_gates_in @ parts.cell).split(sizes, dim=-1)
            carry_deter = torch.addcmul(carry_deter, grad_deter, kept)
            carry_stoch, grad_hidden = _hidden_layers_backward(grad, gru_weights, slopes)
            advance_grads.append((grad_gates, grad_gates_in, *grad_hidden))

        grad_stats, grad_last, *grad_posterior = _stack(infer_grads[::-1])
        grad_gates, grad_gates_in, *grad_gru = _stack(advance_grads[::-1]) or [
            *(gates_in, gates_in),
            *gru_hidden,
        ]
        weight_grads = [
            _weight_grad(grad_gru[0], stochs[:-1]),
            _weight_grad(grad_gates_in, cell_in),
            *_layer_norm_weight_grads(grad_gates, gates_in, gate_mean, gate_rstd),
            _weight_grad(grad_posterior[0], deters),
            *_layer_norm_weight_grads(grad_stats, last, stat_mean, stat_rstd),
        ]
        pairs = [
            *zip(grad_gru[1:], gru_hidden),
            *zip([*grad_posterior[1:], grad_last], posterior_hidden),
        ]
        for grad, x in pairs:
            weight_grads += [_weight_grad(grad, x), grad.sum(dim=(0, 1))]
        return (grad_posterior[0], grad_gru[0], None, None, *weight_grads)
