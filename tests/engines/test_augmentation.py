"""Augmentation and normalization of the reference engine against image-by-image NumPy code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import numpy_training as by_hand
from helpers.trainings import RECIPES, data, flat, job, parameters
from numpy.typing import NDArray

from supermask.core.recipe import Augmentation, ChannelStatistics, Recipe
from supermask.core.rng import random_stream
from supermask.engines.augmentation import InputPipeline, draw_augmentation
from supermask.engines.job import BatchSampler
from supermask.engines.reference import train

CPU = torch.device("cpu")
COLOR = data((3, 6, 5), 4, train=40)
AUGMENTATIONS = {
    "crop": Augmentation(crop=2),
    "flip": Augmentation(flip=True),
    "cutout": Augmentation(cutout=3),
    "even cutout": Augmentation(cutout=4),
    "crop and flip": Augmentation(crop=1, flip=True),
    "all": Augmentation(crop=4, flip=True, cutout=3),
}


def recipe_with(augment: Augmentation = RECIPES["sgd"].augment, **changes: object) -> Recipe:
    return replace(RECIPES["sgd"], augment=augment, **changes)  # type: ignore[arg-type]


def augmented_image(
    image: NDArray[np.uint8], augment: Augmentation, maximum: int, mean: list[float], std: list[float], i: int, t: int
) -> NDArray[np.float32]:
    """Image number i of mini-batch t (of 7 images), pixel by pixel."""
    channels, height, width = image.shape
    corner, mirrored, middle = (augment.crop, augment.crop), False, None
    if augment.crop:
        places = random_stream(3, "augment", "crop", t).integers(2 * augment.crop + 1, size=(2, 7))
        corner = int(places[0, i]), int(places[1, i])
    if augment.flip:
        mirrored = bool(random_stream(3, "augment", "flip", t).integers(2, size=7)[i])
    if augment.cutout:
        places = random_stream(3, "augment", "cutout", t).integers([[height], [width]], size=(2, 7))
        middle = int(places[0, i]), int(places[1, i])
    out = np.zeros(image.shape, np.float32)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                row = y + corner[0] - augment.crop
                column = (width - 1 - x if mirrored else x) + corner[1] - augment.crop
                inside = 0 <= row < height and 0 <= column < width
                pixel = np.float32(image[c, row, column] if inside else 0) / np.float32(maximum)
                out[c, y, x] = (pixel - np.float32(mean[c])) / np.float32(std[c])
                if middle is not None:
                    first = middle[0] - augment.cutout // 2, middle[1] - augment.cutout // 2
                    if 0 <= y - first[0] < augment.cutout and 0 <= x - first[1] < augment.cutout:
                        out[c, y, x] = 0
    return out


@pytest.mark.parametrize("normalized", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_batches_equal_images_changed_one_by_one(augment: Augmentation, normalized: bool) -> None:
    mean, std = ([0.25, 0.5, 0.125], [0.5, 0.25, 2.0]) if normalized else ([0.0] * 3, [1.0] * 3)
    statistics = ChannelStatistics(tuple(mean), tuple(std)) if normalized else "none"
    pipeline = InputPipeline(recipe_with(augment, normalize=statistics), COLOR, 3, CPU)
    for t in (0, 1, 977):
        images = COLOR.train_images[7 * (t % 3) : 7 * (t % 3) + 7]
        actual = pipeline.training_batch(torch.from_numpy(images), t).numpy()
        expected = [augmented_image(image, augment, 16, mean, std, i, t) for i, image in enumerate(images)]
        np.testing.assert_array_equal(actual, np.stack(expected))


def test_evaluated_images_are_not_augmented() -> None:
    pipeline = InputPipeline(recipe_with(AUGMENTATIONS["all"]), COLOR, 0, CPU)
    pixels = torch.from_numpy(COLOR.test_images)
    assert torch.equal(pipeline.scale(pixels), pixels.float() / 16)
    assert torch.equal(pixels, torch.from_numpy(data((3, 6, 5), 4, train=40).test_images))


def test_draws_cover_their_ranges_evenly() -> None:
    draws = draw_augmentation(Augmentation(crop=2, flip=True, cutout=3), 0, 5, 20_000, (4, 6))
    assert draws.corner is not None and draws.mirrored is not None and draws.hole is not None
    for values, outcomes in (
        (draws.corner[0], 5),
        (draws.corner[1], 5),
        (draws.mirrored, 2),
        (draws.hole[0], 4),
        (draws.hole[1], 6),
    ):
        shares = np.bincount(values, minlength=outcomes) / 20_000
        # Five standard deviations of a share of 20,000 draws.
        assert len(shares) == outcomes
        assert np.abs(shares - 1 / outcomes).max() < 5 * 0.5 / np.sqrt(20_000)
    assert abs(np.corrcoef(draws.corner)[0, 1]) < 0.04


def test_draws_depend_on_seed_and_iteration_alone() -> None:
    def crop(augment: Augmentation, seed: int = 0, iteration: int = 7) -> bytes:
        corner = draw_augmentation(augment, seed, iteration, 32, (8, 8)).corner
        assert corner is not None
        return corner.tobytes()

    alone = crop(Augmentation(crop=4))
    assert crop(Augmentation(crop=4, flip=True, cutout=8)) == alone
    assert len({alone, crop(Augmentation(crop=4), seed=1), crop(Augmentation(crop=4), iteration=8)}) == 3


def test_training_uses_the_augmented_batches() -> None:
    """The loss of every step, without learning, is that of the batch that the pipeline returns."""
    recipe = recipe_with(AUGMENTATIONS["crop and flip"], lr=0.0, iterations=12, evaluate_every=1)
    split = data()
    small_job = job(recipe)
    weights = {**small_job.start.weights, **small_job.start.unmasked}
    outcome = train([small_job], [split])[0]
    pipeline, order = InputPipeline(recipe, split, 0, CPU), BatchSampler(0, split.train_indices, 5)
    for t in range(12):
        batch = order.batch(t)
        x = pipeline.training_batch(torch.from_numpy(split.train_images[batch]), t).flatten(1)
        for i in (1, 2, 3):
            x = torch.nn.functional.linear(x if i == 1 else x.relu(), weights[f"fc{i}.weight"], weights[f"fc{i}.bias"])
        loss = torch.nn.functional.cross_entropy(x, torch.from_numpy(split.train_labels[batch]))
        assert outcome.curve.training_loss[t + 1] == pytest.approx(float(loss), rel=1e-6)


# --- normalization ---


def test_channel_statistics_are_those_of_the_images_to_train_on() -> None:
    images = COLOR.train_images[COLOR.train_indices].astype(np.float64) / 16
    statistics = COLOR.channel_statistics
    for c in range(3):
        total, squares, n = 0.0, 0.0, 0
        for image in images:
            for value in image[c].ravel():
                total, squares, n = total + value, squares + value**2, n + 1
        assert statistics.mean[c] == pytest.approx(total / n, rel=1e-12)
        assert statistics.std[c] == pytest.approx(np.sqrt(squares / n - (total / n) ** 2), rel=1e-9)
    others = replace(COLOR, train_indices=COLOR.train_indices[:7])
    assert others.channel_statistics != statistics
    assert COLOR.channel_statistics is statistics


def test_a_channel_with_one_value_is_divided_by_one() -> None:
    split = data((2, 6, 5), 4, train=40)
    split.train_images[:, 1] = 8
    assert split.channel_statistics.std[1] == 1.0
    inputs = InputPipeline(recipe_with(normalize="per_channel"), split, 0, CPU).scale(
        torch.from_numpy(split.train_images)
    )
    assert not inputs[:, 1].any()
    assert inputs[split.train_indices, 0].mean() == pytest.approx(0, abs=1e-6)
    assert inputs[split.train_indices, 0].std() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("normalize", ["per_channel", ChannelStatistics((0.5,), (0.25,))], ids=["images", "given"])
def test_normalization_applies_to_evaluations_too(normalize: object) -> None:
    split = data()
    outcome = train([job(recipe_with(normalize=normalize))], [split])[0]
    statistics = split.channel_statistics if normalize == "per_channel" else normalize
    assert isinstance(statistics, ChannelStatistics)

    def inputs(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return (flat(images, split) - statistics.mean[0]) / statistics.std[0]

    initial, end = parameters(job(recipe_with()).start.state), parameters(outcome.end)
    first = by_hand.loss_and_accuracy(initial, inputs(split.validation_images), split.validation_labels)
    last = by_hand.loss_and_accuracy(end, inputs(split.test_images), split.test_labels)
    assert outcome.curve.validation_loss[0] == pytest.approx(first[0], rel=1e-5)
    assert outcome.metrics["final_test_loss"] == pytest.approx(last[0], rel=1e-5)
    assert outcome.metrics["final_test_accuracy"] == pytest.approx(last[1])
    batch = BatchSampler(0, split.train_indices, 5).batch(0)
    loss, _ = by_hand.loss_and_accuracy(initial, inputs(split.train_images[batch]), split.train_labels[batch])
    whole = train([job(recipe_with(normalize=normalize, evaluate_every=1))], [split])[0]
    assert whole.curve.training_loss[1] == pytest.approx(loss, rel=1e-5)
