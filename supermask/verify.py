"""Every promise of a stored run, checked again: hashes, its start made again, its certificate from the tensors."""

from __future__ import annotations

from dataclasses import dataclass

from supermask.certificate import certify
from supermask.errors import UserError
from supermask.lineage import Lineage, layers_of, step_of
from supermask.networks import maskables
from supermask.records import unpack_state
from supermask.run import Run
from supermask.store import Damaged, Store
from supermask.types import Curve, Outcome


@dataclass(frozen=True)
class Verdict:
    """`held`, `failed` (the run is not a result), `damaged` (not what was committed) or `partly` (weights dropped)."""

    run_id: str
    verdict: str
    why: str = ""


def verify_run(store: Store, lineage: Lineage, run_id: str) -> Verdict:
    """One run, from its tensors. What the optimiser held is not stored: that was checked when the run ended."""
    try:
        entry = store.read(run_id)
        run = Run.from_data(entry.facts)
        if run.id != run_id or entry.facts["id"] != run_id:
            return Verdict(run_id, "damaged", f"its facts are those of run {run.id}")
        start = lineage.parent(run_id).start
        parent = None if run.parent is None else lineage.parent(run.parent)
        step = None if run.step is None else step_of(run.step)
        if entry.facts["status"] == "diverged":
            return Verdict(run_id, "held", f"diverged at iteration {entry.facts['metrics']['diverged_at']}")
        if entry.weights is None:
            return Verdict(run_id, "partly", "its weights were dropped; its start and masks are right")
        outcome = Outcome("finished", unpack_state(entry.tensors | entry.weights, start), {}, Curve(), {})
        certificate = certify(maskables(layers_of(run)), start, outcome, parent, step)
    except Damaged as damage:
        return Verdict(run_id, "damaged", damage.what if damage.key == run_id else str(damage))
    except (UserError, KeyError) as missing:
        return Verdict(run_id, "partly", f"its start cannot be made again: {missing}")
    broken = ", ".join(f"{name}: {layers}" for name, layers in certificate.checks.items() if layers)
    return Verdict(run_id, "held" if certificate.held else "failed", broken)
