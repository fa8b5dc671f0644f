"""Masks of stored runs and ticket files as arrays, with the weights that their criterion saw."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from supermask.analysis.masks import MaskArrays, MaskInfo, WeightArrays, with_labels
from supermask.core.environment import expand_path
from supermask.core.errors import UserError, quote, sanitize
from supermask.core.pruning import ParentRun
from supermask.core.types import Snapshot
from supermask.export.tickets import load_ticket
from supermask.export.tickets.model import get_fact, ticket_network
from supermask.export.tickets.sources import is_repository, is_ticket_source
from supermask.networks.registry import is_layer_chain
from supermask.store import CorruptEntry, Store
from supermask.store.records import decode_masks
from supermask.store.replay import SnapshotMissing, StateReplayer, UserCodeNotLoaded
from supermask.store.rows import resolve_run_id
from supermask.study.networks import run_network
from supermask.study.run import Run

if TYPE_CHECKING:
    from torch import Tensor

MAX_MASKS = 64
"""Masks in one call. One of FC on MNIST takes about 5 MB of memory with its weights, one of Conv2 about 80 MB."""

STATUS_NOTES = {
    "diverged": "its training diverged, so it has no final weights.",
    "certificate_failed": "its certificate failed, so it is not a result; `supermask verify` prints the reason.",
}
"""Status of a run -> warning about its mask."""


def load_masks(
    names: Sequence[str | Path] | str | Path, store: Store | str | Path | None = None, weights: bool = True
) -> list[MaskInfo]:
    """Load masks by name, in the given order and with labels: runs of `store` (id or unique prefix) and tickets.

    `names`: one name or several; `store`: a store or its folder. A ticket is a file, a folder or a repository of the
    Hub, as for `load_ticket`; any other name is a run. Duplicates are loaded once. Without `weights` only masks are
    read. Weights that the store has dropped are None.

    Raises UserError for a name that is neither, for no name and for more than `MAX_MASKS`; CorruptEntry for a damaged
    run.
    """
    names = [names] if isinstance(names, (str, Path)) else names
    if isinstance(store, (str, Path)):
        from supermask.api.runs import open_store  # Late: tickets alone need none of its imports.

        store = open_store(store)
    if not 1 <= len(names) <= MAX_MASKS:
        raise UserError(f"{len(names)} masks were given: give 1 to {MAX_MASKS} run ids or tickets.")
    replayer = None if store is None else StateReplayer(store, import_user_code=False)
    loaded: dict[str, MaskInfo] = {}
    for name in map(str, names):
        if is_ticket_source(name):
            if name not in loaded:
                loaded[name] = mask_from_ticket(name, weights)
        elif store is None or replayer is None or not re.fullmatch("[0-9a-fA-F]{1,32}", name):
            hint = "" if store is not None else " (and no store was given)"
            raise UserError(
                f"{quote(name)} is neither a file nor a folder with a ticket, nor the beginning of a run's id{hint}."
            )
        elif (run_id := resolve_run_id(store, name)) not in loaded:
            loaded[run_id] = mask_from_run(store, replayer, run_id, weights)
    return with_labels(_with_unique_names(loaded))


def _with_unique_names(loaded: Mapping[str, MaskInfo]) -> list[MaskInfo]:
    """Replace names that several tickets share, such as `ticket.safetensors`, by the paths that were given.

    Of a long path the end is kept, in which paths differ.
    """
    counts = Counter(info.name for info in loaded.values())
    return [replace(info, name=sanitize(key[-100:])) if counts[info.name] > 1 else info for key, info in loaded.items()]


def mask_from_run(store: Store, replayer: StateReplayer, run_id: str, weights: bool = True) -> MaskInfo:
    """Load the mask of a stored run, the weights that its criterion saw (the parent's), and its own start and end.

    Raises CorruptEntry.
    """
    facts = store.facts(run_id)
    run = Run.from_data(facts)
    step = run.step
    masks = _stored_masks(store, run_id)
    start, end = _snapshots(replayer, run_id, "start", "end") if weights else (None, None)
    if run.learning is not None:
        # No criterion was applied: w_i are the fixed weights for which the mask was learned, and there is no w_f.
        all_alive: MaskArrays = {name: np.ones_like(mask) for name, mask in masks.items()}
        alive, w_i, w_f = all_alive, start, None
    elif run.parent is None or step is None:
        alive, w_i, w_f = masks, start, end
    else:
        alive = _stored_masks(store, run.parent)
        w_i, w_f = _snapshots(replayer, run.parent, step.w_init, step.w_final) if weights else (None, None)
    details = {} if step is None else {"mask1": step.mask1, "mask0": step.mask0}
    if run.learning is not None:
        details = {"method": run.learning.method, "base": run.learning.weights}
        details |= {"rescaled": "rescaled"} if run.learning.rescaled else {}
    elif step is not None:
        details |= {"rescaled": "rescaled"} if step.rescaled else {}
        details |= {"schedule": "iterative" if step.levels == 1 else "one_shot"}
    return MaskInfo(
        name=run_id,
        masks=masks,
        alive=alive,
        network=run.network,
        is_chain=is_layer_chain(run.network),
        dataset=run.dataset,
        image_shape=run.spec.image_shape,
        criterion="supermask" if run.learning else step.criterion_name if step else None,
        level=run.level,
        seed=run.seed,
        details={**details, "network": run.network, "dataset": run.dataset},
        w_i=w_i,
        w_f=w_f,
        initial_weights=start,
        final_weights=end,
        note=STATUS_NOTES.get(facts["status"], ""),
    )


def mask_from_ticket(source: str | Path, weights: bool = True) -> MaskInfo:
    """Load the masks of a ticket; w_i is the initial network of its seed, the final weights are those in the file.

    A ticket does not store the trained values of pruned weights, so w_f is None. Raises UserError if the source is not
    a ticket.
    """
    ticket = load_ticket(source)
    masks = _arrays(ticket.masks)
    # The masks of a ticket made from a module of the user's own may be in another order than the network's layers.
    is_in_order = ticket.network is not None and [*masks] == [*ticket_network(ticket.network, ticket.spec).tensors]
    facts = {key: get_fact(ticket, str, "run", key) for key in ("mask1", "mask0", "criterion")}
    details = {key: sanitize(value) for key, value in facts.items() if value is not None and key != "criterion"}
    network, criterion = ticket.network, facts["criterion"]
    if get_fact(ticket, str, "run", "learning", "method") is not None:
        criterion = "supermask"
    return MaskInfo(
        name=sanitize(str(source) if is_repository(source) else expand_path(source).resolve().name),
        masks=masks,
        alive={name: np.ones_like(mask) for name, mask in masks.items()},
        network=network,
        is_chain=is_in_order and is_layer_chain(network),
        dataset=ticket.dataset,
        image_shape=ticket.spec.image_shape if ticket.dataset else None,
        criterion=None if criterion is None else sanitize(criterion),
        level=get_fact(ticket, int, "run", "level"),
        seed=ticket.seed,
        details=details | ({"network": network} if network else {}),
        is_ticket=True,
        w_i=_network_arrays(ticket.initial_weights, masks) if weights else None,
        final_weights=_network_arrays(ticket.network_weights, masks) if weights else None,
    )


def _network_arrays(generate: Callable[[], Mapping[str, Tensor]], masks: MaskArrays) -> WeightArrays | None:
    """Return the prunable tensors of a ticket's network as arrays; None if the ticket cannot generate it."""
    try:
        weights = generate()
    except UserError:
        return None
    return _arrays({name: weights[name] for name in masks})


def _snapshots(replayer: StateReplayer, run_id: str, *points: Snapshot) -> list[WeightArrays | None]:
    """Return the weights of a run at points of its trajectory; None for points that the store has dropped."""
    try:
        parent = replayer.parent_run(run_id)
    except (SnapshotMissing, UserCodeNotLoaded):
        return [None for _ in points]
    return [_snapshot(parent, point) for point in points]


def _snapshot(parent: ParentRun, point: Snapshot) -> WeightArrays | None:
    try:
        return _arrays(parent.state_at(point).weights)
    except SnapshotMissing:
        return None


def _stored_masks(store: Store, run_id: str) -> MaskArrays:
    """Return the masks of a run; all ones for a dense run, which stores none. Raises CorruptEntry."""
    entry = store.read(run_id)
    run = Run.from_data(entry.facts)
    layers = run_network(run).tensors
    if run.parent is None and run.learning is None:
        return {name: np.ones(layer.shape, dtype=bool) for name, layer in layers.items()}
    try:
        return _arrays(decode_masks(entry.tensors, layers))
    except ValueError as error:
        raise CorruptEntry(run_id, str(error)) from error


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
