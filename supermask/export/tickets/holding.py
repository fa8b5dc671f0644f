"""`hold`: a context in which no optimizer moves the pruned weights of a PyTorch module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from supermask.core.errors import UserError, quote
from supermask.core.types import Masks, Weights
from supermask.export.tickets.model import Ticket
from supermask.export.tickets.modules import Match, match_tensors, module_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def hold(
    module: Module, masks: Masks | Ticket, names: Mapping[str, str] | None = None, match: Match = "name"
) -> Iterator[Module]:
    """Keep the pruned weights of a module (mask False) bit for bit at the values that they have on entry.

    `masks`: name -> bool tensor, or a ticket.

    Their gradients become 0, so gradient norms and optimizer states do not see them. Momentum from earlier, weight
    decay, fused and foreach steps may still write to them: after every optimizer step, before every forward pass of
    `module` and on exit they are set back. Kept weights are not touched. `names` and `match` say which mask belongs to
    which tensor, as for `Ticket.apply_to`; prefixes of torch.compile and DataParallel are left out. Yields the module.
    Raises UserError for a mask without a counterpart of its shape, before anything is changed.

        network = ticket.apply_to(network)
        with hold(network, ticket):
            train(network)
    """
    import torch
    from torch.optim import Optimizer
    from torch.optim.optimizer import register_optimizer_step_post_hook

    masks = masks.masks if isinstance(masks, Ticket) else masks
    if not isinstance(masks, Mapping):
        raise UserError(f"masks are a ticket or a dict of names to bool tensors, not {type(masks).__name__}.")
    for name, mask in masks.items():
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            raise UserError(f"the mask of {quote(name)} is not a bool tensor (True = kept).")
    targets = match_tensors(module, {name: _placeholder(mask) for name, mask in masks.items()}, masks, names, match)
    tensors = module_tensors(module)
    pruned: Masks = {targets[name]: ~mask.to(tensors[targets[name]].device) for name, mask in masks.items()}
    held = {name: tensors[name].detach()[where].clone() for name, where in pruned.items()}

    owners = {name: (module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in pruned}

    def current() -> dict[str, Tensor]:
        # Looked up each time: a parameter may have been replaced, or moved to another device.
        return {name: getattr(owner, attribute) for name, (owner, attribute) in owners.items()}

    def restore(*_: object) -> None:
        _write(current(), pruned, held)

    def restore_after_step(optimizer: Optimizer, *_: object) -> None:
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        held_by_optimizer = {name: tensor for name, tensor in current().items() if id(tensor) in trained}
        _write(held_by_optimizer, pruned, held)

    with ExitStack() as hooks:
        for name in pruned:
            if tensors[name].requires_grad:
                handle = tensors[name].register_hook(partial(_zero_gradient, pruned, name))  # type: ignore[no-untyped-call]
                hooks.callback(handle.remove)
        hooks.callback(register_optimizer_step_post_hook(restore_after_step).remove)
        hooks.callback(module.register_forward_pre_hook(restore).remove)
        hooks.callback(restore)
        yield module


def _placeholder(mask: Tensor) -> Tensor:
    """Return zeros of a mask's shape, as values that fit any floating-point tensor."""
    import torch

    return torch.zeros(()).expand(mask.shape)


def _zero_gradient(pruned: Masks, name: str, gradient: Tensor) -> Tensor:
    # Not a product with the mask: 0 * inf would be NaN.
    return gradient.masked_fill(pruned[name].to(gradient.device), 0.0)


def _write(tensors: Mapping[str, Tensor], pruned: Masks, held: Weights) -> None:
    """Set pruned weights to their held values, outside autograd.

    `.data` leaves the version counter alone: the values are those that a pending backward pass has seen.
    """
    for name, tensor in tensors.items():
        data, where = tensor.data, pruned[name]
        if where.device != data.device:
            where = pruned[name] = where.to(data.device)
        if held[name].device != data.device or held[name].dtype != data.dtype:
            held[name] = held[name].to(data.device, data.dtype)
        data.masked_scatter_(where, held[name])
