"""A fully connected network in training on a CPU: its arrays, laid out as the kernels want them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supermask.engines import reference
from supermask.engines.job import Array, BatchOrder, Data, Job, flat_bytes
from supermask.engines.kernels import fc, network
from supermask.engines.kernels.lanes import LANES, aligned, padded
from supermask.engines.kernels.products import ROWS
from supermask.engines.loop import OptimizerState
from supermask.engines.shares import UNITS_IN_CACHE, in_shares
from supermask.engines.steps import moment_names, optimizer_steps
from supermask.engines.walks import Walk
from supermask.networks import Dense
from supermask.types import State, Weights

Places = tuple[NDArray[np.int64], NDArray[np.int64]]

WALKS = {"weights": network.WEIGHTS, "pixels": network.PIXELS, "all": network.ALL}


class FullyConnected:
    """The sparse engine's `Stepper` for networks of Linear layers. `walks` has one entry a layer."""

    def __init__(self, job: Job, data: Data, walks: Mapping[str, Walk]) -> None:
        self.job, self.data, self.recipe = job, data, job.recipe
        self.order = BatchOrder(job.seed, data.train_indices, job.recipe.batch_size)
        self.images = flat_bytes(data.train_images)
        self.names = [layer.name for layer in job.layers]
        self.places = _Places(job, walks)
        self.net = _network(self.places, job, data)
        self.frozen: Weights = {}

    def load(self, state: State) -> None:
        self.frozen = state.weights
        for name in self.names:
            self.places.put(self.net.w, name, state.weights[f"{name}.weight"])
            self.net.bias[self.places.biases[name]] = state.others[f"{name}.bias"].numpy()

    def state(self) -> State:
        weights = {
            f"{n}.weight": self.places.get(self.net.w, self.places.weights[n], self.frozen[f"{n}.weight"])
            for n in self.names
        }
        biases = {f"{n}.bias": torch.from_numpy(self.net.bias[self.places.biases[n]].copy()) for n in self.names}
        return State(weights, biases)

    def gradient(self, iteration: int) -> Weights:
        return reference.gradient(self.job, self.data, self.state(), iteration)

    def train(self, first: int, last: int) -> Array:
        batches = np.stack([self.order.batch(i) for i in range(first, last)])
        losses = np.empty(last - first, np.float32)
        how = optimizer_steps(self.recipe, self.job.start.first_iteration, first, last)
        fc.train(self.net, how, self.images, self.data.train_labels, batches, losses)
        return losses

    def measure(self, images: Array, labels: Array) -> tuple[float, float]:
        loss, right = fc.measure(self.net, flat_bytes(images), labels)
        return loss / len(labels), right / len(labels)

    def optimizer_state(self) -> OptimizerState:
        found: OptimizerState = {}
        for name in self.names:
            there = self.places.biases[name]
            found[f"{name}.weight"], found[f"{name}.bias"] = {}, {}
            for key, moments, of_biases in self._moments():
                nothing = torch.zeros(self.frozen[f"{name}.weight"].shape)
                found[f"{name}.weight"][key] = self.places.get(moments, self.places.moments[name], nothing)
                found[f"{name}.bias"][key] = torch.from_numpy(of_biases[there].copy())
        return found

    def load_optimizer_state(self, state: OptimizerState, iteration: int) -> None:
        self.net.seen[:] = 1
        for name in self.names:
            for key, moments, of_biases in self._moments():
                self.places.put(moments, name, state[f"{name}.weight"][key])
                of_biases[self.places.biases[name]] = state[f"{name}.bias"][key].numpy()

    def _moments(self) -> list[tuple[str, Array, Array]]:
        """PyTorch's name of what the optimiser keeps, and where it is: of the weights, of the biases."""
        net = self.net
        places = ((net.m, net.bias_m), (net.v, net.bias_v))
        return [(name, *place) for name, place in zip(moment_names(self.recipe), places, strict=False)]


class _Places:
    """Where in the flat arrays everything is."""

    def __init__(self, job: Job, walks: Mapping[str, Walk]) -> None:
        layers = [layer for layer in job.layers if isinstance(layer, Dense)]
        assert len(layers) == len(job.layers), "a layer that is not fully connected"
        self.table = np.zeros(len(layers), network.TABLE)
        self.weights: dict[str, Places] = {}
        """Layer -> where its weights come from, in the flattened kernel `(out, in)`, and where they are in `net.w`."""
        self.moments: dict[str, Places] = {}
        """The same for those that train, and for their moments; elsewhere where only gradients walk over them."""
        self.biases: dict[str, slice] = {}
        self.lists: dict[str, list[Array]] = {
            n: [] for n in ("first", "offset", "first_in", "offset_in", "place", "home", "words")
        }
        self.sizes = {"w": 0, "bias": 0, "units": 0}
        self.units = padded_rows(layers[0].inputs)
        for row, layer in zip(self.table, layers, strict=True):
            self._add(row, layer, job.start.masks[f"{layer.name}.weight"].numpy(), walks[layer.name])

    def _add(self, row: np.void, layer: Dense, mask: NDArray[np.bool_], walk: Walk) -> None:
        outputs_over, _, gradients_over = walk.partition(" then ")
        row["walk"], row["listed"] = WALKS[outputs_over], "weights" in walk
        row["inputs"], row["outputs"], row["last"] = layer.inputs, layer.outputs, layer.last
        row["bias"] = self.sizes["bias"]
        row["x"] = self.units - padded_rows(layer.inputs)
        row["y"] = self.units
        self.units += padded_rows(layer.outputs)
        self.biases[layer.name] = slice(self.sizes["bias"], self.sizes["bias"] + layer.outputs)
        self.sizes["bias"] += padded(layer.outputs)
        if row["listed"]:
            self._list_weights(row, layer.name, mask)
        if walk == "weights":
            row["w"], row["size"] = row["compact"], padded(int(row["used"]))
            self.weights[layer.name] = self.moments[layer.name]
        else:
            self._lay_out(row, layer, mask)
            if gradients_over:
                flat, _ = self.moments[layer.name]
                self._append(row, "home", self.weights[layer.name][1][flat])
            else:
                self.moments[layer.name] = self.weights[layer.name]

    def _lay_out(self, row: np.void, layer: Dense, mask: NDArray[np.bool_]) -> None:
        """Places for all weights, and words that say which of them survive."""
        out, into = np.divmod(np.arange(mask.size), layer.inputs)
        if row["walk"] == network.PIXELS:
            row["width"] = padded(layer.outputs)
            used, size = (out // LANES * layer.inputs + into) * LANES + out % LANES, layer.inputs * row["width"]
        else:
            row["width"] = padded(layer.inputs)
            used, size = out * row["width"] + into, padded_rows(layer.outputs) * row["width"]
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
        by_row = in_shares(out, into, into * LANES, mask.shape, UNITS_IN_CACHE)
        row["shares"], row["used"], row["compact"] = len(by_row.first), flat.size, self.sizes["w"]
        self._append(row, "first", by_row.first.ravel())
        self._append(row, "offset", by_row.offset)
        flat, into, out = flat[by_row.order], into[by_row.order], out[by_row.order]
        by_column = np.argsort(into, kind="stable")
        self._append(row, "first_in", np.concatenate([[0], np.cumsum(mask.sum(0))]))
        self._append(row, "place", by_column)
        self.lists["offset_in"].append(out[by_column] * LANES)
        self.moments[name] = flat, np.arange(flat.size) + self.sizes["w"]
        self.sizes["w"] += padded(flat.size)

    def _append(self, row: np.void, name: str, values: Array) -> None:
        row[name] = sum(map(len, self.lists[name]))
        self.lists[name].append(values)

    def put(self, array: Array, name: str, values: Tensor) -> None:
        """Lays out a kernel's values, or their moments."""
        for flat, used in (self.weights[name], self.moments[name]):
            array[used] = values.numpy().ravel()[flat]

    def get(self, array: Array, places: Places, others: Tensor) -> Tensor:
        """The kernel `(out, in)` again; what is not laid out is as in `others`."""
        values = others.numpy().copy()
        flat, used = places
        values.ravel()[flat] = array[used]
        return torch.from_numpy(values)


def _network(places: _Places, job: Job, data: Data) -> network.Network:
    batch = padded(job.recipe.batch_size)
    table, pixels = places.table, int(places.table[0]["inputs"])
    lists = {n: np.concatenate(found) if found else np.zeros(0) for n, found in places.lists.items()}
    small = {n: lists[n].astype(np.int32) for n in ("first", "offset", "first_in", "offset_in", "place", "home")}
    weights, biases = (places.sizes[n] for n in ("w", "bias"))
    biggest = max(int(table["size"].max()), padded(int(table["used"].max())))
    return network.Network(
        table=table,
        **{n: aligned(weights + LANES) for n in ("w", "m", "v")},
        g=aligned(2 * biggest),
        **{n: aligned(biases) for n in ("bias", "bias_m", "bias_v", "bias_g")},
        words=lists["words"].astype(np.uint64),
        **small,
        **{n: aligned(batch // LANES * places.units * LANES) for n in ("x", "d")},
        units=places.units,
        scratch=aligned(ROWS * LANES),
        lit=np.zeros(batch // LANES * pixels, np.uint64),
        seen=np.zeros(pixels, np.uint64),
        rows=aligned(batch * max(LANES, int(table["width"].max()))),
        maximum=np.float32(data.pixel_maximum),
        needed=_needed_eights(job, places, pixels),
        eights=np.zeros(LANES, np.uint64),
        chosen=np.zeros(LANES, np.int64),
    )


def _needed_eights(job: Job, places: _Places, pixels: int) -> Array:
    read = np.zeros(-(-pixels // 8) * 8, bool)
    of_weights = job.start.masks[f"{job.layers[0].name}.weight"].numpy().any(0)
    read[:pixels] = of_weights if places.table[0]["walk"] == network.WEIGHTS else True
    return np.array(read.reshape(-1, 8).any(1), np.uint8)


def padded_rows(units: int) -> int:
    """The next multiple of `ROWS`."""
    return -(-units // ROWS) * ROWS
