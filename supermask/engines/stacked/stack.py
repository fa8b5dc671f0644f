"""Many networks of one architecture as tensors with a leading axis of replicas; one step trains them all.

Shapes: R replicas, N distinct mini-batches of a step (N <= R), B images of a batch, S training steps, C channels, H and
W height and width in pixels, K classes, P numbers of one tensor of one replica (its elements, flattened).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from weakref import proxy

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from supermask.core.learned_masks import sampling_keys
from supermask.core.types import NetworkState, SplitData, Weights
from supermask.engines.augmentation import crop_and_mirror, draw_augmentation, erase_squares, input_statistics
from supermask.engines.job import Array, BatchSampler, TrainingJob
from supermask.engines.optimizer_steps import optimizer_state_names
from supermask.engines.selection import MatmulPrecision
from supermask.engines.stacked.cuda_graph import CudaGraphStep
from supermask.engines.stacked.device import autocast_factory
from supermask.engines.stacked.forward import (
    BatchGroup,
    DeviceImages,
    LayersForward,
    NetworkForward,
    group_batches,
)
from supermask.engines.stacked.masked_pass import make_masked_pass
from supermask.engines.stacked.modules import ModuleForward
from supermask.engines.stacked.optimizer import encode_gradient_mask, make_optimizer_step, step_scalars

EVALUATION_BYTES = {"cpu": 2**23, "cuda": 2**30}
"""Bytes of the widest layer's outputs (and columns) that an evaluation computes at once. On a CPU about a cache; on a
GPU a small part of its memory."""

WIDEST_LAYER = 8
"""Values of a module's widest layer per value of its image, assumed: 5.3 in ResNet-20 on CIFAR-10."""

MAX_BUFFERED_STEPS = 4096
"""Training steps whose mini-batches and random draws are on the device at once: 8 MB per distinct mini-batch of 250
images. More steps are trained in parts."""

AUGMENTATION_SHAPES: dict[str, tuple[int, ...]] = {"corner": (2,), "mirrored": (), "hole": (2,)}
"""Field of `AugmentationDraws` -> its shape without the axis of images."""
AUGMENTATION_SETTINGS = {"corner": "crop", "mirrored": "flip", "hole": "cutout"}
"""Field of `AugmentationDraws` -> the setting of `Augmentation` that needs it."""


class Stack:
    """Networks of one architecture and equal `stack_settings`; replica r trains `jobs[r]` on `data[r]`.

    Each replica has its own iteration and its own order of batches. It can be replaced by another run (`replace`), and
    the stack can shrink (`select`) and grow (`append`). Neighbors with the same seed, data and iteration share their
    mini-batch. Nothing waits for the device but `train` and `evaluate`, once per call.

    Invariant of a recorded step (CUDA graph): all tensors that it uses keep their addresses. Everything that changes
    an address sets `_step` to None, and the next `train` records again.
    """

    def __init__(
        self,
        jobs: Sequence[TrainingJob],
        data: Sequence[SplitData],
        device: torch.device,
        precision: MatmulPrecision,
        algorithms: Mapping[str, str],
    ) -> None:
        first = jobs[0]
        self.recipe, self.learning = first.recipe, first.learning
        self.jobs, self.data, self.device = list(jobs), list(data), device
        layers = first.network.layers
        self._forward: NetworkForward = (
            ModuleForward(first.network, device) if layers is None else LayersForward(layers, algorithms, device)
        )
        self._trained_unmasked = first.network.trained_names
        self.autocast: Callable[[], AbstractContextManager[None]] = autocast_factory(precision, device)
        self.images = DeviceImages(data, device)
        self.samplers = [_batch_sampler(job, d) for job, d in zip(jobs, data, strict=True)]
        start = first.start
        self.weights, self.unmasked, self.logits = (
            {n: torch.zeros(len(jobs), *t.shape, dtype=t.dtype, device=device) for n, t in tensors.items()}
            for tensors in (start.weights, start.unmasked, start.logits)
        )
        self.last_sampled_weights: Weights = {}
        """Learned masks: the masked weights of the last training pass."""
        self.moment_names = optimizer_state_names(self.recipe)
        self.optimizer_state = {
            name: [torch.zeros_like(t) for _ in self.moment_names] for name, t in self._trainable().items()
        }
        """Tensor name -> one tensor per moment, in the order of `moment_names`, with the tensor's own shape."""
        self._best: NetworkState | None = None
        """The tensors of every replica at its lowest validation loss, stacked as the present ones; see `keep_best`."""
        self._gradient_masks: Weights = {}
        """`encode_gradient_mask`, (R, P), of the tensors in which any replica has pruned weights."""
        self._optimizer_step = make_optimizer_step(self.recipe, device)
        self._masked_pass = None if self.learning is None else make_masked_pass(self.learning, device)
        self._step: CudaGraphStep | None = None
        self._groups: list[BatchGroup] = []
        self._capacity = 0
        """Steps that fit into the buffers of `_prepare`."""
        self.replace(range(len(jobs)), jobs, data)

    def _trainable(self) -> Weights:
        if self.learning is not None:
            return self.logits
        return self.weights | {n: t for n, t in self.unmasked.items() if n in self._trained_unmasked}

    # --- training ---

    def train(self, first_iterations: Sequence[int], steps: int) -> Array:
        """Train replica r on mini-batches `first_iterations[r]` to `first_iterations[r] + steps - 1`.

        Returns the losses before each update, float32 (R, S).
        """
        parts = range(0, steps, MAX_BUFFERED_STEPS)
        losses = [
            self._train_part([first + i for first in first_iterations], min(steps - i, MAX_BUFFERED_STEPS))
            for i in parts
        ]
        return losses[0] if len(losses) == 1 else np.concatenate(losses, axis=1)

    def _train_part(self, first_iterations: Sequence[int], steps: int) -> Array:
        """`train` for at most `MAX_BUFFERED_STEPS` steps."""
        batch_keys = [
            (id(d), job.seed, first) for d, job, first in zip(self.data, self.jobs, first_iterations, strict=True)
        ]
        groups = group_batches(batch_keys)
        # The groups are baked into a recorded step, as slices; which batches and which rates they mean is data.
        if self._step is None or groups != self._groups or steps > self._capacity:
            self._prepare(groups, steps)
        assert self._step is not None
        self._upload_steps(batch_keys, first_iterations, steps)
        self._step(steps)
        # The only wait for the device. copy=True: on a CPU the buffer is overwritten by the next call.
        return self._losses[:steps].to("cpu", copy=True).numpy().T

    def _prepare(self, groups: list[BatchGroup], steps: int) -> None:
        """Allocate the buffers that a step reads and writes: everything that changes from step to step is in them.

        A recorded step takes no arguments. It reads its inputs from row `_step_index` of these buffers and increments
        the index itself, so that all steps of an interval are replayed without the host.
        """
        # No call trains more steps than there are between two evaluations, or in the longest training.
        longest = min(self.recipe.evaluate_every, max(job.recipe.iterations for job in self.jobs))
        self._groups, self._capacity = groups, max(steps, min(longest, MAX_BUFFERED_STEPS))
        replicas, device = len(self.jobs), self.device
        batches, batch_size = sum(group.num_batches for group in groups), self.recipe.batch_size
        self._step_index = torch.zeros(1, dtype=torch.int64, device=device)
        self._batches = torch.zeros(self._capacity, batches, batch_size, dtype=torch.int64, device=device)
        """Indices of training images, (S, N, B)."""
        self._scalars = torch.zeros(self._capacity, 2, replicas, device=device)
        """`step_scalars` of the next steps, (S, 2, R)."""
        self._losses = torch.zeros(self._capacity, replicas, device=device)
        """(S, R)."""
        self._draws = {
            kind: torch.zeros(self._capacity, batches, *shape, batch_size, dtype=torch.int64, device=device)
            for kind, shape in AUGMENTATION_SHAPES.items()
            if getattr(self.recipe.augment, AUGMENTATION_SETTINGS[kind])
        }
        """Random draws of the augmentation, by field of `AugmentationDraws`: (S, N, 2, B), or (S, N, B) of mirrors."""
        self._statistics: Tensor | None = None
        """Mean and standard deviation of the inputs of each mini-batch, (2, N, 1, C, 1, 1), if they are normalized."""
        if input_statistics(self.recipe, self.data[0]) is not None:
            self._statistics = torch.ones(2, batches, 1, self.images.pixels.shape[1], 1, 1, device=device)
        self._keys = {
            n: torch.zeros(self._capacity, replicas, 2, dtype=torch.int32, device=device) for n in self.logits
        }
        """Keys of the uniform samples of learned masks, (S, R, 2) per tensor."""
        self._batch_of_replica = self.images.to_device(np.concatenate([_batch_indices(group) for group in groups]))
        """Index of the mini-batch that each replica uses, (R,)."""
        for tensor in self._trainable().values():
            tensor.requires_grad_()
        # A weak reference: a reference cycle would keep this stack in the GPU's memory beside the next one.
        stack: Stack = proxy(self)
        self._step = CudaGraphStep(lambda: stack._train_step(), device)

    def _upload_steps(self, batch_keys: Sequence[object], first_iterations: Sequence[int], steps: int) -> None:
        """Fill the buffers for the next steps: one copy to the device per buffer, not per step."""
        batch_owners = [r for r in range(len(batch_keys)) if r == 0 or batch_keys[r] != batch_keys[r - 1]]
        batches = np.empty((steps, len(batch_owners), self.recipe.batch_size), np.int64)
        for n, r in enumerate(batch_owners):
            indices = self.samplers[r].batches(first_iterations[r], first_iterations[r] + steps)
            batches[:, n] = indices + self.images.offset(self.data[r])
        self._batches[:steps] = self.images.to_device(batches)
        self._upload_augmentation(batch_owners, first_iterations, steps)
        if self._statistics is not None:
            self._statistics.copy_(self._input_statistics(batch_owners))
        # Mini-batches are numbered from the dense network's initialization, but an optimizer is new at a run's own
        # start. A learned mask's optimizer is new at iteration 0.
        is_learned = self.learning is not None
        optimizer_starts = [0 if is_learned else job.start.first_iteration for job in self.jobs]
        recipes = [job.recipe for job in self.jobs]
        self._scalars[:steps] = self.images.to_device(step_scalars(recipes, optimizer_starts, first_iterations, steps))
        for name, buffer in self._keys.items():
            # Cached: most replicas have one of a few seeds and the same iteration.
            make_keys = cache(partial(_training_keys, name, steps))
            keys = np.stack(
                [make_keys(job.seed, first) for job, first in zip(self.jobs, first_iterations, strict=True)], axis=1
            )
            # uint32 viewed as int32: PyTorch has few operations on unsigned integers, and only the bits matter.
            buffer[:steps] = self.images.to_device(keys.view(np.int32))
        self._step_index.zero_()

    def _upload_augmentation(self, batch_owners: Sequence[int], first_iterations: Sequence[int], steps: int) -> None:
        """Fill the buffers with the draws of the next steps: those of the reference engine."""
        if not self._draws:
            return
        height, width = self.images.pixels.shape[2:]
        draws = [
            [
                draw_augmentation(
                    self.recipe.augment,
                    self.jobs[r].seed,
                    first_iterations[r] + i,
                    self.recipe.batch_size,
                    (height, width),
                )
                for r in batch_owners
            ]
            for i in range(steps)
        ]
        for kind, buffer in self._draws.items():
            values = np.stack([np.stack([getattr(draw, kind) for draw in step_draws]) for step_draws in draws])
            buffer[:steps] = self.images.to_device(values)

    def _input_statistics(self, slots: Sequence[int]) -> Tensor:
        """Mean and standard deviation of the inputs of these replicas, (2, number of slots, 1, C, 1, 1)."""
        statistics = [input_statistics(self.recipe, self.data[r]) for r in slots]
        pairs = [[s.mean for s in statistics if s is not None], [s.std for s in statistics if s is not None]]
        return self.images.to_device(np.array(pairs, np.float32)[:, :, None, :, None, None])

    def _train_step(self) -> None:
        """One training step of all replicas.

        It is recorded as a CUDA graph: nothing in it may wait for the device, copy from the host, or depend in Python
        on the step's number. Rows are read with index_select, because indexing with a Python int would bake it in.
        """
        step = self._step_index
        batches = self._batches.index_select(0, step)[0]  # (N, B)
        inputs = self._training_inputs(batches.flatten(), step)
        labels = self.images.labels.index_select(0, batches.flatten()).view_as(batches)
        labels = labels.index_select(0, self._batch_of_replica)  # (R, B)
        keys = {n: buffer.index_select(0, step)[0] for n, buffer in self._keys.items()}
        tensors = self._effective_weights(keys)
        with self.autocast():
            logits = self._forward(tensors, inputs, self._groups, self._batch_of_replica, is_training=True)
        smoothing = self.recipe.label_smoothing
        image_losses = cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=smoothing
        )
        losses = image_losses.view_as(labels).mean(1)  # (R,)
        trainable = self._trainable()
        # The gradient of the sum is each replica's own gradient: no loss depends on another replica's weights.
        gradients = torch.autograd.grad(losses.sum(), list(trainable.values()))
        rate, second_moment_scale = self._scalars.index_select(0, step)[0][:, :, None]  # (R, 1) each
        with torch.no_grad():
            for (name, tensor), gradient in zip(trainable.items(), gradients, strict=True):
                replicas = len(tensor)
                moments = [moment.view(replicas, -1) for moment in self.optimizer_state[name]]
                mask = None if self.learning is not None else self._gradient_masks.get(name)
                flat, flat_gradient = tensor.detach().view(replicas, -1), gradient.reshape(replicas, -1)
                self._optimizer_step(flat, flat_gradient, mask, moments, rate, second_moment_scale)
            self._losses.index_copy_(0, step, losses.detach()[None])
            step += 1
        if self.learning is not None:
            self.last_sampled_weights = {n: tensors[n].detach() for n in self.logits}

    def _training_inputs(self, images: Tensor, step: Tensor) -> Tensor:
        """Network inputs of all mini-batches of a step, float32 (N, B, C, H, W), as `InputPipeline` makes them.

        `images`: indices of training images, (N * B,).
        """
        pixels, augment = self.images.pixels.index_select(0, images), self.recipe.augment
        # (S, N, 2, B) -> (2, N * B), and (S, N, B) -> (N * B,)
        draws = {
            kind: buffer.index_select(0, step)[0].movedim(0, -2).flatten(-2) for kind, buffer in self._draws.items()
        }
        pixels = crop_and_mirror(pixels, draws.get("corner"), draws.get("mirrored"), augment.crop)
        inputs = self.images.scale(pixels).view(-1, self.recipe.batch_size, *pixels.shape[1:])
        if self._statistics is not None:
            mean, std = self._statistics
            inputs.sub_(mean).div_(std)
        if "hole" in draws:
            erase_squares(inputs.flatten(0, 1), draws["hole"], augment.cutout)
        return inputs

    def _effective_weights(self, keys: Weights) -> Weights:
        """The weights of a forward pass: as they are, or multiplied by a sampled mask."""
        if self._masked_pass is None:
            return {**self.weights, **self.unmasked}
        used = {n: self._masked_pass(m, self.weights[n], keys[n]) for n, m in self.logits.items()}
        return {**used, **self.unmasked}

    # --- evaluation ---

    def evaluate(self, slots: Sequence[int], images: Array, labels: Array) -> list[tuple[float, float]]:
        """Mean cross-entropy (nats) and accuracy of these replicas on the same images.

        Learned masks: means over their single samples. Losses are summed in float64.
        """
        is_whole_stack = list(slots) == list(range(len(self.jobs)))
        index = torch.tensor(list(slots), device=self.device)
        pixels, targets = self.images.get(images), self.images.get(labels)
        loss = torch.zeros(len(slots), dtype=torch.float64, device=self.device)
        hits = torch.zeros(len(slots), dtype=torch.int64, device=self.device)
        # Replicas of one seed share their inputs; other seeds normalize the same images by other statistics.
        groups = group_batches([input_statistics(self.recipe, self.data[r]) for r in slots])
        batch_of_replica = np.concatenate([_batch_indices(group) for group in groups])
        statistics = None
        if input_statistics(self.recipe, self.data[0]) is not None:
            statistics = self._input_statistics([slots[i] for i in np.unique(batch_of_replica, return_index=True)[1]])
        batch_index = self.images.to_device(batch_of_replica)
        passes, batch_size = 0, self._evaluation_batch_size(len(slots))
        with torch.no_grad():
            for tensors in self._evaluated_weights():
                passes += 1
                selected = tensors if is_whole_stack else {n: t.index_select(0, index) for n, t in tensors.items()}
                for first in range(0, len(labels), batch_size):
                    part = slice(first, first + batch_size)
                    inputs = self.images.scale(pixels[part])[None]
                    if statistics is not None:
                        inputs = inputs.sub(statistics[0]).div_(statistics[1])
                    with self.autocast():
                        logits = self._forward(selected, inputs, groups, batch_index, is_training=False)
                    logits = logits.float()
                    answers = targets[part].expand(len(slots), -1)
                    image_losses = cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="none")
                    loss += image_losses.view_as(answers).double().sum(1)
                    hits += (logits.argmax(2) == answers).sum(1)
        # One copy to the host, the only wait for the device.
        means = torch.stack([loss, hits.double()]).cpu().div(len(labels) * passes)
        return [(float(mean_loss), float(accuracy)) for mean_loss, accuracy in means.T]

    def _evaluated_weights(self) -> Iterator[Weights]:
        """The weights of each evaluation pass: the networks' own once, or each single sample of their masks."""
        if self.learning is None:
            yield {**self.weights, **self.unmasked}
            return
        samples = self.learning.num_samples
        keys = {n: [sampling_keys(job.seed, "samples", n, 0, samples) for job in self.jobs] for n in self.logits}
        on_device = {n: self.images.to_device(np.stack(k, axis=1).view(np.int32)) for n, k in keys.items()}
        for sample in range(samples):
            yield self._effective_weights({n: k[sample] for n, k in on_device.items()})

    def first_sample(self) -> Weights:
        """The masked weights of the first evaluation sample of each learned mask."""
        with torch.no_grad():
            return next(self._evaluated_weights())

    def _evaluation_batch_size(self, replicas: int) -> int:
        """Images evaluated at once, so that the widest layer stays below `EVALUATION_BYTES`."""
        floats = self._forward.widest_layer or WIDEST_LAYER * self.images.pixels[0].numel()
        return max(1, EVALUATION_BYTES[self.device.type] // (4 * replicas * floats))

    def keep_best(self, slots: Sequence[int]) -> None:
        """Copy every tensor of these replicas to their rows of the best states.

        Per tensor one operation, or two if not all replicas improved: the time of a copy on a GPU is that of its
        launch, and separate copies would be one per tensor and replica.
        """
        if self._best is None:
            # The rows of all others are written when these improve, and not read before.
            self._best = NetworkState(*({n: t.detach().clone() for n, t in part.items()} for part in self._parts()))
            return
        is_whole_stack = len(slots) == len(self.jobs)
        index = None if is_whole_stack else self.images.to_device(np.array(slots, np.int64))
        for best, present in zip(_parts(self._best), self._parts(), strict=True):
            for name, tensor in present.items():
                current = tensor.detach()
                if index is None:
                    best[name].copy_(current)
                else:
                    best[name].index_copy_(0, index, current.index_select(0, index))

    def best_state(self, slot: int) -> NetworkState:
        """The state that `keep_best` kept last for a replica: views, valid until the next call for this slot."""
        assert self._best is not None, "no state was kept"
        return NetworkState(*({n: t[slot] for n, t in part.items()} for part in _parts(self._best)))

    def _parts(self) -> tuple[Weights, Weights, Weights]:
        return self.weights, self.unmasked, self.logits

    # --- joining and leaving ---

    def select(self, slots: Sequence[int]) -> None:
        """Keep these replicas only, in this order."""
        index = torch.tensor(list(slots), device=self.device)
        self._resize(lambda t: t.index_select(0, index))
        self.jobs, self.data = [self.jobs[r] for r in slots], [self.data[r] for r in slots]
        self.samplers = [self.samplers[r] for r in slots]

    def replace(self, slots: Sequence[int], jobs: Sequence[TrainingJob], data: Sequence[SplitData]) -> None:
        """Put new runs into these slots, with new optimizer state.

        Tensors are written in place, so that a recorded step stays valid unless data or a first mask are new.
        """
        for slot, job, d in zip(slots, jobs, data, strict=True):
            self.jobs[slot], self.data[slot], self.samplers[slot] = job, d, _batch_sampler(job, d)
        if self.images.update(self.data):
            self._step = None
        for slot, job in zip(slots, jobs, strict=True):
            self.load(slot, job.start.state)
            # Before the moments: a pruned weight needs both a zero moment and its bits from the first step on.
            self._set_mask(slot, job.start.masks)
            for moments in self.optimizer_state.values():
                for moment in moments:
                    moment[slot].zero_()

    def load(self, slot: int, state: NetworkState) -> None:
        """Set every tensor of one replica."""
        with torch.no_grad():
            for stacked, tensors in zip(self._parts(), _parts(state), strict=True):
                for name, tensor in tensors.items():
                    stacked[name][slot].copy_(tensor)

    def _set_mask(self, slot: int, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if name not in self._gradient_masks:
                # A stack of dense networks has no masks: the update then reads less per weight.
                if bool(mask.all()):
                    continue
                ones = torch.ones(len(self.jobs), mask.numel(), dtype=torch.bool, device=self.device)
                self._gradient_masks[name], self._step = encode_gradient_mask(ones, self.device.type), None
            flat = mask.flatten().to(self.device)
            self._gradient_masks[name][slot].copy_(encode_gradient_mask(flat, self.device.type))

    def append(self, jobs: Sequence[TrainingJob], data: Sequence[SplitData]) -> None:
        """Add new runs in new slots, behind the others."""
        count = len(self.jobs)
        self._resize(lambda t: torch.cat([t, t.new_zeros(len(jobs), *t.shape[1:])]))
        self.jobs, self.data = [*self.jobs, *jobs], [*self.data, *data]
        self.samplers += [_batch_sampler(job, d) for job, d in zip(jobs, data, strict=True)]
        self.replace(range(count, count + len(jobs)), jobs, data)

    def _resize(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change the number of replicas of every tensor; all addresses change."""

        def resize_all(tensors: Weights) -> Weights:
            return {n: change(t.detach()) for n, t in tensors.items()}

        # First, so that the memory of the recorded step is free for the new tensors.
        self._step, self.last_sampled_weights = None, {}
        self.weights, self.unmasked, self.logits = map(resize_all, self._parts())
        if self._best is not None:
            self._best = NetworkState(*map(resize_all, _parts(self._best)))
        self._gradient_masks = resize_all(self._gradient_masks)
        self.optimizer_state = {n: [change(t) for t in moments] for n, moments in self.optimizer_state.items()}


def _parts(state: NetworkState) -> tuple[Weights, Weights, Weights]:
    return state.weights, state.unmasked, state.logits


def _training_keys(name: str, steps: int, seed: int, first: int) -> Array:
    return sampling_keys(seed, "training", name, first, first + steps)


def _batch_sampler(job: TrainingJob, data: SplitData) -> BatchSampler:
    return BatchSampler(job.seed, data.train_indices, job.recipe.batch_size)


def _batch_indices(group: BatchGroup) -> Array:
    """Index of the mini-batch of each replica of a group, (num_batches * replicas_per_batch,)."""
    return np.repeat(np.arange(group.first_batch, group.first_batch + group.num_batches), group.replicas_per_batch)
