"""The network of a run or a study: by name, for the images of its dataset."""

from __future__ import annotations

from functools import lru_cache

from supermask.networks.network import Network
from supermask.networks.registry import named_network
from supermask.networks.sequential import Architecture
from supermask.study.run import Run


def run_network(run: Run) -> Network:
    """Return the network of a run. Raises UserError for an unknown name."""
    return _network(run.network, run.spec.image_shape, run.spec.classes)


@lru_cache(maxsize=256)
def _network(name: str, image_shape: tuple[int, int, int], classes: int) -> Network:
    return named_network(name, image_shape, classes)


def sequential_layers(run: Run) -> Architecture:
    """Return the layers of a run's network, for the stacked engine, which trains the paper's networks alone."""
    layers = run_network(run).layers
    assert layers is not None, run.network
    return layers
