"""Mask learning over a fully connected network on a CPU."""

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
"""Hyperparameters that change no weight: with rate and momentum 0, SGD's momentum buffer is the gradient itself."""


class MLPMaskTrainer:
    """The sparse engine's `Trainer` for `job.learning`: bernoulli and rounded masks over fully connected layers."""

    def __init__(self, job: TrainingJob, data: SplitData) -> None:
        assert job.learning is not None
        self.job, self.data, self.learning = job, data, job.learning
        self.sampler = BatchSampler(job.seed, data.train_indices, job.recipe.batch_size)
        self.images = flatten_images(data.train_images)
        self.names = [layer.name for layer in job.layers]
        # No weight is pruned, so nothing is gained by lists of surviving ones, and no costs decide.
        traversals: dict[str, Traversal] = {name: "all" if name != self.names[0] else "pixels" for name in self.names}
        self.network = MLPTrainer(job, data, traversals)
        self.layout, self.net = self.network.layout, self.network.net
        arrays = {name: aligned_zeros(len(self.net.w)) for name in ("logits", "base", "p", "m", "v")}
        self.last_pass: Weights = {}
        """Masked weights of the last training step; empty before the first."""
        self.mask = mlp_masks.MaskBuffers(
            **arrays,
            ones=np.zeros(len(self.names), np.float32),
            sizes=np.array([job.start.weights[f"{n}.weight"].numel() for n in self.names], np.float32),
            bernoulli=int(self.learning.method == "bernoulli"),
            rescaled=int(self.learning.rescaled),
        )

    def load(self, state: NetworkState) -> None:
        self.network.load(state)
        for name in self.names:
            self.layout.scatter(self.mask.base, name, state.weights[f"{name}.weight"])
            self.layout.scatter(self.mask.logits, name, state.logits[f"{name}.weight"])

    def state(self) -> NetworkState:
        biases = {f"{n}.bias": torch.from_numpy(self.net.bias[self.layout.biases[n]].copy()) for n in self.names}
        return NetworkState(self._tensors(self.mask.base), biases, self._tensors(self.mask.logits))

    def gradient(self, iteration: int) -> Weights:
        raise AssertionError("weights that are never trained have no gradient to report")

    def train(self, first: int, last: int) -> Array:
        batches = np.stack([self.sampler.batch(i) for i in range(first, last)])
        losses = np.empty(last - first, np.float32)
        steps, keys = optimizer_step_table(self.job.recipe, 0, first, last), self._keys("training", first, last)
        images, labels = self.images, self.data.train_labels
        mlp_masks.train(self.net, self.mask, NO_UPDATE[()], steps, keys, images, labels, batches, losses)
        self.last_pass = self._tensors(self.net.w)
        return losses

    def evaluate(self, images: Array, labels: Array) -> tuple[float, float]:
        """Return mean loss in nats and mean accuracy over the single samples of the mask."""
        loss, correct, samples = 0.0, 0, self.learning.num_samples
        before = self.net.w.copy()
        for keys in self._keys("samples", 0, samples):
            mlp_masks.sample_weights(self.net, self.mask, keys)
            sample_loss, sample_correct = mlp.evaluate(self.net, flatten_images(images), labels)
            loss, correct = loss + sample_loss, correct + sample_correct
        # Evaluation leaves no trace: `net.w` still holds the weights of the last training step.
        self.net.w[:] = before
        return loss / len(labels) / samples, correct / len(labels) / samples

    def first_sample(self) -> Weights:
        """Return the masked weights of the first single sample."""
        mlp_masks.sample_weights(self.net, self.mask, self._keys("samples", 0, 1)[0])
        return self._tensors(self.net.w)

    def _keys(self, purpose: str, first: int, last: int) -> Array:
        """Keys of the uniform numbers of forward passes `first` to `last - 1`, uint32 `(last - first, layers, 2)`."""
        return np.stack([sampling_keys(self.job.seed, purpose, f"{n}.weight", first, last) for n in self.names], axis=1)

    def _tensors(self, array: Array) -> Weights:
        """Return an array that is laid out as `net.w` as kernels `(out, in)`."""
        start = self.job.start.weights
        return {
            f"{n}.weight": self.layout.gather(array, self.layout.weights[n], start[f"{n}.weight"]) for n in self.names
        }

    def optimizer_state(self) -> OptimizerState:
        moments = {key: self._tensors(array) for key, array in self._moments().items()}
        return {f"{n}.weight": {key: tensors[f"{n}.weight"] for key, tensors in moments.items()} for n in self.names}

    def load_optimizer_state(self, state: OptimizerState, iteration: int) -> None:
        # A checkpoint does not say which pixels earlier batches have shown: compute the gradient of all of them.
        self.net.ever_nonzero[:] = 1
        for name in self.names:
            for key, array in self._moments().items():
                self.layout.scatter(array, name, state[f"{name}.weight"][key])

    def _moments(self) -> dict[str, Array]:
        """Arrays of the optimizer's state, by PyTorch's names."""
        return dict(zip(optimizer_state_names(self.job.recipe), (self.mask.m, self.mask.v), strict=False))
