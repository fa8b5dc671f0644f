"""Learning a mask over a fully connected network on a CPU: the sparse engine's way."""

from __future__ import annotations

import numpy as np
import torch

from supermask.core.learned_masks import sampling_keys
from supermask.core.types import NetworkState, SplitData, Weights
from supermask.engines.job import Array, BatchSampler, TrainingJob, flatten_images
from supermask.engines.optimizer_steps import OPTIMIZER, optimizer_state_names, optimizer_step_table
from supermask.engines.sparse.costs import Traversal
from supermask.engines.sparse.fully_connected import MLPTrainer
from supermask.engines.sparse.kernels import mlp, mlp_masks
from supermask.engines.sparse.kernels.simd import aligned_zeros
from supermask.engines.training import OptimizerState

NO_UPDATE = np.zeros((), OPTIMIZER)
"""An optimiser that moves nothing: with rate and momentum 0 it leaves the gradient where its mean would be."""


class MLPMaskTrainer:
    """The sparse engine's `Stepper` for `job.learning`: bernoulli and rounded masks over Linear layers."""

    def __init__(self, job: TrainingJob, data: SplitData) -> None:
        assert job.learning is not None
        self.job, self.data, self.learning = job, data, job.learning
        self.order = BatchSampler(job.seed, data.train_indices, job.recipe.batch_size)
        self.images = flatten_images(data.train_images)
        self.names = [layer.name for layer in job.layers]
        # Nothing is pruned: the first layer walks over lit pixels, the others over everything.
        walks: dict[str, Traversal] = {name: "all" if name != self.names[0] else "pixels" for name in self.names}
        self.inner = MLPTrainer(job, data, walks)
        self.places, self.net = self.inner.places, self.inner.net
        arrays = {name: aligned_zeros(len(self.net.w)) for name in ("logits", "base", "p", "m", "v")}
        self.last_pass: Weights = {}
        """The weights that the last pass of training computed with."""
        self.mask = mlp_masks.MaskBuffers(
            **arrays,
            ones=np.zeros(len(self.names), np.float32),
            sizes=np.array([job.start.weights[f"{n}.weight"].numel() for n in self.names], np.float32),
            bernoulli=int(self.learning.method == "bernoulli"),
            rescaled=int(self.learning.rescaled),
        )

    def load(self, state: NetworkState) -> None:
        self.inner.load(state)
        for name in self.names:
            self.places.scatter(self.mask.base, name, state.weights[f"{name}.weight"])
            self.places.scatter(self.mask.logits, name, state.logits[f"{name}.weight"])

    def state(self) -> NetworkState:
        biases = {f"{n}.bias": torch.from_numpy(self.net.bias[self.places.biases[n]].copy()) for n in self.names}
        return NetworkState(self._tensors(self.mask.base), biases, self._tensors(self.mask.logits))

    def gradient(self, iteration: int) -> Weights:
        raise AssertionError("nobody asks for the gradient of weights that never move")

    def train(self, first: int, last: int) -> Array:
        batches = np.stack([self.order.batch(i) for i in range(first, last)])
        losses = np.empty(last - first, np.float32)
        how, keys = optimizer_step_table(self.job.recipe, 0, first, last), self._keys("training", first, last)
        images, labels = self.images, self.data.train_labels
        mlp_masks.train(self.net, self.mask, NO_UPDATE[()], how, keys, images, labels, batches, losses)
        self.last_pass = self._tensors(self.net.w)
        return losses

    def evaluate(self, images: Array, labels: Array) -> tuple[float, float]:
        """Means over the single samples of the mask."""
        loss, right, passes = 0.0, 0, self.learning.num_samples
        before = self.net.w.copy()
        for keys in self._keys("samples", 0, passes):
            mlp_masks.sample_weights(self.net, self.mask, keys)
            found = mlp.evaluate(self.net, flatten_images(images), labels)
            loss, right = loss + found[0], right + found[1]
        self.net.w[:] = before
        return loss / len(labels) / passes, right / len(labels) / passes

    def first_sample(self) -> Weights:
        """The weights of the first single sample of the mask."""
        mlp_masks.sample_weights(self.net, self.mask, self._keys("samples", 0, 1)[0])
        return self._tensors(self.net.w)

    def _keys(self, purpose: str, first: int, last: int) -> Array:
        return np.stack([sampling_keys(self.job.seed, purpose, f"{n}.weight", first, last) for n in self.names], axis=1)

    def _tensors(self, array: Array) -> Weights:
        weights = self.job.start.weights
        found = {f"{n}.weight": (self.places.weights[n], weights[f"{n}.weight"]) for n in self.names}
        return {name: self.places.gather(array, place, like) for name, (place, like) in found.items()}

    def optimizer_state(self) -> OptimizerState:
        moments = dict(zip(optimizer_state_names(self.job.recipe), (self.mask.m, self.mask.v), strict=False))
        tensors = {key: self._tensors(array) for key, array in moments.items()}
        return {f"{n}.weight": {key: found[f"{n}.weight"] for key, found in tensors.items()} for n in self.names}

    def load_optimizer_state(self, state: OptimizerState, iteration: int) -> None:
        self.net.ever_nonzero[:] = 1
        for name in self.names:
            for key, array in zip(optimizer_state_names(self.job.recipe), (self.mask.m, self.mask.v), strict=False):
                self.places.scatter(array, name, state[f"{name}.weight"][key])
