"""Test accuracies of stored runs, measured again from what is stored: the part of a proof that needs the data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from supermask.datasets import Images, load
from supermask.engines.job import Job
from supermask.environment import environment
from supermask.errors import UserError
from supermask.execute.data import seed_data
from supermask.lineage import Lineage, layers_of
from supermask.mask_certificate import IMAGES_APART
from supermask.records import unpack_logits
from supermask.runs import Run
from supermask.store import Damaged, Store
from supermask.tickets import pack_run
from supermask.tickets.evaluate import evaluate
from supermask.verify import Verdict

ELSEWHERE = 1e-3
"""By which losses, spreads and shares of ones may differ on another machine."""


def remeasure_store(store: Store, data_dir: Path | None) -> Iterator[Verdict]:
    """Every finished run whose network is still there; data sets are loaded as they are needed.

    Of a trained or an untrained network the test accuracy of its final weights, to within `IMAGES_APART` images where
    another engine measured it; of a learned supermask every number of its report: exactly on the machine and with the
    release of PyTorch that measured it, elsewhere to within as many images and `ELSEWHERE`.
    Raises UserError for data that cannot be had. Source: paper.md section 11.
    """
    lineage, images = Lineage(store), dict[str, Images]()
    for run_id in sorted(store.run_ids()):
        try:
            facts = store.facts(run_id)
        except Damaged as damage:
            yield Verdict(run_id, "damaged", damage.what)
            continue
        run = Run.from_data(facts)
        if facts["status"] != "finished":
            continue
        if run.dataset not in images:
            images[run.dataset] = load(run.dataset, data_dir)
        try:
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
    again = _numbers(supermask_report(job, seed_data(images, run.seed), selected, final))
    told, here = _numbers(entry.facts["supermask"]), environment("reference", "cpu", 1)
    alike = all(entry.facts["environment"].get(key) == here[key] for key in ("processor", "torch", "device"))
    apart = 0.0 if alike else IMAGES_APART / len(images.test_labels)
    return [
        f"{name} is {value}, not {told.get(name)}"
        for name, value in again.items()
        if name not in told or abs(value - told[name]) > (apart if _is_accuracy(name) else 0.0 if alike else ELSEWHERE)
    ]


def _numbers(report: Any, name: str = "") -> dict[str, float]:
    """Every number of a report, by its path."""
    if isinstance(report, dict):
        items = list(report.items())
    elif isinstance(report, list):
        items = list(enumerate(report))
    else:
        return {name: float(report)}
    inner = (_numbers(value, f"{name}.{key}" if name else str(key)) for key, value in items)
    return {path: number for numbers in inner for path, number in numbers.items()}


def _is_accuracy(name: str) -> bool:
    """Losses, spreads and shares of ones are none."""
    return not name.endswith((".loss", ".std")) and not name.startswith("ones")
