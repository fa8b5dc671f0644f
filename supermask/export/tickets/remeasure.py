"""Recheck of stored accuracies: the evaluations of a store's runs, repeated from their weights and the data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from supermask.core.environment import environment_info
from supermask.core.errors import UserError
from supermask.core.mask_certificate import ACCURACY_TOLERANCE
from supermask.datasets import ImageDataset
from supermask.datasets.images import split_data
from supermask.engines.job import TrainingJob
from supermask.export.tickets import pack_run
from supermask.export.tickets.checks import evaluate
from supermask.store import CorruptEntry, NewerFormat, Store
from supermask.store.records import decode_logits
from supermask.store.replay import StateReplayer
from supermask.store.verify import VerificationResult
from supermask.study.networks import run_network
from supermask.study.run import Run
from supermask.study.user_data import check_source, load_data

CROSS_ENGINE_TOLERANCE = 1e-3
"""Largest difference of losses (nats), spreads and shares of ones between two machines."""


def recheck_store_accuracies(store: Store, data_dir: Path | None) -> Iterator[VerificationResult]:
    """Measure the accuracy of every finished run again, and compare it with the stored one.

    Trained and untrained networks: test accuracy of the final weights, to within `ACCURACY_TOLERANCE` images, by which
    engines may differ. Learned supermasks: every number of the evaluation; equal on the same processor, device and
    release of PyTorch, elsewhere to within `ACCURACY_TOLERANCE` images and `CROSS_ENGINE_TOLERANCE`.
    A run whose weights were dropped is reported as `partly`. Data sets are loaded when a run needs them.
    Raises UserError for data that cannot be read.
    """
    replayer, images = StateReplayer(store), dict[str, ImageDataset]()
    for run_id in sorted(store.run_ids()):
        try:
            facts = store.facts(run_id)
        except CorruptEntry as damage:
            yield VerificationResult(run_id, "damaged", damage.what)
            continue
        except NewerFormat as newer:
            yield VerificationResult(run_id, "partly", str(newer))
            continue
        run = Run.from_data(facts)
        if facts["status"] != "finished":
            continue
        if run.dataset not in images:
            images[run.dataset] = _load(run, data_dir)
        try:
            yield _recheck_run(store, replayer, run, images[run.dataset])
        except (CorruptEntry, UserError) as error:
            yield VerificationResult(run_id, "partly", str(error))
        except (LookupError, TypeError, ValueError) as error:
            # Logits that do not fit, or no evaluation: sealed, but not a run. As in `verify_run`.
            yield VerificationResult(run_id, "damaged", f"it cannot be read as a run ({type(error).__name__}: {error})")


def _load(run: Run, data_dir: Path | None) -> ImageDataset:
    # The store is not trusted to name code: a user's function is called only if its source is the run's.
    check_source(run.dataset, run.data_source)
    return load_data(run.dataset, data_dir, run.data_fingerprint)


def _recheck_run(store: Store, replayer: StateReplayer, run: Run, images: ImageDataset) -> VerificationResult:
    facts = store.facts(run.id)
    if facts["data"]["fingerprint"] != images.fingerprint:
        return VerificationResult(run.id, "partly", f"it was trained on other {run.dataset} data than the data here")
    if run.learning is not None:
        differences = _supermask_mismatch(store, replayer, run, images)
        return VerificationResult(run.id, "failed" if differences else "held", ", ".join(differences))
    if not run.is_trained and run_network(run).buffers:
        reason = "its running statistics were estimated for its evaluation and are not those of its initial state"
        return VerificationResult(run.id, "partly", reason)
    measured, stored = evaluate(pack_run(store, run.id), images), facts["metrics"]["final_test_accuracy"]
    if abs(measured.accuracy - stored) * measured.images > ACCURACY_TOLERANCE:
        return VerificationResult(run.id, "failed", f"final_test_accuracy is {measured.accuracy}, not {stored}")
    return VerificationResult(run.id, "held")


def _supermask_mismatch(store: Store, replayer: StateReplayer, run: Run, images: ImageDataset) -> list[str]:
    from supermask.engines.mask_evaluation import evaluate_supermask

    start, entry = replayer.parent_run(run.id).start, store.read(run.id)
    if entry.weights is None:
        raise UserError("its logits were dropped")
    job = TrainingJob(run_network(run), start, run.recipe, run.seed, learning=run.learning)
    selected, final = (decode_logits(entry.weights, start, kind) for kind in ("logit", "final_logit"))
    measured = _flatten(evaluate_supermask(job, split_data(images, run.seed, run.data_options), selected, final))
    stored, environment = _flatten(entry.facts["supermask"]), environment_info("reference", "cpu", 1)
    is_same_machine = all(
        entry.facts["environment"].get(key) == environment[key] for key in ("processor", "torch", "device")
    )

    def tolerance(name: str) -> float:
        if is_same_machine:
            return 0.0
        return ACCURACY_TOLERANCE / len(images.test_labels) if _is_accuracy(name) else CROSS_ENGINE_TOLERANCE

    return [
        f"{name} is {value}, not {stored.get(name)}"
        for name, value in measured.items()
        if name not in stored or abs(value - stored[name]) > tolerance(name)
    ]


def _flatten(report: Any, name: str = "") -> dict[str, float]:
    """Return every number of a nested report by its dotted path."""
    if isinstance(report, dict):
        items = list(report.items())
    elif isinstance(report, list):
        items = list(enumerate(report))
    else:
        return {name: float(report)}
    parts = (_flatten(value, f"{name}.{key}" if name else str(key)) for key, value in items)
    return {path: number for numbers in parts for path, number in numbers.items()}


def _is_accuracy(name: str) -> bool:
    # All other numbers of a report are losses, spreads and shares of ones.
    return not name.endswith((".loss", ".std")) and not name.startswith("ones")
