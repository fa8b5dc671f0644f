"""A run for others' scripts: `run.json` and `tensors.safetensors`, a contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from supermask.entry import Facts
from supermask.errors import MachineError, UserError
from supermask.lineage import Lineage
from supermask.records import unpack_state
from supermask.run import Run
from supermask.store import Store


def export_run(store: Store, run_id: str, folder: Path) -> list[Path]:
    """Writes a run's facts and tensors into `folder`, which is made where it is missing.

    `run.json`: id, parent, network, dataset, criterion, mask1, mask0, schedule, level, seed, prune_rates, metrics,
    certificate, environment, and whatever else is known. `tensors.safetensors`: for every maskable weight
    `start.<name>` (frozen values included), `final.<name>` (float32) and `mask.<name>` (bool), in the kernel's shape;
    for everything else in the network (biases) `other_start.<name>` and `other_final.<name>`.
    Raises UserError if the folder cannot be one or the run's weights were dropped, Damaged if they are not whole.
    """
    from safetensors.torch import save_file

    entry = store.read(run_id)
    if entry.facts["status"] == "diverged":
        raise UserError(
            f"run {run_id} diverged at iteration {entry.facts['metrics']['diverged_at']}: it has no final weights to export."
        )
    if entry.weights is None:
        raise UserError(
            f"the weights of run {run_id} were dropped (--keep), only its masks are left. "
            "Run its study with --keep all and another --store to have them."
        )
    start = Lineage(store).parent(run_id).start
    end = unpack_state(entry.tensors | entry.weights, start)
    tensors = {}
    for kind, named in (("start", start.weights), ("final", end.weights), ("mask", start.masks)):
        tensors |= {f"{kind}.{name}": tensor for name, tensor in named.items()}
    for kind, named in (("other_start", start.others), ("other_final", end.others)):
        tensors |= {f"{kind}.{name}": tensor for name, tensor in named.items()}
    paths = [folder / "run.json", folder / "tensors.safetensors"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(json.dumps(run_facts(entry.facts), indent=2) + "\n", encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, paths[1])
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder} is not a folder: give one to export to, or a new name.") from error
    except OSError as error:
        raise MachineError(f"the run cannot be written to {folder}: {error.strerror or error}") from error
    return paths


def run_facts(facts: Facts) -> dict[str, Any]:
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
