"""A fully connected network in training on a CPU: its arrays, laid out as the kernels want them."""

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

TRAVERSALS = {"weights": layout.WEIGHTS, "pixels": layout.PIXELS, "all": layout.ALL}


class MLPTrainer:
    """The sparse engine's `Stepper` for networks of Linear layers. `walks` has one entry a layer."""

    def __init__(self, job: TrainingJob, data: SplitData, walks: Mapping[str, Traversal]) -> None:
        self.job, self.data, self.recipe = job, data, job.recipe
        self.order = BatchSampler(job.seed, data.train_indices, job.recipe.batch_size)
        self.images = flatten_images(data.train_images)
        self.names = [layer.name for layer in job.layers]
        self.places = _WeightLayout(job, walks)
        self.net = _network(self.places, job, data)
        self.frozen: Weights = {}

    def load(self, state: NetworkState) -> None:
        self.frozen = state.weights
        for name in self.names:
            self.places.scatter(self.net.w, name, state.weights[f"{name}.weight"])
            self.net.bias[self.places.biases[name]] = state.unmasked[f"{name}.bias"].numpy()

    def state(self) -> NetworkState:
        weights = {
            f"{n}.weight": self.places.gather(self.net.w, self.places.weights[n], self.frozen[f"{n}.weight"])
            for n in self.names
        }
        biases = {f"{n}.bias": torch.from_numpy(self.net.bias[self.places.biases[n]].copy()) for n in self.names}
        return NetworkState(weights, biases)

    def gradient(self, iteration: int) -> Weights:
        return reference.gradient(self.job, self.data, self.state(), iteration)

    def train(self, first: int, last: int) -> Array:
        batches = np.stack([self.order.batch(i) for i in range(first, last)])
        losses = np.empty(last - first, np.float32)
        how = optimizer_step_table(self.recipe, self.job.start.first_iteration, first, last)
        mlp.train(self.net, how, self.images, self.data.train_labels, batches, losses)
        return losses

    def evaluate(self, images: Array, labels: Array) -> tuple[float, float]:
        loss, right = mlp.evaluate(self.net, flatten_images(images), labels)
        return loss / len(labels), right / len(labels)

    def optimizer_state(self) -> OptimizerState:
        found: OptimizerState = {}
        for name in self.names:
            there = self.places.biases[name]
            found[f"{name}.weight"], found[f"{name}.bias"] = {}, {}
            for key, moments, of_biases in self._moments():
                nothing = torch.zeros(self.frozen[f"{name}.weight"].shape)
                found[f"{name}.weight"][key] = self.places.gather(moments, self.places.moments[name], nothing)
                found[f"{name}.bias"][key] = torch.from_numpy(of_biases[there].copy())
        return found

    def load_optimizer_state(self, state: OptimizerState, iteration: int) -> None:
        self.net.ever_nonzero[:] = 1
        for name in self.names:
            for key, moments, of_biases in self._moments():
                self.places.scatter(moments, name, state[f"{name}.weight"][key])
                of_biases[self.places.biases[name]] = state[f"{name}.bias"][key].numpy()

    def _moments(self) -> list[tuple[str, Array, Array]]:
        """PyTorch's name of what the optimiser keeps, and where it is: of the weights, of the biases."""
        net = self.net
        places = ((net.m, net.bias_m), (net.v, net.bias_v))
        return [(name, *place) for name, place in zip(optimizer_state_names(self.recipe), places, strict=False)]


class _WeightLayout:
    """Where in the flat arrays everything is."""

    def __init__(self, job: TrainingJob, walks: Mapping[str, Traversal]) -> None:
        layers = [layer for layer in job.layers if isinstance(layer, Dense)]
        assert len(layers) == len(job.layers), "a layer that is not fully connected"
        self.table = np.zeros(len(layers), layout.LAYER_DTYPE)
        self.weights: dict[str, IndexPair] = {}
        """Layer -> where its weights come from, in the flattened kernel `(out, in)`, and where they are in `net.w`."""
        self.moments: dict[str, IndexPair] = {}
        """The same for those that train, and for their moments; elsewhere where only gradients walk over them."""
        self.biases: dict[str, slice] = {}
        self.lists: dict[str, list[Array]] = {
            n: [] for n in ("first", "offset", "first_in", "offset_in", "column_order", "dense_index", "words")
        }
        self.sizes = {"w": 0, "bias": 0, "units": 0}
        self.units = round_up_rows(layers[0].inputs)
        for row, layer in zip(self.table, layers, strict=True):
            self._add(row, layer, job.start.masks[f"{layer.name}.weight"].numpy(), walks[layer.name])

    def _add(self, row: np.void, layer: Dense, mask: NDArray[np.bool_], walk: Traversal) -> None:
        outputs_over, _, gradients_over = walk.partition(" then ")
        row["walk"], row["listed"] = TRAVERSALS[outputs_over], "weights" in walk
        row["inputs"], row["outputs"], row["last"] = layer.inputs, layer.outputs, layer.last
        row["bias"] = self.sizes["bias"]
        row["x"] = self.units - round_up_rows(layer.inputs)
        row["y"] = self.units
        self.units += round_up_rows(layer.outputs)
        self.biases[layer.name] = slice(self.sizes["bias"], self.sizes["bias"] + layer.outputs)
        self.sizes["bias"] += round_up(layer.outputs)
        if row["listed"]:
            self._list_weights(row, layer.name, mask)
        if walk == "weights":
            row["w"], row["size"] = row["compact"], round_up(int(row["used"]))
            self.weights[layer.name] = self.moments[layer.name]
        else:
            self._lay_out(row, layer, mask)
            if gradients_over:
                flat, _ = self.moments[layer.name]
                self._append(row, "dense_index", self.weights[layer.name][1][flat])
            else:
                self.moments[layer.name] = self.weights[layer.name]

    def _lay_out(self, row: np.void, layer: Dense, mask: NDArray[np.bool_]) -> None:
        """Places for all weights, and words that say which of them survive."""
        out, into = np.divmod(np.arange(mask.size), layer.inputs)
        if row["walk"] == layout.PIXELS:
            row["width"] = round_up(layer.outputs)
            used, size = (
                (out // VECTOR_WIDTH * layer.inputs + into) * VECTOR_WIDTH + out % VECTOR_WIDTH,
                layer.inputs * row["width"],
            )
        else:
            row["width"] = round_up(layer.inputs)
            used, size = out * row["width"] + into, round_up_rows(layer.outputs) * row["width"]
        alive = np.zeros(size, bool)
        alive[used] = mask.ravel()
        self._append(row, "words", np.packbits(alive, bitorder="little").view(np.uint64))
        row["w"], row["size"] = self.sizes["w"], size
        self.weights[layer.name] = np.arange(mask.size), used + self.sizes["w"]
        self.sizes["w"] += int(size)

    def _list_weights(self, row: np.void, name: str, mask: NDArray[np.bool_]) -> None:
        """Places for the surviving weights, and the lists by which kernels walk over them."""
        flat = np.flatnonzero(mask)
        out, into = np.divmod(flat, mask.shape[1])
        by_row = block_index(out, into, into * VECTOR_WIDTH, mask.shape, CACHE_COLUMNS)
        row["shares"], row["used"], row["compact"] = len(by_row.first), flat.size, self.sizes["w"]
        self._append(row, "first", by_row.first.ravel())
        self._append(row, "offset", by_row.offset)
        flat, into, out = flat[by_row.order], into[by_row.order], out[by_row.order]
        by_column = np.argsort(into, kind="stable")
        self._append(row, "first_in", np.concatenate([[0], np.cumsum(mask.sum(0))]))
        self._append(row, "column_order", by_column)
        self.lists["offset_in"].append(out[by_column] * VECTOR_WIDTH)
        self.moments[name] = flat, np.arange(flat.size) + self.sizes["w"]
        self.sizes["w"] += round_up(flat.size)

    def _append(self, row: np.void, name: str, values: Array) -> None:
        row[name] = sum(map(len, self.lists[name]))
        self.lists[name].append(values)

    def scatter(self, array: Array, name: str, values: Tensor) -> None:
        """Lays out a kernel's values, or their moments."""
        for flat, used in (self.weights[name], self.moments[name]):
            array[used] = values.numpy().ravel()[flat]

    def gather(self, array: Array, places: IndexPair, others: Tensor) -> Tensor:
        """The kernel `(out, in)` again; what is not laid out is as in `others`."""
        values = others.numpy().copy()
        flat, used = places
        values.ravel()[flat] = array[used]
        return torch.from_numpy(values)


def _network(places: _WeightLayout, job: TrainingJob, data: SplitData) -> layout.MLPBuffers:
    batch = round_up(job.recipe.batch_size)
    table, pixels = places.table, int(places.table[0]["inputs"])
    lists = {n: np.concatenate(found) if found else np.zeros(0) for n, found in places.lists.items()}
    small = {
        n: lists[n].astype(np.int32)
        for n in ("first", "offset", "first_in", "offset_in", "column_order", "dense_index")
    }
    weights, biases = (places.sizes[n] for n in ("w", "bias"))
    biggest = max(int(table["size"].max()), round_up(int(table["used"].max())))
    return layout.MLPBuffers(
        table=table,
        **{n: aligned_zeros(weights + VECTOR_WIDTH) for n in ("w", "m", "v")},
        g=aligned_zeros(2 * biggest),
        **{n: aligned_zeros(biases) for n in ("bias", "bias_m", "bias_v", "bias_g")},
        words=lists["words"].astype(np.uint64),
        **small,
        **{n: aligned_zeros(batch // VECTOR_WIDTH * places.units * VECTOR_WIDTH) for n in ("x", "d")},
        units=places.units,
        scratch=aligned_zeros(ROWS * VECTOR_WIDTH),
        nonzero_bits=np.zeros(batch // VECTOR_WIDTH * pixels, np.uint64),
        ever_nonzero=np.zeros(pixels, np.uint64),
        rows=aligned_zeros(batch * max(VECTOR_WIDTH, int(table["width"].max()))),
        maximum=np.float32(data.pixel_maximum),
        pixel_bytes_read=_bytes_read(job, places, pixels),
        eights=np.zeros(VECTOR_WIDTH, np.uint64),
        batch_scratch=np.zeros(VECTOR_WIDTH, np.int64),
    )


def _bytes_read(job: TrainingJob, places: _WeightLayout, pixels: int) -> Array:
    read = np.zeros(-(-pixels // 8) * 8, bool)
    of_weights = job.start.masks[f"{job.layers[0].name}.weight"].numpy().any(0)
    read[:pixels] = of_weights if places.table[0]["walk"] == layout.WEIGHTS else True
    return np.array(read.reshape(-1, 8).any(1), np.uint8)


def round_up_rows(units: int) -> int:
    """The next multiple of `ROWS`."""
    return -(-units // ROWS) * ROWS
