"""Test accuracies of stored runs, measured again from what is stored: the part of a proof that needs the data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from supermask.core.certificate import ACCURACY_TOLERANCE
from supermask.core.environment import environment_info
from supermask.core.errors import UserError
from supermask.datasets import ImageDataset, load
from supermask.datasets.images import split_data
from supermask.engines.job import TrainingJob
from supermask.export.tickets import pack_run
from supermask.export.tickets.checks import evaluate
from supermask.store import CorruptEntry, Store
from supermask.store.records import decode_logits
from supermask.store.replay import StateReplayer, run_architecture
from supermask.store.verify import VerificationResult
from supermask.study.run import Run

CROSS_ENGINE_TOLERANCE = 1e-3
"""By which losses, spreads and shares of ones may differ on another machine."""


def recheck_store_accuracies(store: Store, data_dir: Path | None) -> Iterator[VerificationResult]:
    """Every finished run whose network is still there; data sets are loaded as they are needed.

    Of a trained or an untrained network the test accuracy of its final weights, to within `IMAGES_APART` images where
    another engine measured it; of a learned supermask every number of its report: exactly on the machine and with the
    release of PyTorch that measured it, elsewhere to within as many images and `ELSEWHERE`.
    Raises UserError for data that cannot be had. Source: paper.md section 11.
    """
    lineage, images = StateReplayer(store), dict[str, ImageDataset]()
    for run_id in sorted(store.run_ids()):
        try:
            facts = store.facts(run_id)
        except CorruptEntry as damage:
            yield VerificationResult(run_id, "damaged", damage.what)
            continue
        run = Run.from_data(facts)
        if facts["status"] != "finished":
            continue
        if run.dataset not in images:
            images[run.dataset] = load(run.dataset, data_dir)
        try:
            yield _remeasured(store, lineage, run, images[run.dataset])
        except (CorruptEntry, UserError) as error:
            yield VerificationResult(run_id, "partly", str(error))


def _remeasured(store: Store, lineage: StateReplayer, run: Run, images: ImageDataset) -> VerificationResult:
    facts = store.facts(run.id)
    if facts["data"]["fingerprint"] != images.fingerprint:
        return VerificationResult(run.id, "partly", f"it was trained on other {run.dataset} than is there now")
    if run.learning is not None:
        differ = _supermask_mismatch(store, lineage, run, images)
        return VerificationResult(run.id, "failed" if differ else "held", ", ".join(differ))
    measured, told = evaluate(pack_run(store, run.id), images), facts["metrics"]["final_test_accuracy"]
    if abs(measured.accuracy - told) * measured.images > ACCURACY_TOLERANCE:
        return VerificationResult(run.id, "failed", f"final_test_accuracy is {measured.accuracy}, not {told}")
    return VerificationResult(run.id, "held")


def _supermask_mismatch(store: Store, lineage: StateReplayer, run: Run, images: ImageDataset) -> list[str]:
    from supermask.engines.mask_evaluation import evaluate_supermask

    start, entry = lineage.parent_run(run.id).start, store.read(run.id)
    if entry.weights is None:
        raise UserError("its logits were dropped")
    job = TrainingJob(run_architecture(run), start, run.recipe, run.seed, learning=run.learning)
    selected, final = (decode_logits(entry.weights, start, kind) for kind in ("logit", "final_logit"))
    again = _numbers(evaluate_supermask(job, split_data(images, run.seed), selected, final))
    told, here = _numbers(entry.facts["supermask"]), environment_info("reference", "cpu", 1)
    alike = all(entry.facts["environment"].get(key) == here[key] for key in ("processor", "torch", "device"))
    apart = 0.0 if alike else ACCURACY_TOLERANCE / len(images.test_labels)
    return [
        f"{name} is {value}, not {told.get(name)}"
        for name, value in again.items()
        if name not in told
        or abs(value - told[name]) > (apart if _is_accuracy(name) else 0.0 if alike else CROSS_ENGINE_TOLERANCE)
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
