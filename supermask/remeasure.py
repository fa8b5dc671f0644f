"""Test accuracies of stored runs, measured again from what is stored: the part of a proof that needs the data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from supermask.datasets import Images, load
from supermask.engines.job import Job
from supermask.errors import UserError
from supermask.execute.worker import seed_data
from supermask.lineage import Lineage, layers_of
from supermask.mask_certificate import IMAGES_APART
from supermask.records import unpack_logits
from supermask.run import Run
from supermask.store import Damaged, Store
from supermask.tickets import pack_run
from supermask.tickets.evaluate import evaluate
from supermask.verify import Verdict


def remeasure_store(store: Store, data_dir: Path | None) -> Iterator[Verdict]:
    """Every finished run whose network is still there; data sets are loaded as they are needed.

    Of a trained or an untrained network the test accuracy of its final weights, to within `IMAGES_APART` images where
    another engine measured it; of a learned supermask every number of its report, exactly.
    Raises UserError for data that cannot be had. Source: paper.md section 11.
    """
    lineage, images = Lineage(store), dict[str, Images]()
    for run_id in sorted(store.run_ids()):
        try:
            facts = store.facts(run_id)
            run = Run.from_data(facts)
            if facts["status"] != "finished":
                continue
            if run.dataset not in images:
                images[run.dataset] = load(run.dataset, data_dir)
            yield _remeasured(store, lineage, run, images[run.dataset])
        except (Damaged, UserError) as error:
            yield Verdict(run_id, "partly", str(error))


def _remeasured(store: Store, lineage: Lineage, run: Run, images: Images) -> Verdict:
    facts = store.facts(run.id)
    if facts["data"]["fingerprint"] != images.fingerprint:
        return Verdict(run.id, "partly", f"it was trained on other {run.dataset} than is there now")
    if run.learning is not None:
        differ = _report_differs(store, lineage, run, images)
        return Verdict(run.id, "failed" if differ else "held", ", ".join(differ))
    measured, told = evaluate(pack_run(store, run.id), images), facts["metrics"]["final_test_accuracy"]
    if abs(measured.accuracy - told) * measured.images > IMAGES_APART:
        return Verdict(run.id, "failed", f"final_test_accuracy is {measured.accuracy}, not {told}")
    return Verdict(run.id, "held")


def _report_differs(store: Store, lineage: Lineage, run: Run, images: Images) -> list[str]:
    from supermask.engines.report import supermask_report

    start, entry = lineage.parent(run.id).start, store.read(run.id)
    if entry.weights is None:
        raise UserError("its logits were dropped")
    job = Job(layers_of(run), start, run.recipe, run.seed, learning=run.learning)
    selected, final = (unpack_logits(entry.weights, start, kind) for kind in ("logit", "final_logit"))
    again, told = supermask_report(job, seed_data(images, run.seed), selected, final), entry.facts["supermask"]
    return [f"{name} is {again[name]}, not {told.get(name)}" for name in again if again[name] != told.get(name)]
