"""Network inputs from stored images: scaling, normalization, and augmentation of whole mini-batches on the device.

Shapes: B images of a mini-batch, C channels, H rows and W columns of an image, P its padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from supermask.core.recipe import Augmentation, ChannelStatistics, Recipe
from supermask.core.rng import Stream, random_stream
from supermask.core.types import SplitData
from supermask.engines.job import Array


@dataclass(frozen=True)
class AugmentationDraws:
    """Random draws for one mini-batch, int64. Each kind is None if the augmentation does not use it."""

    corner: Array | None
    """Row and column of the window's upper left pixel in the padded image, `(2, B)`, from 0 to 2 P."""
    mirrored: Array | None
    """1 for a mirrored image, else 0, `(B,)`."""
    hole: Array | None
    """Row and column of the pixel at the middle of the erased square, `(2, B)`."""


def draw_augmentation(
    augment: Augmentation, seed: int, iteration: int, batch_size: int, size: tuple[int, int]
) -> AugmentationDraws:
    """Return the draws of a mini-batch; `size` is (H, W).

    Each kind has a stream of its own per seed and iteration: a resumed run repeats its draws, and recipes that differ
    in one kind agree in the others.
    """

    def stream(kind: str) -> Stream:
        return random_stream(seed, "augment", kind, iteration)

    height, width = size
    return AugmentationDraws(
        corner=stream("crop").integers(2 * augment.crop + 1, size=(2, batch_size)) if augment.crop else None,
        mirrored=stream("flip").integers(2, size=batch_size) if augment.flip else None,
        hole=stream("cutout").integers([[height], [width]], size=(2, batch_size)) if augment.cutout else None,
    )


def input_statistics(recipe: Recipe, data: SplitData) -> ChannelStatistics | None:
    """Return the statistics by which a recipe normalizes the inputs of a network; None if it does not."""
    statistics = data.channel_statistics if recipe.normalize == "per_channel" else recipe.normalize
    return statistics if isinstance(statistics, ChannelStatistics) else None


class InputPipeline:
    """Inputs of a network from stored pixels, on one device, as a recipe says."""

    def __init__(self, recipe: Recipe, data: SplitData, seed: int, device: torch.device) -> None:
        self._augment, self._seed, self._device = recipe.augment, seed, device
        # Division by a tensor: a GPU may turn a division by a Python number into a product with its rounded reciprocal.
        self._max_pixel = torch.tensor(float(data.max_pixel), device=device)
        statistics = input_statistics(recipe, data)
        self._mean_and_std: tuple[Tensor, Tensor] | None = None
        if statistics is not None:
            mean, std = (
                torch.tensor(values, device=device)[:, None, None] for values in (statistics.mean, statistics.std)
            )
            self._mean_and_std = mean, std
        self._format = torch.channels_last if recipe.channels_last else torch.contiguous_format

    def scale(self, pixels: Tensor) -> Tensor:
        """Return the inputs of evaluations, float32 `(B, C, H, W)`, from stored pixels of that shape."""
        inputs = pixels.float().div_(self._max_pixel)
        if self._mean_and_std is not None:
            mean, std = self._mean_and_std
            inputs.sub_(mean).div_(std)
        return inputs.contiguous(memory_format=self._format)

    def training_batch(self, pixels: Tensor, iteration: int) -> Tensor:
        """Return the inputs of a training step, float32 `(B, C, H, W)`, from stored pixels of that shape."""
        if not self._augment:
            return self.scale(pixels)
        batch_size, _, height, width = pixels.shape
        draws = draw_augmentation(self._augment, self._seed, iteration, batch_size, (height, width))
        corner, mirrored, hole = (
            None if kind is None else torch.from_numpy(kind).to(self._device)
            for kind in (draws.corner, draws.mirrored, draws.hole)
        )
        inputs = self.scale(crop_and_mirror(pixels, corner, mirrored, self._augment.crop))
        return inputs if hole is None else erase_squares(inputs, hole, self._augment.cutout)


def crop_and_mirror(pixels: Tensor, corner: Tensor | None, mirrored: Tensor | None, padding: int) -> Tensor:
    """Return windows of the zero-padded images, mirrored where drawn, in the shape `(B, C, H, W)` and type of `pixels`.

    `corner` and `mirrored` as in `AugmentationDraws`, on the device.
    """
    if corner is None and mirrored is None:
        return pixels
    batch_size, channels, height, width = pixels.shape
    rows = torch.arange(height, device=pixels.device).expand(batch_size, height)
    columns = torch.arange(width, device=pixels.device).expand(batch_size, width)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None].bool(), columns.flip(1), columns)
    if corner is not None:
        first_row, first_column = corner
        rows, columns = rows + first_row[:, None], columns + first_column[:, None]
        pixels = pad(pixels, (padding, padding, padding, padding))
    # One gather of whole images: index of every window pixel in its flattened padded image, (B, H W).
    places = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).flatten(1)
    gathered = pixels.flatten(2).gather(2, places[:, None, :].expand(batch_size, channels, height * width))
    return gathered.view(batch_size, channels, height, width)


def erase_squares(inputs: Tensor, hole: Tensor, side: int) -> Tensor:
    """Set the inputs of a square of `side` pixels to 0, in place: rows and columns from hole - side // 2 on.

    `inputs`: `(B, C, H, W)`; `hole` as in `AugmentationDraws`, on the device.
    """
    height, width = inputs.shape[2:]
    first_row, first_column = (hole - side // 2)[:, :, None]
    rows, columns = (torch.arange(length, device=inputs.device) for length in (height, width))
    in_rows = (rows >= first_row) & (rows < first_row + side)
    in_columns = (columns >= first_column) & (columns < first_column + side)
    return inputs.masked_fill_(in_rows[:, None, :, None] & in_columns[:, None, None, :], 0.0)
