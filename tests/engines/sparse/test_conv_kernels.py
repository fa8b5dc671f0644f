"""The convolutional kernels, through the layers that call them, against PyTorch and plain NumPy."""

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
"""Rows of whole blocks, and rows that blocks run over; odd ones; fewer pixels than a block has."""

KINDS = [KernelChoice(*both) for both in product([True, False], repeat=2)]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def put(shape: conv.PlaneShape, images: Tensor) -> Floats:
    """Images `(IMAGES, channels, height, width)` as planes."""
    array = aligned_zeros(shape.size)
    pixels(plane_layout(shape, array), shape)[:] = images.numpy().transpose(1, 2, 3, 0)
    return array


def take(shape: conv.PlaneShape, array: Floats) -> Tensor:
    """The inverse."""
    return torch.from_numpy(pixels(plane_layout(shape, array), shape).transpose(3, 0, 1, 2).copy())


def pixels(lines: PixelLayout, shape: conv.PlaneShape) -> Floats:
    """`(channels, height, width, IMAGES)`, as a view."""
    steps = (*(4 * stride for stride in lines.strides), 4)
    sizes = (shape.channels, shape.height, shape.width, VEC16_WIDTH)
    return np.lib.stride_tricks.as_strided(lines.array[lines.at :], sizes, steps)


def border(shape: conv.PlaneShape, array: Floats) -> Floats:
    """All that is not a pixel."""
    copy = array.copy()
    pixels(plane_layout(shape, copy), shape)[:] = 0
    return copy


def gradients(wanted: Tensor, gradient: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(wanted, inputs, gradient)


def close(found: Tensor | Floats, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    np.testing.assert_allclose(np.asarray(found), expected.numpy(), rtol=1e-5, atol=2e-6 * scale)


# --- convolutions ---


def layer(side: tuple[int, int], inputs: int, mask: Tensor, kind: KernelChoice, pooled: bool = False) -> Conv3x3Layer:
    made = Conv3x3Layer(Conv("conv", inputs, mask.shape[0], side), pooled, mask, kind)
    made.load(normal(*mask.shape, seed=1) * mask, normal(mask.shape[0], seed=2))
    return made


def mask_of(outputs: int, inputs: int, density: float) -> Tensor:
    return torch.from_numpy(rng().random((outputs, inputs, 3, 3)) < density)


@pytest.mark.parametrize("density", [1.0, 0.3, 0.02, 0.0])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("side", SIDES)
def test_a_convolution_and_its_gradients(side: tuple[int, int], kind: KernelChoice, density: float) -> None:
    made = layer(side, 12, mask_of(16, 12, density), kind)
    images, d = normal(VEC16_WIDTH, 12, *side).relu_(), normal(VEC16_WIDTH, 16, *side, seed=3)
    made.x[1][:], made.d[:] = put(made.inner, images), put(made.outer, d)
    made.next_x = [made.d, aligned_zeros(made.outer.size)]
    images.requires_grad_()
    weight, bias = made.frozen.clone().requires_grad_(), normal(16, seed=2).requires_grad_()
    expected = conv2d(images, weight, bias, padding=1)
    to_images, to_weight, to_bias = gradients(expected, d, images, weight, bias)

    made.forward(1)
    close(take(made.outer, made.next_x[1]), expected.detach().relu())
    assert not border(made.outer, made.next_x[1]).any()

    for _ in range(2):  # gradients add up until they are collected
        made.backward(1, first=False)
    close(take(made.inner, made.dx), to_images * (images > 0))
    assert not border(made.inner, made.dx).any()
    made.reduce_grad()
    held = torch.zeros(16, 12, 3, 3) if kind.products else 2 * to_weight
    kept = torch.from_numpy(made.weight.get(made.weight.g, held).numpy())
    close(kept, torch.where(made_mask(made), 2 * to_weight, held))
    close(made.bias.g[:16], 2 * to_bias)
    assert not made.sums.any() and not made.bias_sums.any()


def made_mask(made: Conv3x3Layer) -> Tensor:
    alive = np.zeros(made.shape, bool)
    alive.ravel()[made.weight.flat] = True
    return torch.from_numpy(alive)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_only_the_first_layer_has_no_gradient_at_its_input(sparse: bool, first: bool) -> None:
    made = layer((8, 8), 8, mask_of(8, 8, 0.5), KernelChoice(sparse, sparse))
    made.x[0][:], made.next_x = 1, [aligned_zeros(made.outer.size)]
    made.forward(0)
    made.d[:] = 1
    made.backward(0, first)
    assert made.dx.any() != first


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_pooling_and_its_way_back(side: tuple[int, int], sparse: bool) -> None:
    made = layer(side, 4, mask_of(8, 4, 0.5), KernelChoice(sparse, sparse), pooled=True)
    images = normal(VEC16_WIDTH, 4, *side)
    images[:, :, : side[0] // 2] = 0  # equal numbers: the first of them is the largest
    made.x[2][:] = put(made.inner, images)
    small = conv.shape_of(8, side[0] // 2, side[1] // 2)
    made.out = [plane_layout(small, aligned_zeros(small.size)) for _ in range(3)]
    made.d_out = [plane_layout(small, aligned_zeros(small.size)) for _ in range(3)]
    before = conv2d(images, made.frozen, normal(8, seed=2), padding=1).relu().requires_grad_()
    expected = max_pool2d(before, 2)
    d = normal(*expected.shape, seed=4)
    pixels(made.d_out[2], small)[:] = d.numpy().transpose(1, 2, 3, 0)

    made.forward(2)
    close(take(small, made.out[2].array), expected.detach())
    assert not border(small, made.out[2].array).any()
    made.backward(2, first=True)
    assert torch.equal(take(made.outer, made.d), gradients(expected, d, before)[0])
    assert not border(made.outer, made.d).any()


def test_nan_goes_through_relu_and_pooling() -> None:
    for sparse in (False, True):
        made = layer((4, 4), 2, mask_of(8, 2, 1.0), KernelChoice(sparse, sparse), pooled=True)
        images = normal(VEC16_WIDTH, 2, 4, 4)
        images[5, 1, 2, 2] = torch.nan
        made.x[0][:] = put(made.inner, images)
        small = conv.shape_of(8, 2, 2)
        made.out = [plane_layout(small, aligned_zeros(small.size))]
        made.forward(0)
        found = take(small, made.out[0].array)
        assert found[5].isnan().all()
        assert not found[[i for i in range(VEC16_WIDTH) if i != 5]].isnan().any()


def test_images_become_shades_side_by_side() -> None:
    shape = conv.shape_of(3, 5, 4)
    images = rng().integers(0, 256, (30, 3, 5, 4), dtype=np.uint8)
    shade = np.arange(256, dtype=np.float32) / np.float32(255)
    batch, out = np.array([7, 0, 7, 29, 3]), aligned_zeros(shape.size)
    out[:] = put(shape, normal(VEC16_WIDTH, 3, 5, 4))
    conv.pack_images(images.reshape(-1), batch, 2, shade, shape, out)
    found = take(shape, out)
    assert torch.equal(found[:3], torch.from_numpy(images[batch[2:]]).float() / 255)
    assert not found[3:].any()


@pytest.mark.parametrize("side", SIDES)
def test_blocks_cover_every_pixel_once(side: tuple[int, int]) -> None:
    pitch = side[1] + 1
    covered = np.add.outer(conv.block_starts(*side), np.arange(conv.BLOCK)).ravel()
    assert len(set(covered)) == len(covered)
    assert {y * pitch + x for y in range(side[0]) for x in range(side[1])} <= set(covered)


def test_sums_of_lines() -> None:
    lines, out = normal(24, VEC16_WIDTH), aligned_zeros(24)
    sums = aligned_zeros(24 * VEC16_WIDTH)
    sums[:] = lines.numpy().ravel()
    conv.reduce_lines(sums, out)
    close(out, lines.sum(1))
    assert not sums.any()


# --- fully connected layers ---


@pytest.mark.parametrize("density", [1.0, 0.3, 0.02, 0.0])
@pytest.mark.parametrize(
    "kind", [KernelChoice(True, True), KernelChoice(False, True), KernelChoice(False, False)], ids=str
)
@pytest.mark.parametrize("last", [False, True])
def test_a_fully_connected_layer_learns(last: bool, kind: KernelChoice, density: float) -> None:
    """One step of plain SGD on two blocks of images, the second one not full."""
    mask = torch.from_numpy(rng().random((20, 320)) < density)
    made = LinearLayer(Dense("fc", 320, 20, last), mask, kind, 100)
    weight, bias = normal(20, 320, seed=1) * mask, normal(20, seed=2)
    made.load(weight, bias)
    images, d = normal(320, 2 * VECTOR_WIDTH).relu_(), normal(20, 2 * VECTOR_WIDTH, seed=3)
    d[:, 100:] = 0
    expected = weight @ images + bias[:, None]
    for block in range(2):
        some = slice(block * VECTOR_WIDTH, (block + 1) * VECTOR_WIDTH)
        made.x[:], made.d[:] = images[:, some].numpy().ravel(), d[:, some].numpy().ravel()
        made.forward()
        close(made.y.reshape(20, -1), expected[:, some] if last else expected[:, some].relu())
        made.backward(block)
        close(made.dx.reshape(320, -1), (weight.t() @ d[:, some]) * (images[:, some] > 0))
    how = np.zeros(1, OPTIMIZER)
    how["rate"] = -0.5
    made.optimizer_step(how, 0)
    close(made.weight.get(made.weight.w, made.frozen), weight - 0.5 * mask * (d @ images.t()))
    close(made.bias.w[:20], bias - 0.5 * d.sum(1))
    made.forward()
    moved = (
        made.weight.get(made.weight.w, made.frozen) @ images[:, VECTOR_WIDTH:]
        + torch.from_numpy(made.bias.w[:20])[:, None]
    )
    close(made.y.reshape(20, -1), moved if last else moved.relu())


def test_panels_hold_every_weight_once() -> None:
    order = matmul.panel_permutation(8, 3 * VECTOR_WIDTH)
    assert sorted(order) == list(range(8 * 3 * VECTOR_WIDTH))
    assert list(order[: 2 * VECTOR_WIDTH]) == [*range(VECTOR_WIDTH), *range(3 * VECTOR_WIDTH, 4 * VECTOR_WIDTH)]


def test_losses() -> None:
    logits, labels = normal(7, VECTOR_WIDTH), rng().integers(0, 7, 50)
    d = aligned_zeros(7 * VECTOR_WIDTH)
    loss, right = matmul.cross_entropy_and_grad(7, labels, logits.numpy().ravel(), d, 0.25)
    some = logits[:, :50].t().clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(some, torch.from_numpy(labels), reduction="sum")
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert right == int((some.argmax(1).numpy() == labels).sum())
    found = d.reshape(7, VECTOR_WIDTH)
    close(found[:, :50].T, 0.25 * torch.autograd.grad(expected, some)[0])
    assert not found[:, 50:].any()
