"""Tensors of the residual networks for CIFAR, known from depth and width alone: planning them needs no torch.

`tests/networks/test_registry.py` compares them with those of the module.
"""

from __future__ import annotations

from supermask.core.types import PrunableTensor
from supermask.networks.network import NetworkFacts, UnmaskedTensor


def cifar_resnet_facts(depth: int, width: int, image_shape: tuple[int, int, int], classes: int) -> NetworkFacts:
    """Return the facts of `residual.CifarResNet`. Source: He et al. 2015, Sec. 4.2."""
    tensors: list[PrunableTensor] = []
    unmasked: list[UnmaskedTensor] = []
    multiplications = 0
    channels, height, width_pixels = image_shape

    def convolution(prefix: str, number: str, inputs: int, outputs: int, stride: int) -> None:
        nonlocal height, width_pixels, multiplications
        height, width_pixels = (height - 1) // stride + 1, (width_pixels - 1) // stride + 1
        multiplications += 9 * inputs * outputs * height * width_pixels
        name = f"{prefix}conv{number}.weight"
        tensors.append(PrunableTensor(name, (outputs, inputs, 3, 3), "conv", 9 * inputs, 9 * outputs))
        norm = f"{prefix}bn{number}"
        unmasked.extend(UnmaskedTensor(f"{norm}.{key}", (outputs,), "float32", True) for key in ("weight", "bias"))
        statistics = ("running_mean", "running_var")
        unmasked.extend(UnmaskedTensor(f"{norm}.{key}", (outputs,), "float32", False, True) for key in statistics)
        unmasked.append(UnmaskedTensor(f"{norm}.num_batches_tracked", (), "int64", False, True))

    convolution("", "", channels, width, 1)
    inputs = width
    for stage in (1, 2, 3):
        outputs = width * 2 ** (stage - 1)
        for block in range((depth - 2) // 6):
            convolution(f"stage{stage}.{block}.", "1", inputs, outputs, 2 if stage > 1 and not block else 1)
            convolution(f"stage{stage}.{block}.", "2", outputs, outputs, 1)
            inputs = outputs
    tensors.append(PrunableTensor("fc.weight", (classes, inputs), "output", inputs, classes))
    unmasked.append(UnmaskedTensor("fc.bias", (classes,), "float32", True))
    return NetworkFacts(image_shape, classes, tuple(tensors), tuple(unmasked), (), multiplications + inputs * classes)
