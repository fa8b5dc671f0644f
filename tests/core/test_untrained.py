"""Heuristic supermasks: evaluation of masks on untrained weights."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.mask_studies import Done, digits, mask_plan
from helpers.small_studies import train_plan
from helpers.tiny import MASKABLES, RATES, dense, level_streams, train

from supermask.api import runs
from supermask.core.criteria import CRITERIA
from supermask.core.pruning import ParentRun, PruneStep, compute_masks
from supermask.core.types import InitialState
from supermask.store import Store
from supermask.store.rows import plan_rows
from supermask.store.tables import AUXILIARY, DENSE
from supermask.study import study_from_dict
from supermask.study.networks import run_network
from supermask.study.plan import make_plan

MASK1 = ("rewind", "signed_constant", "constant", "randomise_signs")
SCHEDULES = ("one_shot", "iterative")
ACTIONS_AND_SCHEDULES = list(itertools.product(MASK1, SCHEDULES))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Run three levels of large_final_same_sign on all kinds of weights, rescaled and not, and the trained ticket."""
    plan = mask_plan(
        *(
            {"name": treatment_name(m, s, r), "mask1": m, "schedule": s, "rescaled": r, **UNTRAINED}
            for m, s, r in CASES
        ),
        {"name": "ticket", "criterion": "large_final_same_sign"},
        levels=3,
        epochs=4,
    )
    store = tmp_path_factory.mktemp("untrained")
    train_plan(plan, store, engine="auto")
    return Done(plan, store)


CASES = list(itertools.product(MASK1, SCHEDULES, (False, True)))
UNTRAINED = {"criterion": "large_final_same_sign", "trained": False}


def treatment_name(mask1: str, schedule: str, rescaled: bool) -> str:
    return f"{mask1}, {schedule}" + (", rescaled" if rescaled else "")


def metrics(study: Done, mask1: str, schedule: str, rescaled: bool, level: int) -> dict[str, Any]:
    found: dict[str, Any] = study.facts(treatment_name(mask1, schedule, rescaled), level)["metrics"]
    return found


@pytest.mark.slow
def test_every_certificate_passes_and_verify_agrees(study: Done) -> None:
    assert {v.verdict for v in runs.verify(study.store)} == {"held"}
    assert len(Store(study.store).run_ids()) == len(study.plan.runs)


@pytest.mark.parametrize(("mask1", "schedule"), ACTIONS_AND_SCHEDULES)
def test_accuracy_equals_that_of_a_plain_module(study: Done, mask1: str, schedule: str) -> None:
    """A plain PyTorch module with mask * weights gives the same numbers on test and validation images."""
    run = study.run(treatment_name(mask1, schedule, False), 2)
    start = study.start(treatment_name(mask1, schedule, False), 2)
    module, data = run_network(run).build(), digits()[2]
    values = {n: start.masks[n] * start.weights[n] for n in start.masks} | start.unmasked
    module.load_state_dict(values)
    assert not any(bool(bias.any()) for bias in start.unmasked.values())
    found = metrics(study, mask1, schedule, False, 2)
    for which in ("test", "validation"):
        images, labels = (torch.from_numpy(getattr(data, f"{which}_{what}")) for what in ("images", "labels"))
        with torch.inference_mode():
            logits = module(images.float() / data.max_pixel)
        right = int((logits.argmax(1) == labels).sum()) / len(labels)
        loss = float(torch.nn.functional.cross_entropy(logits.double(), labels))
        for when in ("early_stop", "final"):
            assert found[f"{when}_{which}_accuracy"] == right
            assert found[f"{when}_{which}_loss"] == pytest.approx(loss, rel=1e-5)


def test_kept_weights_are_w_init(study: Done) -> None:
    """Kept weights are the initial ones, not those that the chain trained."""
    dense = study.plan.network.initial_state(0)
    for schedule in SCHEDULES:
        start = study.start(treatment_name("rewind", schedule, False), 3)
        for name, mask in start.masks.items():
            assert torch.equal(start.weights[name], dense.weights[name] * mask)


def test_iterative_masks_equal_those_of_the_ticket_at_the_same_level(study: Done) -> None:
    """Both are scored on the trained previous level of the ticket."""
    for level in (1, 2, 3):
        ticket, untrained = (study.start(t, level) for t in ("ticket", treatment_name("rewind", "iterative", False)))
        assert all(torch.equal(mask, untrained.masks[n]) for n, mask in ticket.masks.items())
    one_shot = study.start(treatment_name("rewind", "one_shot", False), 3)
    assert any(not torch.equal(mask, one_shot.masks[n]) for n, mask in ticket.masks.items())


@pytest.mark.parametrize(("mask1", "schedule"), ACTIONS_AND_SCHEDULES)
def test_rescaling_changes_no_accuracy(study: Done, mask1: str, schedule: str) -> None:
    """Biases are 0 and ReLU(a x) = a ReLU(x) for a > 0, so every logit is multiplied by the product of the layers'
    factors, and the largest logit stays the largest. The loss changes.

    With constant weights two logits may be equal except for rounding, which the factor changes in a few of 360 images.
    """
    tied = 3 / 360 if mask1.endswith("constant") else 0
    for level in (1, 2, 3):
        plain, rescaled = (metrics(study, mask1, schedule, r, level) for r in (False, True))
        for which in ("test", "validation"):
            assert abs(plain[f"final_{which}_accuracy"] - rescaled[f"final_{which}_accuracy"]) <= tied
            assert plain[f"final_{which}_loss"] != rescaled[f"final_{which}_loss"]


@pytest.mark.parametrize(("mask1", "schedule"), ACTIONS_AND_SCHEDULES)
def test_rescale_factor_at_every_level(study: Done, mask1: str, schedule: str) -> None:
    """The factor counts all weights of the layer, because the chain that gave the masks was not rescaled."""
    for level in (1, 2, 3):
        plain, rescaled = (study.start(treatment_name(mask1, schedule, r), level) for r in (False, True))
        for name, mask in plain.masks.items():
            factor = np.float32(mask.numel() / int(mask.sum()))
            assert factor > 1.3
            assert torch.equal(rescaled.masks[name], mask)
            np.testing.assert_allclose(rescaled.weights[name].numpy(), plain.weights[name].numpy() * factor, rtol=1e-6)


def test_untrained_run_stores_only_what_cannot_be_recomputed(study: Done) -> None:
    """It stores masks and one evaluation, but no weights and no training loss."""
    entry = Store(study.store).read(study.run(treatment_name("rewind", "one_shot", False), 2).id)
    assert not entry.weights
    assert entry.tensors["curve/iterations"].tolist() == [0]
    assert np.isnan(entry.tensors["curve/training_loss"]).all()
    found = entry.facts["metrics"]
    for column in ("validation_loss", "validation_accuracy"):
        assert found[f"initial_{column}"] == found[f"early_stop_{column}"] == found[f"final_{column}"]
    assert found["early_stop_iteration"] == 0 and entry.facts["first_iteration"] == 0


def test_rows_mark_untrained_runs(study: Done) -> None:
    """Runs that only provide masks belong to no treatment."""
    rows, _ = plan_rows(study.plan, Store(study.store))
    trained = {row["id"]: row["trained"] for row in rows}
    assert trained[study.run("ticket").id] is True
    assert trained[study.run(treatment_name("constant", "one_shot", True)).id] is False
    alone = make_plan(study_from_dict({**study.plan.study.as_data(), "treatments": [dict(UNTRAINED)], "reference": {}}))
    rows, _ = plan_rows(alone, Store(study.store))
    assert [row["treatment"] for row in rows if row["trained"]] == [DENSE, AUXILIARY, AUXILIARY]
    assert {row["status"] for row in rows} == {"finished"}


# --- one-shot and iterative pruning ---


@pytest.mark.parametrize("criterion", ["large_final", "small_final", "large_init", "movement", "magnitude_increase"])
def test_iterative_pruning_without_retraining_equals_one_shot(criterion: str) -> None:
    """Repeated pruning by the same scores keeps the same weights as one-shot pruning if no two scores tie."""
    start, result = dense(), train(dense(), 0)
    step = PruneStep(CRITERIA[criterion], "rewind", "zero", RATES)
    masks = start.masks
    for level in range(1, 6):
        parent = ParentRun(InitialState(start.weights, masks, start.unmasked), {"end": result.end}, MASKABLES)
        masks = compute_masks(parent, step, level_streams(level))
        whole = ParentRun(start, {"end": result.end}, MASKABLES)
        at_once = compute_masks(
            whole, PruneStep(step.criterion, "rewind", "zero", RATES, levels=level), level_streams(level)
        )
        assert all(torch.equal(masks[n], at_once[n]) for n in masks)


@pytest.mark.slow
def test_untrained_run_replays_a_chain_whose_weights_were_dropped(tmp_path: Path) -> None:
    """The runs that the criterion reads are replayed, and their weights are dropped again."""
    ticket = {"name": "t", "criterion": "movement"}
    train_plan(mask_plan(ticket, network="fc-8"), tmp_path, keep="masks")
    plan = mask_plan(ticket, {"name": "u", "criterion": "movement", "trained": False}, network="fc-8")
    plan_run = train_plan(plan, tmp_path, keep="masks")
    assert {v.verdict for v in runs.verify(tmp_path)} <= {"held", "partly"}
    level_1 = next(m.run_id for m in plan.treatment_runs if (m.treatment, m.level) == ("t", 1))
    assert level_1 in plan_run.replayed
    assert not Store(tmp_path).has_weights(level_1)
    fresh = tmp_path / "fresh"
    train_plan(plan, fresh)
    for run_id in plan.runs:
        assert Store(fresh).tensor_hashes(run_id)["tensors"] == Store(tmp_path).tensor_hashes(run_id)["tensors"]
