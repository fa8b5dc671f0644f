"""A run for others' scripts: `run.json` and `tensors.safetensors`, a contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supermask.core.errors import SystemFailure, UserError
from supermask.core.files import write_atomic
from supermask.core.types import InitialState, NetworkState
from supermask.store import Store
from supermask.store.files.entry import RunFacts
from supermask.store.records import decode_masks
from supermask.store.replay import StateReplayer
from supermask.study.run import Run

if TYPE_CHECKING:
    from torch import Tensor


def export_run(store: Store, run_id: str, folder: Path) -> list[Path]:
    """Writes a run's facts and tensors into `folder`, which is made where it is missing.

    `run.json`: id, parent, network, dataset, criterion, mask1, mask0, schedule, level, seed, prune_rates, metrics,
    certificate, environment, and whatever else is known. `tensors.safetensors`: for every maskable weight
    `start.<name>` (frozen values included), `final.<name>` (float32) and `mask.<name>` (bool), in the kernel's shape;
    for everything else in the network (biases) `other_start.<name>` and `other_final.<name>`. Of a learned supermask
    `logit_start.<name>` and `logit_final.<name>` too: its mask is where p > 0.5, its weights do not move.
    Files of these names are replaced, others in the folder stay. A run at level 1 is the same run under either
    schedule: `iterative`.
    Raises UserError if the folder cannot be one or the run's weights were dropped, Damaged if they are not whole.
    """
    from safetensors.torch import save

    entry = store.read(run_id)
    if entry.facts["status"] == "diverged":
        at = entry.facts["metrics"]["diverged_at"]
        raise UserError(f"run {run_id} diverged at iteration {at}: it has no final weights to export.")
    run = Run.from_data(entry.facts)
    if entry.weights is None and run.is_trained:
        raise UserError(
            f"the weights of run {run_id} were dropped (--keep), only its masks are left. "
            "Run its study with --keep all and another --store to have them."
        )
    parent = StateReplayer(store).parent_run(run_id)
    tensors = _tensors(parent.start, parent.state_at("end"))
    if run.learning is not None:
        tensors |= {f"mask.{n}": m for n, m in decode_masks(entry.tensors, parent.maskables).items()}
    text = json.dumps(run_record(entry.facts), indent=2, allow_nan=False) + "\n"
    # run.json last: where it is, the tensors are whole.
    files = {"tensors.safetensors": save(tensors), "run.json": text.encode()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_atomic(folder / name, data)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder} is not a folder: give one to export to, or a new name.") from error
    except OSError as error:
        raise SystemFailure(f"the run cannot be written to {folder}: {error.strerror or error}.") from error
    return [folder / name for name in reversed(files)]


def _tensors(start: InitialState, end: NetworkState) -> dict[str, Tensor]:
    groups = {
        "start": start.weights,
        "final": end.weights,
        "mask": start.masks,
        "other_start": start.unmasked,
        "other_final": end.unmasked,
        "logit_start": start.logits,
        "logit_final": end.logits,
    }
    return {f"{kind}.{name}": t.contiguous() for kind, named in groups.items() for name, t in named.items()}


def run_record(facts: RunFacts) -> dict[str, Any]:
    """The facts of a stored run, flat, under the names of the contract."""
    run = Run.from_data(facts)
    step = run.step
    return {
        "id": run.id,
        "parent": run.parent,
        "network": run.network,
        "dataset": run.dataset,
        "criterion": step.criterion if step else None,
        "mask1": step.mask1 if step else None,
        "mask0": step.mask0 if step else None,
        "schedule": None if step is None else "iterative" if step.levels == 1 else "one_shot",
        "level": run.level,
        "seed": run.seed,
        "prune_rates": dict(step.rates) if step else {},
        "status": facts["status"],
        "metrics": facts["metrics"],
        "certificate": facts["certificate"],
        "environment": facts["environment"],
        **facts,
    }
