"""The reference engine: plain PyTorch, any module, CPU or one GPU. Its results define the correct numbers.

Pruned weights keep their values because their gradient is set to +0 before the optimizer reads it: their optimizer
state stays zero, and they stay bit-identical to their frozen values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from supermask.core.errors import UserError
from supermask.core.rng import random_stream
from supermask.core.types import NetworkState, SplitData, TrainingResult, Weights
from supermask.engines.augmentation import InputPipeline
from supermask.engines.job import Array, BatchSampler, TrainingJob
from supermask.engines.precision import matmul_precision
from supermask.engines.reference_optimizer import FusedOptimizer
from supermask.engines.training import OptimizerState, run_training
from supermask.networks.module_output import compute_logits, extract_logits
from supermask.networks.network import Network, shared_names, translate_errors

EVALUATION_PIXELS = {"cpu": 2**18, "cuda": 2**22}
"""Pixels evaluated per forward pass. On a CPU a convolution's activations should stay near its cache: Conv2 takes 1.4
times as long with 500 images per pass as with 50; FC is as fast from 250 on."""


STATISTICS_BATCH, STATISTICS_BATCHES = 250, 20
"""Training images of a batch, and batches, from which running statistics of an untrained network are estimated."""


def train(jobs: Sequence[TrainingJob], data: Sequence[SplitData], device: str = "cpu") -> list[TrainingResult]:
    """Train each job to its result, one after another; `data[i]` is the data of `jobs[i]`."""
    return [train_module(job.network.build(), job, d, device) for job, d in zip(jobs, data, strict=True)]


def train_module(module: nn.Module, job: TrainingJob, data: SplitData, device: str = "cpu") -> TrainingResult:
    """Train any module whose `state_dict` has the names of the job's initial state. Changes the module.

    Loss, optimizer, augmentation and number format are the recipe's; evaluations are always plain cross-entropy and
    accuracy of unchanged images in float32. Draws of a module from torch's generator (dropout) depend on seed and
    iteration only; the generator's state is restored afterwards.
    Raises UserError if the recipe's own loss does not return a scalar, if the module cannot be compiled, and for errors
    in the code of a user's module.
    Source: Zhou et al. 2019, Sec. 1 and 2.
    """
    torch_device = torch.device(device)
    # No TF32, no kernels that vary from call to call: this engine defines the correct numbers.
    precision = matmul_precision("float32", torch_device)
    with preserve_rng_state(default_generator(torch_device)), flush_denormals(), precision:
        trainer = _ModuleTrainer(module.to(torch_device), job, data, torch_device)
        if job.recipe.iterations == 0 and trainer.normalization_layers:
            statistics = trainer.estimate_statistics(job.start.state)
            job = replace(job, start=replace(job.start, unmasked=statistics))
        return run_training(trainer, job, data)


def gradient(job: TrainingJob, data: SplitData, state: NetworkState, iteration: int) -> Weights:
    """Return dL/dw of every prunable tensor, pruned weights included, at `state` on mini-batch `iteration`, on the CPU.

    Shapes: those of the kernels, `(out, in)` or `(out, in, 3, 3)`.
    Source: Zhou et al. 2019, Sec. 2 (mask criteria that use the gradient: `snip`, `grad`).
    """
    cpu = torch.device("cpu")
    with preserve_rng_state(default_generator(cpu)), flush_denormals():
        trainer = _ModuleTrainer(job.network.build(), job, data, cpu)
        trainer.load(state)
        return trainer.gradient(iteration)


class _ModuleTrainer:
    """The reference engine's `Trainer`: one module in training."""

    def __init__(self, module: nn.Module, job: TrainingJob, data: SplitData, device: torch.device) -> None:
        self.recipe, self.start, self.device = job.recipe, job.start, device
        layout = torch.channels_last if job.recipe.channels_last else torch.contiguous_format
        self.module = module.train().to(memory_format=layout)  # type: ignore[call-overload]
        self.images, self.labels = on_device(data.train_images, device), on_device(data.train_labels, device)
        validation = (data.validation_images, data.validation_labels)
        self.device_cache = {id(array): on_device(array, device) for array in validation}
        """Arrays that are evaluated many times, on the device, by `id`."""
        self.inputs = InputPipeline(job.recipe, data, job.seed, device)
        self.sampler = BatchSampler(job.seed, data.train_indices, job.recipe.batch_size)
        self.generator = default_generator(device)
        self.module_seed = int(random_stream(job.seed, "module").integers(2**31))
        """Added to the iteration, the seed of the module's own draws (dropout)."""
        self.aliases = shared_names(module)
        """Further names of tensors that several modules share; a state has each tensor once."""
        self.named_parameters = dict(module.named_parameters())
        self.parameters = list(self.named_parameters.values())
        masked = [(self.named_parameters[n], m.to(device)) for n, m in job.start.masks.items() if not bool(m.all())]
        self.masked_parameters = [(parameter, encode_mask_bits(mask)) for parameter, mask in masked]
        self.optimizer = FusedOptimizer(job.recipe)
        self.decayed_parameters: list[tuple[nn.Parameter, Tensor | None]] = []
        """Parameters with AdamW's decoupled decay, each with its mask if some of its weights are pruned."""
        if job.recipe.optimizer == "adamw" and job.recipe.weight_decay:
            masks = {id(parameter): mask for parameter, mask in masked}
            self.decayed_parameters = [(parameter, masks.get(id(parameter))) for parameter in self.parameters]
        self.has_user_loss = job.loss is not None
        self.loss = job.loss or partial(cross_entropy, label_smoothing=job.recipe.label_smoothing)
        self.network = job.network
        self.forward: Callable[[Tensor], Any] = compile_module(module) if job.recipe.compile else module

    def load(self, state: NetworkState) -> None:
        module_tensors = {n: t for n, t in self.module.state_dict().items() if n not in self.aliases}
        tensors = {**state.weights, **state.unmasked}
        assert module_tensors.keys() == tensors.keys(), module_tensors.keys() ^ tensors.keys()
        with torch.no_grad():
            for name, tensor in tensors.items():
                module_tensors[name].copy_(tensor)

    def state(self) -> NetworkState:
        # Contiguous whatever the layout in training is: snapshots are compared, hashed and stored.
        tensors = {
            n: t.to("cpu", copy=True, memory_format=torch.contiguous_format)
            for n, t in self.module.state_dict().items()
            if n not in self.aliases
        }
        masks = self.start.masks
        weights = {n: t for n, t in tensors.items() if n in masks}
        return NetworkState(weights, {n: t for n, t in tensors.items() if n not in masks})

    @property
    def normalization_layers(self) -> list[Any]:
        """Batch and instance normalization layers with running statistics."""
        kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
        return [m for m in self.module.modules() if isinstance(m, kinds) and m.running_mean is not None]

    def estimate_statistics(self, state: NetworkState) -> Weights:
        """Return the unmasked tensors of a network that is not trained, with running statistics of training images.

        At their initial values (mean 0, variance 1) a network is evaluated without normalization. The statistics are
        the means over up to 20 batches of 250 training images. No weight changes.
        """
        self.load(state)
        layers = self.normalization_layers
        momenta = [layer.momentum for layer in layers]
        # Momentum None is the mean over all batches to batch normalization; instance normalization reads it as 0.
        instance_layers = [m for m in layers if isinstance(m, nn.modules.instancenorm._InstanceNorm)]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
        size = min(STATISTICS_BATCH, len(self.sampler.indices))
        sampler = BatchSampler(self.sampler.seed, self.sampler.indices, size)
        with torch.no_grad():
            for number in range(min(STATISTICS_BATCHES, len(self.sampler.indices) // size)):
                self.generator.manual_seed(self.module_seed + number)
                for layer in instance_layers:
                    layer.momentum = 1 / (number + 1)
                batch = torch.from_numpy(sampler.batch(number)).to(self.device)
                inputs = self.inputs.scale(self.images.index_select(0, batch))
                network_logits(self.network, self.module, inputs, self.module)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        return self.state().unmasked

    def gradient(self, iteration: int) -> Weights:
        before = self.state()
        self._backward(iteration)
        masks = self.start.masks
        gradients = {
            n: p.grad.to("cpu", copy=True, memory_format=torch.contiguous_format)
            for n, p in self.named_parameters.items()
            if p.grad is not None and n in masks
        }
        self.load(before)  # the forward pass updated the running statistics of batch normalization
        return gradients

    def _backward(self, iteration: int) -> Tensor:
        """Set the gradients of one mini-batch; return its mean loss, on the device."""
        self.generator.manual_seed(self.module_seed + iteration)
        batch = torch.from_numpy(self.sampler.batch(iteration)).to(self.device)
        inputs = self.inputs.training_batch(self.images.index_select(0, batch), iteration)
        # Without autocast for float32: entering it costs time at every step.
        with torch.autocast(self.device.type, torch.bfloat16) if self.recipe.precision == "bfloat16" else nullcontext():
            logits = network_logits(self.network, self.module, inputs, self.forward)
        loss = self.loss(logits.float(), self.labels.index_select(0, batch))
        if self.has_user_loss:
            check_loss(self.recipe.loss, loss)
        for parameter in self.parameters:
            parameter.grad = None
        backward(self.network, loss)
        return loss.detach()

    def train(self, first: int, last: int) -> Array:
        recipe, losses = self.recipe, []
        for iteration in range(first, last):
            # Losses stay on the device until the end: reading one would wait for the GPU at every step.
            losses.append(self._backward(iteration))
            learning_rate = recipe.learning_rate(iteration)
            if recipe.weight_decay and recipe.optimizer != "adamw":
                # Added here and not by the optimizer, so that the mask below clears the decay of pruned weights too.
                for parameter in self.parameters:
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter.detach(), alpha=recipe.weight_decay)
            for parameter, bits in self.masked_parameters:
                if parameter.grad is not None:
                    parameter.grad.view(torch.int32).bitwise_and_(bits)
            decay_weights(self.decayed_parameters, learning_rate * recipe.weight_decay)
            self.optimizer.step(self.parameters, learning_rate)
        return torch.stack(losses).float().cpu().numpy()

    def evaluate(self, images: Array, labels: Array) -> tuple[float, float]:
        self.generator.manual_seed(self.module_seed)
        self.module.eval()
        pixels, targets = (
            self.device_cache[id(a)] if id(a) in self.device_cache else on_device(a, self.device)
            for a in (images, labels)
        )
        loss_and_accuracy = evaluate_batches(
            lambda chunk: network_logits(self.network, self.module, self.inputs.scale(chunk), self.module),
            pixels,
            targets,
        )
        self.module.train()
        return loss_and_accuracy

    def optimizer_state(self) -> OptimizerState:
        return self.optimizer.named_state(self.named_parameters)

    def load_optimizer_state(self, state: OptimizerState, iteration: int) -> None:
        self.optimizer.load_named_state(self.named_parameters, state, iteration - self.start.first_iteration)


def network_logits(network: Network, module: nn.Module, inputs: Tensor, forward: Callable[[Tensor], Any]) -> Tensor:
    """Return the logits `(batch, classes)` of the network's module; `forward` is the module, or calls it.

    Raises UserError for errors in a user's module, and for logits of another shape.
    """
    if not network.is_user_code or network.facts is None:
        return extract_logits(forward(inputs))
    return compute_logits(forward, inputs, network.facts.classes, network.name, module.training)


def backward(network: Network, loss: Tensor) -> None:
    """Compute the gradients of a loss. Raises UserError for errors in a user's module."""
    with translate_errors(network.name, "its backward pass") if network.is_user_code else nullcontext():
        loss.backward()  # type: ignore[no-untyped-call]


def evaluate_batches(network: Callable[[Tensor], Tensor], pixels: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return the mean cross-entropy in nats, summed in float64, and the accuracy.

    `network` maps stored pixels `(images, channels, height, width)` to logits `(images, classes)`.
    """
    loss = torch.zeros((), dtype=torch.float64, device=targets.device)
    hits = torch.zeros((), dtype=torch.int64, device=targets.device)
    chunk_size = max(1, EVALUATION_PIXELS[targets.device.type] // pixels[0].numel())
    # Not `inference_mode`: a module may keep a tensor from here, such as a table of positions, and train with it.
    with torch.no_grad():
        for first in range(0, len(targets), chunk_size):
            labels = targets[first : first + chunk_size]
            logits = network(pixels[first : first + chunk_size])
            loss += cross_entropy(logits, labels, reduction="none").double().sum()
            hits += (logits.argmax(1) == labels).sum()
    return loss.item() / len(targets), int(hits) / len(targets)


def decay_weights(parameters: Sequence[tuple[nn.Parameter, Tensor | None]], share: float) -> None:
    """Multiply the kept weights of each parameter by 1 - share, in place; a mask of None keeps all weights.

    Pruned weights are multiplied by 1 and keep their bits. A parameter without a gradient at this step keeps its
    values, as in `torch.optim.AdamW`: it is frozen, unused or skipped. Source: Loshchilov & Hutter 2019, Algorithm 2.
    """
    with torch.no_grad():
        for parameter, mask in parameters:
            if parameter.grad is not None:
                parameter.mul_(1 - share if mask is None else torch.where(mask, 1 - share, 1.0).to(parameter.dtype))


def check_loss(name: str, loss: object) -> None:
    """Raise UserError unless a user's loss returned a scalar tensor that depends on the logits."""
    expected = "return the loss of the mini-batch, a real scalar tensor, such as its mean over the images."
    if not isinstance(loss, Tensor):
        raise UserError(f"loss {name!r} returned a {type(loss).__name__}: {expected}")
    if loss.dim():
        raise UserError(f"loss {name!r} returned a tensor of shape {tuple(loss.shape)}: {expected}")
    if loss.is_complex():
        raise UserError(f"loss {name!r} returned a complex number: {expected}")
    if loss.layout != torch.strided or loss.is_meta:
        raise UserError(f"loss {name!r} returned a tensor of {loss.layout} on device {loss.device}: {expected}")
    if not loss.requires_grad:
        raise UserError(f"loss {name!r} returned a tensor that does not depend on the logits: {expected}")


def compile_module(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the module's forward pass, compiled on its first call.

    Raises UserError at that call if it cannot be compiled.
    """
    with catch_warnings():
        # PyTorch's compiler imports modules of its own that it declares deprecated.
        simplefilter("ignore", DeprecationWarning)
        import torch._inductor.config as inductor

        # No pool of compiling processes: a worker is one process, which may be killed at any time.
        inductor.compile_threads = 1
        compiled = torch.compile(module)

    def forward(inputs: Tensor) -> Tensor:
        try:
            logits: Tensor = compiled(inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"compile: true: the network cannot be compiled here ({type(error).__name__}: {reason}): leave it out, "
                "or install a C++ compiler."
            ) from error
        return logits

    return forward


def encode_mask_bits(mask: Tensor) -> Tensor:
    """Return int32 words for AND with a gradient: all bits set where a weight is kept, none where it is pruned.

    AND leaves a gradient as it is or makes it +0. A product with the mask is not faster, and would leave NaN and -0: a
    weight frozen at -0 minus -0 becomes +0.
    """
    return mask.to(torch.int32).neg()


def on_device(array: Array, device: torch.device) -> Tensor:
    """Return the array as a tensor on the device; on the CPU without a copy."""
    # DLPack takes a read-only memory map, which all workers share, without a copy and without a warning.
    return torch.from_dlpack(array).to(device)  # type: ignore[attr-defined]


def default_generator(device: torch.device) -> torch.Generator:
    """Return the generator that modules on this device draw from."""
    if device.type == "cpu":
        return torch.default_generator
    # The tuple of generators is empty until CUDA is initialized.
    torch.cuda.init()  # type: ignore[no-untyped-call]
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


@contextmanager
def preserve_rng_state(generator: torch.Generator) -> Iterator[None]:
    """Restore the generator's state at the end."""
    state = generator.get_state()
    try:
        yield
    finally:
        generator.set_state(state)


@contextmanager
def flush_denormals(threads: int | None = None) -> Iterator[None]:
    """Treat denormal numbers (below 1.2e-38) as zero inside, if one thread computes; else change nothing.

    `threads`: number of threads that compute; None: as many as PyTorch uses now.
    Adam's means of a weight whose gradient has long been zero decay into denormals, which are slow on a CPU: 6% of FC's
    first layer on MNIST after 3,000 steps, which then take 1.5 to 2 times as long. The mode belongs to a thread: with
    several, bits would depend on which thread computed which part.
    """
    before = torch.full((1,), 1e-40).mul(1.0).item() == 0.0
    torch.set_flush_denormal(before or (threads or torch.get_num_threads()) == 1)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
