"""A ticket: masks and the kept weights, stored or regenerated from the seed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from supermask.core.errors import UserError, check_one_of, did_you_mean, quote, sanitize
from supermask.core.initializers import INITIALIZERS, OWN
from supermask.core.masks import count_kept
from supermask.core.text import pluralize
from supermask.core.types import InitialState, Masks, Weights
from supermask.datasets.specs import DATASETS, DatasetSpec, dataset_spec
from supermask.export.tickets.format import FrozenWeights
from supermask.export.tickets.modules import Match, apply_torch_prune, copy_into, match_tensors, read_torch_prune
from supermask.networks.network import Network
from supermask.networks.registry import canonical_name, named_network
from supermask.store.records import state_hash
from supermask.study.networks import default_initializer

if TYPE_CHECKING:
    from torch import nn

    Module = TypeVar("Module", bound=nn.Module)

Fact = TypeVar("Fact")


@dataclass(frozen=True, eq=False)
class Ticket:
    """Masks and the weights that they keep.

    Tensors that are not given are the initial ones of the seed, so masks and a seed are a ticket that was rewound to
    its initialization. All tensors have the shapes of the kernels, `(out, in)` or `(out, in, height, width)`.
    Raises UserError for tensors that do not fit each other or the named network.
    """

    masks: Masks
    """Prunable tensor name -> bool tensor, in the order of the network's layers: True = kept."""
    weights: Weights = field(default_factory=dict)
    """Prunable tensor name -> float32 values, used at kept weights. A missing tensor has the seed's initial values."""
    others: Weights | None = None
    """All other tensors of the network (biases, buffers), float32 or int64. None means the seed's initial values."""
    network: str | None = None
    """Name of a network that supermask can build (`fc-300-100`). None for any other module."""
    dataset: str | None = None
    """Data set that gives the network its input and output sizes. None exactly if `network` is None."""
    seed: int | None = None
    """Seed of the initial weights, if known."""
    initial_content: str | None = None
    """Checksum (`state_hash`) of the seed's initial network. Computed if it is not given."""
    frozen: FrozenWeights = field(default_factory=dict)
    """Prunable tensor name -> float32 values, used at pruned weights. None means the seed's initial values; a missing
    tensor has zeros."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Plain JSON, such as `accuracy`: {"test": 0.9774, "of": "final weights"}. Keys: docs/tickets.md."""

    def __repr__(self) -> str:
        kept, size = sum(count_kept(self.masks).values()), sum(mask.numel() for mask in self.masks.values())
        network = f"{self.network} on {self.dataset}" if self.network else pluralize(len(self.masks), "tensor")
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"Ticket({network}{seed}, {kept:,} of {size:,} weights kept)"

    def __post_init__(self) -> None:
        for name in ("masks", "weights", "others", "frozen"):
            if (tensors := getattr(self, name)) is not None:
                _check_are_tensors(name, tensors)
                plain = {n: None if t is None else t.detach().cpu().contiguous() for n, t in tensors.items()}
                object.__setattr__(self, name, plain)
        _check_tensors(self)
        _check_names(self)
        if self.seed is not None and self.initial_content is None:
            object.__setattr__(self, "initial_content", state_hash(self._initial_state()))

    @property
    def spec(self) -> DatasetSpec:
        """Specification of the data that the network is built for: of a known dataset, or from the run's facts.

        Raises UserError if it is not known.
        """
        assert self.dataset is not None
        own = None
        if self.dataset not in DATASETS and (data := get_fact(self, dict, "run", "data_spec")) is not None:
            with suppress(ValueError):
                own = DatasetSpec.from_data(self.dataset, data)
        if self.dataset not in DATASETS and own is None:
            allowed = f"allowed: {', '.join(DATASETS)}{did_you_mean(self.dataset, DATASETS)}"
            raise UserError(f"dataset {quote(self.dataset)} is unknown ({allowed}).")
        return dataset_spec(self.dataset, own)

    @property
    def needs_seed(self) -> bool:
        """True if some of its tensors come from the seed."""
        return self.others is None or self.masks.keys() != self.weights.keys() or None in self.frozen.values()

    def initial_weights(self) -> Weights:
        """Return every tensor of the seed's initial dense network by name, in float32.

        Raises UserError if the ticket has no seed, or if the seed gives a network with another checksum.
        """
        if self.seed is None:
            raise UserError("this ticket names no seed, so its initial weights are unknown.")
        start = self._initial_state()
        if state_hash(start) != self.initial_content:
            raise UserError(
                f"seed {quote(self.seed)} gives another {self.network} here than the one this ticket was made from: "
                "use the release of supermask that wrote it, or a ticket that stores its weights."
            )
        return {**start.weights, **start.unmasked}

    def network_weights(self) -> Weights:
        """Return every tensor of the ticket's network by name: mask * w + (1 - mask) * frozen.

        New tensors on the CPU, prunable ones in float32. Raises UserError as `initial_weights` does if `needs_seed`.
        """
        import torch

        initial = self.initial_weights() if self.needs_seed else {}
        weights = {}
        for name, mask in self.masks.items():
            kept = self.weights[name] if name in self.weights else initial[name]
            pruned = self.frozen.get(name, torch.zeros(()))
            weights[name] = kept.where(mask, initial[name] if pruned is None else pruned)
        others = self.others
        if others is None:
            others = {name: tensor for name, tensor in initial.items() if name not in self.masks}
        return weights | {name: tensor.clone() for name, tensor in others.items()}

    def apply_to(self, module: Module, names: Mapping[str, str] | None = None, match: Match = "name") -> Module:
        """Copy the network's tensors (`network_weights`) into a module, on its device and in its dtype.

        `names` maps names of the ticket to names of the module; other tensors go to the tensor of the same name. With
        match="order" the i-th mask belongs to the i-th Linear or Conv layer that the module registers, with its bias.
        Prefixes that torch.compile (`_orig_mod.`) and DataParallel (`module.`) add to names are left out.
        Tensors of the module that the ticket does not have are left unchanged. Returns the module.
        Raises UserError, before anything is changed, if a tensor has no counterpart of its shape, if the counterpart is
        computed from other tensors (weight norm, parametrizations) or has no values (lazy and meta modules), or if a
        kept weight would become 0 or infinite in the module's dtype.

            ticket.apply_to(network, match="order")
            ticket.apply_to(network, names={"fc1.weight": "body.0.weight"})
        """
        tensors = self.network_weights()
        copy_into(module, tensors, match_tensors(module, tensors, self.masks, names, match))
        return module

    def to_torch_prune(self, module: Module, names: Mapping[str, str] | None = None, match: Match = "name") -> Module:
        """Call `apply_to` and add every mask as torch.nn.utils.prune does: `weight_orig` and `weight_mask`.

        Raises UserError as `apply_to` does, and if pruned weights are not 0, which torch.nn.utils.prune cannot
        represent.
        """
        tensors = self.network_weights()
        for name, mask in self.masks.items():
            if bool(tensors[name][~mask].any()):
                raise UserError(
                    f"pruned weights of {quote(name)} are not 0, and torch.nn.utils.prune supports no other value: "
                    "use Ticket.apply_to and keep them fixed yourself."
                )
        apply_torch_prune(module, tensors, self.masks, match_tensors(module, tensors, self.masks, names, match))
        return module

    @classmethod
    def from_torch_prune(
        cls,
        module: nn.Module,
        names: Mapping[str, str] | None = None,
        *,
        network: str | None = None,
        dataset: str | None = None,
        seed: int | None = None,
        facts: dict[str, Any] | None = None,
    ) -> Ticket:
        """Return the ticket of a module that was pruned with torch.nn.utils.prune. The module is not changed.

        Masks of sparsifiers of torch.ao.pruning are read too. Linear and Conv kernels that are not pruned get a mask of
        ones. A layer that the module uses several times counts once, under its first name. `names` maps names of the
        ticket to names of the module, such as the names of a network of supermask if `network` and `dataset` are given.
        Raises UserError if nothing is pruned, if a bias is pruned, for tensors in float64, and for tensors that are
        computed from others (weight norm, other parametrizations) or have no values (lazy and meta modules).
        """
        masks, weights, others = read_torch_prune(module, names or {})
        return cls(masks, weights, others, network, dataset, seed, facts=facts or {})

    def _initial_state(self) -> InitialState:
        assert self.network is not None
        assert self.dataset is not None
        assert self.seed is not None
        initializer = get_fact(self, str, "run", "initializer") or default_initializer(self.network)
        check_one_of("an initializer", initializer, (*INITIALIZERS, OWN))
        return ticket_network(self.network, self.spec, initializer).initial_state(self.seed)


def get_fact(ticket: Ticket, kind: type[Fact], *path: str) -> Fact | None:
    """Return the fact at a path, or None if there is none of that type: `get_fact(ticket, str, "run", "id")`.

    Facts are not trusted: a file with correct checksums may hold any JSON.
    """
    value: object = ticket.facts
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    # bool is a subclass of int.
    return value if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) else None


def ticket_network(network: str, spec: DatasetSpec, initializer: str = "glorot_normal") -> Network:
    """Return a network for the images of a data set. Raises UserError for an unknown name."""
    return named_network(network, spec.image_shape, spec.classes, initializer)


def mask_mismatch(masks: Masks, network: str, spec: DatasetSpec) -> str:
    """Return why masks do not fit a network on a data set, or an empty string. Raises UserError for an unknown name."""
    expected = {name: tensor.shape for name, tensor in ticket_network(network, spec).tensors.items()}
    actual = {name: tuple(mask.shape) for name, mask in masks.items()}
    for name in [*expected, *actual]:
        if expected.get(name) != actual.get(name):
            theirs, ours = (f"of shape {s[name]}" if name in s else "missing" for s in (actual, expected))
            images = f"{'x'.join(map(str, spec.image_shape))} images, {spec.classes} classes"
            dataset = sanitize(spec.name)
            return f"{quote(name)} is {theirs}, and in {sanitize(network)} on {dataset} ({images}) it is {ours}"
    return ""


def _check_are_tensors(field: str, tensors: object) -> None:
    """Raise UserError unless a field of a ticket is a dict of names to tensors; in `frozen` None is allowed."""
    from torch import Tensor

    if not isinstance(tensors, Mapping):
        raise UserError(f"{field} of a ticket are a dict of names to tensors, not {type(tensors).__name__}.")
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise UserError(f"{field}: {quote(name)} is not the name of a tensor, a text.")
        if not isinstance(tensor, Tensor) and (tensor is not None or field != "frozen"):
            hint = ": give torch.from_numpy(...)" if type(tensor).__module__ == "numpy" else ""
            raise UserError(f"{field}: {quote(name)} is {type(tensor).__name__}, not a PyTorch tensor{hint}.")


def _check_tensors(ticket: Ticket) -> None:
    import torch

    masks, others = ticket.masks, ticket.others or {}
    if not masks:
        raise UserError("a ticket needs at least one mask.")
    for name, mask in masks.items():
        if mask.dtype != torch.bool or mask.ndim < 2 or not mask.numel():
            raise UserError(
                f"the mask of {quote(name)} is not a bool tensor of a kernel's shape (2 dimensions or more)."
            )
    frozen = [(name, tensor) for name, tensor in ticket.frozen.items() if tensor is not None]
    for name, tensor in [*ticket.weights.items(), *frozen]:
        if name not in masks or tensor.dtype != torch.float32 or tensor.shape != masks[name].shape:
            raise UserError(
                f"the values of {quote(name)} do not fit a mask: they are {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}; they need float32 and the name and shape of a mask."
            )
    if unknown := ticket.frozen.keys() - masks.keys():
        raise UserError(f"{quote(min(unknown))} has frozen values, but no mask.")
    for name, tensor in others.items():
        if name in masks or tensor.dtype not in (torch.float32, torch.int64):
            raise UserError(f"{quote(name)} cannot be in `others`: it is masked, or neither float32 nor int64.")


def _check_names(ticket: Ticket) -> None:
    if (ticket.network is None) != (ticket.dataset is None):
        raise UserError("a ticket names both a network and the data set it is built for, or neither.")
    if ticket.network is not None and ticket.dataset is not None:
        object.__setattr__(ticket, "network", canonical_name(ticket.network))
        if mismatch := mask_mismatch(ticket.masks, ticket.network, ticket.spec):
            raise UserError(f"{mismatch}.")
    elif ticket.seed is not None:
        raise UserError("a seed needs a network that supermask can build: name the network and its data set.")
    if ticket.seed is None and ticket.needs_seed:
        raise UserError("a ticket without a seed needs weights for every mask, and `others` ({} if there are none).")
    if ticket.seed is not None and (type(ticket.seed) is not int or ticket.seed < 0):
        raise UserError(f"{quote(ticket.seed)} is not a seed: give an integer of at least 0.")
