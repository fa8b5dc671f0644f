"""A fully connected network in training on a CPU: its arrays, laid out as the kernels read them.

Shape letters as in `kernels.layout`: B = 64 images, I inputs, O outputs, P pixels, K surviving weights of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supermask.core.types import NetworkState, SplitData, Weights
from supermask.engines import reference
from supermask.engines.job import Array, BatchSampler, TrainingJob, flatten_images
from supermask.engines.optimizer_steps import optimizer_state_names, optimizer_step_table
from supermask.engines.sparse.costs import CACHE_COLUMNS, Traversal, block_index
from supermask.engines.sparse.kernels import layout, mlp
from supermask.engines.sparse.kernels.matmul import ROWS
from supermask.engines.sparse.kernels.simd import VECTOR_WIDTH, aligned_zeros, round_up
from supermask.engines.training import OptimizerState
from supermask.networks.sequential import Dense

IndexPair = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Positions of weights in the flat kernel `(out, in)`, and of the same weights in a flat array of `MLPBuffers`."""

TRAVERSALS = {"weights": layout.WEIGHTS, "pixels": layout.PIXELS, "all": layout.ALL}


class MLPTrainer:
    """The sparse engine's `Trainer` for networks of fully connected layers. `traversals` has one entry per layer."""

    def __init__(self, job: TrainingJob, data: SplitData, traversals: Mapping[str, Traversal]) -> None:
        self.job, self.data, self.recipe = job, data, job.recipe
        self.sampler = BatchSampler(job.seed, data.train_indices, job.recipe.batch_size)
        self.images = flatten_images(data.train_images)
        self.names = [layer.name for layer in job.layers]
        self.layout = _WeightLayout(job, traversals)
        self.net = _allocate(self.layout, job, data)
        self.frozen: Weights = {}
        """The loaded weights, for the elements that have no position in `net.w`: pruned ones, which never change."""

    def load(self, state: NetworkState) -> None:
        self.frozen = state.weights
        for name in self.names:
            self.layout.scatter(self.net.w, name, state.weights[f"{name}.weight"])
            self.net.bias[self.layout.biases[name]] = state.unmasked[f"{name}.bias"].numpy()

    def state(self) -> NetworkState:
        weights = {
            f"{n}.weight": self.layout.gather(self.net.w, self.layout.weights[n], self.frozen[f"{n}.weight"])
            for n in self.names
        }
        biases = {f"{n}.bias": torch.from_numpy(self.net.bias[self.layout.biases[n]].copy()) for n in self.names}
        return NetworkState(weights, biases)

    def gradient(self, iteration: int) -> Weights:
        # By the reference engine: the kernels compute no gradients of pruned weights.
        return reference.gradient(self.job, self.data, self.state(), iteration)

    def train(self, first: int, last: int) -> Array:
        batches = np.stack([self.sampler.batch(i) for i in range(first, last)])
        losses = np.empty(last - first, np.float32)
        steps = optimizer_step_table(self.recipe, self.job.start.first_iteration, first, last)
        mlp.train(self.net, steps, self.images, self.data.train_labels, batches, losses)
        return losses

    def evaluate(self, images: Array, labels: Array) -> tuple[float, float]:
        loss, correct = mlp.evaluate(self.net, flatten_images(images), labels)
        return loss / len(labels), correct / len(labels)

    def optimizer_state(self) -> OptimizerState:
        state: OptimizerState = {}
        for name in self.names:
            bias = self.layout.biases[name]
            state[f"{name}.weight"], state[f"{name}.bias"] = {}, {}
            for key, moments, bias_moments in self._moments():
                zeros = torch.zeros(self.frozen[f"{name}.weight"].shape)
                state[f"{name}.weight"][key] = self.layout.gather(moments, self.layout.trained[name], zeros)
                state[f"{name}.bias"][key] = torch.from_numpy(bias_moments[bias].copy())
        return state

    def load_optimizer_state(self, state: OptimizerState, iteration: int) -> None:
        # The loaded moments may be nonzero for pixels that no batch of this process has shown: update all of them.
        self.net.ever_nonzero[:] = 1
        for name in self.names:
            for key, moments, bias_moments in self._moments():
                self.layout.scatter(moments, name, state[f"{name}.weight"][key])
                bias_moments[self.layout.biases[name]] = state[f"{name}.bias"][key].numpy()

    def _moments(self) -> list[tuple[str, Array, Array]]:
        """PyTorch's name of each part of the optimizer's state, and its arrays for weights and for biases."""
        net = self.net
        arrays = ((net.m, net.bias_m), (net.v, net.bias_v))
        return [(name, *pair) for name, pair in zip(optimizer_state_names(self.recipe), arrays, strict=False)]


class _WeightLayout:
    """Layer table, lists and positions of all weights and biases in the flat arrays of `MLPBuffers`."""

    def __init__(self, job: TrainingJob, traversals: Mapping[str, Traversal]) -> None:
        layers = [layer for layer in job.layers if isinstance(layer, Dense)]
        assert len(layers) == len(job.layers), "a layer that is not fully connected"
        self.table = np.zeros(len(layers), layout.LAYER_DTYPE)
        self.weights: dict[str, IndexPair] = {}
        """Per layer, the weights that the forward pass reads."""
        self.trained: dict[str, IndexPair] = {}
        """Per layer, the weights that the optimizer updates, and their moments. They are the same as `weights`, or a
        compact copy of the surviving ones ("X then weights")."""
        self.biases: dict[str, slice] = {}
        self.lists: dict[str, list[Array]] = {
            n: [] for n in ("first", "offset", "first_in", "offset_in", "column_order", "dense_index", "trained_bits")
        }
        """Parts of the flat lists, one per layer, before they are concatenated."""
        self.sizes = {"w": 0, "bias": 0}
        """Elements used so far."""
        self.units = round_up_rows(layers[0].inputs)
        for row, layer in zip(self.table, layers, strict=True):
            self._add_layer(row, layer, job.start.masks[f"{layer.name}.weight"].numpy(), traversals[layer.name])

    def _add_layer(self, row: np.void, layer: Dense, mask: NDArray[np.bool_], traversal: Traversal) -> None:
        forward_traversal, _, grad_traversal = traversal.partition(" then ")
        row["traversal"], row["listed"] = TRAVERSALS[forward_traversal], "weights" in traversal
        row["inputs"], row["outputs"], row["last"] = layer.inputs, layer.outputs, layer.last
        row["bias"] = self.sizes["bias"]
        # The inputs of a layer are the outputs of the one before: the last units so far.
        row["x"] = self.units - round_up_rows(layer.inputs)
        row["y"] = self.units
        self.units += round_up_rows(layer.outputs)
        self.biases[layer.name] = slice(self.sizes["bias"], self.sizes["bias"] + layer.outputs)
        self.sizes["bias"] += round_up(layer.outputs)
        if row["listed"]:
            self._list_weights(row, layer.name, mask)
        if traversal == "weights":
            row["w"], row["size"] = row["compact"], round_up(int(row["used"]))
            self.weights[layer.name] = self.trained[layer.name]
        else:
            self._place_all_weights(row, layer, mask)
            if grad_traversal:
                flat, _ = self.trained[layer.name]
                self._append(row, "dense_index", "dense_index", self.weights[layer.name][1][flat])
            else:
                self.trained[layer.name] = self.weights[layer.name]

    def _place_all_weights(self, row: np.void, layer: Dense, mask: NDArray[np.bool_]) -> None:
        """Reserve positions for all weights, and one bit per position: 1 if the weight survives."""
        out, into = np.divmod(np.arange(mask.size), layer.inputs)
        if row["traversal"] == layout.PIXELS:
            # `(ceil(O / B), P, B)`
            row["width"] = round_up(layer.outputs)
            positions = (out // VECTOR_WIDTH * layer.inputs + into) * VECTOR_WIDTH + out % VECTOR_WIDTH
            size = layer.inputs * row["width"]
        else:
            # `(O, I)`, both padded
            row["width"] = round_up(layer.inputs)
            positions, size = out * row["width"] + into, round_up_rows(layer.outputs) * row["width"]
        bits = np.zeros(size, bool)
        bits[positions] = mask.ravel()
        self._append(row, "bits", "trained_bits", np.packbits(bits, bitorder="little").view(np.uint64))
        row["w"], row["size"] = self.sizes["w"], size
        self.weights[layer.name] = np.arange(mask.size), positions + self.sizes["w"]
        self.sizes["w"] += int(size)

    def _list_weights(self, row: np.void, name: str, mask: NDArray[np.bool_]) -> None:
        """Reserve positions for the surviving weights, and build the lists by which kernels traverse them."""
        flat = np.flatnonzero(mask)
        out, into = np.divmod(flat, mask.shape[1])
        by_row = block_index(out, into, into * VECTOR_WIDTH, mask.shape, CACHE_COLUMNS)
        row["blocks"], row["used"], row["compact"] = len(by_row.first), flat.size, self.sizes["w"]
        self._append(row, "first", "first", by_row.first.ravel())
        self._append(row, "offset", "offset", by_row.offset)
        flat, into, out = flat[by_row.order], into[by_row.order], out[by_row.order]
        by_column = np.argsort(into, kind="stable")
        self._append(row, "first_in", "first_in", np.concatenate([[0], np.cumsum(mask.sum(0))]))
        self._append(row, "column_order", "column_order", by_column)
        # The same length as `column_order`, so that one position in the table serves both lists.
        self.lists["offset_in"].append(out[by_column] * VECTOR_WIDTH)
        self.trained[name] = flat, np.arange(flat.size) + self.sizes["w"]
        self.sizes["w"] += round_up(flat.size)

    def _append(self, row: np.void, field: str, list_name: str, values: Array) -> None:
        """Append a layer's part to a list, and store its first position in the layer's row."""
        row[field] = sum(map(len, self.lists[list_name]))
        self.lists[list_name].append(values)

    def scatter(self, array: Array, name: str, kernel: Tensor) -> None:
        """Write a kernel `(out, in)`, or its moments, to all positions of its elements."""
        for flat, positions in (self.weights[name], self.trained[name]):
            array[positions] = kernel.numpy().ravel()[flat]

    def gather(self, array: Array, index: IndexPair, background: Tensor) -> Tensor:
        """Return the kernel `(out, in)`; elements without a position are those of `background`."""
        values = background.numpy().copy()
        flat, positions = index
        values.ravel()[flat] = array[positions]
        return torch.from_numpy(values)


def _allocate(weight_layout: _WeightLayout, job: TrainingJob, data: SplitData) -> layout.MLPBuffers:
    batch = round_up(job.recipe.batch_size)
    table, pixels = weight_layout.table, int(weight_layout.table[0]["inputs"])
    lists = {n: np.concatenate(parts) if parts else np.zeros(0) for n, parts in weight_layout.lists.items()}
    # int32 halves the memory that a traversal reads per weight.
    int32_lists = {
        n: lists[n].astype(np.int32)
        for n in ("first", "offset", "first_in", "offset_in", "column_order", "dense_index")
    }
    weights, biases = (weight_layout.sizes[n] for n in ("w", "bias"))
    largest = max(int(table["size"].max()), round_up(int(table["used"].max())))
    return layout.MLPBuffers(
        table=table,
        **{n: aligned_zeros(weights + VECTOR_WIDTH) for n in ("w", "m", "v")},
        g=aligned_zeros(2 * largest),
        **{n: aligned_zeros(biases) for n in ("bias", "bias_m", "bias_v", "bias_g")},
        trained_bits=lists["trained_bits"].astype(np.uint64),
        **int32_lists,
        **{n: aligned_zeros(batch // VECTOR_WIDTH * weight_layout.units * VECTOR_WIDTH) for n in ("x", "d")},
        units=weight_layout.units,
        scratch=aligned_zeros(ROWS * VECTOR_WIDTH),
        nonzero_bits=np.zeros(batch // VECTOR_WIDTH * pixels, np.uint64),
        ever_nonzero=np.zeros(pixels, np.uint64),
        rows=aligned_zeros(batch * max(VECTOR_WIDTH, int(table["width"].max()))),
        max_pixel=np.float32(data.max_pixel),
        pixel_bytes_read=_pixel_bytes_read(job, weight_layout, pixels),
        image_words=np.zeros(VECTOR_WIDTH, np.uint64),
        batch_scratch=np.zeros(VECTOR_WIDTH, np.int64),
    )


def _pixel_bytes_read(job: TrainingJob, weight_layout: _WeightLayout, pixels: int) -> Array:
    """1 for each eight pixels of which any is read by a weight, uint8 `(ceil(P / 8),)`."""
    is_read = np.zeros(-(-pixels // 8) * 8, bool)
    has_weights = job.start.masks[f"{job.layers[0].name}.weight"].numpy().any(0)
    is_read[:pixels] = has_weights if weight_layout.table[0]["traversal"] == layout.WEIGHTS else True
    return np.array(is_read.reshape(-1, 8).any(1), np.uint8)


def round_up_rows(units: int) -> int:
    """Return the smallest multiple of `ROWS` that is at least `units`."""
    return -(-units // ROWS) * ROWS
