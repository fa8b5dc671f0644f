"""Convolutional kernels, through the layers that call them, against PyTorch and NumPy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from supermask.engines.optimizer_steps import OPTIMIZER
from supermask.engines.sparse.conv_layer import Conv3x3Layer, PixelLayout, plane_layout
from supermask.engines.sparse.costs import KernelChoice
from supermask.engines.sparse.kernels import conv, matmul
from supermask.engines.sparse.kernels.simd import VECTOR_WIDTH, aligned_zeros
from supermask.engines.sparse.kernels.simd16 import VEC16_WIDTH
from supermask.engines.sparse.layers import LinearLayer
from supermask.networks.sequential import Conv, Dense

Floats = NDArray[np.float32]

SIDES = [(8, 8), (7, 5), (2, 3), (4, 16), (5, 8)]
"""Rows of whole blocks, rows that blocks run over, odd sizes, fewer pixels than a block."""

CHOICES = [KernelChoice(*both) for both in product([True, False], repeat=2)]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def put(shape: conv.PlaneShape, images: Tensor) -> Floats:
    """Return images `(VEC16_WIDTH, channels, height, width)` as planes."""
    array = aligned_zeros(shape.size)
    pixels(plane_layout(shape, array), shape)[:] = images.numpy().transpose(1, 2, 3, 0)
    return array


def take(shape: conv.PlaneShape, array: Floats) -> Tensor:
    """Return planes as images: the inverse of `put`."""
    return torch.from_numpy(pixels(plane_layout(shape, array), shape).transpose(3, 0, 1, 2).copy())


def pixels(lines: PixelLayout, shape: conv.PlaneShape) -> Floats:
    """Return the pixels `(channels, height, width, VEC16_WIDTH)` as a view."""
    steps = (*(4 * stride for stride in lines.strides), 4)
    sizes = (shape.channels, shape.height, shape.width, VEC16_WIDTH)
    return np.lib.stride_tricks.as_strided(lines.array[lines.offset :], sizes, steps)


def border(shape: conv.PlaneShape, array: Floats) -> Floats:
    """Return a copy with all pixels zero: the border."""
    copy = array.copy()
    pixels(plane_layout(shape, copy), shape)[:] = 0
    return copy


def gradients(output: Tensor, gradient: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, gradient)


def close(actual: Tensor | Floats, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    np.testing.assert_allclose(np.asarray(actual), expected.numpy(), rtol=1e-5, atol=2e-6 * scale)


# --- convolutions ---


def layer(side: tuple[int, int], inputs: int, mask: Tensor, choice: KernelChoice, pooled: bool = False) -> Conv3x3Layer:
    tested = Conv3x3Layer(Conv("conv", inputs, mask.shape[0], side), pooled, mask, choice)
    tested.load(normal(*mask.shape, seed=1) * mask, normal(mask.shape[0], seed=2))
    return tested


def mask_of(outputs: int, inputs: int, density: float) -> Tensor:
    return torch.from_numpy(rng().random((outputs, inputs, 3, 3)) < density)


@pytest.mark.slow
@pytest.mark.parametrize("density", [1.0, 0.3, 0.02, 0.0])
@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("side", SIDES)
def test_a_convolution_and_its_gradients(side: tuple[int, int], choice: KernelChoice, density: float) -> None:
    tested = layer(side, 12, mask_of(16, 12, density), choice)
    images, d = normal(VEC16_WIDTH, 12, *side).relu_(), normal(VEC16_WIDTH, 16, *side, seed=3)
    tested.x[1][:], tested.d[:] = put(tested.inner, images), put(tested.outer, d)
    tested.next_x = [tested.d, aligned_zeros(tested.outer.size)]
    images.requires_grad_()
    weight, bias = tested.frozen.clone().requires_grad_(), normal(16, seed=2).requires_grad_()
    expected = conv2d(images, weight, bias, padding=1)
    to_images, to_weight, to_bias = gradients(expected, d, images, weight, bias)

    tested.forward(1)
    close(take(tested.outer, tested.next_x[1]), expected.detach().relu())
    assert not border(tested.outer, tested.next_x[1]).any()

    for _ in range(2):  # gradients are summed until `reduce_grad`
        tested.backward(1, first=False)
    close(take(tested.inner, tested.dx), to_images * (images > 0))
    assert not border(tested.inner, tested.dx).any()
    tested.reduce_grad()
    background = torch.zeros(16, 12, 3, 3) if choice.sparse_grad else 2 * to_weight
    gradient = torch.from_numpy(tested.weight.get(tested.weight.g, background).numpy())
    close(gradient, torch.where(trained_mask(tested), 2 * to_weight, background))
    close(tested.bias.g[:16], 2 * to_bias)
    assert not tested.sums.any() and not tested.bias_sums.any()


def trained_mask(tested: Conv3x3Layer) -> Tensor:
    alive = np.zeros(tested.shape, bool)
    alive.ravel()[tested.weight.flat] = True
    return torch.from_numpy(alive)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_only_the_first_layer_has_no_gradient_at_its_input(sparse: bool, first: bool) -> None:
    tested = layer((8, 8), 8, mask_of(8, 8, 0.5), KernelChoice(sparse, sparse))
    tested.x[0][:], tested.next_x = 1, [aligned_zeros(tested.outer.size)]
    tested.forward(0)
    tested.d[:] = 1
    tested.backward(0, first)
    assert tested.dx.any() != first


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_pooling_and_its_gradient(side: tuple[int, int], sparse: bool) -> None:
    tested = layer(side, 4, mask_of(8, 4, 0.5), KernelChoice(sparse, sparse), pooled=True)
    images = normal(VEC16_WIDTH, 4, *side)
    images[:, :, : side[0] // 2] = 0  # of equal values the first is the maximum
    tested.x[2][:] = put(tested.inner, images)
    small = conv.shape_of(8, side[0] // 2, side[1] // 2)
    tested.out = [plane_layout(small, aligned_zeros(small.size)) for _ in range(3)]
    tested.d_out = [plane_layout(small, aligned_zeros(small.size)) for _ in range(3)]
    before = conv2d(images, tested.frozen, normal(8, seed=2), padding=1).relu().requires_grad_()
    expected = max_pool2d(before, 2)
    d = normal(*expected.shape, seed=4)
    pixels(tested.d_out[2], small)[:] = d.numpy().transpose(1, 2, 3, 0)

    tested.forward(2)
    close(take(small, tested.out[2].array), expected.detach())
    assert not border(small, tested.out[2].array).any()
    tested.backward(2, first=True)
    assert torch.equal(take(tested.outer, tested.d), gradients(expected, d, before)[0])
    assert not border(tested.outer, tested.d).any()


def test_nan_passes_relu_and_pooling() -> None:
    for sparse in (False, True):
        tested = layer((4, 4), 2, mask_of(8, 2, 1.0), KernelChoice(sparse, sparse), pooled=True)
        images = normal(VEC16_WIDTH, 2, 4, 4)
        images[5, 1, 2, 2] = torch.nan
        tested.x[0][:] = put(tested.inner, images)
        small = conv.shape_of(8, 2, 2)
        tested.out = [plane_layout(small, aligned_zeros(small.size))]
        tested.forward(0)
        actual = take(small, tested.out[0].array)
        assert actual[5].isnan().all()
        assert not actual[[i for i in range(VEC16_WIDTH) if i != 5]].isnan().any()


def test_images_are_scaled_and_packed_side_by_side() -> None:
    shape = conv.shape_of(3, 5, 4)
    images = rng().integers(0, 256, (30, 3, 5, 4), dtype=np.uint8)
    shade = np.arange(256, dtype=np.float32) / np.float32(255)
    batch, out = np.array([7, 0, 7, 29, 3]), aligned_zeros(shape.size)
    out[:] = put(shape, normal(VEC16_WIDTH, 3, 5, 4))
    conv.pack_images(images.reshape(-1), batch, 2, shade, shape, out)
    actual = take(shape, out)
    assert torch.equal(actual[:3], torch.from_numpy(images[batch[2:]]).float() / 255)
    assert not actual[3:].any()


@pytest.mark.parametrize("side", SIDES)
def test_blocks_cover_every_pixel_once(side: tuple[int, int]) -> None:
    pitch = side[1] + 1
    covered = np.add.outer(conv.block_starts(*side), np.arange(conv.BLOCK)).ravel()
    assert len(set(covered)) == len(covered)
    assert {y * pitch + x for y in range(side[0]) for x in range(side[1])} <= set(covered)


def test_reduce_lines() -> None:
    lines, out = normal(24, VEC16_WIDTH), aligned_zeros(24)
    sums = aligned_zeros(24 * VEC16_WIDTH)
    sums[:] = lines.numpy().ravel()
    conv.reduce_lines(sums, out)
    close(out, lines.sum(1))
    assert not sums.any()


# --- fully connected layers ---


@pytest.mark.slow
@pytest.mark.parametrize("density", [1.0, 0.3, 0.02, 0.0])
@pytest.mark.parametrize(
    "choice", [KernelChoice(True, True), KernelChoice(False, True), KernelChoice(False, False)], ids=str
)
@pytest.mark.parametrize("last", [False, True])
def test_a_fully_connected_layer_takes_one_step(last: bool, choice: KernelChoice, density: float) -> None:
    """One step of plain SGD on two blocks of images, the second one not full."""
    mask = torch.from_numpy(rng().random((20, 320)) < density)
    tested = LinearLayer(Dense("fc", 320, 20, last), mask, choice, 100)
    weight, bias = normal(20, 320, seed=1) * mask, normal(20, seed=2)
    tested.load(weight, bias)
    images, d = normal(320, 2 * VECTOR_WIDTH).relu_(), normal(20, 2 * VECTOR_WIDTH, seed=3)
    d[:, 100:] = 0
    expected = weight @ images + bias[:, None]
    for block in range(2):
        block_images = slice(block * VECTOR_WIDTH, (block + 1) * VECTOR_WIDTH)
        tested.x[:], tested.d[:] = images[:, block_images].numpy().ravel(), d[:, block_images].numpy().ravel()
        tested.forward()
        close(tested.y.reshape(20, -1), expected[:, block_images] if last else expected[:, block_images].relu())
        tested.backward(block)
        close(tested.dx.reshape(320, -1), (weight.t() @ d[:, block_images]) * (images[:, block_images] > 0))
    steps = np.zeros(1, OPTIMIZER)
    steps["rate"] = -0.5
    tested.optimizer_step(steps, 0)
    close(tested.weight.get(tested.weight.w, tested.frozen), weight - 0.5 * mask * (d @ images.t()))
    close(tested.bias.w[:20], bias - 0.5 * d.sum(1))
    tested.forward()
    moved = (
        tested.weight.get(tested.weight.w, tested.frozen) @ images[:, VECTOR_WIDTH:]
        + torch.from_numpy(tested.bias.w[:20])[:, None]
    )
    close(tested.y.reshape(20, -1), moved if last else moved.relu())


def test_panels_hold_every_weight_once() -> None:
    order = matmul.panel_permutation(8, 3 * VECTOR_WIDTH)
    assert sorted(order) == list(range(8 * 3 * VECTOR_WIDTH))
    assert list(order[: 2 * VECTOR_WIDTH]) == [*range(VECTOR_WIDTH), *range(3 * VECTOR_WIDTH, 4 * VECTOR_WIDTH)]


def test_cross_entropy_and_its_gradient() -> None:
    logits, labels = normal(7, VECTOR_WIDTH), rng().integers(0, 7, 50)
    d = aligned_zeros(7 * VECTOR_WIDTH)
    loss, correct = matmul.cross_entropy_and_grad(7, labels, logits.numpy().ravel(), d, 0.25)
    first_logits = logits[:, :50].t().clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(first_logits, torch.from_numpy(labels), reduction="sum")
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert correct == int((first_logits.argmax(1).numpy() == labels).sum())
    actual = d.reshape(7, VECTOR_WIDTH)
    close(actual[:, :50].T, 0.25 * torch.autograd.grad(expected, first_logits)[0])
    assert not actual[:, 50:].any()
