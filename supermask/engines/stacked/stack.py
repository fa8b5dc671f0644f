"""The stack: tensors of many networks with a leading axis of replicas, and the one step that moves them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from weakref import proxy

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from supermask.engines.choice import Precision
from supermask.engines.job import Array, BatchOrder, Data, Job
from supermask.engines.stacked.forward import Block, blocks_of, logits_of
from supermask.engines.stacked.images import Images
from supermask.engines.stacked.masks import masked
from supermask.engines.stacked.moving import mask_bits, step_numbers, update_of
from supermask.engines.stacked.precision import computing_in
from supermask.engines.stacked.repeating import Repeated
from supermask.engines.steps import moment_names
from supermask.learned import coin_keys
from supermask.networks import Conv, Dense
from supermask.types import Weights

EVALUATION_BYTES = {"cpu": 2**23, "cuda": 2**30}
"""Of a layer's outputs that are computed at once where networks are measured."""


class Stack:
    """Networks of one architecture and recipe; replica r trains `jobs[r]` on `data[r]`.

    Each has its own order of batches, its own iteration, and leaves when it likes (`keep`). Neighbours of the same
    seed, data and iteration see the same batch. Nothing here waits for the device but `train` and `measure`, once each.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        data: Sequence[Data],
        device: torch.device,
        precision: Precision,
        ways: Mapping[str, str],
    ) -> None:
        first = jobs[0]
        self.layers, self.recipe, self.learning = first.layers, first.recipe, first.learning
        self.jobs, self.data, self.device, self.ways = list(jobs), list(data), device, ways
        self.computing: Callable[[], AbstractContextManager[None]] = computing_in(precision, device)
        self.images = Images(data, device)
        self.orders = [
            BatchOrder(job.seed, d.train_indices, job.recipe.batch_size) for job, d in zip(jobs, data, strict=True)
        ]
        self.weights = _stacked([job.start.weights for job in jobs], device)
        self.others = _stacked([job.start.others for job in jobs], device)
        self.logits = _stacked([job.start.logits for job in jobs], device)
        self.passed: Weights = {}
        """Of a mask that is learned: the weights that the last pass of training computed with."""
        self.names = moment_names(self.recipe)
        self.kept = {n: [torch.zeros_like(t) for _ in self.names] for n, t in self._moving().items()}
        """What the optimiser keeps."""
        masks = _stacked([job.start.masks for job in jobs], device)
        self._bits = {n: mask_bits(mask.flatten(1)) for n, mask in masks.items() if not bool(mask.all())}
        self._update = update_of(self.recipe, device)
        self._step: Repeated | None = None
        self._blocks: list[Block] = []
        self._capacity = 0

    def _moving(self) -> Weights:
        return self.logits if self.learning is not None else {**self.weights, **self.others}

    # --- training ---

    def train(self, firsts: Sequence[int], steps: int) -> Array:
        """Trains each replica r on mini-batches `firsts[r]` and on.

        Returns their losses before each update, float32 `(replicas, steps)`.
        """
        sees = [(id(d), job.seed, i) for d, job, i in zip(self.data, self.jobs, firsts, strict=True)]
        blocks = blocks_of(sees)
        if self._step is None or blocks != self._blocks or steps > self._capacity:
            self._prepare(blocks, steps)
        assert self._step is not None
        self._fill(sees, firsts, steps)
        self._step(steps)
        return self._losses[:steps].to("cpu", copy=True).numpy().T

    def _prepare(self, blocks: list[Block], steps: int) -> None:
        """Room for what steps read and write."""
        self._blocks, self._capacity = blocks, max(steps, self.recipe.evaluate_every)
        count, place = len(self.jobs), self.device
        batches, size = sum(block.batches for block in blocks), self.recipe.batch_size
        self._clock = torch.zeros(1, dtype=torch.int64, device=place)
        self._batches = torch.zeros(self._capacity, batches, size, dtype=torch.int64, device=place)
        self._numbers = torch.zeros(self._capacity, 2, count, device=place)
        self._losses = torch.zeros(self._capacity, count, device=place)
        self._keys = {n: torch.zeros(self._capacity, count, 2, dtype=torch.int32, device=place) for n in self.logits}
        self._batch_of = self.images.send(np.concatenate([_batch_numbers(block) for block in blocks]))
        for tensor in self._moving().values():
            tensor.requires_grad_()
        # Weakly: a ring of references would keep this in a GPU's memory beside the next stack.
        me: Stack = proxy(self)
        self._step = Repeated(lambda: me._one_step(), place)

    def _fill(self, sees: Sequence[object], firsts: Sequence[int], steps: int) -> None:
        """Puts on the device what the next steps need."""
        new = [r for r in range(len(sees)) if r == 0 or sees[r] != sees[r - 1]]
        batches = np.empty((steps, len(new), self.recipe.batch_size), np.int64)
        for place, r in enumerate(new):
            for step in range(steps):
                batches[step, place] = self.orders[r].batch(firsts[r] + step)
            batches[:, place] += self.images.offset(self.data[r])
        self._batches[:steps] = self.images.send(batches)
        learnt = self.learning is not None
        began = [0 if learnt else job.start.first_iteration for job in self.jobs]
        self._numbers[:steps] = self.images.send(step_numbers(self.recipe, began, firsts, steps))
        for name, keys in self._keys.items():
            ranges = zip(self.jobs, firsts, strict=True)
            found = np.stack([coin_keys(job.seed, "training", name, i, i + steps) for job, i in ranges], axis=1)
            keys[:steps] = self.images.send(found.view(np.int32))
        self._clock.zero_()

    def _one_step(self) -> None:
        now = self._clock
        places = self._batches.index_select(0, now)[0]
        pixels = self.images.pixels.index_select(0, places.flatten())
        pixels = pixels.reshape(*places.shape, *pixels.shape[1:])
        labels = self.images.labels.index_select(0, places.flatten()).view_as(places).index_select(0, self._batch_of)
        keys = {n: k.index_select(0, now)[0] for n, k in self._keys.items()}
        tensors = self._used(keys)
        with self.computing():
            logits = logits_of(self.layers, tensors, self.images.scaled(pixels), self._blocks, self.ways)
        each = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
        losses = each.view_as(labels).mean(1)
        moving = self._moving()
        gradients = torch.autograd.grad(losses.sum(), list(moving.values()))
        numbers = self._numbers.index_select(0, now)[0]
        with torch.no_grad():
            for (name, tensor), gradient in zip(moving.items(), gradients, strict=True):
                kept = [moment.flatten(1) for moment in self.kept[name]]
                bits = None if self.learning is not None else self._bits.get(name)
                rate, second = numbers[:, :, None]
                self._update(tensor.detach().flatten(1), gradient.flatten(1), bits, kept, rate, second)
            self._losses.index_copy_(0, now, losses.detach()[None])
            now += 1
        if self.learning is not None:
            self.passed = {n: tensors[n].detach() for n in self.logits}

    def _used(self, keys: Weights) -> Weights:
        """What networks compute with."""
        if self.learning is None:
            return {**self.weights, **self.others}
        used = {n: masked(self.learning, m, self.weights[n], keys[n]) for n, m in self.logits.items()}
        return {**used, **self.others}

    # --- measuring ---

    def measure(self, places: Sequence[int], images: Array, labels: Array) -> list[tuple[float, float]]:
        """Mean cross-entropy and accuracy of these replicas on the same images; of masks, means over their samples."""
        everyone = list(places) == list(range(len(self.jobs)))
        index = torch.tensor(list(places), device=self.device)
        pixels, right = self.images.there(images), self.images.there(labels)
        loss = torch.zeros(len(places), dtype=torch.float64, device=self.device)
        hits = torch.zeros(len(places), dtype=torch.int64, device=self.device)
        block, passes = [Block(0, 1, 0, len(places))], 0
        with torch.no_grad():
            for tensors in self._samples(places):
                passes += 1
                some = tensors if everyone else {n: t.index_select(0, index) for n, t in tensors.items()}
                for first in range(0, len(labels), self._at_once(len(places))):
                    part = slice(first, first + self._at_once(len(places)))
                    with self.computing():
                        logits = logits_of(self.layers, some, self.images.scaled(pixels[part])[None], block, self.ways)
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
        passes = self.learning.passes
        keys = {n: [coin_keys(job.seed, "samples", n, 0, passes) for job in self.jobs] for n in self.logits}
        sent = {n: self.images.send(np.stack(some, axis=1).view(np.int32)) for n, some in keys.items()}
        for j in range(passes):
            yield self._used({n: some[j] for n, some in sent.items()})

    def first_sample(self) -> Weights:
        """The weights of each mask's first single sample."""
        with torch.no_grad():
            return next(self._samples(range(len(self.jobs))))

    def _at_once(self, replicas: int) -> int:
        widths = [
            x.outputs * x.side[0] * x.side[1] if isinstance(x, Conv) else x.outputs
            for x in self.layers
            if isinstance(x, Conv | Dense)
        ]
        return max(1, EVALUATION_BYTES[self.device.type] // (4 * replicas * max(widths)))

    # --- leaving ---

    def keep(self, places: Sequence[int]) -> None:
        """These replicas stay, in this order."""
        index = torch.tensor(list(places), device=self.device)

        def of(tensors: Weights) -> Weights:
            return {n: t.detach().index_select(0, index) for n, t in tensors.items()}

        self.jobs, self.data = [self.jobs[r] for r in places], [self.data[r] for r in places]
        self.orders = [self.orders[r] for r in places]
        self.weights, self.others, self.logits = of(self.weights), of(self.others), of(self.logits)
        self.passed, self._bits = of(self.passed), of(self._bits)
        self.kept = {n: [t.index_select(0, index) for t in some] for n, some in self.kept.items()}
        self._step = None


def _stacked(each: Sequence[Weights], device: torch.device) -> Weights:
    return {name: torch.stack([tensors[name] for tensors in each]).to(device) for name in each[0]}


def _batch_numbers(block: Block) -> Array:
    """The number of the batch that each replica of a block sees."""
    return np.repeat(np.arange(block.batch, block.batch + block.batches), block.each)
