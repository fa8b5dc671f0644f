"""The stack: tensors of many networks with a leading axis of replicas, and the one step that moves them all."""

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
from supermask.engines.job import Array, BatchSampler, TrainingJob
from supermask.engines.optimizer_steps import optimizer_state_names
from supermask.engines.selection import Precision
from supermask.engines.stacked.cuda_graph import CudaGraphStep
from supermask.engines.stacked.device import autocast_factory
from supermask.engines.stacked.forward import BatchGroup, DeviceImages, forward, group_batches, masked_weights
from supermask.engines.stacked.optimizer import make_optimizer_step, mask_bits, step_scalars
from supermask.networks.sequential import Conv, Dense

EVALUATION_BYTES = {"cpu": 2**23, "cuda": 2**30}
"""Of a layer's outputs, and its inputs laid out, that are computed at once where networks are measured."""

COLUMNS = 9
"""Times that each of a convolution's inputs is in its columns."""


class Stack:
    """Networks of one architecture and recipe; replica r trains `jobs[r]` on `data[r]`.

    Each has its own order of batches and its own iteration; it leaves when it likes (`keep`), and another may take its
    place (`put`). Neighbours of the same seed, data and iteration see the same batch. Nothing here waits for the device
    but `train` and `measure`, once each.
    """

    def __init__(
        self,
        jobs: Sequence[TrainingJob],
        data: Sequence[SplitData],
        device: torch.device,
        precision: Precision,
        ways: Mapping[str, str],
    ) -> None:
        first = jobs[0]
        self.layers, self.recipe, self.learning = first.layers, first.recipe, first.learning
        self.jobs, self.data, self.device, self.ways = list(jobs), list(data), device, ways
        self.computing: Callable[[], AbstractContextManager[None]] = autocast_factory(precision, device)
        self.images = DeviceImages(data, device)
        self.orders = [_order(job, d) for job, d in zip(jobs, data, strict=True)]
        start = first.start
        self.weights, self.others, self.logits = (
            {n: torch.zeros(len(jobs), *t.shape, device=device) for n, t in tensors.items()}
            for tensors in (start.weights, start.unmasked, start.logits)
        )
        self.passed: Weights = {}
        """Of a mask that is learned: the weights that the last pass of training computed with."""
        self.names = optimizer_state_names(self.recipe)
        self.optimizer_state = {n: [torch.zeros_like(t) for _ in self.names] for n, t in self._trainable().items()}
        """What the optimiser keeps."""
        self._bits: Weights = {}
        """`mask_bits` of the layers in which any replica has pruned weights."""
        self._update = make_optimizer_step(self.recipe, device)
        self._step: CudaGraphStep | None = None
        self._blocks: list[BatchGroup] = []
        self._capacity = 0
        self.replace(range(len(jobs)), jobs, data)

    def _trainable(self) -> Weights:
        return self.logits if self.learning is not None else {**self.weights, **self.others}

    # --- training ---

    def train(self, firsts: Sequence[int], steps: int) -> Array:
        """Trains each replica r on mini-batches `firsts[r]` and on.

        Returns their losses before each update, float32 `(replicas, steps)`.
        """
        sees = [(id(d), job.seed, i) for d, job, i in zip(self.data, self.jobs, firsts, strict=True)]
        blocks = group_batches(sees)
        if self._step is None or blocks != self._blocks or steps > self._capacity:
            self._prepare(blocks, steps)
        assert self._step is not None
        self._upload_steps(sees, firsts, steps)
        self._step(steps)
        return self._losses[:steps].to("cpu", copy=True).numpy().T

    def _prepare(self, blocks: list[BatchGroup], steps: int) -> None:
        """Room for what steps read and write."""
        self._blocks, self._capacity = blocks, max(steps, self.recipe.evaluate_every)
        count, place = len(self.jobs), self.device
        batches, size = sum(block.batches for block in blocks), self.recipe.batch_size
        self._step_index = torch.zeros(1, dtype=torch.int64, device=place)
        self._batches = torch.zeros(self._capacity, batches, size, dtype=torch.int64, device=place)
        self._numbers = torch.zeros(self._capacity, 2, count, device=place)
        self._losses = torch.zeros(self._capacity, count, device=place)
        self._keys = {n: torch.zeros(self._capacity, count, 2, dtype=torch.int32, device=place) for n in self.logits}
        self._batch_of = self.images.to_device(np.concatenate([_batch_numbers(block) for block in blocks]))
        for tensor in self._trainable().values():
            tensor.requires_grad_()
        # Weakly: a ring of references would keep this in a GPU's memory beside the next stack.
        me: Stack = proxy(self)
        self._step = CudaGraphStep(lambda: me._one_step(), place)

    def _upload_steps(self, sees: Sequence[object], firsts: Sequence[int], steps: int) -> None:
        """Puts on the device what the next steps need."""
        new = [r for r in range(len(sees)) if r == 0 or sees[r] != sees[r - 1]]
        batches = np.empty((steps, len(new), self.recipe.batch_size), np.int64)
        for place, r in enumerate(new):
            batches[:, place] = self.orders[r].batches(firsts[r], firsts[r] + steps) + self.images.offset(self.data[r])
        self._batches[:steps] = self.images.to_device(batches)
        learnt = self.learning is not None
        began = [0 if learnt else job.start.first_iteration for job in self.jobs]
        self._numbers[:steps] = self.images.to_device(step_scalars(self.recipe, began, firsts, steps))
        for name, keys in self._keys.items():
            # Most are of few seeds and at the same iteration.
            known = cache(partial(_training_keys, name, steps))
            found = np.stack([known(job.seed, i) for job, i in zip(self.jobs, firsts, strict=True)], axis=1)
            keys[:steps] = self.images.to_device(found.view(np.int32))
        self._step_index.zero_()

    def _one_step(self) -> None:
        now = self._step_index
        places = self._batches.index_select(0, now)[0]
        pixels = self.images.pixels.index_select(0, places.flatten())
        pixels = pixels.reshape(*places.shape, *pixels.shape[1:])
        labels = self.images.labels.index_select(0, places.flatten()).view_as(places).index_select(0, self._batch_of)
        keys = {n: k.index_select(0, now)[0] for n, k in self._keys.items()}
        tensors = self._effective_weights(keys)
        with self.computing():
            logits = forward(self.layers, tensors, self.images.scaled(pixels), self._blocks, self.ways)
        each = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
        losses = each.view_as(labels).mean(1)
        moving = self._trainable()
        gradients = torch.autograd.grad(losses.sum(), list(moving.values()))
        numbers = self._numbers.index_select(0, now)[0]
        with torch.no_grad():
            for (name, tensor), gradient in zip(moving.items(), gradients, strict=True):
                kept = [moment.flatten(1) for moment in self.optimizer_state[name]]
                bits = None if self.learning is not None else self._bits.get(name)
                rate, second = numbers[:, :, None]
                self._update(tensor.detach().flatten(1), gradient.flatten(1), bits, kept, rate, second)
            self._losses.index_copy_(0, now, losses.detach()[None])
            now += 1
        if self.learning is not None:
            self.passed = {n: tensors[n].detach() for n in self.logits}

    def _effective_weights(self, keys: Weights) -> Weights:
        """What networks compute with."""
        if self.learning is None:
            return {**self.weights, **self.others}
        used = {n: masked_weights(self.learning, m, self.weights[n], keys[n]) for n, m in self.logits.items()}
        return {**used, **self.others}

    # --- measuring ---

    def measure(self, places: Sequence[int], images: Array, labels: Array) -> list[tuple[float, float]]:
        """Mean cross-entropy and accuracy of these replicas on the same images; of masks, means over their samples."""
        everyone = list(places) == list(range(len(self.jobs)))
        index = torch.tensor(list(places), device=self.device)
        pixels, right = self.images.get(images), self.images.get(labels)
        loss = torch.zeros(len(places), dtype=torch.float64, device=self.device)
        hits = torch.zeros(len(places), dtype=torch.int64, device=self.device)
        block, passes = [BatchGroup(0, 1, 0, len(places))], 0
        with torch.no_grad():
            for tensors in self._samples(places):
                passes += 1
                some = tensors if everyone else {n: t.index_select(0, index) for n, t in tensors.items()}
                for first in range(0, len(labels), self._evaluation_batch(len(places))):
                    part = slice(first, first + self._evaluation_batch(len(places)))
                    with self.computing():
                        logits = forward(self.layers, some, self.images.scaled(pixels[part])[None], block, self.ways)
                    logits = logits.float()
                    answers = right[part].expand(len(places), -1)
                    each = cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="none")
                    loss += each.view_as(answers).double().sum(1)
                    hits += (logits.argmax(2) == answers).sum(1)
        shares = torch.stack([loss, hits.double()]).cpu().div(len(labels) * passes)
        return [(float(a), float(b)) for a, b in shares.T]

    def _samples(self, places: Sequence[int]) -> Iterator[Weights]:
        """What networks compute with when they are measured: their weights, or each single sample of their masks."""
        if self.learning is None:
            yield {**self.weights, **self.others}
            return
        passes = self.learning.num_samples
        keys = {n: [sampling_keys(job.seed, "samples", n, 0, passes) for job in self.jobs] for n in self.logits}
        sent = {n: self.images.to_device(np.stack(some, axis=1).view(np.int32)) for n, some in keys.items()}
        for j in range(passes):
            yield self._effective_weights({n: some[j] for n, some in sent.items()})

    def first_sample(self) -> Weights:
        """The weights of each mask's first single sample."""
        with torch.no_grad():
            return next(self._samples(range(len(self.jobs))))

    def _evaluation_batch(self, replicas: int) -> int:
        widths = [
            (x.outputs + COLUMNS * x.inputs * (self.ways[x.name] == "columns")) * x.side[0] * x.side[1]
            if isinstance(x, Conv)
            else x.outputs
            for x in self.layers
            if isinstance(x, Conv | Dense)
        ]
        return max(1, EVALUATION_BYTES[self.device.type] // (4 * replicas * max(widths)))

    # --- leaving and joining ---

    def select(self, places: Sequence[int]) -> None:
        """These replicas stay, in this order."""
        index = torch.tensor(list(places), device=self.device)
        self._resize(lambda t: t.index_select(0, index))
        self.jobs, self.data = [self.jobs[r] for r in places], [self.data[r] for r in places]
        self.orders = [self.orders[r] for r in places]

    def replace(self, places: Sequence[int], jobs: Sequence[TrainingJob], data: Sequence[SplitData]) -> None:
        """Newcomers take these places, their optimisers new.

        Nothing moves in memory if it need not, so that a recorded step holds on.
        """
        for place, job, d in zip(places, jobs, data, strict=True):
            self.jobs[place], self.data[place], self.orders[place] = job, d, _order(job, d)
        if self.images.update(self.data):
            self._step = None
        for place, job in zip(places, jobs, strict=True):
            self.load(place, job.start.state)
            self._prune(place, job.start.masks)
            for moments in self.optimizer_state.values():
                for moment in moments:
                    moment[place].zero_()

    def load(self, place: int, state: NetworkState) -> None:
        """Sets every tensor of one replica."""
        pairs = ((self.weights, state.weights), (self.others, state.unmasked), (self.logits, state.logits))
        with torch.no_grad():
            for stacked, own in pairs:
                for name, tensor in own.items():
                    stacked[name][place].copy_(tensor)

    def _prune(self, place: int, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if name not in self._bits:
                if bool(mask.all()):
                    continue
                everything = torch.ones(len(self.jobs), mask.numel(), dtype=torch.bool, device=self.device)
                self._bits[name], self._step = mask_bits(everything), None
            self._bits[name][place].copy_(mask_bits(mask.flatten().to(self.device)))

    def append(self, jobs: Sequence[TrainingJob], data: Sequence[SplitData]) -> None:
        """Newcomers take new places, after the others'."""
        count = len(self.jobs)
        self._resize(lambda t: torch.cat([t, t.new_zeros(len(jobs), *t.shape[1:])]))
        self.jobs, self.data = [*self.jobs, *jobs], [*self.data, *data]
        self.orders += [_order(job, d) for job, d in zip(jobs, data, strict=True)]
        self.replace(range(count, count + len(jobs)), jobs, data)

    def _resize(self, change: Callable[[Tensor], Tensor]) -> None:
        """Another number of replicas: nothing stays where it was."""

        def of(tensors: Weights) -> Weights:
            return {n: change(t.detach()) for n, t in tensors.items()}

        # First, so that what a recorded step holds is free.
        self._step, self.passed = None, {}
        self.weights, self.others, self.logits = of(self.weights), of(self.others), of(self.logits)
        self._bits = of(self._bits)
        self.optimizer_state = {n: [change(t) for t in some] for n, some in self.optimizer_state.items()}


def _training_keys(name: str, steps: int, seed: int, first: int) -> Array:
    return sampling_keys(seed, "training", name, first, first + steps)


def _order(job: TrainingJob, data: SplitData) -> BatchSampler:
    return BatchSampler(job.seed, data.train_indices, job.recipe.batch_size)


def _batch_numbers(block: BatchGroup) -> Array:
    """The number of the batch that each replica of a block sees."""
    return np.repeat(np.arange(block.batch, block.batch + block.batches), block.each)
