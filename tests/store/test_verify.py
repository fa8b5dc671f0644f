"""`verify`: valid stores, damage, and forged tensors."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import call
from helpers.forgery import NEWER, folder_of, forge, make_newer, not_held, verdicts
from helpers.small_studies import small_plan, train_plan
from helpers.stored_study import RUNS, TrainedStudy

from supermask.api import runs
from supermask.core.errors import UserError
from supermask.core.masks import unpack as unpack_mask
from supermask.core.types import InitialState
from supermask.store import Store
from supermask.store.files.entry import Entry, RunFacts, Tensors
from supermask.store.records import state_hash
from supermask.store.replay import StateReplayer
from supermask.store.verify import VerificationResult

# --- valid stores ---


def test_every_run_of_a_valid_store_holds_once_and_parents_first(pristine: TrainedStudy) -> None:
    found = list(runs.verify(pristine.store))
    assert {v.verdict for v in found} == {"held"}
    seen = [v.key for v in found]
    assert len(seen) == RUNS
    assert sorted(seen) == sorted(pristine.plan.runs)
    for run in pristine.plan.runs.values():
        assert run.parent is None or seen.index(run.parent) < seen.index(run.id)


def test_each_run_is_read_a_few_times_at_most(pristine: TrainedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = Store.read

    def counted(store: Store, run_id: str) -> Entry:
        reads.append(run_id)
        return read(store, run_id)

    monkeypatch.setattr(Store, "read", counted)
    assert len(list(runs.verify(pristine.store))) == RUNS
    assert max(map(reads.count, reads)) <= 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "treatment",
    [
        {"criterion": "snip", "mask1": "signed_constant"},
        {"criterion": "movement", "w_final": "lowest_validation_loss", "mask0": "freeze_final"},
        {"criterion": "magnitude_increase", "rewind_to": 4},
        {"rewind_to": "end", "learning_rate_rewinding": False},
        {"scope": "global", "schedule": "one_shot", "mask1": "reinit", "rescaled": True},
        {"criterion": "large_init_large_final", "mask1": "signed_reshuffle", "mask0": "zero_if_shrunk_everywhere"},
    ],
)
def test_other_treatments_and_their_snapshots_hold(tmp_path: Path, treatment: dict[str, str]) -> None:
    plan = small_plan(treatment, network="fc-8")
    train_plan(plan, tmp_path)
    assert {v.verdict for v in verdicts(tmp_path).values()} == {"held"}
    assert plan.runs.keys() <= verdicts(tmp_path).keys()


def test_a_diverged_run_holds_as_diverged(tmp_path: Path) -> None:
    train_plan(small_plan(network="fc-8", lr=1e30), tmp_path)
    (verdict,) = verdicts(tmp_path).values()
    assert verdict.verdict == "held"
    assert verdict.reason.startswith("diverged at iteration")


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["needed", "masks"])
def test_runs_with_dropped_weights_hold_partly(tmp_path: Path, keep: str) -> None:
    plan = small_plan({"criterion": "large_final"}, {"criterion": "snip"}, {"mask0": "freeze_final"}, network="fc-8")
    train_plan(plan, tmp_path, keep)  # type: ignore[arg-type]
    found = verdicts(tmp_path)
    assert {v.verdict for v in found.values()} <= {"held", "partly"}
    partly = [run_id for run_id in plan.runs if found[run_id].verdict == "partly"]
    assert partly
    assert all("dropped" in found[run_id].reason for run_id in partly)


def test_a_user_criterion_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_scores.py").write_text("def score(layer, rng):\n    return layer.w_final.abs()\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        train_plan(small_plan({"criterion": "own_scores:score"}, network="fc-8"), tmp_path / "store")
    monkeypatch.delitem(sys.modules, "own_scores", raising=False)
    (tmp_path / "own_scores.py").unlink()
    assert {v.verdict for v in verdicts(tmp_path / "store").values()} == {"held"}


# --- damage ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run.json", "tensors.safetensors", "weights.safetensors"])
def test_a_flipped_bit_is_damage_and_descendants_name_the_damaged_run(trained: TrainedStudy, name: str) -> None:
    run_id, child = trained.run_id(1), trained.run_id(2)
    path = folder_of(trained.store, run_id) / name
    whole = path.read_bytes()
    for at in (len(whole) // 3, len(whole) - 2):
        flipped = bytearray(whole)
        flipped[at] ^= 1
        path.write_bytes(bytes(flipped))
        found = not_held(trained.store)
        assert found.keys() == {run_id, child}
        assert found[run_id].verdict == found[child].verdict == "damaged"
        assert name in found[run_id].reason
        assert run_id in found[child].reason


def test_a_missing_file_and_a_misplaced_run_are_damage(trained: TrainedStudy) -> None:
    missing, other, misplaced = (trained.run_id(2), trained.run_id(2, "random"), trained.run_id(2, "random", seed=1))
    (folder_of(trained.store, missing) / "weights.safetensors").unlink()
    shutil.rmtree(folder_of(trained.store, misplaced))
    shutil.copytree(folder_of(trained.store, other), folder_of(trained.store, misplaced))
    found = not_held(trained.store)
    assert {key: v.verdict for key, v in found.items()} == {missing: "damaged", misplaced: "damaged"}
    assert "belongs to run" in found[misplaced].reason


def test_a_damaged_snapshot_is_named(tmp_path: Path) -> None:
    train_plan(small_plan({"w_final": "lowest_validation_loss"}, network="fc-8"), tmp_path)
    tensors = next((tmp_path / "points").rglob("tensors.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-1])
    found = not_held(tmp_path)
    assert found[tensors.parent.name].verdict == "damaged"


NOTE = "fc1.bias: unchanged in units whose weights moved (3), which chance can cause"


def note_certificate(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    facts["certificate"]["notes"] = {"biases_train": [NOTE]}


def test_notes_of_a_certificate_are_printed_and_are_no_failure(trained: TrainedStudy, tmp_path: Path) -> None:
    run_id = trained.run_id(2)
    forge(trained, run_id, note_certificate)
    assert {key: v.notes for key, v in verdicts(trained.store).items() if v.notes} == {
        run_id: (f"biases_train: {NOTE}",)
    }
    verified = call("verify", "--store", trained.store)
    assert verified.status == 0
    assert f"noted, not counted as a failure: {run_id} biases_train: {NOTE}" in verified.out
    assert call("pack", run_id, tmp_path / "ticket.safetensors", "--store", trained.store).status == 0
    inspected = call("inspect", tmp_path / "ticket.safetensors")
    assert inspected.status == 0
    assert "held         the run's certificate held when it ended: noted: 'biases_train'" in inspected.out


@pytest.mark.parametrize("notes", [[NOTE], {"biases_train": NOTE}, {"biases_train": [3]}])
def test_notes_of_another_form_are_damage(notes: object, trained: TrainedStudy) -> None:
    run_id = trained.run_id(2)
    forge(trained, run_id, lambda facts, tensors, weights: facts["certificate"].update(notes=notes))
    assert not_held(trained.store)[run_id].verdict == "damaged"


@pytest.mark.parametrize("level", [1, 2])
def test_a_run_of_a_newer_version_is_not_damage(level: int, trained: TrainedStudy) -> None:
    """Nor is its child, which cannot be replayed here."""
    make_newer(trained.store, trained.run_id(level))
    results = []
    with pytest.raises(UserError, match=f"{trained.run_id(level)} {NEWER}"):
        for result in runs.verify(trained.store):
            results.append(result)
    assert {result.verdict for result in results} == {"held"}
    assert {result.key for result in results} == trained.open_store().run_ids() - {
        trained.run_id(at) for at in range(level, 3)
    }


def test_a_second_result_of_a_newer_version_is_not_damage(trained: TrainedStudy) -> None:
    run_id = trained.run_id(2)
    folder = trained.store / "conflicts" / f"{run_id}-{'0' * 16}"
    shutil.copytree(folder_of(trained.store, run_id), folder)
    make_newer(trained.store, run_id, folder)
    results = []
    with pytest.raises(UserError, match=f"{run_id} {NEWER}"):
        for result in runs.verify(trained.store):
            results.append(result)
    assert {result.verdict for result in results} == {"held"}


# --- forgeries: every hash is right ---


def swapped(mask: np.ndarray) -> np.ndarray:
    """Swap one kept and one pruned weight of a packed mask."""
    bits = unpack_mask(mask, (64 * 8,)).copy()
    kept, pruned = np.flatnonzero(bits)[0], np.flatnonzero(~bits)[0]
    bits[kept], bits[pruned] = False, True
    return np.packbits(bits)


def another_mask(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    tensors["mask/fc1.weight"] = swapped(tensors["mask/fc1.weight"])


def test_another_mask_does_not_match_the_recorded_start(trained: TrainedStudy) -> None:
    run_id = trained.run_id(2, "random")
    forge(trained, run_id, another_mask)
    found = not_held(trained.store)
    assert found.keys() == {run_id}
    assert "not the one it was trained from" in found[run_id].reason


def test_another_mask_with_a_matching_start_is_not_the_criterions_mask(trained: TrainedStudy) -> None:
    run_id = trained.run_id(2, "random")
    forge(trained, run_id, another_mask)
    forge(
        trained,
        run_id,
        lambda facts, tensors, weights: facts.update(start_content=start_with_its_masks(trained, run_id)),
    )
    assert not_held(trained.store) == {
        run_id: VerificationResult(run_id, "failed", "not the criterion's mask: fc1.weight")
    }


def start_with_its_masks(trained: TrainedStudy, run_id: str) -> str:
    """Return the hash of a rewound, zeroed start with the run's present masks."""
    run = trained.plan.runs[run_id]
    assert run.parent is not None
    parent = StateReplayer(trained.open_store()).parent_run(run.parent)
    tensors = trained.open_store().read(run_id).tensors
    masks = {
        name: mask.new_tensor(unpack_mask(tensors[f"mask/{name}"], tuple(mask.shape)))
        for name, mask in parent.start.masks.items()
    }
    weights = {name: weight.where(masks[name], weight.new_zeros(())) for name, weight in parent.start.weights.items()}
    return state_hash(InitialState(weights, masks, parent.start.unmasked))


@pytest.mark.slow
def test_other_final_weights_do_not_match_the_childs_mask(trained: TrainedStudy) -> None:
    run_id, child = trained.run_id(1), trained.run_id(2)

    def shuffle(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
        weights["kept/fc1.weight"] = weights["kept/fc1.weight"][::-1].copy()

    forge(trained, run_id, shuffle, relink=False)
    reason = f"its parent is not the one it was pruned from: {run_id}"
    own = VerificationResult(run_id, "failed", "facts of layers do not match the tensors: fc1.weight")
    assert not_held(trained.store) == {run_id: own, child: VerificationResult(child, "failed", reason)}
    assert not_held(trained.store)[child].culprits == (run_id,)
    expected = VerificationResult(child, "failed", "not the criterion's mask: fc1.weight")
    # With a child that is forged to match:
    hashes = trained.open_store().tensor_hashes(run_id)
    forge(trained, child, lambda facts, tensors, weights: facts.update(parent_content=hashes))
    assert not_held(trained.store) == {run_id: own, child: expected}
    # Of a version that did not record its parent's content:
    forge(trained, child, lambda facts, tensors, weights: facts.pop("parent_content"))
    assert not_held(trained.store) == {run_id: own, child: expected}
    assert set(not_held(trained.store)[child].culprits) == {run_id, child}


@pytest.mark.parametrize(("key", "value"), [("early_stop_validation_loss", 0.001), ("early_stop_iteration", 4000)])
def test_better_numbers_do_not_match_the_curve(trained: TrainedStudy, key: str, value: float) -> None:
    run_id = trained.run_id(2)
    forge(trained, run_id, lambda facts, tensors, weights: facts["metrics"].update({key: value}))
    found = not_held(trained.store)
    assert found == {run_id: VerificationResult(run_id, "failed", f"facts do not match the tensors: {key}")}


def test_other_counts_do_not_match_the_masks(trained: TrainedStudy) -> None:
    run_id = trained.run_id(2)
    forge(trained, run_id, lambda facts, tensors, weights: facts["kept"].update({"fc1.weight": 1}))
    assert not_held(trained.store)[run_id].reason == "facts do not match the tensors: kept"


@pytest.mark.parametrize(("key", "value"), [("seed", 7), ("level", 9), ("network", "fc-9")])
def test_facts_of_another_run_are_damage(trained: TrainedStudy, key: str, value: int | str) -> None:
    run_id = trained.run_id(2)
    forge(trained, run_id, lambda facts, tensors, weights: facts.update({key: value}))
    found = not_held(trained.store)
    assert found[run_id].verdict == "damaged"
    assert "its facts are those of run" in found[run_id].reason


@pytest.mark.parametrize("key", ["metrics", "certificate", "kept", "recipe", "start_content"])
def test_incomplete_facts_are_damage(trained: TrainedStudy, key: str) -> None:
    run_id = trained.run_id(2)
    forge(trained, run_id, lambda facts, tensors, weights: facts.pop(key))
    found = not_held(trained.store)
    assert found[run_id].verdict == "damaged"
    assert key in found[run_id].reason


def test_tensors_of_another_shape_are_damage(trained: TrainedStudy) -> None:
    run_id = trained.run_id(2)
    forge(trained, run_id, lambda facts, tensors, weights: weights.update({"kept/fc1.weight": np.zeros(3, np.float32)}))
    assert not_held(trained.store)[run_id].verdict == "damaged"


def test_a_recorded_failure_stays_a_failure(trained: TrainedStudy) -> None:
    """The optimizer's state is available only when the run ends."""
    run_id = trained.run_id(2)
    check = {"optimizer_holds_nothing_frozen": ["fc1.weight: exp_avg"]}

    def fail(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
        facts["certificate"]["checks"].update(check)
        facts["certificate"]["held"] = False
        facts["status"] = "certificate_failed"

    forge(trained, run_id, fail)
    found = not_held(trained.store)
    assert found[run_id].verdict == "failed"
    assert found[run_id].reason == "optimizer_holds_nothing_frozen, when it ended: fc1.weight: exp_avg"


def test_pruned_biases_fail_the_certificate(trained: TrainedStudy) -> None:
    run_id = trained.run_id(2)
    held = {"other/fc1.bias": np.zeros(8, np.float32)}
    forge(trained, run_id, lambda facts, tensors, weights: tensors.update(held))
    assert not_held(trained.store)[run_id].reason == "biases_train: fc1.bias"
