"""Small trainings for the engines' tests: data, initial states, jobs, and the bits of a result."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from helpers import numpy_training as by_hand
from supermask.core.recipe import Recipe
from supermask.core.types import InitialState, NetworkState, SplitData, TrainingResult
from supermask.engines.job import Array, BatchSampler, TrainingJob
from supermask.networks.network import sequential_network
from supermask.networks.sequential import architecture, initial_state

SHAPE = (1, 3, 4)
CLASSES = 4
LAYERS = architecture("fc-8-6", SHAPE, CLASSES)

RECIPES = {
    "adam": Recipe("adam", 0.03, 5, 50, 10),
    "adam with weight decay": Recipe("adam", 0.03, 5, 50, 10, weight_decay=0.01),
    "sgd": Recipe("sgd", 0.3, 5, 50, 10),
    "momentum": Recipe("sgd", 0.1, 5, 50, 10, momentum=0.9),
    "momentum with weight decay": Recipe("sgd", 0.1, 5, 50, 10, momentum=0.9, weight_decay=0.01),
    "schedule": Recipe(
        "sgd", 0.4, 5, 50, 10, momentum=0.5, lr_milestones=(20, 40), drop_factor=0.5, warmup_iterations=8
    ),
    "cosine": Recipe("adam", 0.03, 5, 50, 10, warmup_iterations=8, schedule="cosine"),
    "linear": Recipe("sgd", 0.2, 5, 50, 10, momentum=0.5, schedule="linear"),
}
"""Recipes that every engine trains."""

REFERENCE_RECIPES = {
    "adamw": Recipe("adamw", 0.03, 5, 50, 10, weight_decay=0.5),
    "adamw without decay": Recipe("adamw", 0.03, 5, 50, 10),
    "adam with other betas": Recipe("adam", 0.03, 5, 50, 10, betas=(0.5, 0.9), eps=1e-3),
    "nesterov": Recipe("sgd", 0.1, 5, 50, 10, momentum=0.9, weight_decay=0.01, nesterov=True),
    "label smoothing": Recipe("sgd", 0.3, 5, 50, 10, label_smoothing=0.2),
}
"""Recipes that only the reference engine trains, with optimizers and losses that the NumPy oracle has."""


def data(shape: tuple[int, int, int] = SHAPE, classes: int = CLASSES, train: int = 63, seed: int = 0) -> SplitData:
    """Noisy images of one fixed pattern per class; 21 for validation, 17 for test; pixels from 0 to 16."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 17, (classes, *shape))

    def draw(n: int) -> tuple[Array, Array]:
        labels = rng.integers(0, classes, n)
        images = patterns[labels] + rng.integers(-3, 4, (n, *shape))
        return images.clip(0, 16).astype(np.uint8), labels

    (x, y), (vx, vy), (tx, ty) = draw(train + 5), draw(21), draw(17)
    return SplitData(x, y, np.arange(5, train + 5), vx, vy, tx, ty, 16)


def pruned_start(frozen: float | None = None, seed: int = 0) -> InitialState:
    """Initial state with half of the weights pruned, and frozen at `frozen`, or at their initial values."""
    start = initial_state(LAYERS, seed)
    rng = np.random.default_rng(seed)
    masks = {n: torch.from_numpy(rng.random(tuple(w.shape)) < 0.5) for n, w in start.weights.items()}
    if frozen is not None:
        start = InitialState(
            {n: w.where(masks[n], torch.tensor(frozen)) for n, w in start.weights.items()}, masks, start.unmasked
        )
    return InitialState(start.weights, masks, start.unmasked)


def job(recipe: Recipe, start: InitialState | None = None, **others: Any) -> TrainingJob:
    """A job of the small network; dense unless an initial state is given."""
    return TrainingJob(sequential_network(LAYERS), start or initial_state(LAYERS, 0), recipe, seed=0, **others)


def batches(job: TrainingJob, data: SplitData, number: int) -> list[tuple[by_hand.Values, NDArray[np.int64]]]:
    """The first mini-batches of a job as flat float64 pixels and labels."""
    order = BatchSampler(job.seed, data.train_indices, job.recipe.batch_size)
    picked = [order.batch(i) for i in range(number)]
    return [(flat(data.train_images[i], data), data.train_labels[i]) for i in picked]


def flat(images: Array, data: SplitData) -> by_hand.Values:
    """Scaled pixels, float64 `(n, pixels)`."""
    return (images.reshape(len(images), -1) / data.max_pixel).astype(np.float64)


def parameters(state: NetworkState) -> by_hand.Parameters:
    """Weights and biases as the oracle reads them."""
    return {n: t.numpy().astype(np.float64) for n, t in {**state.weights, **state.unmasked}.items()}


def normed_module() -> nn.Sequential:
    """A module with more state than weights: batch normalization (buffers) and dropout (draws)."""
    parts = OrderedDict(
        flatten=nn.Flatten(),
        fc1=nn.Linear(12, 8),
        norm=nn.BatchNorm1d(8),
        relu=nn.ReLU(),
        dropout=nn.Dropout(0.3),
        fc2=nn.Linear(8, CLASSES),
    )
    return nn.Sequential(parts)


def normed_start() -> InitialState:
    """Initial state for `normed_module`, half pruned."""
    state = {n: t.clone() for n, t in normed_module().state_dict().items()}
    for i, name in enumerate(sorted(state)):
        if name.startswith("fc"):
            values = np.random.default_rng(i).normal(0, 0.4, tuple(state[name].shape))
            state[name] = torch.from_numpy(values.astype(np.float32))
    masks = {n: torch.from_numpy(np.random.default_rng(9).random(tuple(state[n].shape)) < 0.5) for n in KERNELS}
    return InitialState({n: state[n] for n in KERNELS}, masks, {n: t for n, t in state.items() if n not in KERNELS})


KERNELS = ("fc1.weight", "fc2.weight")


class SkippingNetwork(nn.Module):
    """A network that skips a layer at random in training, and then has no gradient for it."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(inputs, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x.flatten(1)).relu()
        if not self.training or torch.rand(()) < 0.5:
            x = x + self.fc2(x).relu()
        return self.fc3(x)  # type: ignore[no-any-return]


def bits(outcome: TrainingResult) -> dict[str, Any]:
    """Every number of a result, tensors as bytes: equal if and only if the results are bit-identical."""
    states = {"end": outcome.end, **{str(point): state for point, state in outcome.snapshots.items()}}
    tensors = {(at, n): t for at, s in states.items() for n, t in {**s.weights, **s.unmasked}.items()}
    tensors |= {(n, key): t for n, s in outcome.optimizer_state.items() for key, t in s.items()}
    return {
        "status": outcome.status,
        "metrics": copy.deepcopy(outcome.metrics),
        "curve": {column: np.array(values).tobytes() for column, values in vars(outcome.curve).items()},
        "tensors": {key: (t.dtype, tuple(t.shape), t.numpy().tobytes()) for key, t in tensors.items()},
    }
