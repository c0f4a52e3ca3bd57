"""Layers that the agents are made of, with their initialisation and precision.

Precision: a module's ``compute_dtype`` is the type of its hidden layers; ``None`` is that of its
parameters. bfloat16 halves the memory traffic and uses the matrix units; the last layer of every
network keeps the parameters' type, so that values, log-probabilities and latents keep their digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from core_agent.validation import check

Activation = Literal["elu", "relu"]
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"elu": F.elu, "relu": F.relu}
OutputNorm = Literal["none", "plain", "affine"]


def set_compute_dtype(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Let the hidden layers of every network inside ``module`` compute in ``dtype``.

    Networks built with ``mixed_precision=False`` keep the type of their parameters.
    """
    for child in module.modules():
        if getattr(child, "mixed_precision", False):
            child.compute_dtype = dtype  # type: ignore[assignment]


def orthogonal_linear(in_dim: int, out_dim: int, bias: bool = True) -> nn.Linear:
    """A linear layer with orthogonal weights and zero bias."""
    layer = nn.Linear(in_dim, out_dim, bias=bias)
    nn.init.orthogonal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def delta_orthogonal_(weight: torch.Tensor) -> None:
    """Fill a convolution's weights in place: orthogonal (ReLU gain) at the centre tap, else zero.

    Source: Xiao et al. 2018, arXiv:1806.05393.
    """
    nn.init.zeros_(weight)
    center = weight.shape[-1] // 2
    with torch.no_grad():
        nn.init.orthogonal_(weight[:, :, center, center], gain=nn.init.calculate_gain("relu"))


def init_conv_(conv: nn.Conv2d) -> None:
    """Delta-orthogonal weights and a zero bias."""
    delta_orthogonal_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)


def cast_linear(x: torch.Tensor, layer: nn.Linear, dtype: torch.dtype | None) -> torch.Tensor:
    """``layer(x)`` computed in ``dtype``; parameters and their gradients keep their own type."""
    dtype = dtype or layer.weight.dtype
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return F.linear(x.to(dtype), layer.weight.to(dtype), bias)


class MLP(nn.Module):
    """Fully connected network.

    :param in_dim: size of the input
    :param hidden_dims: sizes of the layers that an activation follows
    :param out_dim: size of a last, linear layer; ``None``: the last hidden layer is the output
    :param activation: ``"elu"`` or ``"relu"``
    :param output_norm: layer norm of the output: ``"none"``, ``"plain"`` (nothing learned)
        or ``"affine"``
    :param mixed_precision: ``False`` keeps the hidden layers in the parameters' type
    """

    hidden: Sequence[nn.Linear]

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Sequence[int],
        out_dim: int | None = None,
        activation: Activation = "elu",
        output_norm: OutputNorm = "none",
        mixed_precision: bool = True,
    ) -> None:
        super().__init__()
        self.mixed_precision = mixed_precision
        self.compute_dtype: torch.dtype | None = None
        self.activation = ACTIVATIONS[activation]
        dims = [in_dim, *hidden_dims]
        layers = [orthogonal_linear(i, o) for i, o in zip(dims, dims[1:])]
        self.hidden = nn.ModuleList(layers)  # type: ignore[assignment]
        self.output = None if out_dim is None else orthogonal_linear(dims[-1], out_dim)
        self.out_dim = dims[-1] if out_dim is None else out_dim
        self.norm = (
            nn.Identity()
            if output_norm == "none"
            else nn.LayerNorm(self.out_dim, elementwise_affine=output_norm == "affine")
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., in_dim)`` to ``(..., out_dim)`` of the parameters' type."""
        for layer in self.hidden:
            x = self.activation(cast_linear(x, layer, self.compute_dtype))
        x = x.to(self.hidden[0].weight.dtype)
        if self.output is not None:
            x = self.output(x)
        return self.norm(x)


class TwinMLP(nn.Module):
    """Two MLPs of the same shape, computed together as batched products.

    :param in_dim: size of the common input
    :param hidden_dims: sizes of the hidden layers of each
    :param activation: ``"elu"`` or ``"relu"``
    :param layer_norm: normalise what goes into each activation; nothing of it is learned
    """

    n_members = 2

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Sequence[int],
        activation: Activation = "elu",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.layer_norm = layer_norm
        self.mixed_precision = True
        self.compute_dtype: torch.dtype | None = None
        self.activation = ACTIVATIONS[activation]
        dims = [in_dim, *hidden_dims, 1]
        self.weights = nn.ParameterList(
            torch.empty(self.n_members, i, o) for i, o in zip(dims, dims[1:])
        )
        self.biases = nn.ParameterList(torch.zeros(self.n_members, 1, o) for o in dims[1:])
        for weight in self.weights:
            for member in weight:
                nn.init.orthogonal_(member.detach())

    def forward(self, x: torch.Tensor, n_members: int = 2) -> torch.Tensor:
        """``(N, in_dim)`` to ``(2, N)`` of the parameters' type.

        :param n_members: 1 computes the first one alone, ``(1, N)``
        """
        x = x.unsqueeze(0).expand(n_members, -1, -1)
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            dtype = (self.compute_dtype if index < last else None) or weight.dtype
            weight, bias = weight[:n_members], bias[:n_members]
            x = torch.baddbmm(bias.to(dtype), x.to(dtype), weight.to(dtype))
            if index < last:
                if self.layer_norm:
                    x = F.layer_norm(x, x.shape[-1:])
                x = self.activation(x)
        return x.squeeze(-1)


class LayerNormGRUCell(nn.Module):
    """GRU cell with one layer norm over the three gates together, after one bias-free product.

    The update gate is shifted by -1, so that at first most of the old state stays. The paper
    names a plain GRUCell; this is the variant of Dreamer's authors (arXiv:2010.02193).
    """

    def __init__(self, in_dim: int, deter_dim: int) -> None:
        super().__init__()
        self.linear = orthogonal_linear(in_dim + deter_dim, 3 * deter_dim, bias=False)
        self.norm = nn.LayerNorm(3 * deter_dim)

    def forward(self, x: torch.Tensor, deter: torch.Tensor) -> torch.Tensor:
        """Next state ``(B, deter_dim)`` from input ``(B, in_dim)`` and state ``(B, deter_dim)``."""
        gates = self.norm(self.linear(torch.cat([x, deter], dim=-1)))
        reset, candidate, update = gates.chunk(3, dim=-1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        update = torch.sigmoid(update - 1.0)
        return torch.lerp(deter, candidate, update)


class Gate(nn.Module):
    """Optional soft mask over the image, computed by a small CNN (Table 1, arXiv:2112.01163).

    :param channels: channels of the image
    :param last_elu: an ELU between the last convolution and the sigmoid, as in the authors'
        experiments: the mask is then above ``sigmoid(-1)``, 0.27, everywhere
    """

    convs: Sequence[nn.Conv2d]

    def __init__(self, channels: int, last_elu: bool = False) -> None:
        super().__init__()
        self.last_elu = last_elu
        sizes = [(channels, 16, 5), (16, 16, 5), (16, 16, 5), (16, 1, 1)]
        convs = [nn.Conv2d(i, o, k, padding=k // 2) for i, o, k in sizes]
        self.convs = nn.ModuleList(convs)  # type: ignore[assignment]
        for conv in self.convs:
            init_conv_(conv)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Mask ``(N, 1, H, W)`` in (0, 1) of images ``(N, C, H, W)``."""
        x = images
        for conv in self.convs[:-1]:
            x = F.elu(cast_conv(x, conv))
        logits = cast_conv(x, self.convs[-1])
        return torch.sigmoid(F.elu(logits) if self.last_elu else logits)


def cast_conv(x: torch.Tensor, conv: nn.Conv2d, scale: float = 1.0) -> torch.Tensor:
    """``conv(x / scale)`` computed in the type of ``x``."""
    bias = None if conv.bias is None else conv.bias.to(x.dtype)
    weight = conv.weight if scale == 1.0 else conv.weight / scale
    return F.conv2d(x, weight.to(x.dtype), bias, conv.stride, conv.padding)


def conv_output_side(side: int, strides: Sequence[int]) -> int:
    """Side of the feature map after unpadded 3×3 convolutions with these strides."""
    for stride in strides:
        side = (side - 3) // stride + 1
    return side


class ImageEncoder(nn.Module):
    """CNN from images to features: 3×3 convolutions, one linear layer, layer norm.

    Architecture of SAC+AE, RAD and CURL (arXiv:1910.01741); it computes channels-last.

    :param channels: channels of the images
    :param size: height and width of the (cropped) images
    :param feature_dim: number of features
    :param cnn_channels: channels of each convolution
    :param cnn_strides: stride of each convolution
    :param gating: multiply the image with a learned soft mask first
    :param gate_elu: see ``last_elu`` of :class:`Gate`
    :param max_value: largest pixel value: 255 for bytes, 1 for images that are scaled already
    :param center_images: subtract half of ``max_value`` before the first convolution. Without this,
        the features of all images initially point in nearly the same direction, and learning
        starts slowly
    :raises ValueError: if the image is too small for that many convolutions
    """

    convs: Sequence[nn.Conv2d]

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        feature_dim: int,
        cnn_channels: Sequence[int] = (32, 32, 32, 32),
        cnn_strides: Sequence[int] = (2, 1, 1, 1),
        gating: bool = False,
        gate_elu: bool = False,
        max_value: float = 255.0,
        center_images: bool = False,
    ) -> None:
        super().__init__()
        self.max_value = max_value
        self.center_images = center_images
        self.mixed_precision = True
        self.compute_dtype: torch.dtype | None = None
        check(
            len(cnn_channels) == len(cnn_strides),
            "cnn_strides",
            f"have one entry for each of the {len(cnn_channels)} cnn_channels",
            cnn_strides,
        )
        height, width = (conv_output_side(side, cnn_strides) for side in size)
        check(
            min(height, width) >= 1,
            "the image",
            f"be large enough, after the crop, for {len(cnn_channels)} convolutions",
            f"{size[0]}x{size[1]} pixels",
            "pass larger images or fewer convolutions, for example "
            "policy_kwargs=dict(cnn_channels=(32, 32), cnn_strides=(2, 1))",
        )
        self.gate = Gate(channels, gate_elu) if gating else None
        sizes = [channels, *cnn_channels]
        convs = [
            nn.Conv2d(i, o, 3, stride=stride) for i, o, stride in zip(sizes, sizes[1:], cnn_strides)
        ]
        self.convs = nn.ModuleList(convs)  # type: ignore[assignment]
        for conv in self.convs:
            init_conv_(conv)
        self.linear = orthogonal_linear(height * width * sizes[-1], feature_dim)
        self.norm = nn.LayerNorm(feature_dim, elementwise_affine=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)``, 0 to ``max_value``, to ``(N, feature_dim)`` of the parameters' type."""
        x = self.prepare(images)
        if self.gate is not None:
            x = x * self.gate(x / self.max_value)
        if self.center_images:
            x = x - 0.5 * self.max_value
        for index, conv in enumerate(self.convs):
            # The first weights are scaled instead of the images: weights are fewer than pixels.
            scale = self.max_value if index == 0 else 1.0
            x = F.relu_(cast_conv(x, conv, scale))
        # Flattened channels-last, in memory order.
        x = x.permute(0, 2, 3, 1).flatten(start_dim=1)
        features = cast_linear(x, self.linear, self.compute_dtype)
        return self.norm(features.to(self.linear.weight.dtype))

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` channels-last and in the type that the convolutions compute in."""
        dtype = self.compute_dtype or self.linear.weight.dtype
        return images.to(dtype, memory_format=torch.channels_last)
