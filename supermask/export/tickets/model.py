"""A ticket: masks, and how the weights that they keep are had. Plain data, and what can be done with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from supermask.core.errors import UserError, did_you_mean, quote, sanitize
from supermask.core.types import InitialState, Masks, Weights
from supermask.datasets.specs import DATASETS
from supermask.export.tickets.format import FrozenWeights
from supermask.export.tickets.modules import Match, apply_torch_prune, copy_into, match_tensors, read_torch_prune
from supermask.networks.sequential import Architecture, architecture, canonical_name, initial_state, prunable_tensors
from supermask.store.records import state_hash

if TYPE_CHECKING:
    from torch import nn

    Module = TypeVar("Module", bound=nn.Module)

Fact = TypeVar("Fact")


@dataclass(frozen=True, eq=False)
class Ticket:
    """Masks, and the weights that they keep.

    What is not given is the seed's: a ticket that was rewound to its initialisation is its masks and a seed.
    Raises UserError for tensors that do not belong together, or not to the network that is named.
    """

    masks: Masks
    """Tensor name -> bool tensor; in the order of the network's layers."""
    weights: Weights = field(default_factory=dict)
    """Tensor name -> float32 values, of which those at kept weights count; not given: the initial ones of the seed."""
    others: Weights | None = None
    """Everything else in the network (biases ...), float32 or int64; None: the initial ones of the seed."""
    network: str | None = None
    """A network of supermask (`fc-300-100`); None: somebody's own module."""
    dataset: str | None = None
    """The data set for whose images and classes the network is made; named exactly where the network is."""
    seed: int | None = None
    """Of the initial weights, where they are known."""
    initial_content: str | None = None
    """`records.start_content` of the seed's network, by which it is known again; computed where it is not given."""
    frozen: FrozenWeights = field(default_factory=dict)
    """Tensor name -> float32 values, of which those at pruned weights count; None: the initial ones of the seed; not
    given: 0."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Plain JSON, such as `accuracy`: {"test": 0.9774, "of": "final weights"}. docs/tickets.md says which there are."""

    def __post_init__(self) -> None:
        for name in ("masks", "weights", "others", "frozen"):
            if (tensors := getattr(self, name)) is not None:
                plain = {n: None if t is None else t.detach().cpu().contiguous() for n, t in tensors.items()}
                object.__setattr__(self, name, plain)
        _check_tensors(self)
        _check_names(self)
        if self.seed is not None and self.initial_content is None:
            object.__setattr__(self, "initial_content", state_hash(self._initial()))

    @property
    def needs_seed(self) -> bool:
        """Whether some of its tensors are the seed's."""
        return self.others is None or self.masks.keys() != self.weights.keys() or None in self.frozen.values()

    def initial_weights(self) -> Weights:
        """Every tensor of the seed's initial, dense network: float32, by name, in the kernels' shapes.

        Raises UserError where no seed is named, or where it gives another network here than where it was packed.
        """
        if self.seed is None:
            raise UserError("this ticket names no seed: its initial weights are not known.")
        start = self._initial()
        if state_hash(start) != self.initial_content:
            raise UserError(
                f"seed {quote(self.seed)} gives another {self.network} here than the one that this ticket was made of: "
                "use the release of supermask that wrote it, or a ticket that holds its weights."
            )
        return {**start.weights, **start.unmasked}

    def network_weights(self) -> Weights:
        """Every tensor of the network that the ticket is, by name: mask * w + (1 - mask) * frozen.

        float32 on the CPU, in the kernels' shapes; the tensors are the caller's own. Raises UserError as
        `initial_weights` does, if any of them is the seed's.
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
        """Copies the network's tensors (`network_weights`) into a module, on its device and in its dtype.

        A tensor goes to the module's tensor of the same name, or of the name in `names` (ticket's -> module's); with
        match="order" the i-th mask's goes to the i-th Linear or Conv layer in the order in which the module registers
        them, biases too. What the module has and the ticket has not stays as it is. Returns the module.
        Raises UserError for a tensor that finds no place of its shape; nothing is changed then.
        """
        tensors = self.network_weights()
        copy_into(module, tensors, match_tensors(module, tensors, self.masks, names, match))
        return module

    def to_torch_prune(self, module: Module, names: Mapping[str, str] | None = None, match: Match = "name") -> Module:
        """`apply_to`, and every mask in the convention of torch.nn.utils.prune: `weight_orig` and `weight_mask`.

        Raises UserError as `apply_to` does, and for pruned weights that are not 0, which that convention cannot say.
        """
        tensors = self.network_weights()
        for name, mask in self.masks.items():
            if bool(tensors[name][~mask].any()):
                raise UserError(
                    f"pruned weights of {quote(name)} are not 0, and torch.nn.utils.prune knows no other value for "
                    "them: use Ticket.apply_to, and hold them there yourself."
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
        """The ticket that a module pruned by torch.nn.utils.prune is; the module is not changed.

        Linear and Conv kernels that are not pruned have a mask of ones. `names` (ticket's -> module's) gives tensors
        other names than the module's: those of a network of supermask's, say, if `network` and `dataset` name one.
        Raises UserError if nothing is pruned, or something that is no kernel (a bias), or for float64.
        """
        masks, weights, others = read_torch_prune(module, names or {})
        return cls(masks, weights, others, network, dataset, seed, facts=facts or {})

    def _initial(self) -> InitialState:
        assert self.network is not None
        assert self.dataset is not None
        assert self.seed is not None
        return initial_state(network_layers(self.network, self.dataset), self.seed)


def get_fact(ticket: Ticket, kind: type[Fact], *path: str) -> Fact | None:
    """The fact at a path, `fact(ticket, str, "run", "id")`; None where none of that kind is there.

    A whole file may have been written by anybody: nothing about its facts is certain.
    """
    found: object = ticket.facts
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, kind) and (kind is bool or not isinstance(found, bool)) else None


def network_layers(network: str, dataset: str) -> Architecture:
    """A network for a data set's images. Raises UserError for a name that is not known."""
    if dataset not in DATASETS:
        allowed = f"allowed: {', '.join(DATASETS)}{did_you_mean(dataset, DATASETS)}"
        raise UserError(f"dataset {quote(dataset)} is not known ({allowed}).")
    facts = DATASETS[dataset]
    return architecture(network, facts.image_shape, facts.classes)


def mask_mismatch(masks: Masks, network: str, dataset: str) -> str:
    """Why masks are not those of a network on a data set; empty if they are.

    Raises UserError for a name that is not known.
    """
    expected = {name: maskable.shape for name, maskable in prunable_tensors(network_layers(network, dataset)).items()}
    given = {name: tuple(mask.shape) for name, mask in masks.items()}
    for name in [*expected, *given]:
        if expected.get(name) != given.get(name):
            theirs, ours = (f"of shape {s[name]}" if name in s else "missing" for s in (given, expected))
            facts = DATASETS[dataset]
            images = f"{'x'.join(map(str, facts.image_shape))} images, {facts.classes} classes"
            return f"{quote(name)} is {theirs}, and in {sanitize(network)} on {dataset} ({images}) it is {ours}"
    return ""


def _check_tensors(ticket: Ticket) -> None:
    import torch

    masks, others = ticket.masks, ticket.others or {}
    if not masks:
        raise UserError("a ticket needs a mask.")
    for name, mask in masks.items():
        if mask.dtype != torch.bool or mask.ndim < 2 or not mask.numel():
            raise UserError(
                f"the mask of {quote(name)} is not a bool tensor of a kernel's shape (2 dimensions or more)."
            )
    frozen = [(name, tensor) for name, tensor in ticket.frozen.items() if tensor is not None]
    for name, tensor in [*ticket.weights.items(), *frozen]:
        if name not in masks or tensor.dtype != torch.float32 or tensor.shape != masks[name].shape:
            has = f"it is {tensor.dtype} of shape {tuple(tensor.shape)}"
            raise UserError(f"the values of {quote(name)} are not float32 values of a mask's name and shape: {has}.")
    if unknown := ticket.frozen.keys() - masks.keys():
        raise UserError(f"{quote(min(unknown))} has frozen values, but no mask.")
    for name, tensor in others.items():
        if name in masks or tensor.dtype not in (torch.float32, torch.int64):
            raise UserError(f"{quote(name)} is masked, or not of float32 or int64: it cannot be among the others.")


def _check_names(ticket: Ticket) -> None:
    if (ticket.network is None) != (ticket.dataset is None):
        raise UserError("a ticket names a network and the data set that it is made for, or neither.")
    if ticket.network is not None and ticket.dataset is not None:
        object.__setattr__(ticket, "network", canonical_name(ticket.network))
        if wrong := mask_mismatch(ticket.masks, ticket.network, ticket.dataset):
            raise UserError(f"{wrong}.")
    elif ticket.seed is not None:
        raise UserError("a seed gives the weights of a network of supermask's: name it, and its data set.")
    if ticket.seed is None and ticket.needs_seed:
        raise UserError("a ticket without a seed needs the weights of every mask, and the other tensors ({} for none).")
    if ticket.seed is not None and (type(ticket.seed) is not int or ticket.seed < 0):
        raise UserError(f"{quote(ticket.seed)} is not a seed: a whole number of at least 0.")
