"""A convolutional network in training on a CPU: the sparse engine's `Stepper` for Conv2/4/6."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from supermask.engines import reference
from supermask.engines.costs import LayerCosts, kind
from supermask.engines.filter_layer import SLOTS, Filters, lines_of, lines_of_units
from supermask.engines.job import Array, BatchOrder, Data, Job, flat_bytes
from supermask.engines.kernels import planes, units
from supermask.engines.kernels.lanes import LANES
from supermask.engines.kernels.line import IMAGES
from supermask.engines.layers import Units
from supermask.engines.loop import OptimizerState
from supermask.engines.steps import moment_names, optimizer_steps
from supermask.engines.trained import Floats, Trained
from supermask.networks import Conv, Dense, Pool
from supermask.types import State, Weights


class Convolutional:
    """One network: convolutions, then fully connected layers."""

    def __init__(self, job: Job, data: Data, costs: LayerCosts) -> None:
        self.job, self.data, self.recipe = job, data, job.recipe
        self.order = BatchOrder(job.seed, data.train_indices, job.recipe.batch_size)
        self.images, self.labels = flat_bytes(data.train_images), data.train_labels
        self.shade = np.arange(256, dtype=np.float32) / np.float32(data.pixel_maximum)
        self.filters: list[Filters] = []
        self.units: list[Units] = []
        self._build(costs)
        self._connect()

    def _build(self, costs: LayerCosts) -> None:
        layers, start = self.job.layers, self.job.start
        for layer, after in zip(layers, (*layers[1:], None), strict=True):
            if isinstance(layer, Pool):
                continue
            mask = start.masks[f"{layer.name}.weight"]
            used = mask | (start.weights[f"{layer.name}.weight"] != 0)
            how = kind(layer, used.float().mean().item(), mask.float().mean().item(), costs)
            if isinstance(layer, Conv):
                self.filters.append(Filters(layer, isinstance(after, Pool), mask, how, used))
            elif isinstance(layer, Dense):
                self.units.append(Units(layer, mask, how, self.recipe.batch_size, used))

    def _connect(self) -> None:
        """One layer's output is the next one's input, and the other way round for gradients."""
        for here, after in zip(self.filters, self.filters[1:], strict=False):
            if here.pooled:
                here.out = [lines_of(after.inner, x) for x in after.x]
                here.d_out = [lines_of(after.inner, after.dx)] * SLOTS
            else:
                here.next_x, here.d = after.x, after.dx
        last, head = self.filters[-1], self.units[0]
        assert last.pooled, "a convolution that no pooling follows stands before the fully connected layers"
        side = last.outer.height // 2, last.outer.width // 2
        last.out = [lines_of_units(*side, head.x, slot) for slot in range(SLOTS)]
        last.d_out = [lines_of_units(*side, head.dx, slot) for slot in range(SLOTS)]
        for below, above in zip(self.units, self.units[1:], strict=False):
            above.x, below.d = below.y, above.dx

    def load(self, state: State) -> None:
        for layer in (*self.filters, *self.units):
            layer.load(state.weights[f"{layer.name}.weight"], state.others[f"{layer.name}.bias"])

    def state(self) -> State:
        layers = (*self.filters, *self.units)
        return State(
            {f"{la.name}.weight": la.weight.get(la.weight.w, la.frozen) for la in layers},
            {f"{la.name}.bias": torch.from_numpy(la.bias.w[: la.rows].copy()) for la in layers},
        )

    def gradient(self, iteration: int) -> Weights:
        return reference.gradient(self.job, self.data, self.state(), iteration)

    def train(self, first: int, last: int) -> Array:
        losses = np.empty(last - first, np.float32)
        how = optimizer_steps(self.recipe, self.job.start.first_iteration, first, last)
        for step, iteration in enumerate(range(first, last)):
            losses[step] = self._backward(self.order.batch(iteration))
            for layer in (*self.filters, *self.units):
                layer.move(how, step)
        return losses

    def _forward(self, images: Array, batch: Array) -> None:
        """Logits of up to 64 images; what the way back needs stays in the slots."""
        bottom = self.filters[0]
        groups = -(-len(batch) // IMAGES)
        if groups < SLOTS:
            self.units[0].x.fill(0)
        for slot in range(groups):
            planes.put_images(images, batch, slot * IMAGES, self.shade, bottom.inner, bottom.x[slot])
            for filters in self.filters:
                filters.forward(slot)
        for layer in self.units:
            layer.forward()

    def _backward(self, batch: Array) -> float:
        """The batch's mean cross-entropy; its gradient is left with the weights."""
        loss, scale = 0.0, 1 / len(batch)
        for first in range(0, len(batch), LANES):
            some = batch[first : first + LANES]
            self._forward(self.images, some)
            top = self.units[-1]
            loss += units.losses(top.rows, self.labels[some], top.y, top.d, scale)[0]
            for layer in reversed(self.units):
                layer.backward(first // LANES)
            for slot in range(-(-len(some) // IMAGES)):
                for filters in reversed(self.filters):
                    filters.backward(slot, first=filters is self.filters[0])
        for filters in self.filters:
            filters.collect()
        return loss * scale

    def measure(self, images: Array, labels: Array) -> tuple[float, float]:
        pixels, loss, right = flat_bytes(images), 0.0, 0
        top = self.units[-1]
        for first in range(0, len(labels), LANES):
            some = np.arange(first, min(first + LANES, len(labels)))
            self._forward(pixels, some)
            more, hits = units.losses(top.rows, labels[some], top.y, top.d, 1.0)
            loss, right = loss + more, right + hits
        return loss / len(labels), right / len(labels)

    def optimizer_state(self) -> OptimizerState:
        return {
            name: {key: trained.get(moments, torch.zeros(trained.shape)) for key, moments in self._moments(trained)}
            for name, trained in self._trained()
        }

    def load_optimizer_state(self, state: OptimizerState, iteration: int) -> None:
        for name, trained in self._trained():
            for key, moments in self._moments(trained):
                trained.put(moments, state[name][key])

    def _trained(self) -> Iterator[tuple[str, Trained]]:
        for layer in (*self.filters, *self.units):
            yield f"{layer.name}.weight", layer.weight
            yield f"{layer.name}.bias", layer.bias

    def _moments(self, trained: Trained) -> list[tuple[str, Floats]]:
        """What the optimiser keeps of a tensor, by PyTorch's names."""
        return list(zip(moment_names(self.recipe), (trained.m, trained.v), strict=False))
