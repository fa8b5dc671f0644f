"""Ticket tensors in PyTorch modules: matching by name or order, copying, and torch.nn.utils.prune."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from supermask.core.errors import UserError, did_you_mean, quote
from supermask.core.text import pluralize
from supermask.core.types import Masks, TensorKind, Weights

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

    Raises UserError if a tensor has no counterpart, one of another shape, shares it with another tensor, or would lose
    kept weights in the module's dtype.
    """
    if match not in get_args(Match):
        raise UserError(f"match={quote(match)}: allowed are {' and '.join(map(repr, get_args(Match)))}.")
    names = names or {}
    if unknown := [name for name in names if name not in tensors]:
        near = did_you_mean(str(unknown[0]), tensors) or "."
        raise UserError(f"names: the ticket has no tensor {quote(unknown[0])}{near} It has {_list(list(tensors))}.")
    by_order = _match_by_order(module, masks) if match == "order" else {}
    tensor_map = {name: names.get(name, by_order.get(name, name)) for name in tensors}
    state = module_tensors(module)
    strip = name_stripper(module)
    plain = {strip(name): name for name in state}
    tensor_map = {name: target if target in state else plain.get(target, target) for name, target in tensor_map.items()}
    for name, target in tensor_map.items():
        _check_target(module, state, name, target, tensors[name], masks.get(name))
    for name, target in tensor_map.items():
        # Tied weights have two names and one storage.
        other = next(n for n, t in tensor_map.items() if t == target or state[t].data_ptr() == state[target].data_ptr())
        if other != name:
            raise UserError(f"{quote(other)} and {quote(name)} of the ticket would both go to {quote(target)}.")
    return tensor_map


def copy_into(module: nn.Module, tensors: Weights, tensor_map: TensorMap) -> None:
    """Copy every tensor to its counterpart, on the module's device and in its dtype."""
    import torch

    state = module_tensors(module)
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

    Linear and Conv kernels that are not pruned get a mask of ones. Weights are original * mask. Masks of sparsifiers of
    torch.ao.pruning count as pruning. A layer that is used several times has one entry, under its first name. What
    `get_extra_state` returns is not read.
    Raises UserError if nothing is pruned, if a bias is pruned, for masks with values other than 0 and 1, and for
    tensors that are computed from others (weight norm, spectral norm) or have no values (lazy and meta modules).
    """
    import torch

    state = module_tensors(module)
    pruned = {
        name.removesuffix("_orig"): (original, state[f"{name.removesuffix('_orig')}_mask"])
        for name, original in state.items()
        if name.endswith("_orig") and f"{name.removesuffix('_orig')}_mask" in state
    } | _read_sparsifier_masks(module)
    if not pruned:
        raise UserError("nothing in this module is pruned by torch.nn.utils.prune, so there is no mask for a ticket.")
    computed = {f"{name}{suffix}" for name in pruned for suffix in ("_orig", "_mask")}
    computed |= {f"{_parametrization_name(name)}.original" for name in pruned}
    plain = {name: tensor for name, tensor in state.items() if name not in computed}
    for name in [*_kernel_names(module), *plain]:
        if name not in pruned and (reason := _refusal(module, state, name)):
            raise UserError(reason)
    aliases = _find_aliases(plain, pruned)
    masks: Masks = {}
    weights: Weights = {}
    for name in dict.fromkeys([*_kernel_names(module), *pruned]):
        if name in aliases:
            continue
        if name not in pruned:
            weights[name] = plain.pop(name).detach().cpu().clone()
            masks[name] = torch.ones_like(weights[name], dtype=torch.bool)
            continue
        original, mask = (tensor.detach().cpu() for tensor in pruned[name])
        if mask.ndim < 2:
            raise UserError(f"{quote(name)} is pruned, but it is not a kernel: a ticket masks kernels, never biases.")
        if reason := _value_refusal(pruned[name][0], name):
            raise UserError(reason)
        masks[name] = mask != 0
        if not bool((mask == masks[name]).all()):
            raise UserError(f"the mask of {quote(name)} has values other than 0 and 1.")
        weights[name] = original.masked_fill(~masks[name], 0.0)
    others = {name: tensor.detach().cpu().clone() for name, tensor in plain.items() if name not in aliases}
    names = {ticket_name: aliases.get(module_name, module_name) for ticket_name, module_name in names.items()}
    strip = name_stripper(module)
    plain_names = {strip(name): name for name in [*weights, *others]}
    names = {ticket_name: plain_names.get(name, name) for ticket_name, name in names.items()}
    ticket_names = _invert_names(names, {*weights, *others})
    return (
        {ticket_names.get(name, strip(name)): mask for name, mask in masks.items()},
        {ticket_names.get(name, strip(name)): _lossless_cast(name, tensor) for name, tensor in weights.items()},
        {ticket_names.get(name, strip(name)): _lossless_cast(name, tensor) for name, tensor in others.items()},
    )


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the `state_dict` themselves. Values of `get_extra_state` are left out.

    Raises UserError for another object than a module.
    """
    if not hasattr(module, "state_dict"):
        raise UserError(f"{quote(module)} is not a module: give a torch.nn.Module.")
    state = module.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] != "_extra_state"}


def name_stripper(module: nn.Module) -> Callable[[str], str]:
    """Return a function from a tensor's name in the module to its name without the prefixes of wrappers.

    torch.compile adds `_orig_mod.`, DataParallel and DistributedDataParallel add `module.`; modules inside may be
    wrapped too.
    """
    from torch import nn

    wrappers: dict[str, str] = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        # By name: torch._dynamo, which defines the wrapper of torch.compile, takes a second to import.
        if type(layer).__name__ == "OptimizedModule" and "_orig_mod" in layer._modules:
            wrappers[name] = "_orig_mod"
        elif isinstance(layer, nn.DataParallel | nn.parallel.DistributedDataParallel):
            wrappers[name] = "module"

    def strip(name: str) -> str:
        parts = name.split(".")
        return ".".join(part for i, part in enumerate(parts) if wrappers.get(".".join(parts[:i])) != part)

    return strip


def _find_aliases(plain: Weights, pruned: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, str]:
    """Return the names of tensors that the module has under an earlier name too: alias -> first name."""
    first_names: dict[tuple[int, ...], str] = {}
    aliases = {}
    parts: list[tuple[str, tuple[Tensor, ...]]] = [
        *pruned.items(),
        *((name, (tensor,)) for name, tensor in plain.items()),
    ]
    for name, tensors in parts:
        first = first_names.setdefault(tuple(map(id, tensors)), name)
        if first != name:
            aliases[name] = first
    return aliases


def _read_sparsifier_masks(module: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Return (original weights, mask) of every tensor that a sparsifier of torch.ao.pruning masks."""
    from torch.ao.pruning.sparsifier.utils import FakeSparsity
    from torch.nn.utils.parametrize import is_parametrized

    masked: dict[str, tuple[Tensor, Tensor]] = {}
    for layer_name, layer in module.named_modules(remove_duplicate=False):
        if not is_parametrized(layer):
            continue
        parametrizations: Any = layer.parametrizations
        for parameter, parts in parametrizations.items():
            chain: Any = parts
            if len(chain) == 1 and isinstance(chain[0], FakeSparsity):
                masked[f"{layer_name}.{parameter}".lstrip(".")] = chain.original, cast(Any, chain[0]).mask
    return masked


def _parametrization_name(name: str) -> str:
    owner, _, parameter = name.rpartition(".")
    return f"{owner}.parametrizations.{parameter}".lstrip(".")


def _refusal(module: nn.Module, state: Mapping[str, Tensor], name: str) -> str:
    """Return why a tensor of the module cannot be read or written, and what to do; empty if it can."""
    from torch.nn.utils.parametrize import is_parametrized
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    # Tensors of a parametrization have names of their own: `1.parametrizations.weight.original0`.
    owner, _, parameter = name.partition("parametrizations.") if "parametrizations." in name else name.rpartition(".")
    owner, parameter = owner.rstrip("."), parameter.partition(".")[0]
    try:
        layer = module.get_submodule(owner)
    except AttributeError:
        return ""
    layer_code = f"module.get_submodule({owner!r})" if owner else "module"

    def full_name(parameter: str) -> str:
        return f"{owner}.{parameter}".lstrip(".")

    if is_parametrized(layer, parameter):
        parametrizations: Any = layer.parametrizations[parameter]  # type: ignore[index]
        kinds = ", ".join(type(p).__name__.lstrip("_") for p in parametrizations)
        return (
            f"{quote(full_name(parameter))} of the module is computed by a parametrization ({kinds}): call "
            f"torch.nn.utils.parametrize.remove_parametrizations({layer_code}, {parameter!r}) first."
        )
    for hook in layer._forward_pre_hooks.values():
        # Weight norm keeps `weight_g` and `weight_v`; spectral norm `weight_orig`, `weight_u` and `weight_v`.
        if isinstance(hook, WeightNorm | SpectralNorm) and hook.name in (parameter, parameter.rpartition("_")[0]):
            kind = "weight_norm" if isinstance(hook, WeightNorm) else "spectral_norm"
            return (
                f"{quote(full_name(hook.name))} of the module is computed by torch.nn.utils.{kind}: call "
                f"torch.nn.utils.remove_{kind}({layer_code}, {hook.name!r}) first."
            )
    if name not in state:
        if f"{name}_orig" in state and f"{name}_mask" in state:
            return (
                f"{quote(name)} of the module is pruned already: call "
                f"torch.nn.utils.prune.remove({layer_code}, {parameter!r}) first."
            )
        if getattr(layer, parameter, None) is None:
            return ""
        return f"{quote(name)} of the module is missing from its state_dict: the layer does not store it."
    return _value_refusal(state[name], name)


def _value_refusal(tensor: object, name: str) -> str:
    """Return why a tensor has no values that can be read or written, and what to do; empty if it has."""
    import torch
    from torch.nn.parameter import is_lazy

    if not isinstance(tensor, torch.Tensor):
        return f"{quote(name)} of the module is a {type(tensor).__name__}, not a tensor: a ticket cannot hold it."
    if is_lazy(tensor):
        return f"{quote(name)} of the module has no shape yet (lazy module): pass one batch through the module first."
    if tensor.is_meta:
        return (
            f"{quote(name)} of the module is on the meta device and has no values: call module.to_empty(device='cpu') "
            "and load its values first."
        )
    return ""


def _lossless_cast(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor in a type that tickets have. Raises UserError if that would lose precision."""
    import torch

    if tensor.dtype in (torch.float32, torch.int64):
        return tensor
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    if tensor.dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32):
        return tensor.long()
    hint = ": convert the module first, with module.float()" if tensor.dtype == torch.float64 else " and int64"
    raise UserError(f"{quote(name)} is {tensor.dtype}, and a ticket holds float32{hint}.")


def _invert_names(names: Mapping[str, str], module_names: set[str]) -> dict[str, str]:
    for ticket_name, module_name in names.items():
        if module_name not in module_names:
            raise UserError(
                f"names: the module has no tensor {quote(module_name)} for {quote(ticket_name)}"
                f"{did_you_mean(str(module_name), module_names) or '.'}"
            )
    return {module_name: ticket_name for ticket_name, module_name in names.items()}


def _kernel_names(module: nn.Module) -> list[str]:
    """Return the names of the kernels of Linear and Conv layers, in the order of registration, each layer once."""
    from torch import nn

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return [f"{name}.weight".lstrip(".") for name, layer in module.named_modules() if isinstance(layer, kinds)]


def kernel_kinds(module: nn.Module) -> dict[str, TensorKind]:
    """Return the kind of every Linear and Conv kernel that trains, by tensor name, tied kernels once.

    The last Linear layer is the output. Raises UserError for kernels that are computed from others or have no values.
    """
    from torch import nn

    state = module_tensors(module)
    names: dict[int, str] = {}
    for name in _kernel_names(module):
        if reason := _refusal(module, state, name):
            raise UserError(reason)
        if state[name].requires_grad:
            names.setdefault(id(state[name]), name)
    kinds: dict[str, TensorKind] = {}
    for name in names.values():
        is_linear = isinstance(module.get_submodule(name.rpartition(".")[0]), nn.Linear)
        kinds[name] = "hidden" if is_linear else "conv"
    if linear := [name for name, kind in kinds.items() if kind == "hidden"]:
        kinds[linear[-1]] = "output"
    return kinds


def _match_by_order(module: nn.Module, masks: Masks) -> TensorMap:
    """Match each mask and the bias beside it to the layer of the same position."""
    kernels = _kernel_names(module)
    state = module_tensors(module)
    # Layers with tied weights are one kernel, if the ticket has one mask for them.
    distinct = list({id(state.get(name, name)): name for name in reversed(kernels)}.values())[::-1]
    if len(distinct) == len(masks):
        kernels = distinct
    if len(kernels) != len(masks):
        raise UserError(
            f"match='order': the ticket has {pluralize(len(masks), 'mask')}, and the module "
            f"{pluralize(len(kernels), 'Linear or Conv layer')} "
            f"({_list(kernels)}). Give the pairs with names={{ticket's: module's}}."
        )
    pairs = dict(zip(masks, kernels, strict=True))
    return pairs | {_bias_name(name): _bias_name(target) for name, target in pairs.items()}


def _bias_name(kernel: str) -> str:
    return kernel.removesuffix("weight") + "bias"


def _check_target(
    module: nn.Module, state: Mapping[str, Tensor], name: str, target: str, tensor: Tensor, mask: Tensor | None
) -> None:
    import torch

    if reason := _refusal(module, state, target):
        raise UserError(reason)
    if target not in state:
        raise UserError(
            f"the module has no tensor {quote(target)} for {quote(name)} of the ticket, of shape "
            f"{tuple(tensor.shape)}{did_you_mean(str(target), state) or '.'} Its kernels are "
            f"{_list(_kernel_names(module))}. "
            "Give the pairs with names={ticket's: module's}, or use match='order' if the layers are in the same order."
        )
    values = state[target]
    if values.shape != tensor.shape:
        raise UserError(
            f"{quote(name)} of the ticket has shape {tuple(tensor.shape)}, and {quote(target)} of the module has "
            f"{tuple(values.shape)}."
        )
    if values.is_floating_point() != tensor.is_floating_point():
        raise UserError(
            f"{quote(target)} of the module is {values.dtype}, and cannot hold {quote(name)} of the ticket."
        )
    # Casting a kept weight to 0 would prune it, and to infinity would destroy the network.
    converted, kept = tensor.to(values.dtype), mask if mask is not None else torch.tensor(False)
    lost = int((((converted == 0) & (tensor != 0) & kept) | (converted.isinf() & tensor.isfinite())).sum())
    if lost:
        raise UserError(
            f"{lost:,} kept weights of {quote(name)} would become 0 or infinite in {values.dtype}, the dtype of "
            f"{quote(target)}: convert the module first, with module.float()."
        )


def _list(names: list[str]) -> str:
    shown = ", ".join(quote(name) for name in names[:8])
    return shown + (", ..." if len(names) > 8 else "") if names else "none"
