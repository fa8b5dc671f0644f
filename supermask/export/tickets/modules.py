"""Ticket tensors in PyTorch modules: matching by name or order, copying, and torch.nn.utils.prune."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args

from supermask.core.errors import UserError, did_you_mean, quote
from supermask.core.types import Masks, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

Match = Literal["name", "order"]
"""Matching of a ticket's tensors to a module's: by name, or the i-th mask to the i-th Linear or Conv layer."""

TensorMap = dict[str, str]
"""Tensor name in the ticket -> tensor name in the module."""


def match_tensors(
    module: nn.Module, tensors: Weights, masks: Masks, names: Mapping[str, str] | None = None, match: Match = "name"
) -> TensorMap:
    """Return the module's name of each tensor. `names` (ticket -> module) takes precedence over `match`.

    Raises UserError if a tensor has no counterpart, one of another shape, or shares it with another tensor.
    """
    if match not in get_args(Match):
        raise UserError(f"match={quote(match)}: allowed are {' and '.join(map(repr, get_args(Match)))}.")
    names = names or {}
    if unknown := [name for name in names if name not in tensors]:
        near = did_you_mean(str(unknown[0]), tensors) or "."
        raise UserError(f"names: the ticket has no tensor {quote(unknown[0])}{near} It has {_list(list(tensors))}.")
    by_order = _match_by_order(module, masks) if match == "order" else {}
    tensor_map = {name: names.get(name, by_order.get(name, name)) for name in tensors}
    state = module.state_dict()
    for name, target in tensor_map.items():
        _check_target(state, name, target, tensors[name], kernels=_kernel_names(module))
    for name, target in tensor_map.items():
        # Tied weights have two names and one storage.
        other = next(n for n, t in tensor_map.items() if t == target or state[t].data_ptr() == state[target].data_ptr())
        if other != name:
            raise UserError(f"{quote(other)} and {quote(name)} of the ticket would both go to {quote(target)}.")
    return tensor_map


def copy_into(module: nn.Module, tensors: Weights, tensor_map: TensorMap) -> None:
    """Copy every tensor to its counterpart, on the module's device and in its dtype."""
    import torch

    state = module.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[tensor_map[name]].copy_(tensor)


def apply_torch_prune(module: nn.Module, tensors: Weights, masks: Masks, tensor_map: TensorMap) -> None:
    """Call `copy_into` and add the masks as torch.nn.utils.prune does."""
    from torch.nn.utils import prune

    copy_into(module, tensors, tensor_map)
    for name, mask in masks.items():
        owner, _, parameter = tensor_map[name].rpartition(".")
        layer = module.get_submodule(owner)
        prune.custom_from_mask(layer, parameter, mask.to(getattr(layer, parameter).device))  # type: ignore[no-untyped-call]


def read_torch_prune(module: nn.Module, names: Mapping[str, str]) -> tuple[Masks, Weights, Weights]:
    """Return (masks, weights, others) of a module pruned with torch.nn.utils.prune. `names`: ticket -> module.

    Linear and Conv kernels that are not pruned get a mask of ones. Weights are orig * mask.
    Raises UserError if nothing is pruned, if a bias is pruned, or for masks with values other than 0 and 1.
    """
    import torch

    state = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
    pruned = [name.removesuffix("_orig") for name in state if name.endswith("_orig")]
    pruned = [name for name in pruned if f"{name}_mask" in state]
    if not pruned:
        raise UserError("nothing in this module is pruned by torch.nn.utils.prune, so there is no mask for a ticket.")
    masks: Masks = {}
    weights: Weights = {}
    for name in dict.fromkeys([*_kernel_names(module), *pruned]):
        if name not in pruned:
            weights[name] = state.pop(name)
            masks[name] = torch.ones_like(weights[name], dtype=torch.bool)
            continue
        original, mask = state.pop(f"{name}_orig"), state.pop(f"{name}_mask")
        if mask.ndim < 2:
            raise UserError(f"{quote(name)} is pruned, but it is not a kernel: a ticket masks kernels, never biases.")
        masks[name] = mask != 0
        if not bool((mask == masks[name]).all()):
            raise UserError(f"the mask of {quote(name)} has values other than 0 and 1.")
        weights[name] = original.masked_fill(~masks[name], 0.0)
    ticket_names = _invert_names(names, {*weights, *state})
    return tuple(  # type: ignore[return-value]
        {ticket_names.get(name, name): _lossless_cast(name, tensor) for name, tensor in part.items()}
        for part in (masks, weights, state)
    )


def _lossless_cast(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor in a type that tickets have. Raises UserError if that would lose precision."""
    import torch

    if tensor.dtype in (torch.bool, torch.float32, torch.int64):
        return tensor
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    raise UserError(
        f"{quote(name)} is {tensor.dtype}, and a ticket holds float32: convert the module first, with module.float()."
    )


def _invert_names(names: Mapping[str, str], module_names: set[str]) -> dict[str, str]:
    for ticket_name, module_name in names.items():
        if module_name not in module_names:
            raise UserError(
                f"names: the module has no tensor {quote(module_name)} for {quote(ticket_name)}"
                f"{did_you_mean(str(module_name), module_names) or '.'}"
            )
    return {module_name: ticket_name for ticket_name, module_name in names.items()}


def _kernel_names(module: nn.Module) -> list[str]:
    """Return the names of the kernels of Linear and Conv layers, in the order of registration."""
    from torch import nn

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return [f"{name}.weight".lstrip(".") for name, layer in module.named_modules() if isinstance(layer, kinds)]


def _match_by_order(module: nn.Module, masks: Masks) -> TensorMap:
    """Match each mask and the bias beside it to the layer of the same position."""
    kernels = _kernel_names(module)
    if len(kernels) != len(masks):
        raise UserError(
            f"match='order': the ticket has {len(masks)} masks, and the module {len(kernels)} Linear and Conv layers "
            f"({_list(kernels)}). Give the pairs with names={{ticket's: module's}}."
        )
    pairs = dict(zip(masks, kernels, strict=True))
    return pairs | {_bias_name(name): _bias_name(target) for name, target in pairs.items()}


def _bias_name(kernel: str) -> str:
    return kernel.removesuffix("weight") + "bias"


def _check_target(state: Mapping[str, Tensor], name: str, target: str, tensor: Tensor, kernels: list[str]) -> None:
    if target not in state:
        if f"{target}_orig" in state:
            raise UserError(
                f"{quote(target)} of the module is pruned already: call torch.nn.utils.prune.remove on it first."
            )
        raise UserError(
            f"the module has no tensor {quote(target)} for {quote(name)} of the ticket, of shape "
            f"{tuple(tensor.shape)}{did_you_mean(str(target), state) or '.'} Its kernels are {_list(kernels)}. "
            "Give the pairs with names={ticket's: module's}, or use match='order' if the layers are in the same order."
        )
    values = state[target]
    if values.shape != tensor.shape:
        raise UserError(
            f"{quote(name)} of the ticket has shape {tuple(tensor.shape)}, and {quote(target)} of the module has "
            f"{tuple(values.shape)}."
        )
    if values.is_meta or values.is_floating_point() != tensor.is_floating_point():
        reason = "has no storage (it is on the meta device)" if values.is_meta else f"is {values.dtype}"
        raise UserError(f"{quote(target)} of the module {reason}, and cannot hold {quote(name)} of the ticket.")


def _list(names: list[str]) -> str:
    shown = ", ".join(quote(name) for name in names[:8])
    return shown + (", ..." if len(names) > 8 else "") if names else "none"
