"""Mask learning in plain PyTorch: any network, CPU or one GPU. Its results define the correct numbers.

The weights are constants; the optimizer trains logits. Every forward pass makes a new mask from them, and the gradient
with respect to the mask passes straight through to the logits (see `core.learned_masks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from supermask.core.learned_masks import SIGMOID, MaskLearning, edge_popup_threshold, sampling_keys, uniform_samples
from supermask.core.rng import random_stream
from supermask.core.types import NetworkState, SplitData, TrainingResult, Weights
from supermask.engines.augmentation import InputPipeline
from supermask.engines.job import Array, BatchSampler, TrainingJob
from supermask.engines.precision import matmul_precision
from supermask.engines.reference import (
    backward,
    default_generator,
    evaluate_batches,
    flush_denormals,
    network_logits,
    on_device,
    preserve_rng_state,
)
from supermask.engines.reference_optimizer import FusedOptimizer
from supermask.engines.training import OptimizerState, run_training


def train(jobs: Sequence[TrainingJob], data: Sequence[SplitData], device: str = "cpu") -> list[TrainingResult]:
    """Learn the mask of each job, one after another; `data[i]` is the data of `jobs[i]`.

    Source: Zhou et al. 2019, Sec. 5.
    """
    generator = default_generator(torch.device(device))
    with preserve_rng_state(generator), flush_denormals(), matmul_precision("float32", torch.device(device)):
        return [_train_job(MaskTrainer(job, d, device), job, d) for job, d in zip(jobs, data, strict=True)]


def _train_job(trainer: MaskTrainer, job: TrainingJob, data: SplitData) -> TrainingResult:
    result = run_training(trainer, job, data)
    # A run resumed from a checkpoint at its last iteration performs no forward pass: take the first sample instead.
    return replace(result, last_sampled_weights=trainer.last_pass or next(trainer.samples()))


class MaskTrainer:
    """The reference engine's `Trainer` for `job.learning`: one mask in training."""

    def __init__(self, job: TrainingJob, data: SplitData, device: str = "cpu") -> None:
        assert job.learning is not None
        self.learning, self.recipe, self.seed = job.learning, job.recipe, job.seed
        self.device = torch.device(device)
        # The module gives the architecture only: `functional_call` replaces all of its tensors.
        self.network = job.network
        self.module = job.network.build().to(self.device).eval()
        self.generator = default_generator(self.device)
        self.module_seed = int(random_stream(job.seed, "module").integers(2**31))
        """Added to the iteration, the seed of the module's own draws (dropout)."""
        self.images, self.labels = on_device(data.train_images, self.device), on_device(data.train_labels, self.device)
        validation = (data.validation_images, data.validation_labels)
        self.device_cache = {id(array): on_device(array, self.device) for array in validation}
        """Arrays that are evaluated many times, on the device, by `id`."""
        self.inputs = InputPipeline(job.recipe, data, job.seed, self.device)
        self.sampler = BatchSampler(job.seed, data.train_indices, job.recipe.batch_size)
        self.logits = {n: torch.zeros(m.shape, device=self.device) for n, m in job.start.logits.items()}
        """Logits of the masked tensors; the network uses every other tensor as it is."""
        for logits in self.logits.values():
            logits.requires_grad_()
        self.weights: Weights = {}
        self.last_pass: Weights = {}
        """Masked weights of the last training step of the last call of `train`; empty before the first call."""
        self.optimizer = FusedOptimizer(job.recipe)
        self.trained_others = sorted(job.network.trained_names) if self.learning.others_lr else []
        """Biases and normalization parameters that are trained beside the mask."""
        self.unmasked = {n: job.start.unmasked[n].to(self.device, copy=True) for n in self.trained_others}
        if self.trained_others:
            for name in self.trained_others:
                self.unmasked[name].requires_grad_()

    def load(self, state: NetworkState) -> None:
        self.weights = {n: w.to(self.device, copy=True) for n, w in state.weights.items()}
        for name, tensor in state.unmasked.items():
            # The optimizer holds the trained ones, which therefore stay the same objects.
            if name in self.trained_others:
                self.unmasked[name].detach().copy_(tensor)
            else:
                self.unmasked[name] = tensor.to(self.device, copy=True)
        with torch.no_grad():
            for name, logits in state.logits.items():
                self.logits[name].copy_(logits)

    def state(self) -> NetworkState:
        parts: tuple[Weights, ...] = (self.weights, self.unmasked, self.logits)
        return NetworkState(*({n: t.detach().to("cpu", copy=True) for n, t in part.items()} for part in parts))

    def gradient(self, iteration: int) -> Weights:
        raise AssertionError("weights that are never trained have no gradient to report")

    def train(self, first: int, last: int) -> Array:
        # Keys depend on the iteration, not on the interval: a resumed run draws the same masks.
        keys = {n: sampling_keys(self.seed, "training", n, first, last) for n in self.logits}
        losses = []
        self.module.train()
        for iteration in range(first, last):
            self.generator.manual_seed(self.module_seed + iteration)
            batch = torch.from_numpy(self.sampler.batch(iteration)).to(self.device)
            masked = self._masked_weights({n: key[iteration - first] for n, key in keys.items()})
            pixels = self.inputs.training_batch(self.images.index_select(0, batch), iteration)
            loss = cross_entropy(self._forward(masked, pixels), self.labels.index_select(0, batch))
            trained = [*self.logits.values(), *(self.unmasked[name] for name in self.trained_others)]
            for tensor in trained:
                tensor.grad = None
            backward(self.network, loss)
            losses.append(loss.detach())
            if self.recipe.weight_decay:
                for tensor in trained:
                    if tensor.grad is not None:
                        tensor.grad.add_(tensor.detach(), alpha=self.recipe.weight_decay)
            rate = self.recipe.learning_rate(iteration)
            self.optimizer.step(self.logits.values(), rate)
            if self.trained_others:
                others = [self.unmasked[name] for name in self.trained_others]
                # The schedule of the recipe, with another peak.
                self.optimizer.step(others, rate / self.recipe.lr * self.learning.others_lr)
            # Copied to the CPU once per interval, not at every step.
            if iteration == last - 1:
                self.last_pass = {n: w.detach().cpu() for n, w in masked.items()}
        self.module.eval()
        return torch.stack(losses).cpu().numpy()

    def evaluate(self, images: Array, labels: Array) -> tuple[float, float]:
        """Return mean loss in nats and mean accuracy over the single samples of the mask."""
        evaluations = [self.evaluate_network(masked, images, labels) for masked in self.samples()]
        return (
            sum(loss for loss, _ in evaluations) / len(evaluations),
            sum(accuracy for _, accuracy in evaluations) / len(evaluations),
        )

    def evaluate_network(self, weights: Weights, images: Array, labels: Array) -> tuple[float, float]:
        """Return mean cross-entropy in nats and accuracy of the network with these weights."""
        pixels, targets = (
            self.device_cache[id(a)] if id(a) in self.device_cache else on_device(a, self.device)
            for a in (images, labels)
        )
        return evaluate_batches(lambda chunk: self._forward(weights, self.inputs.scale(chunk)), pixels, targets)

    def samples(self) -> Iterator[Weights]:
        """Yield the masked weights of each single sample; the same uniform numbers at every call."""
        count = self.learning.num_samples
        keys = {n: sampling_keys(self.seed, "samples", n, 0, count) for n in self.logits}
        for j in range(count):
            # Left before `yield`, or the mode would stay in whatever the caller computes.
            with torch.no_grad():
                masked = self._masked_weights({n: key[j] for n, key in keys.items()})
            yield masked

    def _masked_weights(self, keys: dict[str, Array]) -> Weights:
        """Return the weights of one forward pass by tensor; `keys`: those of the pass, of each masked tensor."""
        masked = {n: masked_weights(self.learning, m, self.weights[n], keys[n]) for n, m in self.logits.items()}
        return {**self.weights, **masked}

    def _forward(self, weights: Weights, pixels: Tensor) -> Tensor:
        tensors = {**weights, **self.unmasked}
        forward = lambda images: functional_call(self.module, tensors, (images,))  # noqa: E731
        return network_logits(self.network, self.module, pixels, forward)

    def optimizer_state(self) -> OptimizerState:
        return self.optimizer.named_state(self._trained_tensors())

    def load_optimizer_state(self, state: OptimizerState, iteration: int) -> None:
        # Mask learning has no late start: steps and iterations are counted from 0 alike.
        self.optimizer.load_named_state(self._trained_tensors(), state, iteration)

    def _trained_tensors(self) -> Weights:
        """Return every trained tensor: logits by the name of their weights, and the trained biases."""
        return self.logits | {name: self.unmasked[name] for name in self.trained_others}


class StraightThrough(torch.autograd.Function):
    """Straight-through estimator: `mask` forward; backward, the gradient at the mask goes to `soft` unchanged.

    The usual soft + (mask - soft) is not binary in float32.
    """

    @staticmethod
    def forward(ctx: Any, soft: Tensor, mask: Tensor) -> Tensor:
        return mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def masked_weights(learning: MaskLearning, logits: Tensor, weights: Tensor, keys: Array) -> Tensor:
    """Return the weights of one forward pass, differentiable in the logits: b w, or b w (size / ones) if rescaled.

    b is the mask, `ones` the number of its nonzero elements (dynamic weight rescaling). `logits`, `weights` and the
    result have the kernel's shape, `(out, in)` or `(out, in, 3, 3)`. `keys`, uint32 `(2,)`: keys of this pass, from
    which `bernoulli` draws its uniform numbers.
    Source: Zhou et al. 2019, Sec. 5; Ramanujan et al. 2020 (`edge_popup`); Koster et al. 2022 (`signed`).
    """
    soft = logits.sigmoid() if learning.method in SIGMOID else logits
    fixed = logits.detach()
    if learning.method == "bernoulli":
        mask = (uniform_samples(keys, fixed) < soft.detach()).float()
    elif learning.method == "rounded":
        mask = (fixed > 0).float()
    elif learning.method == "edge_popup":
        mask = (fixed > edge_popup_threshold(fixed, learning.density)).float()
    else:
        mask = fixed.sign() * (fixed.abs() > learning.threshold)
    b: Tensor = StraightThrough.apply(soft, mask)  # type: ignore[no-untyped-call]
    masked = b * weights
    if learning.rescaled:
        # The gradient includes the ratio: d(ones)/db is 1, at zeros too; the sign of b where the mask may invert.
        ones = b.abs().sum() if learning.method == "signed" else b.sum()
        masked = masked * (mask.numel() / ones.clamp(min=1.0))
    return masked
