"""Tensors into a PyTorch module of anybody's, and out of one that torch.nn.utils.prune has pruned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args

from supermask.core.errors import UserError, did_you_mean, quote
from supermask.core.types import Masks, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

Match = Literal["name", "order"]
"""How a ticket's tensors find their places: by name, or the i-th mask in the i-th Linear or Conv layer."""

Places = dict[str, str]
"""The ticket's name of a tensor -> the module's."""


def match_tensors(
    module: nn.Module, tensors: Weights, masks: Masks, names: Mapping[str, str] | None = None, match: Match = "name"
) -> Places:
    """Where in the module each tensor goes; `names` (ticket's -> module's) overrules `match`.

    Raises UserError if one has no place, a place of another shape, or another's.
    """
    if match not in get_args(Match):
        raise UserError(f"match={quote(match)}: allowed are {' and '.join(map(repr, get_args(Match)))}.")
    names = names or {}
    if unknown := [name for name in names if name not in tensors]:
        near = did_you_mean(str(unknown[0]), tensors) or "."
        raise UserError(f"names: the ticket has no tensor {quote(unknown[0])}{near} It has {_listed(list(tensors))}.")
    by_order = _match_by_order(module, masks) if match == "order" else {}
    found = {name: names.get(name, by_order.get(name, name)) for name in tensors}
    own = module.state_dict()
    for name, place in found.items():
        _check_place(own, name, place, tensors[name], kernels=_kernels(module))
    for name, place in found.items():
        # Two names of one tensor (tied weights) are one place.
        other = next(n for n, p in found.items() if p == place or own[p].data_ptr() == own[place].data_ptr())
        if other != name:
            raise UserError(f"{quote(other)} and {quote(name)} of the ticket would both go to {quote(place)}.")
    return found


def copy_into(module: nn.Module, tensors: Weights, where: Places) -> None:
    """Copies every tensor to its place, on the module's device and in its dtype."""
    import torch

    own = module.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[where[name]].copy_(tensor)


def apply_torch_prune(module: nn.Module, tensors: Weights, masks: Masks, where: Places) -> None:
    """`copy_into`, and the masks in the convention of torch.nn.utils.prune."""
    from torch.nn.utils import prune

    copy_into(module, tensors, where)
    for name, mask in masks.items():
        owner, _, parameter = where[name].rpartition(".")
        part = module.get_submodule(owner)
        prune.custom_from_mask(part, parameter, mask.to(getattr(part, parameter).device))  # type: ignore[no-untyped-call]


def read_torch_prune(module: nn.Module, names: Mapping[str, str]) -> tuple[Masks, Weights, Weights]:
    """(masks, weights, others) of a module pruned by torch.nn.utils.prune; `names`: ticket's -> module's.

    Masks: of what is pruned, and ones for every other Linear and Conv kernel. Weights are orig * mask.
    Raises UserError if nothing is pruned, or something that is no kernel, or for masks that are not 0 and 1.
    """
    import torch

    state = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
    pruned = [name.removesuffix("_orig") for name in state if name.endswith("_orig")]
    pruned = [name for name in pruned if f"{name}_mask" in state]
    if not pruned:
        raise UserError(
            "nothing in this module is pruned by torch.nn.utils.prune: there is no mask to make a ticket of."
        )
    masks: Masks = {}
    weights: Weights = {}
    for name in dict.fromkeys([*_kernels(module), *pruned]):
        if name not in pruned:
            weights[name] = state.pop(name)
            masks[name] = torch.ones_like(weights[name], dtype=torch.bool)
            continue
        whole, mask = state.pop(f"{name}_orig"), state.pop(f"{name}_mask")
        if mask.ndim < 2:
            raise UserError(f"{quote(name)} is pruned, but it is no kernel: a ticket masks kernels, never biases.")
        masks[name] = mask != 0
        if not bool((mask == masks[name]).all()):
            raise UserError(f"the mask of {quote(name)} holds other numbers than 0 and 1.")
        weights[name] = whole.masked_fill(~masks[name], 0.0)
    ours = _inverse(names, {*weights, *state})
    return tuple(  # type: ignore[return-value]
        {ours.get(name, name): _lossless_cast(name, tensor) for name, tensor in part.items()}
        for part in (masks, weights, state)
    )


def _lossless_cast(name: str, tensor: Tensor) -> Tensor:
    """In a type that tickets hold, if that loses nothing."""
    import torch

    if tensor.dtype in (torch.bool, torch.float32, torch.int64):
        return tensor
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    raise UserError(
        f"{quote(name)} is {tensor.dtype}, and a ticket holds float32: convert the module first, with module.float()."
    )


def _inverse(names: Mapping[str, str], there: set[str]) -> dict[str, str]:
    for ours, place in names.items():
        if place not in there:
            raise UserError(
                f"names: the module has no tensor {quote(place)} for {quote(ours)}"
                f"{did_you_mean(str(place), there) or '.'}"
            )
    return {place: ours for ours, place in names.items()}


def _kernels(module: nn.Module) -> list[str]:
    """The kernels of its Linear and Conv layers, in the order in which they are registered."""
    from torch import nn

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return [f"{name}.weight".lstrip(".") for name, part in module.named_modules() if isinstance(part, kinds)]


def _match_by_order(module: nn.Module, masks: Masks) -> Places:
    """Each mask's place, and that of the bias beside it."""
    kernels = _kernels(module)
    if len(kernels) != len(masks):
        raise UserError(
            f"match='order': the ticket has {len(masks)} masks, and the module {len(kernels)} Linear and Conv layers "
            f"({_listed(kernels)}). Say which goes where with names={{ticket's: module's}}."
        )
    pairs = dict(zip(masks, kernels, strict=True))
    return pairs | {_bias(ours): _bias(theirs) for ours, theirs in pairs.items()}


def _bias(kernel: str) -> str:
    return kernel.removesuffix("weight") + "bias"


def _check_place(own: Mapping[str, Tensor], name: str, place: str, tensor: Tensor, kernels: list[str]) -> None:
    if place not in own:
        if f"{place}_orig" in own:
            raise UserError(f"{quote(place)} of the module is pruned already: torch.nn.utils.prune.remove it first.")
        ours = f"{quote(name)} of the ticket, of shape {tuple(tensor.shape)}"
        raise UserError(
            f"the module has no tensor {quote(place)} for {ours}{did_you_mean(str(place), own) or '.'} "
            f"Its kernels are {_listed(kernels)}. Say which goes where with names={{ticket's: module's}}, or with "
            "match='order' where the order is the same."
        )
    target = own[place]
    if target.shape != tensor.shape:
        raise UserError(
            f"{quote(name)} of the ticket has shape {tuple(tensor.shape)}, and {quote(place)} of the module has "
            f"{tuple(target.shape)}."
        )
    if target.is_meta or target.is_floating_point() != tensor.is_floating_point():
        what = "has no storage (it is on the meta device)" if target.is_meta else f"is {target.dtype}"
        raise UserError(f"{quote(place)} of the module {what}, and cannot hold {quote(name)} of the ticket.")


def _listed(names: list[str]) -> str:
    few = ", ".join(quote(name) for name in names[:8])
    return few + (", ..." if len(names) > 8 else "") if names else "none"
