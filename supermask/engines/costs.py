"""What a product costs on this machine, sparse and dense, and so which kernels a layer uses."""

from __future__ import annotations

from dataclasses import dataclass

from supermask.engines.kernels.products import ROWS
from supermask.networks import Conv, Dense


@dataclass(frozen=True)
class Cost:
    """Nanoseconds a multiply-add of one kind of product: walking over surviving weights, and computing everything."""

    sparse: float
    dense: float


@dataclass(frozen=True)
class LayerCosts:
    """The four kinds of products: outputs (and the gradient at inputs, the same sum), and gradients of weights."""

    filter_sums: Cost
    filter_products: Cost
    unit_sums: Cost
    unit_products: Cost


@dataclass(frozen=True)
class Kind:
    """How a layer computes: whether over surviving weights only."""

    sums: bool
    products: bool


def kind(layer: Conv | Dense, used: float, trained: float, costs: LayerCosts) -> Kind:
    """The fastest way for a layer of which the share `used` is not zero and the share `trained` can change.

    The two differ where pruned weights are frozen at other values than zero. The dense kernels are for layers of whole
    tiles alone: not for a first convolution, which is small, nor for the outputs. Walking over the surviving weights of
    a fully connected layer forward, while all of its gradients are computed, would mean copying it at every step.
    Source: docs/performance.md.
    """
    if layer.outputs % ROWS or layer.inputs % ROWS:
        return Kind(sums=True, products=True)
    sums, products = costs.unit_sums, costs.unit_products
    kinds = [Kind(sums=True, products=True), Kind(sums=False, products=True), Kind(sums=False, products=False)]
    if isinstance(layer, Conv):
        sums, products = costs.filter_sums, costs.filter_products
        kinds.append(Kind(sums=True, products=False))

    def cost(how: Kind) -> float:
        forward_and_back = 2 * (used * sums.sparse if how.sums else sums.dense)
        return forward_and_back + (trained * products.sparse if how.products else products.dense)

    return min(kinds, key=cost)
