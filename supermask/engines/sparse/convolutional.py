"""A convolutional network in training on a CPU: the sparse engine's `Trainer` for Conv2 to Conv8."""

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
    """One network: convolutions, then fully connected layers.

    A mini-batch is processed in blocks of 64 images, each forward and backward before the next. In the convolutions a
    block consists of up to four groups of 16 images, one per slot.
    """

    def __init__(self, job: TrainingJob, data: SplitData, costs: LayerKernelCosts) -> None:
        self.job, self.data, self.recipe = job, data, job.recipe
        self.sampler = BatchSampler(job.seed, data.train_indices, job.recipe.batch_size)
        self.images, self.labels = flatten_images(data.train_images), data.train_labels
        self.pixel_values = np.arange(256, dtype=np.float32) / np.float32(data.max_pixel)
        """Value of each byte of an image, float32 `(256,)`."""
        self.conv_layers: list[Conv3x3Layer] = []
        self.linear_layers: list[LinearLayer] = []
        self._build(costs)
        self._link_buffers()

    def _build(self, costs: LayerKernelCosts) -> None:
        layers, start = self.job.layers, self.job.start
        for layer, next_layer in zip(layers, (*layers[1:], None), strict=True):
            if isinstance(layer, Pool):
                continue
            mask = start.masks[f"{layer.name}.weight"]
            nonzero = mask | (start.weights[f"{layer.name}.weight"] != 0)
            choice = choose_kernels(layer, nonzero.float().mean().item(), mask.float().mean().item(), costs)
            if isinstance(layer, Conv):
                self.conv_layers.append(Conv3x3Layer(layer, isinstance(next_layer, Pool), mask, choice, nonzero))
            elif isinstance(layer, Dense):
                self.linear_layers.append(LinearLayer(layer, mask, choice, self.recipe.batch_size, nonzero))

    def _link_buffers(self) -> None:
        """Make one layer's output the next one's input, without copies; the other way round for gradients."""
        for layer, following in zip(self.conv_layers, self.conv_layers[1:], strict=False):
            if layer.pooled:
                layer.out = [plane_layout(following.inner, x) for x in following.x]
                # All slots share one `dx`: the backward pass goes through one group at a time.
                layer.d_out = [plane_layout(following.inner, following.dx)] * GROUPS
            else:
                layer.next_x, layer.d = following.x, following.dx
        last, head = self.conv_layers[-1], self.linear_layers[0]
        assert last.pooled, "a convolution without pooling stands before the fully connected layers"
        side = last.outer.height // 2, last.outer.width // 2
        # The head reads 64 images at once: each group writes its own 16 lanes.
        last.out = [flattened_layout(*side, head.x, slot) for slot in range(GROUPS)]
        last.d_out = [flattened_layout(*side, head.dx, slot) for slot in range(GROUPS)]
        for below, above in zip(self.linear_layers, self.linear_layers[1:], strict=False):
            above.x, below.d = below.y, above.dx

    def load(self, state: NetworkState) -> None:
        for layer in (*self.conv_layers, *self.linear_layers):
            layer.load(state.weights[f"{layer.name}.weight"], state.unmasked[f"{layer.name}.bias"])

    def state(self) -> NetworkState:
        layers = (*self.conv_layers, *self.linear_layers)
        return NetworkState(
            {f"{la.name}.weight": la.weight.get(la.weight.w, la.frozen) for la in layers},
            {f"{la.name}.bias": torch.from_numpy(la.bias.w[: la.rows].copy()) for la in layers},
        )

    def gradient(self, iteration: int) -> Weights:
        # By the reference engine: sparse kernels compute no gradients of pruned weights.
        return reference.gradient(self.job, self.data, self.state(), iteration)

    def train(self, first: int, last: int) -> Array:
        losses = np.empty(last - first, np.float32)
        steps = optimizer_step_table(self.recipe, self.job.start.first_iteration, first, last)
        for step, iteration in enumerate(range(first, last)):
            losses[step] = self._backward(self.sampler.batch(iteration))
            for layer in (*self.conv_layers, *self.linear_layers):
                layer.optimizer_step(steps, step)
        return losses

    def _forward(self, images: Array, indices: Array) -> None:
        """Compute the logits of up to 64 images. The activations that the backward pass needs stay in the slots."""
        first_layer = self.conv_layers[0]
        groups = -(-len(indices) // VEC16_WIDTH)
        if groups < GROUPS:
            # Lanes without images must not hold an older block's values: 0 * infinity there would be NaN in the sums.
            self.linear_layers[0].x.fill(0)
        for slot in range(groups):
            conv.pack_images(
                images, indices, slot * VEC16_WIDTH, self.pixel_values, first_layer.inner, first_layer.x[slot]
            )
            for layer in self.conv_layers:
                layer.forward(slot)
        for linear_layer in self.linear_layers:
            linear_layer.forward()

    def _backward(self, batch: Array) -> float:
        """Compute the gradients of a mini-batch, in the layers; return its mean cross-entropy in nats."""
        loss, scale = 0.0, 1 / len(batch)
        for first in range(0, len(batch), VECTOR_WIDTH):
            block = batch[first : first + VECTOR_WIDTH]
            self._forward(self.images, block)
            last_layer = self.linear_layers[-1]
            # The gradient is scaled by the whole mini-batch, so that blocks only have to be added.
            loss += matmul.cross_entropy_and_grad(
                last_layer.rows, self.labels[block], last_layer.y, last_layer.d, scale
            )[0]
            for linear_layer in reversed(self.linear_layers):
                linear_layer.backward(first // VECTOR_WIDTH)
            for slot in range(-(-len(block) // VEC16_WIDTH)):
                for layer in reversed(self.conv_layers):
                    layer.backward(slot, first=layer is self.conv_layers[0])
        for layer in self.conv_layers:
            # Once per mini-batch, after all groups: the sums over images and transforms are linear.
            layer.reduce_grad()
        return loss * scale

    def evaluate(self, images: Array, labels: Array) -> tuple[float, float]:
        pixels, loss, correct = flatten_images(images), 0.0, 0
        last_layer = self.linear_layers[-1]
        for first in range(0, len(labels), VECTOR_WIDTH):
            block = np.arange(first, min(first + VECTOR_WIDTH, len(labels)))
            self._forward(pixels, block)
            block_loss, block_correct = matmul.cross_entropy_and_grad(
                last_layer.rows, labels[block], last_layer.y, last_layer.d, 1.0
            )
            loss, correct = loss + block_loss, correct + block_correct
        return loss / len(labels), correct / len(labels)

    def optimizer_state(self) -> OptimizerState:
        return {
            name: {key: param.get(moments, torch.zeros(param.shape)) for key, moments in self._moments(param)}
            for name, param in self._params()
        }

    def load_optimizer_state(self, state: OptimizerState, iteration: int) -> None:
        for name, param in self._params():
            for key, moments in self._moments(param):
                param.put(moments, state[name][key])

    def _params(self) -> Iterator[tuple[str, CompactParam]]:
        """Names and trained parts of all weights and biases."""
        for layer in (*self.conv_layers, *self.linear_layers):
            yield f"{layer.name}.weight", layer.weight
            yield f"{layer.name}.bias", layer.bias

    def _moments(self, param: CompactParam) -> list[tuple[str, Floats]]:
        """Arrays of the optimizer's state of a tensor, with PyTorch's names."""
        return list(zip(optimizer_state_names(self.recipe), (param.m, param.v), strict=False))
