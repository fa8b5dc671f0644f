"""Networks of the paper: number of weights, prunable tensors, initial weights and modules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from supermask.core.errors import UserError
from supermask.core.initializers import TRUNCATED_STD
from supermask.core.types import PrunableTensor, TensorKind
from supermask.networks.sequential import (
    NETWORK_NAMES,
    architecture,
    build_module,
    canonical_name,
    count_multiplications,
    initial_state,
    prunable_tensors,
)

MNIST, CIFAR, DIGITS = (1, 28, 28), (3, 32, 32), (1, 8, 8)


@pytest.mark.parametrize(
    ("name", "images", "weights"),
    [
        ("fc", MNIST, 266_200),
        ("conv2", CIFAR, 4_300_992),
        ("conv4", CIFAR, 2_425_024),
        ("conv6", CIFAR, 2_261_184),
        ("fc-5", DIGITS, 64 * 5 + 5 * 10),
    ],
)
def test_prunable_weights(name: str, images: tuple[int, int, int], weights: int) -> None:
    assert sum(m.size for m in prunable_tensors(architecture(name, images, 10)).values()) == weights


KERNELS: dict[tuple[str, tuple[int, int, int]], list[tuple[str, tuple[int, ...], TensorKind]]] = {
    ("fc", MNIST): [
        ("fc1.weight", (300, 784), "hidden"),
        ("fc2.weight", (100, 300), "hidden"),
        ("fc3.weight", (10, 100), "output"),
    ],
    ("conv2", CIFAR): [
        ("conv1.weight", (64, 3, 3, 3), "conv"),
        ("conv2.weight", (64, 64, 3, 3), "conv"),
        ("fc1.weight", (256, 16 * 16 * 64), "hidden"),
        ("fc2.weight", (256, 256), "hidden"),
        ("fc3.weight", (10, 256), "output"),
    ],
    ("conv6", CIFAR): [
        ("conv1.weight", (64, 3, 3, 3), "conv"),
        ("conv2.weight", (64, 64, 3, 3), "conv"),
        ("conv3.weight", (128, 64, 3, 3), "conv"),
        ("conv4.weight", (128, 128, 3, 3), "conv"),
        ("conv5.weight", (256, 128, 3, 3), "conv"),
        ("conv6.weight", (256, 256, 3, 3), "conv"),
        ("fc1.weight", (256, 4 * 4 * 256), "hidden"),
        ("fc2.weight", (256, 256), "hidden"),
        ("fc3.weight", (10, 256), "output"),
    ],
    ("conv6", DIGITS): [
        ("conv1.weight", (64, 1, 3, 3), "conv"),
        ("conv2.weight", (64, 64, 3, 3), "conv"),
        ("conv3.weight", (128, 64, 3, 3), "conv"),
        ("conv4.weight", (128, 128, 3, 3), "conv"),
        ("conv5.weight", (256, 128, 3, 3), "conv"),
        ("conv6.weight", (256, 256, 3, 3), "conv"),
        ("fc1.weight", (256, 256), "hidden"),
        ("fc2.weight", (256, 256), "hidden"),
        ("fc3.weight", (10, 256), "output"),
    ],
    ("fc-7", DIGITS): [("fc1.weight", (7, 64), "hidden"), ("fc2.weight", (10, 7), "output")],
}


@pytest.mark.parametrize(("network", "kernels"), KERNELS.items(), ids=str)
def test_kernels(
    network: tuple[str, tuple[int, int, int]], kernels: list[tuple[str, tuple[int, ...], TensorKind]]
) -> None:
    found = prunable_tensors(architecture(*network, 10))
    assert [(name, m.shape, m.kind) for name, m in found.items()] == kernels
    assert all(m.name == name for name, m in found.items())


each_network = pytest.mark.parametrize(
    ("name", "images"),
    [(n, i) for i in (MNIST, CIFAR, DIGITS) for n in ("fc", "fc-20", "fc-9-8-7-6", "conv2", "conv4", "conv6")],
    ids=str,
)


@each_network
def test_module_and_initial_state_have_the_same_tensors(name: str, images: tuple[int, int, int]) -> None:
    layers = architecture(name, images, 10)
    start = initial_state(layers, 0)
    module = build_module(layers)
    own = {n: t.shape for n, t in module.state_dict().items()}
    assert own == {n: t.shape for n, t in {**start.weights, **start.unmasked}.items()}
    assert start.weights.keys() == start.masks.keys() == prunable_tensors(layers).keys()
    assert {n.replace("bias", "weight") for n in start.unmasked} == start.weights.keys()
    assert all(mask.dtype == torch.bool and mask.all() for mask in start.masks.values())
    assert all(mask.shape == start.weights[n].shape for n, mask in start.masks.items())
    assert not any(bias.any() for bias in start.unmasked.values())
    assert all(t.dtype == torch.float32 for t in [*start.weights.values(), *start.unmasked.values()])
    assert start.first_iteration == 0
    kernels = {n for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert {f"{n}.weight" for n in kernels} == start.weights.keys()
    logits = module(torch.rand(2, *images))
    assert logits.shape == (2, 10)


@each_network
def test_number_of_multiplications(name: str, images: tuple[int, int, int]) -> None:
    """Counted by forward hooks on the module's layers."""
    layers = architecture(name, images, 7)
    module, counted = build_module(layers), 0

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal counted
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        counted += output.numel() * layer.weight[0].numel()

    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(count)
    module(torch.rand(1, *images))
    assert count_multiplications(layers) == counted


def test_order_of_layers() -> None:
    """ReLU follows every convolution and every fully connected layer except the last; pooling follows each pair."""

    def order(name: str) -> list[str]:
        return [type(m).__name__ for m in build_module(architecture(name, CIFAR, 10))]

    pair = ["Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d"]
    head = ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert order("conv2") == pair + head
    assert order("conv6") == pair * 3 + head
    assert order("fc") == head
    conv = next(m for m in build_module(architecture("conv2", CIFAR, 10)) if isinstance(m, nn.Conv2d))
    assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), "same")


# --- initial weights ---


def test_std_is_that_of_glorot() -> None:
    assert PrunableTensor("w", (300, 784), "hidden").std == pytest.approx((2 / 1084) ** 0.5)
    assert PrunableTensor("w", (64, 3, 3, 3), "conv").std == pytest.approx((2 / (27 + 576)) ** 0.5)


@pytest.mark.parametrize(("name", "images"), [("fc", MNIST), ("conv6", CIFAR)])
def test_initial_weights_are_truncated_glorot_normal(name: str, images: tuple[int, int, int]) -> None:
    layers = architecture(name, images, 10)
    start = initial_state(layers, 0)
    units = []
    for kernel, m in prunable_tensors(layers).items():
        fans = (m.shape[1] * m.size // (m.shape[0] * m.shape[1]), m.size // m.shape[1])
        std = (2 / sum(fans)) ** 0.5
        values = start.weights[kernel].numpy()
        assert np.abs(values).max() <= 2 * std / TRUNCATED_STD * (1 + 1e-6)
        if m.size > 20_000:
            assert values.std() == pytest.approx(std, rel=0.01)
        units.append(values.ravel() / std)
    together = np.concatenate(units)
    assert together.std() == pytest.approx(1, rel=0.003)
    assert abs(together.mean()) < 0.01
    assert stats.kstest(together[:100_000] * TRUNCATED_STD, stats.truncnorm(-2, 2).cdf).pvalue > 1e-4


def test_initial_weights_are_pinned() -> None:
    """A change here changes the numbers of every run and needs a new `runs.NUMERICS`."""
    start = initial_state(architecture("fc", MNIST, 10), 0)
    assert start.weights["fc1.weight"][0, :3].tolist() == [
        0.007038631942123175,
        -0.0674937441945076,
        0.03350831940770149,
    ]
    assert start.weights["fc3.weight"][9, -2:].tolist() == [0.10958559066057205, 0.12919852137565613]


def test_initial_weights_depend_on_the_seed_only() -> None:
    layers = architecture("fc-20", DIGITS, 10)
    one, again, other = (initial_state(layers, seed) for seed in (0, 0, 1))
    for name in one.weights:
        assert torch.equal(one.weights[name], again.weights[name])
        assert not (one.weights[name] == other.weights[name]).any()


def test_each_tensor_has_its_own_stream() -> None:
    """A wider first layer does not change the draws of later layers; equal shapes get different values."""
    narrow, wide = (initial_state(architecture(f"fc-{n}-10-10-10", DIGITS, 10), 0) for n in (10, 11))
    assert torch.equal(narrow.weights["fc3.weight"], wide.weights["fc3.weight"])
    assert not (narrow.weights["fc3.weight"] == narrow.weights["fc4.weight"]).any()


def test_building_a_module_changes_no_draws() -> None:
    before = initial_state(architecture("fc-20", DIGITS, 10), 0)
    build_module(architecture("fc-20", DIGITS, 10))
    after = initial_state(architecture("fc-20", DIGITS, 10), 0)
    assert all(torch.equal(before.weights[n], after.weights[n]) for n in before.weights)


# --- bad names ---


@pytest.mark.parametrize(
    "name", ["", "fcc", "FC", "fc-", "fc-0", "fc--3", "fc-3x", "fc-3-", "conv3", "resnet", "fc-1234567", "fc-३"]
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="is not a network") as refused:
        architecture(name, MNIST, 10)
    assert all(allowed in str(refused.value) for allowed in NETWORK_NAMES)


def test_nearest_name_is_suggested() -> None:
    with pytest.raises(UserError, match="did you mean 'conv2'"):
        architecture("conv22", CIFAR, 10)


@pytest.mark.parametrize(("name", "smallest"), [("conv2", 2), ("conv4", 4), ("conv6", 8)])
def test_images_that_are_too_small_are_refused(name: str, smallest: int) -> None:
    logits = build_module(architecture(name, (1, smallest, smallest), 10))(torch.rand(1, 1, smallest, smallest))
    assert logits.shape == (1, 10)
    for shape in ((1, smallest - 1, 64), (1, 64, smallest - 1)):
        with pytest.raises(UserError, match=rf"{name} halves .* {shape[1]}x{shape[2]} pixels are too few"):
            architecture(name, shape, 10)


def test_canonical_names() -> None:
    assert [canonical_name(n) for n in ("fc", "fc-300-100", "fc-7", "conv4")] == [
        "fc-300-100",
        "fc-300-100",
        "fc-7",
        "conv4",
    ]
    assert architecture("fc", MNIST, 10) == architecture("fc-300-100", MNIST, 10)
