"""Layers: what they compute, how they start, in which precision."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from core_agent.networks.layers import (
    MLP,
    Gate,
    ImageEncoder,
    LayerNormGRUCell,
    TwinMLP,
    delta_orthogonal_,
    set_compute_dtype,
)


def test_mlp_follows_hidden_layers_by_activations_and_ends_linear():
    mlp = MLP(3, (4, 5), 2)
    x = torch.randn(7, 3)
    first, second = mlp.hidden
    expected = mlp.output(F.elu(second(F.elu(first(x)))))
    assert torch.equal(mlp(x), expected)


def test_mlp_without_output_layer_ends_with_an_activation():
    mlp = MLP(3, (4,))
    x = torch.randn(7, 3)
    assert torch.equal(mlp(x), F.elu(mlp.hidden[0](x)))


def test_linear_weights_are_orthogonal_and_biases_zero():
    mlp = MLP(6, (4,), 4)
    weight = mlp.hidden[0].weight
    assert torch.allclose(weight @ weight.t(), torch.eye(4), atol=1e-5)
    assert all(layer.bias.abs().sum() == 0 for layer in [*mlp.hidden, mlp.output])


def test_delta_orthogonal_fills_the_centre_tap_alone():
    weight = torch.empty(8, 4, 3, 3)
    delta_orthogonal_(weight)
    centre = weight[:, :, 1, 1]
    assert torch.allclose(centre.t() @ centre, 2.0 * torch.eye(4), atol=1e-5)  # ReLU gain √2
    weight[:, :, 1, 1] = 0
    assert weight.abs().sum() == 0


@pytest.mark.parametrize("layer_norm", [False, True])
def test_twin_mlp_equals_two_mlps(layer_norm):
    twin = TwinMLP(3, (4, 5), layer_norm=layer_norm)
    x = torch.randn(6, 3)
    for member in range(2):
        y = x
        for index, (weight, bias) in enumerate(zip(twin.weights, twin.biases)):
            y = y @ weight[member] + bias[member]
            if index < 2 and layer_norm:
                y = (y - y.mean(1, keepdim=True)) / (
                    y.var(1, keepdim=True, correction=0) + 1e-5
                ).sqrt()
            y = F.elu(y) if index < 2 else y
        assert torch.allclose(twin(x)[member], y.squeeze(-1), atol=1e-6)
    assert not torch.allclose(twin(x)[0], twin(x)[1])


def test_gru_cell_by_hand():
    cell = LayerNormGRUCell(3, 2)
    x, h = torch.randn(5, 3), torch.randn(5, 2)
    gates = F.layer_norm(torch.cat([x, h], 1) @ cell.linear.weight.t(), (6,))
    reset, candidate, update = gates.split(2, dim=1)
    candidate = torch.tanh(torch.sigmoid(reset) * candidate)
    update = torch.sigmoid(update - 1)
    assert torch.allclose(cell(x, h), update * candidate + (1 - update) * h, atol=1e-6)


def test_gru_cell_keeps_most_of_its_state_at_first():
    cell = LayerNormGRUCell(16, 64)
    h = torch.randn(100, 64)
    kept = (cell(torch.randn(100, 16), h) * h).mean() / h.square().mean()
    assert kept > 0.5


def test_encoder_features_are_layer_normalised_and_of_the_paper_size():
    encoder = ImageEncoder(3, (84, 84), 50)
    assert encoder.linear.in_features == 35 * 35 * 32
    features = encoder(torch.randint(0, 256, (2, 3, 84, 84), dtype=torch.uint8))
    assert features.shape == (2, 50)
    assert features.mean(dim=1).abs().max() < 1e-5
    assert torch.allclose(features.var(dim=1, unbiased=False), torch.ones(2), atol=1e-2)


def test_encoder_does_not_depend_on_memory_layout():
    encoder = ImageEncoder(3, (9, 9), 5, (4, 4), (2, 1))
    images = torch.randint(0, 256, (2, 9, 9, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    assert torch.allclose(encoder(images), encoder(images.contiguous()), atol=1e-6)


def test_encoder_scales_bytes():
    encoder = ImageEncoder(3, (9, 9), 5, (4,), (2,))
    scaled = ImageEncoder(3, (9, 9), 5, (4,), (2,), max_value=1.0)
    scaled.load_state_dict(encoder.state_dict())
    images = torch.randint(0, 256, (2, 3, 9, 9), dtype=torch.uint8)
    assert torch.allclose(encoder(images), scaled(images / 255), atol=1e-5)


def test_encoder_refuses_images_that_are_too_small():
    with pytest.raises(ValueError, match=r"the image must be large enough.*got '8x8 pixels'"):
        ImageEncoder(3, (8, 8), 5)


def test_encoder_wants_a_stride_for_each_convolution():
    with pytest.raises(ValueError, match="cnn_strides must have one entry for each of the 1"):
        ImageEncoder(3, (20, 20), 5, (4,), (2, 1))


def test_gate_is_a_mask_of_the_image_size():
    mask = Gate(3)(torch.rand(2, 3, 11, 9))
    assert mask.shape == (2, 1, 11, 9)
    assert mask.min() > 0
    assert mask.max() < 1


def test_an_elu_before_the_gates_sigmoid_changes_negative_logits_alone():
    torch.manual_seed(0)
    plain, with_elu = Gate(3), Gate(3, last_elu=True)
    with_elu.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 11, 9)
    logits = torch.logit(plain(images))
    assert (logits < 0).any() and (logits > 0).any()
    assert torch.allclose(with_elu(images), torch.sigmoid(F.elu(logits)), atol=1e-5)


def test_gated_encoder_multiplies_the_mask_into_the_image():
    encoder = ImageEncoder(3, (9, 9), 5, (4,), (2,), gating=True)
    images = torch.randint(0, 256, (2, 3, 9, 9), dtype=torch.uint8)
    plain = ImageEncoder(3, (9, 9), 5, (4,), (2,))
    plain.load_state_dict(encoder.state_dict(), strict=False)
    gated_images = images * encoder.gate(images / 255)
    assert torch.allclose(encoder(images), plain(gated_images), atol=1e-5)


def test_bfloat16_computes_close_to_float32_and_returns_float32():
    torch.manual_seed(0)
    encoder = ImageEncoder(3, (20, 20), 16, (8, 8), (2, 1))
    images = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8)
    exact = encoder(images)
    set_compute_dtype(encoder, torch.bfloat16)
    rough = encoder(images)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.1


def test_set_compute_dtype_leaves_exact_networks_alone():
    mlp = MLP(3, (4,), mixed_precision=False)
    set_compute_dtype(mlp, torch.bfloat16)
    assert mlp.compute_dtype is None
