"""Learning a mask in plain PyTorch: any network, CPU or one GPU. What it computes is the definition of correct.

The weights are constants; what the optimiser moves are logits. Every pass makes its mask anew (`learned`), and the
gradient with respect to the mask goes to the logits unchanged by how the mask was made.
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
from supermask.core.types import NetworkState, SplitData, TrainingResult, Weights
from supermask.engines.job import Array, BatchSampler, TrainingJob
from supermask.engines.reference import evaluate_batches, flush_denormals, on_device
from supermask.engines.training import OptimizerState, run_training
from supermask.networks.sequential import build_module


def train(jobs: Sequence[TrainingJob], data: Sequence[SplitData], device: str = "cpu") -> list[TrainingResult]:
    """Learns the mask of each job, one after another; `data[i]` is the data of `jobs[i]`.

    Source: paper.md section 6.
    """
    with flush_denormals():
        return [_outcome(MaskTrainer(job, d, device), job, d) for job, d in zip(jobs, data, strict=True)]


def _outcome(stepper: MaskTrainer, job: TrainingJob, data: SplitData) -> TrainingResult:
    outcome = run_training(stepper, job, data)
    # Gone on from a checkpoint at its very end, there was no pass.
    return replace(outcome, last_sampled_weights=stepper.last_pass or next(stepper.samples()))


class MaskTrainer:
    """A mask in training: the reference's `Stepper` for `job.learning`."""

    def __init__(self, job: TrainingJob, data: SplitData, device: str = "cpu") -> None:
        assert job.learning is not None
        self.learning, self.recipe, self.seed = job.learning, job.recipe, job.seed
        self.device = torch.device(device)
        self.module = build_module(job.layers).to(self.device).eval()
        self.images, self.labels = on_device(data.train_images, self.device), on_device(data.train_labels, self.device)
        validation = (data.validation_images, data.validation_labels)
        self.device_cache = {id(array): on_device(array, self.device) for array in validation}
        self.maximum = torch.tensor(float(data.pixel_maximum), device=self.device)
        self.order = BatchSampler(job.seed, data.train_indices, job.recipe.batch_size)
        self.logits = {n: torch.zeros(w.shape, device=self.device) for n, w in job.start.weights.items()}
        for logits in self.logits.values():
            logits.requires_grad_()
        self.weights: Weights = {}
        self.others: Weights = {}
        self.last_pass: Weights = {}
        parameters = list(self.logits.values())
        self.optimizer: torch.optim.Optimizer
        if job.recipe.optimizer == "adam":
            self.optimizer = torch.optim.Adam(parameters, lr=job.recipe.lr, betas=(0.9, 0.999), eps=1e-8, fused=True)
        else:
            self.optimizer = torch.optim.SGD(parameters, lr=job.recipe.lr, momentum=job.recipe.momentum, fused=True)

    def load(self, state: NetworkState) -> None:
        self.weights = {n: w.to(self.device, copy=True) for n, w in state.weights.items()}
        self.others = {n: t.to(self.device, copy=True) for n, t in state.unmasked.items()}
        with torch.no_grad():
            for name, logits in state.logits.items():
                self.logits[name].copy_(logits)

    def state(self) -> NetworkState:
        parts: tuple[Weights, ...] = (self.weights, self.others, self.logits)
        return NetworkState(*({n: t.detach().to("cpu", copy=True) for n, t in part.items()} for part in parts))

    def gradient(self, iteration: int) -> Weights:
        raise AssertionError("nobody asks for the gradient of weights that never move")

    def train(self, first: int, last: int) -> Array:
        keys = {n: sampling_keys(self.seed, "training", n, first, last) for n in self.logits}
        losses = []
        for iteration in range(first, last):
            batch = torch.from_numpy(self.order.batch(iteration)).to(self.device)
            used = {
                n: masked_weights(self.learning, m, self.weights[n], keys[n][iteration - first])
                for n, m in self.logits.items()
            }
            pixels = self.images.index_select(0, batch).float().div_(self.maximum)
            loss = cross_entropy(self._network(used, pixels), self.labels.index_select(0, batch))
            for logits in self.logits.values():
                logits.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            if self.recipe.weight_decay:
                for logits in self.logits.values():
                    assert logits.grad is not None
                    logits.grad.add_(logits.detach(), alpha=self.recipe.weight_decay)
            self.optimizer.param_groups[0]["lr"] = self.recipe.learning_rate(iteration)
            self.optimizer.step()
            if iteration == last - 1:
                self.last_pass = {n: w.detach().cpu() for n, w in used.items()}
        return torch.stack(losses).cpu().numpy()

    def evaluate(self, images: Array, labels: Array) -> tuple[float, float]:
        """Means over the single samples of the mask."""
        found = [self.evaluate_network(used, images, labels) for used in self.samples()]
        return sum(loss for loss, _ in found) / len(found), sum(share for _, share in found) / len(found)

    def evaluate_network(self, used: Weights, images: Array, labels: Array) -> tuple[float, float]:
        """Mean cross-entropy and accuracy of the network with these weights."""
        pixels, right = (
            self.device_cache[id(a)] if id(a) in self.device_cache else on_device(a, self.device)
            for a in (images, labels)
        )
        return evaluate_batches(lambda some: self._network(used, some.float().div_(self.maximum)), pixels, right)

    def samples(self) -> Iterator[Weights]:
        """The weights of each single sample; the same coins every time."""
        passes = self.learning.num_samples
        keys = {n: sampling_keys(self.seed, "samples", n, 0, passes) for n in self.logits}
        with torch.inference_mode():
            for j in range(passes):
                yield {n: masked_weights(self.learning, m, self.weights[n], keys[n][j]) for n, m in self.logits.items()}

    def _network(self, used: Weights, pixels: Tensor) -> Tensor:
        found: Tensor = functional_call(self.module, {**used, **self.others}, (pixels,))
        return found

    def optimizer_state(self) -> OptimizerState:
        states = {n: self.optimizer.state.get(m, {}) for n, m in self.logits.items()}
        return {
            n: {k: v.cpu() for k, v in s.items() if isinstance(v, Tensor) and v.shape == self.logits[n].shape}
            for n, s in states.items()
        }

    def load_optimizer_state(self, state: OptimizerState, iteration: int) -> None:
        for name, values in state.items():
            own: dict[str, Tensor] = {key: value.to(self.device) for key, value in values.items()}
            if self.recipe.optimizer == "adam":
                own["step"] = torch.tensor(float(iteration), device=self.device)
            self.optimizer.state[self.logits[name]] = own


class StraightThrough(torch.autograd.Function):
    """Forward the mask, backward to `soft` what comes for the mask. (soft + (mask - soft) is not binary in float32.)"""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, mask: Tensor) -> Tensor:
        return mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def masked_weights(learning: MaskLearning, logits: Tensor, weights: Tensor, keys: Array) -> Tensor:
    """The weights of one pass: b w, or b w (size / ones) under dynamic weight rescaling; differentiable in the logits.

    Shape: that of the kernel. `keys`: the pass's, for the coins of `bernoulli`.
    Source: paper.md section 6; Ramanujan et al. 2020; Koster et al. 2022.
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
    used = b * weights
    if learning.rescaled:
        # The gradient flows through the ratio: d(ones)/db is 1, at zeros too; the sign of b where it may invert.
        ones = b.abs().sum() if learning.method == "signed" else b.sum()
        used = used * (mask.numel() / ones.clamp(min=1.0))
    return used
