"""A network of a study: its tensors as plain data, the PyTorch module, and the initial state of a seed.

The paper's networks are known from their name alone (`networks.sequential`); the facts of any other module come from
an examination of the module (`networks.examination`). Nothing here imports torch until a module is built.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supermask.core.errors import UserError, quote
from supermask.core.initializers import OWN, draw_weights
from supermask.core.installed_files import is_installed
from supermask.core.rng import Stream, random_stream
from supermask.core.types import InitialState, PrunableTensor
from supermask.networks.sequential import (
    Architecture,
    build_module,
    count_multiplications,
    initial_state,
    prunable_tensors,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from supermask.core.types import Array

PACKAGE = Path(__file__).parents[1]
"""Folder of this package."""


@dataclass(frozen=True)
class UnmaskedTensor:
    """A tensor of a network that is never masked: bias, normalization parameter, buffer."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """`float32` or `int64`."""
    trained: bool
    """True for a parameter that got a gradient when the module was examined; False for others and for buffers."""
    is_buffer: bool = False
    """True for a buffer, such as a running mean, which a forward pass may change."""
    is_frozen: bool = False
    """True for a parameter with requires_grad=False after construction. Facts of earlier versions do not say."""

    def to_data(self) -> dict[str, Any]:
        """Return a JSON-serializable dict; `is_frozen` is omitted if it is False."""
        data = {**vars(self), "shape": list(self.shape)}
        if not self.is_frozen:
            del data["is_frozen"]
        return data


@dataclass(frozen=True)
class NetworkFacts:
    """All that planning and reading need to know of a network, as plain data."""

    image_shape: tuple[int, int, int]
    """(channels, height, width)."""
    classes: int
    tensors: tuple[PrunableTensor, ...]
    """Prunable tensors in the order in which the module registers them. Their initializer is no fact of the module:
    `Network.tensors` has that of the network."""
    unmasked: tuple[UnmaskedTensor, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    """(name in the `state_dict`, name of the tensor above that it shares)."""
    multiplications: int = 0
    """Multiplications in the forward pass of one image."""

    def to_data(self) -> dict[str, Any]:
        """Return a JSON-serializable dict, without the tensors' initializer."""
        return {
            "image_shape": list(self.image_shape),
            "classes": self.classes,
            "tensors": [
                {
                    "name": t.name,
                    "shape": list(t.shape),
                    "kind": t.kind,
                    "fans": list(t.fans),
                    "own_std": t.own_std,
                }
                for t in self.tensors
            ],
            "unmasked": [t.to_data() for t in self.unmasked],
            "aliases": [list(pair) for pair in self.aliases],
            "multiplications": self.multiplications,
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> NetworkFacts:
        """Return the facts of a `to_data` dict. Raises KeyError, TypeError or ValueError for other data."""
        channels, height, width = data["image_shape"]
        return cls(
            image_shape=(channels, height, width),
            classes=data["classes"],
            tensors=tuple(
                PrunableTensor(
                    t["name"], tuple(t["shape"]), t["kind"], t["fans"][0], t["fans"][1], own_std=t["own_std"]
                )
                for t in data["tensors"]
            ),
            unmasked=tuple(UnmaskedTensor(**{**t, "shape": tuple(t["shape"])}) for t in data["unmasked"]),
            aliases=tuple((alias, name) for alias, name in data["aliases"]),
            multiplications=data["multiplications"],
        )


@dataclass(frozen=True)
class Network:
    """A network of a study, for images of one shape and a number of classes."""

    name: str
    """Canonical name: `fc-300-100`, `resnet20`, or an import path with its keyword arguments."""
    facts: NetworkFacts | None
    """None for an import path whose module was not examined yet: its tensors are unknown."""
    layers: Architecture | None = None
    """Layers of the paper's networks, which the sparse and the stacked engine train; None for other modules."""
    initializer: str = "glorot_normal"
    make: Callable[[], nn.Module] | None = field(default=None, compare=False, repr=False)
    """Makes the module of a network without `layers`, with the module's own values. May import user code."""

    @cached_property
    def tensors(self) -> dict[str, PrunableTensor]:
        """Prunable tensors by name, with the network's initializer; empty if they are unknown."""
        tensors = () if self.facts is None else self.facts.tensors
        if self.initializer != OWN:
            return {t.name: replace(t, initializer=self.initializer) for t in tensors}
        return {
            t.name: replace(t, initializer=OWN, own_draw=partial(self._draw_by_constructor, t.name)) for t in tensors
        }

    @property
    def is_user_code(self) -> bool:
        """True for an import path, whose module only user code can build."""
        return is_user_network(self.name)

    @property
    def size(self) -> int:
        """Number of prunable weights."""
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def trained_names(self) -> frozenset[str]:
        """Unmasked parameters that training changes: biases and normalization parameters."""
        return frozenset(t.name for t in self.facts.unmasked if t.trained) if self.facts is not None else frozenset()

    @property
    def fixed_names(self) -> frozenset[str]:
        """Parameters with requires_grad=False, which training may not change. Empty for facts of earlier versions."""
        return frozenset(t.name for t in self.facts.unmasked if t.is_frozen) if self.facts is not None else frozenset()

    @property
    def buffers(self) -> frozenset[str]:
        """Unmasked tensors that a forward pass may change, such as running statistics."""
        return frozenset(t.name for t in self.facts.unmasked if t.is_buffer) if self.facts is not None else frozenset()

    @property
    def trained_others(self) -> frozenset[str] | None:
        """Unmasked parameters that training changes; None for the paper's networks, whose layers are in sequence."""
        return None if self.layers is not None or self.facts is None else self.trained_names

    @property
    def aliases(self) -> dict[str, str]:
        """Further name of a shared tensor in the module's `state_dict` -> its name here."""
        return {} if self.facts is None else dict(self.facts.aliases)

    @property
    def multiplications(self) -> int:
        """Multiplications in the forward pass of one image; a training step needs about three times as many."""
        return 0 if self.facts is None else self.facts.multiplications

    @property
    def has_convolutions(self) -> bool:
        """True if a prunable tensor is a convolution's kernel."""
        return any(tensor.kind == "conv" for tensor in self.tensors.values())

    def build(self) -> nn.Module:
        """Return the module, whose `state_dict` has the names of `initial_state`, with arbitrary values."""
        if self.layers is not None:
            return build_module(self.layers)
        return self._build(0)

    def initial_state(self, seed: int) -> InitialState:
        """Return the dense network of a seed: weights of its initializer, masks of all ones.

        Every weight tensor is drawn from its own stream, (seed, "init", name). The other tensors, and with the
        initializer `own` all tensors, have the values that the module gives them under a seed of torch drawn from the
        stream (seed, "init", "module"). The paper's networks have zero biases.
        Source: Zhou et al. 2019, supplement.
        """
        import torch

        if self.layers is not None:
            return initial_state(self.layers, seed, self.initializer)
        tensors = self.tensors
        masks = {n: torch.ones(t.shape, dtype=torch.bool) for n, t in tensors.items()}
        values = state_tensors(self._build(torch_seed(random_stream(seed, "init", "module"))))
        unmasked = {n: t for n, t in values.items() if n not in tensors}
        if self.initializer == OWN:
            return InitialState({n: values[n] for n in tensors}, masks, unmasked)
        weights = {n: torch.from_numpy(draw_weights(t, random_stream(seed, "init", n))) for n, t in tensors.items()}
        return InitialState(weights, masks, unmasked)

    def _build(self, seed: int) -> nn.Module:
        assert self.make is not None, self.name
        assert self.facts is not None, "a network is examined before it is built"
        with translate_errors(self.name, "constructing it"), seeded_draws(seed):
            return materialize(self.make(), self.facts.image_shape)

    def _draw_by_constructor(self, name: str, rng: Stream) -> Array:
        values: Array = state_tensors(self._build(torch_seed(rng)))[name].numpy()
        return values


def is_user_network(name: str) -> bool:
    """Return True for an import path, `module:function`, with or without keyword arguments."""
    return ":" in name or "." in name


def sequential_network(layers: Architecture, name: str = "", initializer: str = "glorot_normal") -> Network:
    """Return one of the paper's networks from its layers. The shape of its images is not needed and not recorded."""
    tensors = tuple(prunable_tensors(layers).values())
    unmasked = tuple(UnmaskedTensor(_bias(t.name), (t.shape[0],), "float32", True) for t in tensors)
    facts = NetworkFacts((0, 0, 0), tensors[-1].shape[0], tensors, unmasked, (), count_multiplications(layers))
    return Network(name, facts, layers, initializer)


def _bias(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


# --- modules ---


def torch_seed(rng: Stream) -> int:
    """Draw a seed for torch's generator."""
    return int(rng.integers(2**63))


@contextmanager
def seeded_draws(seed: int) -> Iterator[None]:
    """Seed torch's, NumPy's and Python's global generators; restore their states at the end."""
    import random

    import numpy as np
    import torch

    generator = torch.default_generator
    before = generator.get_state(), np.random.get_state(), random.getstate()
    generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        generator.set_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


@contextmanager
def translate_errors(name: str, action: str) -> Iterator[None]:
    """Turn an error of a user's network into a UserError that names its line. `name`: the network in the message."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        files = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        user_files = [(file, line) for file, line in files if not _is_library_file(file)]
        where = " at line {1} of {0}".format(*user_files[-1]) if user_files else ""
        message = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"network {quote(name)}: {action} failed{where}: {message}") from error


def _is_library_file(file: str) -> bool:
    """Return True for files of this package, of installed packages and of the standard library."""
    # "<" begins the names of code without a file.
    return file.startswith("<") or Path(file).is_relative_to(PACKAGE) or is_installed(Path(file))


def materialize(module: nn.Module, image_shape: tuple[int, int, int]) -> nn.Module:
    """Give lazy modules their shapes and values, by a forward pass of two black images; return the module."""
    import torch
    from torch.nn.parameter import is_lazy

    if any(is_lazy(tensor) for tensor in [*module.parameters(), *module.buffers()]):
        module.eval()
        with torch.no_grad():
            module(torch.zeros(2, *image_shape))
        module.train()
    return module


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the module's `state_dict` on the CPU, each shared tensor once under its first name."""
    aliases = shared_names(module)
    return {n: t.detach().to("cpu", copy=True) for n, t in module.state_dict().items() if n not in aliases}


def shared_names(module: nn.Module) -> dict[str, str]:
    """Return name in the `state_dict` -> first name of the same tensor, for every name but the first."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
    return aliases
