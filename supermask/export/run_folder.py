"""Export of one run to a folder for other programs: `run.json` and `tensors.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supermask.core.errors import SystemFailure, UserError
from supermask.core.files import write_atomic
from supermask.core.masks import ALL_TENSORS, ranked_groups
from supermask.core.types import InitialState, NetworkState
from supermask.store import Store
from supermask.store.files.entry import RunFacts
from supermask.store.records import decode_masks
from supermask.store.replay import StateReplayer
from supermask.study.networks import run_network
from supermask.study.run import Run

if TYPE_CHECKING:
    from torch import Tensor


def export_run(store: Store, run_id: str, folder: Path) -> list[Path]:
    """Write a run's facts and tensors into `folder`, which is created if needed. Return the two paths.

    `run.json`: id, parent, network, dataset, criterion, mask1, mask0, schedule, level, seed, prune_rates, metrics,
    certificate, environment, and all other stored facts; also scope, w_init, w_final, rewind_to, rescaled, initializer
    (of the weights), and tensor_prune_rates: the prune rate of every tensor by name (under global scope that of the
    whole network; empty for a dense run and for a learned mask). A run at level 1 is the same under both schedules; it
    is exported as `iterative`.
    `tensors.safetensors`: per prunable tensor `start.<name>` (with frozen values), `final.<name>` (float32) and
    `mask.<name>` (bool), in the kernel's shape; per other tensor `other_start.<name>` and `other_final.<name>`; if a
    mask was learned also `logit_start.<name>` and `logit_final.<name>`, and the mask is the one with p > 0.5.
    Files of these two names are replaced; other files in the folder are kept.
    Raises UserError if `folder` is not a folder or the run's weights were dropped, CorruptEntry for a damaged run.
    """
    from safetensors.torch import save

    entry = store.read(run_id)
    if entry.facts["status"] == "diverged":
        iteration = entry.facts["metrics"]["diverged_at"]
        raise UserError(f"run {run_id} diverged at iteration {iteration}: it has no final weights to export.")
    run = Run.from_data(entry.facts)
    if entry.weights is None and run.is_trained:
        raise UserError(
            f"the weights of run {run_id} were dropped (--keep); only its masks are stored. "
            "Run its study with --keep all and another --store to get them."
        )
    parent = StateReplayer(store).parent_run(run_id)
    tensors = _named_tensors(parent.start, parent.state_at("end"))
    if run.learning is not None:
        tensors |= {f"mask.{n}": m for n, m in decode_masks(entry.tensors, parent.prunable).items()}
    text = json.dumps(run_record(entry.facts), indent=2, allow_nan=False) + "\n"
    record, tensor_file = folder / "run.json", folder / "tensors.safetensors"

    def remove_record(_: Path) -> bool:
        record.unlink(missing_ok=True)
        return True

    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The record is written last, and an earlier one is removed once the new tensors are on the disk: if there is
        # one, the tensors are complete and its own.
        write_atomic(tensor_file, save(tensors), check=remove_record)
        write_atomic(record, text.encode())
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder} is not a folder: give a folder to export to, or a new name.") from error
    except OSError as error:
        raise SystemFailure(f"the run cannot be written to {folder}: {error.strerror or error}.") from error
    return [record, tensor_file]


def _named_tensors(start: InitialState, end: NetworkState) -> dict[str, Tensor]:
    groups = {
        "start": start.weights,
        "final": end.weights,
        "mask": start.masks,
        "other_start": start.unmasked,
        "other_final": end.unmasked,
        "logit_start": start.logits,
        "logit_final": end.logits,
    }
    # Copies: of an untrained network, start and end are one tensor, which safetensors refuses to write twice.
    return {
        f"{kind}.{name}": tensor.contiguous().clone()
        for kind, group in groups.items()
        for name, tensor in group.items()
    }


def _tensor_prune_rates(run: Run) -> dict[str, float]:
    """Return the prune rate of every tensor by name; of tensors that are ranked together, that of their group."""
    step, tensors = run.step, run_network(run).tensors
    if step is None or step.scope == "threshold":
        return {}
    kinds = {name: tensor.kind for name, tensor in tensors.items()}
    sizes = {name: tensor.size for name, tensor in tensors.items()}
    groups = ranked_groups(sizes, kinds, step.scope, step.rates, step.only, step.exclude)
    return {name: groups[name if name in groups else ALL_TENSORS].prune_rate for name in tensors}


def run_record(facts: RunFacts) -> dict[str, Any]:
    """Return the facts of a stored run as a flat dict, with the keys of `run.json`."""
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
        "tensor_prune_rates": _tensor_prune_rates(run),
        "scope": step.scope if step else None,
        "w_init": step.w_init if step else None,
        "w_final": step.w_final if step else None,
        "rewind_to": step.rewind_to if step else None,
        "rescaled": step.rescaled if step else None,
        "initializer": run_network(run).initializer,
        "status": facts["status"],
        "metrics": facts["metrics"],
        "certificate": facts["certificate"],
        "environment": facts["environment"],
        **facts,
    }
