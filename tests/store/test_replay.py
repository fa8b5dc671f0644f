"""records and replay: the encoding of runs, and that a replayed initial state is the one trained from."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.faulty_disk import quick_folder
from helpers.small_studies import same_start, same_state, small_plan, train_plan

from supermask.core.actions import MASK0_ACTIONS, MASK1_ACTIONS
from supermask.core.certificate import Certificate
from supermask.core.errors import UserError
from supermask.core.pruning import compute_masks
from supermask.core.types import InitialState, LearningCurve, NetworkState, PrunableTensor, Snapshot, TrainingResult
from supermask.execution.tasks import Task, TaskResult, WorkerConfig
from supermask.execution.worker import PreparedTask, Worker
from supermask.store import CorruptEntry, Store
from supermask.store.files.entry import RunFacts, Tensors
from supermask.store.files.store import EntryStore
from supermask.store.records import (
    decode_curve,
    decode_masks,
    decode_state,
    encode_result,
    encode_snapshot,
    snapshot_name,
)
from supermask.store.replay import SnapshotMissing, StateReplayer, StoredSnapshots, load_step, step_streams
from supermask.study.plan import Plan
from supermask.study.run import Run


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


def last_run(plan: Plan) -> Run:
    return list(plan.runs.values())[-1]


# ------------------------------------------------------------------------------------- outcome -> store -> outcome


def odd_values(shape: tuple[int, ...]) -> torch.Tensor:
    """Return values that a careless copy would change: signed zeros, subnormals, extremes."""
    special = [0.0, -0.0, 1e-45, -1e-40, 3.4e38, -1.0, 1 / 3, float("inf")]
    size = int(np.prod(shape))
    return torch.tensor((special * size)[:size], dtype=torch.float32).reshape(shape)


def artificial_run(parent: str | None = "0" * 32) -> tuple[Run, InitialState, TrainingResult]:
    """Return a run of odd values, frozen ones included, with a third of its weights kept."""
    plan = small_plan()
    run = replace(last_run(plan), parent=parent, step=None if parent is None else last_run(plan).step)
    dense = plan.network.initial_state(0)
    weights = {name: odd_values(tuple(w.shape)) for name, w in dense.weights.items()}
    masks = {
        n: torch.arange(w.numel()).reshape(w.shape) % 3 == 0 if parent else m
        for (n, w), m in zip(weights.items(), dense.masks.values(), strict=True)
    }
    others = {name: odd_values(tuple(t.shape)) + 1 for name, t in dense.unmasked.items()} | {"steps": torch.tensor(7)}
    start = InitialState(weights, masks, others, first_iteration=5)
    moved = {name: torch.where(masks[name], -w, w) for name, w in weights.items()}
    end = NetworkState(moved, {name: t + 1 for name, t in others.items()})
    snapshots: dict[Snapshot, NetworkState] = {7: replace(end, unmasked=others), "gradient": NetworkState(moved, {})}
    curve = LearningCurve([0, 4], [float("nan"), 1 / 3], [2.3, float("inf")], [0.1, 0.2])
    metrics: dict[str, int | float | None] = {"diverged_at": None, "final_test_accuracy": 1 / 3, "odd": float("nan")}
    return run, start, TrainingResult("finished", end, snapshots, curve, metrics)


HELD, BROKEN = Certificate({"a promise": []}), Certificate({"a promise": ["fc1.weight"]})


def commit_result(
    folder: Path, run: Run, start: InitialState, outcome: TrainingResult, certificate: Certificate = HELD
) -> EntryStore:
    # An artificial run has odd facts, which only the raw store accepts.
    store = EntryStore(folder / "store")
    for point, state in outcome.snapshots.items():
        store.commit_snapshot(run.id, snapshot_name(point), {}, encode_snapshot(state, start.masks))
    store.commit(run.id, *encode_result(run, start, outcome, certificate, {"seconds": 0.5}))
    return store


@pytest.mark.parametrize("parent", [None, "0" * 32])
def test_a_training_result_is_read_back_bit_identical(folder: Path, parent: str | None) -> None:
    run, start, outcome = artificial_run(parent)
    store = commit_result(folder, run, start, outcome)
    entry = store.read(run.id)
    assert entry.weights is not None
    assert same_state(decode_state(entry.tensors | entry.weights, start), outcome.end)
    for point in (7, "gradient"):
        state = decode_state(store.read_snapshot(run.id, snapshot_name(point)).tensors, start)
        assert same_state(state, outcome.snapshots[point])
    curve = decode_curve(entry.tensors)
    np.testing.assert_array_equal(list(vars(curve).values()), list(vars(outcome.curve).values()))
    assert [type(v) for column in vars(curve).values() for v in column] == [int] * 2 + [float] * 6
    if parent is not None:
        maskables = {n: PrunableTensor(n, tuple(w.shape), "hidden") for n, w in start.weights.items()}
        masks = decode_masks(entry.tensors, maskables)
        assert all(torch.equal(masks[name], mask) for name, mask in start.masks.items())


def test_facts_describe_the_run(folder: Path) -> None:
    run, start, outcome = artificial_run()
    facts = commit_result(folder, run, start, outcome).facts(run.id)
    assert Run.from_data(facts) == run
    assert (facts["id"], facts["status"], facts["first_iteration"], facts["seconds"]) == (run.id, "finished", 5, 0.5)
    assert facts["weights"] == 1_480
    assert facts["kept"] == {"fc1.weight": 427, "fc2.weight": 67}  # every third of 1,280 and of 200
    assert facts["metrics"] == {"diverged_at": None, "final_test_accuracy": 1 / 3, "odd": None}
    assert facts["certificate"] == {"held": True, "checks": {"a promise": []}}


def test_only_kept_weights_and_one_bit_per_mask_are_stored(folder: Path) -> None:
    run, start, outcome = artificial_run()
    entry = commit_result(folder, run, start, outcome).read(run.id)
    assert entry.weights is not None
    assert {name: array.size for name, array in entry.weights.items()} == {
        "kept/fc1.weight": 427,
        "kept/fc2.weight": 67,
    }
    packed = {name: array for name, array in entry.tensors.items() if name.startswith("mask/")}
    assert {name: array.nbytes for name, array in packed.items()} == {"mask/fc1.weight": 160, "mask/fc2.weight": 25}
    dense = artificial_run(None)
    names = commit_result(folder, *dense).read(dense[0].id).tensors
    assert not any(name.startswith("mask/") for name in names)


def test_a_diverged_run_keeps_its_curve_and_no_weights(folder: Path) -> None:
    run, start, outcome = artificial_run()
    # Also with a broken certificate: NaN weights differ from frozen ones.
    store = commit_result(folder, run, start, replace(outcome, status="diverged", snapshots={}), BROKEN)
    entry = store.read(run.id)
    assert (entry.facts["status"], entry.weights, store.has_weights(run.id)) == ("diverged", {}, False)
    assert decode_curve(entry.tensors).iterations == [0, 4]


def test_a_run_with_a_broken_certificate_has_its_own_status(folder: Path) -> None:
    run, start, outcome = artificial_run()
    facts = commit_result(folder, run, start, outcome, BROKEN).facts(run.id)
    assert (facts["status"], facts["certificate"]["held"]) == ("certificate_failed", False)


@pytest.mark.parametrize("change", ["missing", "too few", "another type"])
def test_stored_values_that_do_not_fit_are_refused(change: str) -> None:
    _, start, outcome = artificial_run()
    tensors = encode_snapshot(outcome.end, start.masks)
    values = tensors.pop("kept/fc2.weight")
    if change != "missing":
        tensors["kept/fc2.weight"] = values[1:] if change == "too few" else values.astype(np.float64)
    with pytest.raises(ValueError, match=r"kept weight of fc2\.weight"):
        decode_state(tensors, start)


def test_snapshot_names_are_distinct() -> None:
    snapshots: list[Snapshot] = [0, 10, 100, "lowest_validation_loss", "gradient"]
    assert [snapshot_name(p) for p in snapshots] == [
        "iteration_0", "iteration_10", "iteration_100", "lowest_validation_loss", "gradient",
    ]  # fmt: skip


# ------------------------------------------------------------------- a replayed initial state is the one trained from


class Watched(Worker):
    """Worker that records the initial state of every run it trains."""

    def __init__(self, site: WorkerConfig) -> None:
        super().__init__(site)
        self.starts: dict[str, InitialState] = {}

    def _initial_state(self, task: Task) -> InitialState:
        self.starts[task.run.id] = super()._initial_state(task)
        return self.starts[task.run.id]


EVERY_ACTION = [{"mask1": mask1, "mask0": mask0} for mask1 in MASK1_ACTIONS for mask0 in MASK0_ACTIONS]
EVERY_ACTION_TWICE = [
    {"mask1": mask1, "mask0": mask0}
    for mask1, mask0 in itertools.islice(
        zip(itertools.cycle(MASK1_ACTIONS), itertools.cycle(MASK0_ACTIONS), strict=False),
        max(len(MASK1_ACTIONS), len(MASK0_ACTIONS)),
    )
]
"""Each action in one pair at least, for chains of two levels."""

EVERY_OTHER_SETTING: list[dict[str, Any]] = [
    *({"mask1": mask1, "rescaled": True} for mask1 in MASK1_ACTIONS),
    *({"rewind_to": 5, "mask0": mask0} for mask0 in MASK0_ACTIONS),
    {"rewind_to": 5, "w_init": 5, "w_final": 9, "mask0": "zero_if_shrunk"},
    {"rewind_to": "end", "learning_rate_rewinding": False},
    {"rewind_to": "end", "mask0": "freeze_final"},
    {"w_final": "lowest_validation_loss"},
    {"w_final": "lowest_validation_loss", "mask0": "freeze_final"},
    {"w_init": 3, "w_final": 9, "criterion": "movement"},
    {"criterion": "snip"},
    {"criterion": "grad", "w_final": 9, "mask0": "freeze_final"},
    {"criterion": "random", "scope": "global", "mask1": "signed_reshuffle"},
    {"criterion": "snip", "scope": "global", "schedule": "one_shot", "rewind_to": 5},
    {"schedule": "one_shot", "mask0": "zero_random", "mask1": "reshuffle"},
    {"schedule": "one_shot", "rewind_to": "end"},
    {"criterion": "large_init", "w_final": "start"},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("treatments", "levels"), [(EVERY_ACTION, 1), (EVERY_ACTION_TWICE, 2), (EVERY_OTHER_SETTING, 2)]
)
def test_replayed_initial_states_are_those_trained_from(
    folder: Path, treatments: list[dict[str, Any]], levels: int
) -> None:
    """From the store alone, without a cache; for every action, snapshot, scope and schedule."""
    named = [{"name": str(i), **treatment} for i, treatment in enumerate(treatments)]
    plan = small_plan(*named, levels=levels, epochs=0.45, evaluate_every=5)
    worker = Watched(WorkerConfig(folder / "store"))
    plan_run = train_plan(plan, folder / "store", worker=worker)
    assert {*plan_run.schedule.status.values()} == {"finished"}
    assert not plan_run.replayed
    for run_id in (run_id for run_id, children in plan.children.items() if not children):
        # The smallest cache: every ancestor is read and replayed.
        assert same_start(StateReplayer(worker.store, cache_size=2).parent_run(run_id).start, worker.starts[run_id])


@pytest.mark.slow
def test_a_long_chain_needs_no_deep_recursion(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(levels=12, rates={"hidden": 0.01, "output": 0.01}, epochs=0.05)
    plan_run = train_plan(plan, folder / "store")
    depth = 0
    real = Store.read

    def read(store: Store, run_id: str) -> Any:
        nonlocal depth
        depth = max(depth, len(inspect.stack(0)))
        return real(store, run_id)

    monkeypatch.setattr(Store, "read", read)
    lineage = StateReplayer(plan_run.schedule.store)
    lineage.parent_run(last_run(plan).parent or "")
    shallow, depth = depth, 0
    StateReplayer(plan_run.schedule.store).parent_run(list(plan.runs)[1])
    assert shallow == depth


def test_snapshots_are_read_back_as_the_engine_returned_them(folder: Path) -> None:
    read = {"w_init": 3, "w_final": "lowest_validation_loss"}
    plan = small_plan({"criterion": "snip", "mask0": "freeze_init", **read}, levels=2)
    given: dict[str, TrainingResult] = {}

    class Kept(Watched):
        def commit(self, begun: PreparedTask, outcome: TrainingResult, seconds: Any) -> TaskResult:
            given[begun.task.run.id] = outcome
            return super().commit(begun, outcome, seconds)

    worker = Kept(WorkerConfig(folder / "store"))
    train_plan(plan, folder / "store", worker=worker)
    for run_id, outcome in given.items():
        snapshots = StoredSnapshots(worker.store, plan.runs[run_id], worker.starts[run_id])
        assert same_state(snapshots["end"], outcome.end)
        for point, state in outcome.snapshots.items():
            assert point in snapshots
            if point != "gradient":
                assert same_state(snapshots[point], state)
                continue
            masks = worker.starts[run_id].masks
            for name, gradient in snapshots[point].weights.items():
                assert torch.equal(gradient[masks[name]], state.weights[name][masks[name]])
                assert not gradient[~masks[name]].any()


def test_dropped_tensors_are_reported_as_missing(folder: Path) -> None:
    plan = small_plan({"rewind_to": 5, "mask0": "freeze_final"}, levels=2)
    store = train_plan(plan, folder / "store").schedule.store
    dense, first, _ = plan.runs
    store.drop_snapshot(dense, "iteration_5")
    with pytest.raises(SnapshotMissing, match=f"run {dense} has no snapshot iteration_5 in the store") as missing:
        StateReplayer(store).parent_run(first)
    assert missing.value.key == f"{dense}-iteration_5"
    store.drop_weights(first)
    snapshots = StoredSnapshots(store, plan.runs[first], plan.network.initial_state(0))
    assert "end" not in snapshots
    with pytest.raises(SnapshotMissing, match=f"run {first} has no weights in the store"):
        snapshots["end"]


# ------------------------------------------------------------------------------------------------------------ tampering


def reseal(store: Store, run_id: str, change: Any) -> None:
    """Replace a run by a changed one with correct hashes and seal."""
    entry = store.read(run_id)
    facts, tensors, weights = dict(entry.facts), dict(entry.tensors), dict(entry.weights or {})
    change(facts, tensors, weights)
    moved = store.quarantine(run_id, "replaced by a test")
    assert moved is not None
    EntryStore(store.root).commit(run_id, facts, tensors, weights)


def one_kept_weight(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    weights["kept/fc1.weight"] = np.nextafter(weights["kept/fc1.weight"], np.float32(9))


def one_bias(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    tensors["other/fc1.bias"] = -tensors["other/fc1.bias"]


def other_mask(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    tensors["mask/fc1.weight"] = np.roll(tensors["mask/fc1.weight"], 1)


def no_mask(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    del tensors["mask/fc1.weight"]


def short_mask(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    tensors["mask/fc1.weight"] = tensors["mask/fc1.weight"][1:]


def other_facts(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    facts["seed"] = 1


@pytest.mark.slow
@pytest.mark.parametrize("change", [other_mask, no_mask, short_mask, other_facts])
def test_a_resealed_forgery_of_an_ancestor_is_detected(folder: Path, change: Any) -> None:
    plan = small_plan(levels=3)
    store = train_plan(plan, folder / "store").schedule.store
    _, first, _, third = plan.runs
    reseal(store, first, change)
    with pytest.raises(CorruptEntry) as damage:
        StateReplayer(store).parent_run(third)
    assert damage.value.key == first


@pytest.mark.parametrize(
    ("treatment", "change"),
    [
        ({"mask0": "freeze_final"}, one_kept_weight),
        ({"mask1": "rewind", "rewind_to": "end"}, one_kept_weight),
        ({"mask1": "rewind", "rewind_to": "end"}, one_bias),
    ],
)
def test_a_forgery_is_detected_at_the_first_start_that_depends_on_it(
    folder: Path, treatment: dict[str, Any], change: Any
) -> None:
    plan = small_plan(treatment, levels=3)
    store = train_plan(plan, folder / "store").schedule.store
    _, first, second, third = plan.runs
    reseal(store, first, change)
    with pytest.raises(CorruptEntry, match="not the one it was trained from") as damage:
        StateReplayer(store).parent_run(third)
    assert damage.value.key == second


def test_flipped_bits_of_an_ancestor_are_detected(folder: Path) -> None:
    plan = small_plan(levels=2)
    store = train_plan(plan, folder / "store").schedule.store
    _, first, second = plan.runs
    for path in (store.root / "runs" / first[:2] / first).iterdir():
        before = path.read_bytes()
        path.write_bytes(before[:-9] + bytes([before[-9] ^ 1]) + before[-8:])
        with pytest.raises(CorruptEntry) as damage:
            StateReplayer(store).parent_run(second)
        assert damage.value.key == first
        path.write_bytes(before)
    assert StateReplayer(store).parent_run(second)


def test_kept_values_that_do_not_fit_the_mask_are_damage(folder: Path) -> None:
    plan = small_plan(levels=1)
    store = train_plan(plan, folder / "store").schedule.store
    dense = next(iter(plan.runs))

    def cut(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
        weights["kept/fc1.weight"] = weights["kept/fc1.weight"][1:]

    reseal(store, dense, cut)
    with pytest.raises(CorruptEntry, match=r"fc1\.weight"):
        StateReplayer(store).parent_run(dense).snapshots["end"]


def test_runs_of_earlier_numerics_can_still_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(levels=1)
    store = train_plan(plan, folder / "store").schedule.store
    monkeypatch.setattr("supermask.study.run.NUMERICS_VERSION", 99)
    for run_id in plan.runs:
        assert Run.from_data(store.facts(run_id)).id == run_id
        assert StateReplayer(store).parent_run(run_id)
    assert not small_plan(levels=1).runs.keys() & plan.runs.keys()


# ----------------------------------------------------------------------------------------------- a user's own criterion


MODULES = itertools.count()


def own(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> tuple[str, Path]:
    """Write a module into the current directory; return the criterion's import path and the file."""
    path = folder / f"own_criterion_{next(MODULES)}.py"
    path.write_text(f"import torch\n\ndef score(layer, rng):\n    {body}\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return f"{path.stem}:score", path


def test_a_user_criterion_scores_like_a_builtin_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _ = own(folder, monkeypatch, "return layer.w_final.abs()")
    plan, twin = small_plan({"criterion": name}), small_plan({"criterion": "large_final"})
    worker = Watched(WorkerConfig(folder / "store"))
    train_plan(plan, folder / "store", worker=worker)
    train_plan(twin, folder / "store", worker=worker)
    mine, theirs = (worker.starts[last_run(p).id] for p in (plan, twin))
    assert same_start(mine, theirs)
    assert last_run(plan).id != last_run(twin).id


def test_the_run_id_depends_on_the_source_of_a_user_criterion(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, path = own(folder, monkeypatch, "return layer.w_final.abs()")
    before = small_plan({"criterion": name})
    assert small_plan({"criterion": name}).runs.keys() == before.runs.keys()
    with path.open("a") as file:
        file.write("# a remark\n")
    after = small_plan({"criterion": name})
    assert len(before.runs.keys() & after.runs.keys()) == 1  # the dense run


def test_a_user_criterion_that_changed_since_the_plan_is_not_called(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, path = own(folder, monkeypatch, "return layer.w_final.abs()")
    plan = small_plan({"criterion": name})
    path.write_text(path.read_text().replace("return", "return -"))
    with pytest.raises(UserError, match=f"{name}'.*was changed since the plan was made"):
        train_plan(plan, folder / "store")
    assert Store(folder / "store").run_ids() == {next(iter(plan.runs))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return layer.w_final * float('nan')", "a score of .* is NaN"),
        ("return layer.w_final.abs().sum()", "one score per weight"),
        ("return layer.w_final[:, :1]", "one score per weight"),
        ("return layer.w_final.tolist()", "gave list"),
        ("return None", "gave NoneType"),
        ("return layer.w_fnial", r"failed at line 4 of .*own_criterion_\d+\.py: AttributeError: .*w_fnial"),
        ("return torch.ones(2, 3) @ layer.w_final", r"failed at line 4 of .*own_criterion_\d+\.py: RuntimeError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("return layer.gradient.abs()", "AttributeError: 'NoneType'"),
    ],
)
def test_a_failing_user_criterion_is_a_user_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, body: str, says: str
) -> None:
    name, _ = own(folder, monkeypatch, body)
    plan = small_plan({"criterion": name}, {"criterion": "large_final"})
    with pytest.raises(UserError, match=says) as error:
        train_plan(plan, folder / "store")
    assert "level 1, seed 0" in str(error.value)


def test_a_user_criterion_cannot_change_the_initial_state(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vandal, _ = own(folder, monkeypatch, "layer.alive.fill_(True); layer.w_init.zero_(); return layer.w_final.abs_()")
    quiet, _ = own(folder, monkeypatch, "return layer.w_final.abs()")
    last = []
    for name in (vandal, quiet):
        worker = Watched(WorkerConfig(folder / "store"))
        plan = small_plan({"criterion": name, "rewind_to": "end", "mask0": "freeze_final"}, levels=2)
        assert {*train_plan(plan, folder / "store", worker=worker).schedule.status.values()} == {"finished"}
        last.append(worker.starts[last_run(plan).id])
    assert same_start(*last)


def test_a_stored_run_is_replayed_without_its_user_criterion(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, path = own(folder, monkeypatch, "return layer.w_final.abs()")
    plan = small_plan({"criterion": name})
    store = train_plan(plan, folder / "store").schedule.store
    path.unlink()
    parent, step = StateReplayer(store).parent_run(last_run(plan).id), last_run(plan).step
    assert step is not None
    with pytest.raises(KeyError, match=name):
        compute_masks(parent, step, step_streams(last_run(plan)))


def test_builtin_criteria_need_no_file() -> None:
    step = last_run(small_plan({"criterion": "movement"})).step
    assert step is not None
    assert load_step(step) is step and step.criterion == "movement"
