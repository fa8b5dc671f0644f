"""VGG networks in the form for CIFAR: batch normalization after each convolution, and one fully connected layer."""

from __future__ import annotations

from torch import Tensor, nn

from supermask.networks.residual import conv3x3, logits_layer

STAGES: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Depth -> number of 3x3 convolutions in each of the five stages. Source: Simonyan & Zisserman 2014, Table 1."""

STAGE_CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """VGG of a depth: stages of 3x3 convolutions, each stage but the last followed by 2x2 max-pooling.

    Where fewer than 2x2 pixels are left, there is nothing to pool. The mean over pixels goes to the last layer.
    Differs from the source: one fully connected layer in the place of three, and batch normalization, as is usual on
    CIFAR (VGG-16: 14.7 million parameters).
    """

    def __init__(self, depth: int, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, side = shape[0], min(shape[1:])
        for stage, (count, outputs) in enumerate(zip(STAGES[depth], STAGE_CHANNELS, strict=True)):
            for _ in range(count):
                layers += [conv3x3(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            if stage < len(STAGE_CHANNELS) - 1 and side >= 2:
                layers.append(nn.MaxPool2d(2))
                side //= 2
        self.features = nn.Sequential(*layers)
        self.fc = logits_layer(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """`(n, channels, h, w)` -> logits `(n, classes)`."""
        logits: Tensor = self.fc(self.features(images).mean((2, 3)))
        return logits
