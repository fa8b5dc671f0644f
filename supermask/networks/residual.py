"""Residual networks: the CIFAR form of He et al. (2015), their ImageNet form, and wide residual networks.

Plain modules with the published parameter counts. Weights have PyTorch's own values: the initializer of a study sets
them. Convolutions have no bias, because batch normalization follows.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad, relu


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution with padding 1, without bias."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def logits_layer(inputs: int, classes: int) -> nn.Linear:
    """The last layer, with a bias of zeros."""
    layer = nn.Linear(inputs, classes)
    nn.init.zeros_(layer.bias)
    return layer


class ZeroPaddedBlock(nn.Module):
    """Two 3x3 convolutions and an identity shortcut: strided, with channels of zeros. Source: He et al. 2015, 4.2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, outputs - inputs
        self.conv1, self.bn1 = conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, inputs, h, w)` -> `(n, outputs, h / stride, w / stride)`."""
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        before = self.new_channels // 2
        if self.new_channels:
            shortcut = pad(shortcut, (0, 0, 0, 0, before, self.new_channels - before))
        return relu(y + shortcut)


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 for small images: three stages of n blocks with w, 2w and 4w channels.

    Source: He et al. 2015, Sec. 4.2 (n = 3 and w = 16 is ResNet-20: 0.27 million parameters).
    """

    def __init__(self, depth: int, width: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv, self.bn = conv3x3(channels, width), nn.BatchNorm2d(width)
        stages, inputs = [], width
        for stage in range(3):
            outputs, blocks = width * 2**stage, []
            for block in range((depth - 2) // 6):
                blocks.append(ZeroPaddedBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.stage1, self.stage2, self.stage3 = stages
        self.fc = logits_layer(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """`(n, channels, h, w)` -> logits `(n, classes)`."""
        x = self.stage3(self.stage2(self.stage1(relu(self.bn(self.conv(images))))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class ProjectedBlock(nn.Module):
    """Two 3x3 convolutions, or with `bottleneck` 1x1, 3x3, 1x1; the shortcut is a 1x1 convolution where shapes differ.

    Source: He et al. 2015, Sec. 4.1 (the stride is in the 3x3 convolution, as in PyTorch's own ResNet-50).
    """

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            self.body = nn.Sequential(
                nn.Conv2d(inputs, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                conv3x3(width, width, stride),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
        else:
            self.body = nn.Sequential(
                conv3x3(inputs, width, stride),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                conv3x3(width, outputs),
                nn.BatchNorm2d(outputs),
            )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """`(n, inputs, h, w)` -> `(n, outputs, h / stride, w / stride)`."""
        return relu(self.body(x) + self.shortcut(x))


MAX_SMALL_IMAGE = 64
"""Height and width, in pixels, up to which `ImageNetResNet` has the stem for small images."""


class ImageNetResNet(nn.Module):
    """ResNet-18 or ResNet-50 in the form for ImageNet; images of at most 64 pixels get a 3x3 stem without pooling.

    Source: He et al. 2015, Table 1 (11.7 and 25.6 million parameters for 1,000 classes).
    """

    def __init__(self, blocks: tuple[int, ...], bottleneck: bool, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        is_small = max(shape[1:]) <= MAX_SMALL_IMAGE
        if is_small:
            self.stem = nn.Sequential(conv3x3(shape[0], 64), nn.BatchNorm2d(64), nn.ReLU())
        else:
            stem = nn.Conv2d(shape[0], 64, 7, 2, padding=3, bias=False)
            self.stem = nn.Sequential(stem, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
        stages, inputs = [], 64
        for stage, count in enumerate(blocks):
            width, stage_blocks = 64 * 2**stage, []
            for block in range(count):
                stage_blocks.append(ProjectedBlock(inputs, width, 2 if stage and not block else 1, bottleneck))
                inputs = 4 * width if bottleneck else width
            stages.append(nn.Sequential(*stage_blocks))
        self.stages = nn.Sequential(*stages)
        self.fc = logits_layer(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """`(n, channels, h, w)` -> logits `(n, classes)`."""
        logits: Tensor = self.fc(self.stages(self.stem(images)).mean((2, 3)))
        return logits


class WideBlock(nn.Module):
    """Batch normalization and ReLU before each of two 3x3 convolutions. Source: Zagoruyko & Komodakis 2016, Fig. 1."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3x3(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv3x3(outputs, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """`(n, inputs, h, w)` -> `(n, outputs, h / stride, w / stride)`."""
        y = relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(relu(self.bn2(self.conv1(y)))) + shortcut  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """WRN-D-K: three stages of (D - 4) / 6 blocks with 16K, 32K and 64K channels.

    Source: Zagoruyko & Komodakis 2016 (WRN-28-10: 36.5 million parameters).
    """

    def __init__(self, depth: int, factor: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, 16)
        stages, inputs = [], 16
        for stage in range(3):
            outputs, blocks = 16 * factor * 2**stage, []
            for block in range((depth - 4) // 6):
                blocks.append(WideBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages, self.bn = nn.Sequential(*stages), nn.BatchNorm2d(inputs)
        self.fc = logits_layer(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """`(n, channels, h, w)` -> logits `(n, classes)`."""
        x = relu(self.bn(self.stages(self.conv(images))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits
