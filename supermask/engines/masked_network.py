"""Learning a mask over a fully connected network on a CPU: the sparse engine's way."""

from __future__ import annotations

import numpy as np
import torch

from supermask.engines.fully_connected import FullyConnected
from supermask.engines.job import Array, BatchOrder, Data, Job, flat_bytes
from supermask.engines.kernels import fc, logits
from supermask.engines.kernels.lanes import aligned
from supermask.engines.kernels.updates import OPTIMIZER
from supermask.engines.loop import OptimizerState
from supermask.engines.steps import moment_names, optimizer_steps
from supermask.engines.walks import Walk
from supermask.learned import coin_keys
from supermask.types import State, Weights

NOTHING = np.zeros((), OPTIMIZER)
"""An optimiser that moves nothing: with rate and momentum 0 it leaves the gradient where its mean would be."""


class MaskedNetwork:
    """The sparse engine's `Stepper` for `job.learning`: bernoulli and rounded masks over Linear layers."""

    def __init__(self, job: Job, data: Data) -> None:
        assert job.learning is not None
        self.job, self.data, self.learning = job, data, job.learning
        self.order = BatchOrder(job.seed, data.train_indices, job.recipe.batch_size)
        self.images = flat_bytes(data.train_images)
        self.names = [layer.name for layer in job.layers]
        # Nothing is pruned: the first layer walks over lit pixels, the others over everything.
        walks: dict[str, Walk] = {name: "all" if name != self.names[0] else "pixels" for name in self.names}
        self.inner = FullyConnected(job, data, walks)
        self.places, self.net = self.inner.places, self.inner.net
        arrays = {name: aligned(len(self.net.w)) for name in ("logits", "base", "p", "m", "v")}
        self.last_pass: Weights = {}
        """The weights that the last pass of training computed with."""
        self.mask = logits.Mask(
            **arrays,
            ones=np.zeros(len(self.names), np.float32),
            sizes=np.array([job.start.weights[f"{n}.weight"].numel() for n in self.names], np.float32),
            bernoulli=int(self.learning.method == "bernoulli"),
            rescaled=int(self.learning.rescaled),
        )

    def load(self, state: State) -> None:
        self.inner.load(state)
        for name in self.names:
            self.places.put(self.mask.base, name, state.weights[f"{name}.weight"])
            self.places.put(self.mask.logits, name, state.logits[f"{name}.weight"])

    def state(self) -> State:
        biases = {f"{n}.bias": torch.from_numpy(self.net.bias[self.places.biases[n]].copy()) for n in self.names}
        return State(self._tensors(self.mask.base), biases, self._tensors(self.mask.logits))

    def gradient(self, iteration: int) -> Weights:
        raise AssertionError("nobody asks for the gradient of weights that never move")

    def train(self, first: int, last: int) -> Array:
        batches = np.stack([self.order.batch(i) for i in range(first, last)])
        losses = np.empty(last - first, np.float32)
        how, keys = optimizer_steps(self.job.recipe, 0, first, last), self._keys("training", first, last)
        images, labels = self.images, self.data.train_labels
        logits.train(self.net, self.mask, NOTHING[()], how, keys, images, labels, batches, losses)
        self.last_pass = self._tensors(self.net.w)
        return losses

    def measure(self, images: Array, labels: Array) -> tuple[float, float]:
        """Means over the single samples of the mask."""
        loss, right, passes = 0.0, 0, self.learning.passes
        before = self.net.w.copy()
        for keys in self._keys("samples", 0, passes):
            logits.draw_pass(self.net, self.mask, keys)
            found = fc.measure(self.net, flat_bytes(images), labels)
            loss, right = loss + found[0], right + found[1]
        self.net.w[:] = before
        return loss / len(labels) / passes, right / len(labels) / passes

    def first_sample(self) -> Weights:
        """The weights of the first single sample of the mask."""
        logits.draw_pass(self.net, self.mask, self._keys("samples", 0, 1)[0])
        return self._tensors(self.net.w)

    def _keys(self, purpose: str, first: int, last: int) -> Array:
        return np.stack([coin_keys(self.job.seed, purpose, f"{n}.weight", first, last) for n in self.names], axis=1)

    def _tensors(self, array: Array) -> Weights:
        weights = self.job.start.weights
        found = {f"{n}.weight": (self.places.weights[n], weights[f"{n}.weight"]) for n in self.names}
        return {name: self.places.get(array, place, like) for name, (place, like) in found.items()}

    def optimizer_state(self) -> OptimizerState:
        moments = dict(zip(moment_names(self.job.recipe), (self.mask.m, self.mask.v), strict=False))
        tensors = {key: self._tensors(array) for key, array in moments.items()}
        return {f"{n}.weight": {key: found[f"{n}.weight"] for key, found in tensors.items()} for n in self.names}

    def load_optimizer_state(self, state: OptimizerState, iteration: int) -> None:
        self.net.seen[:] = 1
        for name in self.names:
            for key, array in zip(moment_names(self.job.recipe), (self.mask.m, self.mask.v), strict=False):
                self.places.put(array, name, state[f"{name}.weight"][key])
