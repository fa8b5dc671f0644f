"""A convolutional network in training on a CPU: the sparse engine's `Stepper` for Conv2/4/6."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from supermask.core.types import NetworkState, SplitData, Weights
from supermask.engines import reference
from supermask.engines.job import Array, BatchSampler, TrainingJob, flatten_images
from supermask.engines.optimizer_steps import optimizer_state_names, optimizer_step_table
from supermask.engines.sparse.conv_layer import GROUPS, Conv3x3Layer, flattened_layout, plane_layout
from supermask.engines.sparse.costs import LayerKernelCosts, choose_kernels
from supermask.engines.sparse.kernels import conv, matmul
from supermask.engines.sparse.kernels.simd import VECTOR_WIDTH
from supermask.engines.sparse.kernels.simd16 import VEC16_WIDTH
from supermask.engines.sparse.layers import CompactParam, Floats, LinearLayer
from supermask.engines.training import OptimizerState
from supermask.networks.sequential import Conv, Dense, Pool


class ConvNetTrainer:
    """One network: convolutions, then fully connected layers."""

    def __init__(self, job: TrainingJob, data: SplitData, costs: LayerKernelCosts) -> None:
        self.job, self.data, self.recipe = job, data, job.recipe
        self.order = BatchSampler(job.seed, data.train_indices, job.recipe.batch_size)
        self.images, self.labels = flatten_images(data.train_images), data.train_labels
        self.shade = np.arange(256, dtype=np.float32) / np.float32(data.pixel_maximum)
        self.filters: list[Conv3x3Layer] = []
        self.units: list[LinearLayer] = []
        self._build(costs)
        self._link_buffers()

    def _build(self, costs: LayerKernelCosts) -> None:
        layers, start = self.job.layers, self.job.start
        for layer, after in zip(layers, (*layers[1:], None), strict=True):
            if isinstance(layer, Pool):
                continue
            mask = start.masks[f"{layer.name}.weight"]
            used = mask | (start.weights[f"{layer.name}.weight"] != 0)
            how = choose_kernels(layer, used.float().mean().item(), mask.float().mean().item(), costs)
            if isinstance(layer, Conv):
                self.filters.append(Conv3x3Layer(layer, isinstance(after, Pool), mask, how, used))
            elif isinstance(layer, Dense):
                self.units.append(LinearLayer(layer, mask, how, self.recipe.batch_size, used))

    def _link_buffers(self) -> None:
        """One layer's output is the next one's input, and the other way round for gradients."""
        for here, after in zip(self.filters, self.filters[1:], strict=False):
            if here.pooled:
                here.out = [plane_layout(after.inner, x) for x in after.x]
                here.d_out = [plane_layout(after.inner, after.dx)] * GROUPS
            else:
                here.next_x, here.d = after.x, after.dx
        last, head = self.filters[-1], self.units[0]
        assert last.pooled, "a convolution that no pooling follows stands before the fully connected layers"
        side = last.outer.height // 2, last.outer.width // 2
        last.out = [flattened_layout(*side, head.x, slot) for slot in range(GROUPS)]
        last.d_out = [flattened_layout(*side, head.dx, slot) for slot in range(GROUPS)]
        for below, above in zip(self.units, self.units[1:], strict=False):
            above.x, below.d = below.y, above.dx

    def load(self, state: NetworkState) -> None:
        for layer in (*self.filters, *self.units):
            layer.load(state.weights[f"{layer.name}.weight"], state.unmasked[f"{layer.name}.bias"])

    def state(self) -> NetworkState:
        layers = (*self.filters, *self.units)
        return NetworkState(
            {f"{la.name}.weight": la.weight.get(la.weight.w, la.frozen) for la in layers},
            {f"{la.name}.bias": torch.from_numpy(la.bias.w[: la.rows].copy()) for la in layers},
        )

    def gradient(self, iteration: int) -> Weights:
        return reference.gradient(self.job, self.data, self.state(), iteration)

    def train(self, first: int, last: int) -> Array:
        losses = np.empty(last - first, np.float32)
        how = optimizer_step_table(self.recipe, self.job.start.first_iteration, first, last)
        for step, iteration in enumerate(range(first, last)):
            losses[step] = self._backward(self.order.batch(iteration))
            for layer in (*self.filters, *self.units):
                layer.optimizer_step(how, step)
        return losses

    def _forward(self, images: Array, batch: Array) -> None:
        """Logits of up to 64 images; what the way back needs stays in the slots."""
        bottom = self.filters[0]
        groups = -(-len(batch) // VEC16_WIDTH)
        if groups < GROUPS:
            self.units[0].x.fill(0)
        for slot in range(groups):
            conv.pack_images(images, batch, slot * VEC16_WIDTH, self.shade, bottom.inner, bottom.x[slot])
            for filters in self.filters:
                filters.forward(slot)
        for layer in self.units:
            layer.forward()

    def _backward(self, batch: Array) -> float:
        """The batch's mean cross-entropy; its gradient is left with the weights."""
        loss, scale = 0.0, 1 / len(batch)
        for first in range(0, len(batch), VECTOR_WIDTH):
            some = batch[first : first + VECTOR_WIDTH]
            self._forward(self.images, some)
            top = self.units[-1]
            loss += matmul.cross_entropy_and_grad(top.rows, self.labels[some], top.y, top.d, scale)[0]
            for layer in reversed(self.units):
                layer.backward(first // VECTOR_WIDTH)
            for slot in range(-(-len(some) // VEC16_WIDTH)):
                for filters in reversed(self.filters):
                    filters.backward(slot, first=filters is self.filters[0])
        for filters in self.filters:
            filters.reduce_grad()
        return loss * scale

    def evaluate(self, images: Array, labels: Array) -> tuple[float, float]:
        pixels, loss, right = flatten_images(images), 0.0, 0
        top = self.units[-1]
        for first in range(0, len(labels), VECTOR_WIDTH):
            some = np.arange(first, min(first + VECTOR_WIDTH, len(labels)))
            self._forward(pixels, some)
            more, hits = matmul.cross_entropy_and_grad(top.rows, labels[some], top.y, top.d, 1.0)
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

    def _trained(self) -> Iterator[tuple[str, CompactParam]]:
        for layer in (*self.filters, *self.units):
            yield f"{layer.name}.weight", layer.weight
            yield f"{layer.name}.bias", layer.bias

    def _moments(self, trained: CompactParam) -> list[tuple[str, Floats]]:
        """What the optimiser keeps of a tensor, by PyTorch's names."""
        return list(zip(optimizer_state_names(self.recipe), (trained.m, trained.v), strict=False))
