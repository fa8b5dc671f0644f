"""The forward pass of a stack of networks, the masked weights of learned masks, and the images on the device.

Shapes: R replicas, N distinct mini-batches of a step (N <= R: replicas of one seed share theirs), B images of a batch,
C channels, H and W height and width in pixels, I inputs and O outputs of a layer, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from supermask.core.learned_masks import SIGMOID, MaskLearning, batched_uniform_samples, edge_popup_count
from supermask.core.types import SplitData, Weights
from supermask.engines.job import Array
from supermask.engines.reference import on_device
from supermask.engines.reference_masks import StraightThrough
from supermask.engines.stacked.bias_relu import BiasRelu, make_bias_relu
from supermask.engines.stacked.convolutions import conv3x3, max_pool2x2
from supermask.networks.sequential import Architecture, Conv, Dense, Pool

LayerFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, w, b) -> outputs before the ReLU, all with a leading axis of replicas."""


@dataclass(frozen=True)
class BatchGroup:
    """Consecutive mini-batches, each of which is used by equally many consecutive replicas."""

    first_batch: int
    num_batches: int
    first_replica: int
    """The first replica that uses `first_batch`."""
    replicas_per_batch: int


def group_batches(batch_keys: Sequence[Hashable]) -> list[BatchGroup]:
    """Groups from the key of each replica's mini-batch. Only neighbors with equal keys share a batch.

    `[a, a, b, b, c]` gives batches 0 and 1 with two replicas each, and batch 2 with one.
    """
    groups: list[BatchGroup] = []
    batch = replica = 0
    runs = (len(list(equal_keys)) for _, equal_keys in groupby(batch_keys))
    for replicas_per_batch, equal_runs in groupby(runs):
        num_batches = len(list(equal_runs))
        groups.append(BatchGroup(batch, num_batches, replica, replicas_per_batch))
        batch, replica = batch + num_batches, replica + num_batches * replicas_per_batch
    return groups


class NetworkForward(Protocol):
    """Forward pass of a stack of networks."""

    widest_layer: int
    """Most values per image and replica that an evaluation holds at once; 0 if it is not known."""

    def __call__(
        self,
        tensors: Weights,
        inputs: Tensor,
        groups: Sequence[BatchGroup],
        batch_of_replica: Tensor,
        *,
        is_training: bool,
    ) -> Tensor:
        """Logits (R, B, K) of every replica on its own mini-batch.

        `tensors`: all tensors of the networks, with a leading axis R. `inputs`: the distinct mini-batches, (N, B, C, H,
        W). `groups`: which replicas use which of them; `batch_of_replica`, (R,): the same as indices.
        """


COLUMN_COPIES = 9
"""Copies of each input of a 3x3 convolution in the columns of the "columns" algorithm."""


class LayersForward:
    """Forward pass of the paper's networks, from their layers. `algorithms`: as in `forward`."""

    def __init__(self, layers: Architecture, algorithms: Mapping[str, str], device: torch.device) -> None:
        self._layers, self._algorithms = layers, algorithms
        self._bias_relu = make_bias_relu(device)
        self.widest_layer = max(
            (x.outputs + COLUMN_COPIES * x.inputs * (algorithms[x.name] == "columns")) * x.side[0] * x.side[1]
            if isinstance(x, Conv)
            else x.outputs
            for x in layers
            if isinstance(x, Conv | Dense)
        )

    def __call__(
        self,
        tensors: Weights,
        inputs: Tensor,
        groups: Sequence[BatchGroup],
        batch_of_replica: Tensor,
        *,
        is_training: bool,
    ) -> Tensor:
        """As `NetworkForward`; these networks compute the same in training and evaluation."""
        return forward(self._layers, tensors, inputs, groups, self._algorithms, self._bias_relu)


def forward(
    layers: Architecture,
    tensors: Weights,
    pixels: Tensor,
    groups: Sequence[BatchGroup],
    algorithms: Mapping[str, str],
    bias_relu: BiasRelu | None = None,
) -> Tensor:
    """Logits (R, B, K) of every replica on its own mini-batch.

    `tensors`: weights and biases with a leading axis R. `pixels`: the distinct mini-batches, (N, B, C, H, W).
    `groups`: which replicas use which of them. `algorithms`: layer name -> how a convolution is computed.
    `bias_relu`: that of hidden fully connected layers, where it is compiled.
    """
    x, is_first = pixels, True
    for layer in layers:
        if isinstance(layer, Pool):
            x = max_pool2x2(x)
            continue
        w, b = tensors[f"{layer.name}.weight"], tensors[f"{layer.name}.bias"]
        if isinstance(layer, Conv):
            function: LayerFunction = partial(conv3x3, algorithm=algorithms[layer.name])
        else:
            function = _dense
            # (N or R, B, C, H, W) -> (N or R, I, B)
            x = x.flatten(2).mT if x.dim() == 5 else x
            # In bfloat16 the sum of a product and a float32 bias would be float32.
            if bias_relu is not None and not layer.last and not _is_autocast_enabled():
                function = _dense_product
        x = _first_layer(function, x, w, b, groups) if is_first else function(x, w, b)
        is_first = False
        if function is _dense_product:
            assert bias_relu is not None
            x = bias_relu(x, b)
        elif isinstance(layer, Conv) or not layer.last:
            x = x.relu()
    return x.mT


def _dense(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """x (R, I, B), w (R, O, I), b (R, O); result (R, O, B).

    Images are the last axis, so that the gradient of w, (R, O, I), comes out in the memory layout of w.
    """
    return torch.baddbmm(b[:, :, None], w, x)


def _dense_product(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """As `_dense`, without the bias."""
    return torch.bmm(w, x)


def _first_layer(function: LayerFunction, x: Tensor, w: Tensor, b: Tensor, groups: Sequence[BatchGroup]) -> Tensor:
    """The first layer, in which replicas that share a mini-batch are computed as one wide layer.

    x (N, ...), w (R, O, ...), b (R, O); result (R, ...). n replicas of one batch become one layer of n * O outputs: one
    large matrix product and one read of the images instead of n.
    """
    if len(groups) > 1 and function in (_dense, _dense_product) and not _is_autocast_enabled():
        adds_bias = function is _dense
        dense: Tensor = _GroupedFirstLayer.apply(x, w, b, groups, adds_bias)  # type: ignore[no-untyped-call]
        return dense
    results = []
    # Axis of the outputs: 1 after a fully connected layer, (N, O, B); 2 after a convolution, (N, B, O, H, W).
    output_axis = 1 if x.dim() == 3 else 2
    sizes = [group.num_batches * group.replicas_per_batch for group in groups]
    # split() and not slices: the gradient of a slice is a tensor of zeros and a copy. No split for a single group.
    parts = zip(torch.split(w, sizes), torch.split(b, sizes), strict=True) if len(groups) > 1 else [(w, b)]
    for group, (w_part, b_part) in zip(groups, parts, strict=True):
        wide_w, wide_b = (
            t.reshape(group.num_batches, group.replicas_per_batch * t.shape[1], *t.shape[2:]) for t in (w_part, b_part)
        )
        y = function(x[group.first_batch : group.first_batch + group.num_batches], wide_w, wide_b)
        # (batches, ..., replicas_per_batch * O, ...) -> (batches * replicas_per_batch, ..., O, ...)
        y = y.reshape(*y.shape[:output_axis], group.replicas_per_batch, -1, *y.shape[output_axis + 1 :])
        results.append(y.movedim(output_axis, 1).flatten(0, 1))
    return results[0] if len(results) == 1 else torch.cat(results)


def _is_autocast_enabled() -> bool:
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


class _GroupedFirstLayer(torch.autograd.Function):
    """The first fully connected layer where seeds have unequal numbers of replicas: one product per group of batches.

    Each product writes its rows of the result, and of the gradient of w. Split and concatenated by autograd, the
    gradient of the largest tensor of the network would be written twice and read once more.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, groups: Sequence[BatchGroup], adds_bias: bool) -> Tensor:
        """x (N, I, B), w (R, O, I), b (R, O); result (R, O, B), without the biases if not `adds_bias`."""
        ctx.save_for_backward(x)
        ctx.groups, ctx.adds_bias = groups, adds_bias
        y = w.new_empty(*b.shape, x.shape[2])
        for group in groups:
            batches, wide_w, wide_b, wide_y = _select_group(group, x, w, b, y)
            if adds_bias:
                torch.baddbmm(wide_b[:, :, None], wide_w, batches, out=wide_y)
            else:
                torch.bmm(wide_w, batches, out=wide_y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor | None, None, None]:
        """Gradient (R, O, B) to the gradients of w and b. The images need none."""
        (x,) = ctx.saved_tensors
        gradient = gradient.contiguous()
        w_gradient = gradient.new_empty(*gradient.shape[:2], x.shape[1])
        for group in ctx.groups:
            batches, wide_gradient, wide_w_gradient = _select_group(group, x, gradient, w_gradient)
            torch.bmm(wide_gradient, batches.mT, out=wide_w_gradient)
        return None, w_gradient, gradient.sum(2) if ctx.adds_bias else None, None, None


def _select_group(group: BatchGroup, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The mini-batches of a group, and views of its rows of other tensors: (R, O, ...) as (batches, n * O, ...)."""
    last = group.first_replica + group.num_batches * group.replicas_per_batch
    views = (
        t[group.first_replica : last].view(group.num_batches, group.replicas_per_batch * t.shape[1], *t.shape[2:])
        for t in tensors
    )
    return x[group.first_batch : group.first_batch + group.num_batches], *views


def masked_weights(learning: MaskLearning, logits: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """The weights of one forward pass of each replica: mask * w, differentiable in the logits.

    Under dynamic weight rescaling mask * w * (size / ones), per replica. Logits, weights and result: (R, *kernel);
    `keys`: int32 (R, 2), of the uniform samples of `bernoulli`. The gradient passes straight through the mask.
    Source: Zhou et al. 2019, Sec. 5.
    """
    probabilities = logits.sigmoid() if learning.method in SIGMOID else logits
    mask: Tensor = StraightThrough.apply(  # type: ignore[no-untyped-call]
        probabilities, _hard_mask(learning, probabilities.detach(), logits.detach(), keys)
    )
    used = mask * weights
    if learning.rescaled:
        # The gradient flows through the ratio: d(ones)/d(mask) is 1, at zeros too; sign(mask) for signed masks.
        counted = mask.abs() if learning.method == "signed" else mask
        ones = torch.sum(counted.flatten(1), 1).clamp(min=1.0)
        used = used * (logits[0].numel() / ones).view(-1, *[1] * (logits.dim() - 1))
    return used


def _hard_mask(learning: MaskLearning, probabilities: Tensor, logits: Tensor, keys: Tensor) -> Tensor:
    """The mask of this pass, float32 (R, *kernel): 0 or 1; -1, 0 or 1 for signed masks."""
    if learning.method == "bernoulli":
        return (batched_uniform_samples(keys, logits) < probabilities).float()
    if learning.method == "rounded":
        return (logits > 0).float()
    if learning.method == "signed":
        return logits.sign() * (logits.abs() > learning.threshold)
    # Edge-popup: the highest scores of each replica's layer. kthvalue and not topk: only the cutoff is needed.
    scores = logits.flatten(1)
    cutoff = scores.kthvalue(scores.shape[1] - edge_popup_count(scores.shape[1], learning.density), 1, keepdim=True)
    return (scores > cutoff.values).float().view_as(logits)


class DeviceImages:
    """Training images of all replicas in one tensor, uint8 (n, C, H, W), and cached evaluation arrays.

    Every data set is on the device once, however many replicas use it.
    """

    def __init__(self, data: Sequence[SplitData], device: torch.device) -> None:
        self._device = device
        # id of an evaluation array -> (array, copy on the device). Arrays are identified by id(), because comparing
        # contents would cost more than the evaluation; a reference to each is kept, so that no id is reused.
        self._evaluation_tensors: dict[int, tuple[Array, Tensor]] = {}
        self._data: dict[tuple[int, int], SplitData] = {}
        self._offsets: dict[tuple[int, int], int] = {}
        self._maximum = torch.tensor(float(data[0].max_pixel), device=device)
        self.update(data)

    def update(self, data: Sequence[SplitData]) -> bool:
        """Send the images of these data that are not on the device; forget evaluation arrays of all other data.

        Returns True if the training images have moved to another address, which makes a recorded step invalid.
        """
        evaluated = {
            id(a) for d in data for a in (d.validation_images, d.validation_labels, d.test_images, d.test_labels)
        }
        self._evaluation_tensors = {key: pair for key, pair in self._evaluation_tensors.items() if key in evaluated}
        if all(_data_key(d) in self._data for d in data):
            return False
        self._data, offset = {_data_key(d): d for d in data}, 0
        for key, d in self._data.items():
            self._offsets[key], offset = offset, offset + len(d.train_labels)
        pixels = [on_device(d.train_images, self._device) for d in self._data.values()]
        labels = [on_device(d.train_labels, self._device) for d in self._data.values()]
        self.pixels = pixels[0] if len(pixels) == 1 else torch.cat(pixels)
        self.labels = labels[0] if len(labels) == 1 else torch.cat(labels)
        return True

    def offset(self, data: SplitData) -> int:
        """Index of the first training image of this data in `pixels`."""
        return self._offsets[_data_key(data)]

    def scale(self, pixels: Tensor) -> Tensor:
        """Pixels as networks see them: float32 in [0, 1]."""
        # Division by a tensor: a GPU may turn division by a Python number into a product with a rounded reciprocal.
        return pixels.float().div_(self._maximum)

    def get(self, array: Array) -> Tensor:
        """An evaluation array on the device; it is sent once."""
        if id(array) not in self._evaluation_tensors:
            self._evaluation_tensors[id(array)] = (array, on_device(array, self._device))
        return self._evaluation_tensors[id(array)][1]

    def to_device(self, array: Array) -> Tensor:
        """A copy on the device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _data_key(data: SplitData) -> tuple[int, int]:
    return id(data.train_images), id(data.train_labels)
