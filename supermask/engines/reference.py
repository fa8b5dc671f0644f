"""The reference engine: plain PyTorch, any module, CPU or one GPU. What it computes is the definition of correct.

Pruned weights are held by their gradient: it is set to zero before the optimiser sees it, so that their optimiser
state stays zero and their values stay bit-equal to what they were frozen at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from supermask.core.rng import random_stream
from supermask.core.types import NetworkState, SplitData, TrainingResult, Weights
from supermask.engines.job import Array, BatchSampler, TrainingJob
from supermask.engines.training import OptimizerState, run_training
from supermask.networks.sequential import build_module

EVALUATION_PIXELS = {"cpu": 2**18, "cuda": 2**22}
"""Pixels evaluated at once. On a CPU a convolution's activations should stay near its cache: Conv2 takes 1.4 times as
long with 500 images at once as with 50; FC is as fast from 250 on."""


def train(jobs: Sequence[TrainingJob], data: Sequence[SplitData], device: str = "cpu") -> list[TrainingResult]:
    """Trains each job to its outcome, one after another; `data[i]` is the data of `jobs[i]`."""
    return [train_module(build_module(job.layers), job, d, device) for job, d in zip(jobs, data, strict=True)]


def train_module(module: nn.Module, job: TrainingJob, data: SplitData, device: str = "cpu") -> TrainingResult:
    """Trains any module whose `state_dict` has the names of the job's start; the module itself is used up.

    The loss is the mean cross-entropy; the optimiser Adam or SGD. What a module draws from torch's generator (dropout)
    depends on the seed and the iteration alone; the generator is left as it was.
    Source: paper.md section 1 (steps 2 and 6), section 2.
    """
    place = torch.device(device)
    with _preserve_rng_state(_generator(place)), flush_denormals():
        return run_training(_ModuleTrainer(module.to(place), job, data, place), job, data)


def gradient(job: TrainingJob, data: SplitData, state: NetworkState, iteration: int) -> Weights:
    """dL/dw of every maskable tensor, pruned weights included, at `state` on mini-batch `iteration`.

    Source: paper.md section 3 (`snip`, `grad`).
    """
    place = torch.device("cpu")
    with _preserve_rng_state(_generator(place)), flush_denormals():
        module = _ModuleTrainer(build_module(job.layers), job, data, place)
        module.load(state)
        return module.gradient(iteration)


class _ModuleTrainer:
    """A module in training: the reference's `Stepper`."""

    def __init__(self, module: nn.Module, job: TrainingJob, data: SplitData, device: torch.device) -> None:
        self.module, self.start, self.recipe, self.device = module.train(), job.start, job.recipe, device
        self.images, self.labels = on_device(data.train_images, device), on_device(data.train_labels, device)
        validation = (data.validation_images, data.validation_labels)
        self.there = {id(array): on_device(array, device) for array in validation}
        """Arrays that are measured on again and again."""
        self.maximum = torch.tensor(float(data.pixel_maximum), device=device)
        self.order = BatchSampler(job.seed, data.train_indices, job.recipe.batch_size)
        self.generator = _generator(device)
        self.draws = int(random_stream(job.seed, "module").integers(2**31))
        self.named = dict(module.named_parameters())
        self.parameters = list(self.named.values())
        self.held = [(self.named[n], mask_bits(m).to(device)) for n, m in job.start.masks.items() if not bool(m.all())]
        self.optimizer = _optimizer(self.parameters, job)

    def load(self, state: NetworkState) -> None:
        own = self.module.state_dict()
        given = {**state.weights, **state.unmasked}
        assert own.keys() == given.keys(), own.keys() ^ given.keys()
        with torch.no_grad():
            for name, tensor in given.items():
                own[name].copy_(tensor)

    def state(self) -> NetworkState:
        tensors = {n: t.to("cpu", copy=True) for n, t in self.module.state_dict().items()}
        masks = self.start.masks
        weights = {n: t for n, t in tensors.items() if n in masks}
        return NetworkState(weights, {n: t for n, t in tensors.items() if n not in masks})

    def gradient(self, iteration: int) -> Weights:
        before = self.state()
        self._backward(iteration)
        masks = self.start.masks
        found = {n: p.grad.to("cpu", copy=True) for n, p in self.named.items() if p.grad is not None and n in masks}
        self.load(before)  # a batch normalisation has counted this batch
        return found

    def _backward(self, iteration: int) -> Tensor:
        self.generator.manual_seed(self.draws + iteration)
        batch = torch.from_numpy(self.order.batch(iteration)).to(self.device)
        logits = self.module(self._scaled(self.images.index_select(0, batch)))
        loss = cross_entropy(logits, self.labels.index_select(0, batch))
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _scaled(self, pixels: Tensor) -> Tensor:
        # By a tensor: a GPU may turn a division by a Python number into a product with its rounded reciprocal.
        return pixels.float().div_(self.maximum)

    def train(self, first: int, last: int) -> Array:
        # Losses stay on the device until the end, so that a GPU is not waited for.
        recipe, losses = self.recipe, []
        for iteration in range(first, last):
            losses.append(self._backward(iteration))
            if recipe.weight_decay:
                for parameter in self.parameters:
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter.detach(), alpha=recipe.weight_decay)
            for parameter, bits in self.held:
                if parameter.grad is not None:
                    parameter.grad.view(torch.int32).bitwise_and_(bits)
            self.optimizer.param_groups[0]["lr"] = recipe.learning_rate(iteration)
            self.optimizer.step()
        return torch.stack(losses).cpu().numpy()

    def evaluate(self, images: Array, labels: Array) -> tuple[float, float]:
        self.generator.manual_seed(self.draws)
        self.module.eval()
        pixels, right = (
            self.there[id(a)] if id(a) in self.there else on_device(a, self.device) for a in (images, labels)
        )
        found = evaluate_batches(lambda some: self.module(self._scaled(some)), pixels, right)
        self.module.train()
        return found

    def optimizer_state(self) -> OptimizerState:
        states = {n: self.optimizer.state.get(p, {}) for n, p in self.named.items()}
        return {
            n: {k: v.cpu() for k, v in s.items() if isinstance(v, Tensor) and v.shape == self.named[n].shape}
            for n, s in states.items()
        }

    def load_optimizer_state(self, state: OptimizerState, iteration: int) -> None:
        steps = torch.tensor(float(iteration - self.start.first_iteration))
        for name, values in state.items():
            own: dict[str, Tensor] = {key: value.to(self.device) for key, value in values.items()}
            if self.recipe.optimizer == "adam":
                own["step"] = steps.to(self.device, copy=True)
            self.optimizer.state[self.named[name]] = own


def evaluate_batches(network: Callable[[Tensor], Tensor], pixels: Tensor, right: Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats, summed in float64, and accuracy of a network of pixels as they are stored."""
    loss = torch.zeros((), dtype=torch.float64, device=right.device)
    hits = torch.zeros((), dtype=torch.int64, device=right.device)
    at_once = max(1, EVALUATION_PIXELS[right.device.type] // pixels[0].numel())
    with torch.inference_mode():
        for first in range(0, len(right), at_once):
            some = right[first : first + at_once]
            logits = network(pixels[first : first + at_once])
            loss += cross_entropy(logits, some, reduction="none").double().sum()
            hits += (logits.argmax(1) == some).sum()
    return loss.item() / len(right), int(hits) / len(right)


def _optimizer(parameters: list[nn.Parameter], job: TrainingJob) -> torch.optim.Optimizer:
    recipe = job.recipe
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, fused=True)
    return torch.optim.Adam(parameters, lr=recipe.lr, betas=(0.9, 0.999), eps=1e-8, fused=True)


def mask_bits(mask: Tensor) -> Tensor:
    """All bits set where a weight is kept, none where it is pruned. AND with a gradient leaves it or makes it +0.

    As fast as a product with the mask, which would leave NaN, and -0: minus that, a weight frozen at -0 becomes +0.
    """
    return mask.to(torch.int32).neg()


def on_device(array: Array, device: torch.device) -> Tensor:
    """The array as a tensor there."""
    # Through DLPack a read-only memory map, shared by all workers, is taken without a copy and without a warning.
    return torch.from_dlpack(array).to(device)  # type: ignore[attr-defined]


def _generator(device: torch.device) -> torch.Generator:
    """The generator that modules on this device draw from."""
    if device.type == "cpu":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


@contextmanager
def _preserve_rng_state(generator: torch.Generator) -> Iterator[None]:
    """Puts the generator back to where it was."""
    state = generator.get_state()
    try:
        yield
    finally:
        generator.set_state(state)


@contextmanager
def flush_denormals(threads: int | None = None) -> Iterator[None]:
    """Counts numbers below 1.2e-38 (denormal ones) as zero, where one thread does all the work (of `threads`).

    Adam's means of a weight whose gradient has long been zero decay into them, and a processor is slow there: 6% of
    FC's first layer on MNIST after 3,000 steps, which then take 1.5 to 2 times as long. Other threads would keep their
    own mode, so that bits would depend on which did what.
    """
    before = torch.full((1,), 1e-40).mul(1.0).item() == 0.0
    torch.set_flush_denormal(before or (threads or torch.get_num_threads()) == 1)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
