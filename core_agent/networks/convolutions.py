"""The encoder's convolutions with their gradient worked out by hand.

Activations are what an update moves most of: 1 GB at the paper's size. Autograd would write the
gradient behind each ReLU to new memory; here it is masked where it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def convolve(
    images: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    strides: Sequence[int],
) -> torch.Tensor:
    """Unpadded convolutions with a ReLU after each, ``(N, C', H', W')``.

    :param images: ``(N, C, H, W)``
    :param weights: ``(out, in, side, side)`` of each convolution, of the images' type
    :param biases: ``(out,)`` of each
    :param strides: of each
    """
    return _Convolutions.apply(images, tuple(strides), *weights, *biases)


class _Convolutions(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: torch.Tensor, strides: tuple[int, ...], *parameters: torch.Tensor
    ) -> torch.Tensor:
        n_layers = len(strides)
        weights, biases = parameters[:n_layers], parameters[n_layers:]
        maps = [images]
        for weight, bias, stride in zip(weights, biases, strides):
            maps.append(F.relu_(F.conv2d(maps[-1], weight, bias, stride)))
        ctx.strides = strides
        ctx.save_for_backward(*maps, *weights)
        return maps[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        n_layers = len(ctx.strides)
        saved = ctx.saved_tensors
        maps, weights = saved[: n_layers + 1], saved[n_layers + 1 :]
        # The gradient given here may be someone else's too; the later ones are this function's.
        grad = torch.ops.aten.threshold_backward(grad_output, maps[-1], 0.0)
        grads: list[tuple[torch.Tensor, torch.Tensor]] = []
        for index in reversed(range(n_layers)):
            x, weight, stride = maps[index], weights[index], ctx.strides[index]
            wanted = [index > 0 or ctx.needs_input_grad[0], True, True]
            grad, *parameter_grads = torch.ops.aten.convolution_backward(
                grad, x, weight, [len(weight)], [stride] * 2, [0] * 2, [1] * 2, False, [0] * 2, 1,
                wanted,
            )  # fmt: skip
            if index > 0:
                torch.ops.aten.threshold_backward(grad, x, 0.0, grad_input=grad)
            grads.insert(0, tuple(parameter_grads))
        weight_grads, bias_grads = zip(*grads)
        return (grad, None, *weight_grads, *bias_grads)
