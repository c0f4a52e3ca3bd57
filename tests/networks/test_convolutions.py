"""The convolutions' gradient, worked out by hand, beside autograd's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from core_agent.networks.convolutions import convolve

STRIDES = (2, 1, 1)


def make() -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Images ``(2, 3, 16, 15)``, weights and biases of three convolutions, in float64."""
    torch.manual_seed(0)
    channels = (3, 4, 5, 2)
    weights = [torch.randn(o, i, 3, 3).double() for i, o in zip(channels, channels[1:])]
    biases = [torch.randn(o).double() for o in channels[1:]]
    for tensor in (*weights, *biases):
        tensor.requires_grad_()
    return torch.randn(2, 3, 16, 15).double(), weights, biases


def plain(
    images: torch.Tensor, weights: list[torch.Tensor], biases: list[torch.Tensor]
) -> torch.Tensor:
    x = images
    for weight, bias, stride in zip(weights, biases, STRIDES):
        x = F.relu(F.conv2d(x, weight, bias, stride))
    return x


@pytest.mark.parametrize("of_images", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_autograds(of_images, layout):
    images, weights, biases = make()
    images = images.to(memory_format=layout).requires_grad_(of_images)
    inputs = [*weights, *biases, *([images] if of_images else [])]
    ours, expected = convolve(images, weights, biases, STRIDES), plain(images, weights, biases)
    assert torch.equal(ours, expected)
    assert 0 < (ours == 0).double().mean() < 1
    grad = torch.randn_like(ours)
    for one, other in zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    ):
        torch.testing.assert_close(one, other)


def test_the_gradient_that_comes_in_is_left_as_it_is():
    ours = convolve(*make(), STRIDES)
    grad = torch.randn_like(ours)
    kept = grad.clone()
    ours.backward(grad)
    assert torch.equal(grad, kept)
