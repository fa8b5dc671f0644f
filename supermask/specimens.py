"""Specimens to look at, made of stored runs and ticket files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from supermask.analysis import Arrays, MaskArrays, Specimen, labelled
from supermask.datasets.facts import DATASETS
from supermask.errors import UserError
from supermask.lineage import Lineage, NotKept, layers_of
from supermask.networks import maskables
from supermask.records import unpack_masks
from supermask.rows import find_run
from supermask.runs import Run
from supermask.store import Damaged, Store
from supermask.study.yaml_tree import printable, shown
from supermask.ticket import Parent
from supermask.tickets import load_ticket
from supermask.tickets.model import fact
from supermask.types import Point

if TYPE_CHECKING:
    from torch import Tensor

MOST = 64
"""Specimens at once: one of FC on MNIST takes about 5 MB of memory, of Conv2 about 80 MB."""

NOTES = {
    "diverged": "its training diverged, so it has no end.",
    "certificate_failed": "its certificate does not hold, so it is no result; `supermask verify` says why.",
}
"""Status of a run -> what has to be said of its mask."""


def load_specimens(names: Sequence[str | Path], store: Store | None = None, weights: bool = True) -> list[Specimen]:
    """What is named, in that order and with labels: run ids of `store` (or beginnings of them) and ticket files.

    A file that is there is a ticket; everything else is a run. One named twice is there once. Without `weights` only
    masks are read. Raises UserError for what is neither, for none and for more than `MOST`; Damaged for runs that are
    not what was committed. Weights that were dropped are None.
    """
    if not 1 <= len(names) <= MOST:
        raise UserError(f"{len(names)} masks to look at: give 1 to {MOST} run ids or ticket files.")
    lineage = None if store is None else Lineage(store)
    found: dict[str, Specimen] = {}
    for name in map(str, names):
        if Path(name).is_file():
            found.setdefault(name, specimen_of_file(Path(name), weights))
        elif store is None or lineage is None or not re.fullmatch("[0-9a-fA-F]{1,32}", name):
            where = "" if store is not None else " (and no store was given)"
            raise UserError(f"{shown(name)} is neither a file nor the beginning of a run's id{where}.")
        elif (run_id := find_run(store, name)) not in found:
            found[run_id] = specimen_of_run(store, lineage, run_id, weights)
    return labelled(list(found.values()))


def specimen_of_run(store: Store, lineage: Lineage, run_id: str, weights: bool = True) -> Specimen:
    """A stored run: its masks, what its criterion saw (the parent's weights), its own start and end.

    Raises Damaged.
    """
    facts = store.facts(run_id)
    run = Run.from_data(facts)
    step = run.step
    masks = _stored_masks(store, run_id)
    start, end = _points(lineage, run_id, "start", "end") if weights else (None, None)
    if run.learning is not None:
        # Nothing was trained that a criterion saw: the weights are those that the mask was learned for.
        all_alive: MaskArrays = {name: np.ones_like(mask) for name, mask in masks.items()}
        alive, w_i, w_f = all_alive, start, None
    elif run.parent is None or step is None:
        alive, w_i, w_f = masks, start, end
    else:
        alive = _stored_masks(store, run.parent)
        w_i, w_f = _points(lineage, run.parent, step.w_init, step.w_final) if weights else (None, None)
    details = {} if step is None else {"mask1": step.mask1, "mask0": step.mask0}
    if run.learning is not None:
        details = {"method": run.learning.method, "base": run.learning.weights}
        details |= {"rescaled": "rescaled"} if run.learning.rescaled else {}
    elif step is not None:
        details |= {"rescaled": "rescaled"} if step.rescaled else {}
        details |= {"schedule": "iterative" if step.levels == 1 else "one_shot"}
    return Specimen(
        name=run_id,
        masks=masks,
        alive=alive,
        network=run.network,
        dataset=run.dataset,
        image_shape=DATASETS[run.dataset].image_shape,
        criterion="supermask" if run.learning else step.criterion if step else None,
        level=run.level,
        seed=run.seed,
        details={**details, "network": run.network, "dataset": run.dataset},
        w_i=w_i,
        w_f=w_f,
        start=start,
        end=end,
        note=NOTES.get(facts["status"], ""),
    )


def specimen_of_file(path: Path, weights: bool = True) -> Specimen:
    """A ticket file: its masks, the initial network of its seed as w_i, the network in it as the end.

    What its criterion saw of the pruned weights is not in the file, so w_f is None. Raises UserError for no ticket.
    """
    ticket = load_ticket(path)
    masks = _arrays(ticket.masks)
    known = DATASETS.get(ticket.dataset or "")
    told = {key: fact(ticket, str, "run", key) for key in ("mask1", "mask0", "criterion")}
    details = {key: printable(value) for key, value in told.items() if value is not None and key != "criterion"}
    network, criterion = ticket.network, told["criterion"]
    if fact(ticket, str, "run", "learning", "method") is not None:
        criterion = "supermask"
    return Specimen(
        name=printable(path.name),
        masks=masks,
        alive={name: np.ones_like(mask) for name, mask in masks.items()},
        network=network,
        dataset=ticket.dataset,
        image_shape=known.image_shape if known else None,
        criterion=None if criterion is None else printable(criterion),
        level=fact(ticket, int, "run", "level"),
        seed=ticket.seed,
        details=details | ({"network": network} if network else {}),
        w_i=_made(ticket.initial_weights, masks) if weights else None,
        end=_made(ticket.network_weights, masks) if weights else None,
    )


def _made(weights: Callable[[], Mapping[str, Tensor]], masks: MaskArrays) -> Arrays | None:
    """The maskable tensors of a network that a ticket makes; None where it cannot make them."""
    try:
        made = weights()
    except UserError:
        return None
    return _arrays({name: made[name] for name in masks})


def _points(lineage: Lineage, run_id: str, *points: Point) -> list[Arrays | None]:
    """A run's weights at points of its trajectory; None for what the store does not have any more."""
    try:
        parent = lineage.parent(run_id)
    except NotKept:
        return [None for _ in points]
    return [_point(parent, point) for point in points]


def _point(parent: Parent, point: Point) -> Arrays | None:
    try:
        return _arrays(parent.at(point).weights)
    except NotKept:
        return None


def _stored_masks(store: Store, run_id: str) -> MaskArrays:
    """As stored, or all ones for a dense run. Raises Damaged."""
    entry = store.read(run_id)
    run = Run.from_data(entry.facts)
    found = maskables(layers_of(run))
    if run.parent is None and run.learning is None:
        return {name: np.ones(m.shape, dtype=bool) for name, m in found.items()}
    try:
        return _arrays(unpack_masks(entry.tensors, found))
    except ValueError as error:
        raise Damaged(run_id, str(error)) from error


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
