"""Heuristic supermasks: masks on weights that were never trained, measured as they start."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.mask_studies import Done, digits, mask_plan
from helpers.small_studies import carry_out
from helpers.tiny import MASKABLES, RATES, dense, level_streams, train

from supermask.api import runs
from supermask.core.criteria import CRITERIA
from supermask.core.pruning import ParentRun, PruneStep, compute_masks
from supermask.core.types import InitialState
from supermask.networks.sequential import build_module, initial_state
from supermask.store import Store
from supermask.store.replay import run_architecture
from supermask.store.rows import plan_rows
from supermask.store.tables import AUXILIARY, DENSE
from supermask.study import study_from_dict
from supermask.study.plan import make_plan

MASK1 = ("rewind", "signed_constant", "constant", "randomise_signs")
SCHEDULES = ("one_shot", "iterative")
EVERY = list(itertools.product(MASK1, SCHEDULES))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Three levels of large_final_same_sign, on every kind of weights, rescaled and not; and the ticket itself."""
    plan = mask_plan(
        *({"name": name_of(m, s, r), "mask1": m, "schedule": s, "rescaled": r, **UNTRAINED} for m, s, r in CASES),
        {"name": "ticket", "criterion": "large_final_same_sign"},
        levels=3,
        epochs=4,
    )
    store = tmp_path_factory.mktemp("untrained")
    carry_out(plan, store, engine="auto")
    return Done(plan, store)


CASES = list(itertools.product(MASK1, SCHEDULES, (False, True)))
UNTRAINED = {"criterion": "large_final_same_sign", "trained": False}


def name_of(mask1: str, schedule: str, rescaled: bool) -> str:
    return f"{mask1}, {schedule}" + (", rescaled" if rescaled else "")


def metrics(study: Done, mask1: str, schedule: str, rescaled: bool, level: int) -> dict[str, Any]:
    found: dict[str, Any] = study.facts(name_of(mask1, schedule, rescaled), level)["metrics"]
    return found


def test_every_certificate_holds_and_verify_agrees(study: Done) -> None:
    assert {v.verdict for v in runs.verify(study.store)} == {"held"}
    assert len(Store(study.store).run_ids()) == len(study.plan.runs)


@pytest.mark.parametrize(("mask1", "schedule"), EVERY)
def test_its_accuracy_is_that_of_a_plain_module(study: Done, mask1: str, schedule: str) -> None:
    """PyTorch's own, with mask times weights in it, on the test and the validation images."""
    run = study.run(name_of(mask1, schedule, False), 2)
    start = study.start(name_of(mask1, schedule, False), 2)
    module, data = build_module(run_architecture(run)), digits()[2]
    values = {n: start.masks[n] * start.weights[n] for n in start.masks} | start.unmasked
    module.load_state_dict(values)
    assert not any(bool(bias.any()) for bias in start.unmasked.values())
    found = metrics(study, mask1, schedule, False, 2)
    for which in ("test", "validation"):
        images, labels = (torch.from_numpy(getattr(data, f"{which}_{what}")) for what in ("images", "labels"))
        with torch.inference_mode():
            logits = module(images.float() / data.pixel_maximum)
        right = int((logits.argmax(1) == labels).sum()) / len(labels)
        loss = float(torch.nn.functional.cross_entropy(logits.double(), labels))
        for when in ("early_stop", "final"):
            assert found[f"{when}_{which}_accuracy"] == right
            assert found[f"{when}_{which}_loss"] == pytest.approx(loss, rel=1e-5)


def test_kept_weights_are_w_i(study: Done) -> None:
    """Not what the chain trained, and not what it was rewound to: the same."""
    dense = initial_state(study.plan.layers, 0)
    for schedule in SCHEDULES:
        start = study.start(name_of("rewind", schedule, False), 3)
        for name, mask in start.masks.items():
            assert torch.equal(start.weights[name], dense.weights[name] * mask)


def test_iterative_masks_are_those_of_the_ticket_at_the_same_level(study: Done) -> None:
    """Which is trained with them; and its level before is what they were scored on."""
    for level in (1, 2, 3):
        ticket, untrained = (study.start(t, level) for t in ("ticket", name_of("rewind", "iterative", False)))
        assert all(torch.equal(mask, untrained.masks[n]) for n, mask in ticket.masks.items())
    one_shot = study.start(name_of("rewind", "one_shot", False), 3)
    assert any(not torch.equal(mask, one_shot.masks[n]) for n, mask in ticket.masks.items())


@pytest.mark.parametrize(("mask1", "schedule"), EVERY)
def test_a_layers_factor_changes_no_accuracy(study: Done, mask1: str, schedule: str) -> None:
    """Biases are 0 and ReLU(a x) = a ReLU(x) for a > 0: every logit is multiplied by the product of the layers'
    factors, so the largest stays the largest. Their softmax, and so the loss, does change.

    On constants two logits may be equal but for rounding, which the factor changes: of 360 images a few.
    """
    tied = 3 / 360 if mask1.endswith("constant") else 0
    for level in (1, 2, 3):
        plain, rescaled = (metrics(study, mask1, schedule, r, level) for r in (False, True))
        for which in ("test", "validation"):
            assert abs(plain[f"final_{which}_accuracy"] - rescaled[f"final_{which}_accuracy"]) <= tied
            assert plain[f"final_{which}_loss"] != rescaled[f"final_{which}_loss"]


@pytest.mark.parametrize(("mask1", "schedule"), EVERY)
def test_the_factor_is_weights_in_the_layer_over_kept_at_every_level(study: Done, mask1: str, schedule: str) -> None:
    """Of all weights, not of those alive before: the chain whose masks these are was not rescaled."""
    for level in (1, 2, 3):
        plain, rescaled = (study.start(name_of(mask1, schedule, r), level) for r in (False, True))
        for name, mask in plain.masks.items():
            factor = np.float32(mask.numel() / int(mask.sum()))
            assert factor > 1.3
            assert torch.equal(rescaled.masks[name], mask)
            np.testing.assert_allclose(rescaled.weights[name].numpy(), plain.weights[name].numpy() * factor, rtol=1e-6)


def test_nothing_is_stored_that_can_be_made_again(study: Done) -> None:
    """Masks, the one measurement; no weights, and no training loss."""
    entry = Store(study.store).read(study.run(name_of("rewind", "one_shot", False), 2).id)
    assert not entry.weights
    assert entry.tensors["curve/iterations"].tolist() == [0]
    assert np.isnan(entry.tensors["curve/training_loss"]).all()
    found = entry.facts["metrics"]
    for column in ("validation_loss", "validation_accuracy"):
        assert found[f"initial_{column}"] == found[f"early_stop_{column}"] == found[f"final_{column}"]
    assert found["early_stop_iteration"] == 0 and entry.facts["first_iteration"] == 0


def test_rows_say_that_it_was_not_trained(study: Done) -> None:
    """And runs that are there for their masks alone belong to no treatment."""
    rows, _ = plan_rows(study.plan, Store(study.store))
    trained = {row["id"]: row["trained"] for row in rows}
    assert trained[study.run("ticket").id] is True
    assert trained[study.run(name_of("constant", "one_shot", True)).id] is False
    alone = make_plan(study_from_dict({**study.plan.study.as_data(), "treatments": [dict(UNTRAINED)], "reference": {}}))
    rows, _ = plan_rows(alone, Store(study.store))
    assert [row["treatment"] for row in rows if row["trained"]] == [DENSE, AUXILIARY, AUXILIARY]
    assert {row["status"] for row in rows} == {"finished"}


# --- one shot or level by level ---


@pytest.mark.parametrize("criterion", ["large_final", "small_final", "large_init", "movement", "magnitude_increase"])
def test_without_retraining_level_by_level_is_one_shot(criterion: str) -> None:
    """A chain of prunings by the same scores keeps what one pruning of them all keeps, where no two scores tie."""
    start, outcome = dense(), train(dense(), 0)
    step = PruneStep(CRITERIA[criterion], "rewind", "zero", RATES)
    masks = start.masks
    for level in range(1, 6):
        parent = ParentRun(InitialState(start.weights, masks, start.unmasked), {"end": outcome.end}, MASKABLES)
        masks = compute_masks(parent, step, level_streams(level))
        whole = ParentRun(start, {"end": outcome.end}, MASKABLES)
        at_once = compute_masks(
            whole, PruneStep(step.criterion, "rewind", "zero", RATES, levels=level), level_streams(level)
        )
        assert all(torch.equal(masks[n], at_once[n]) for n in masks)


def test_an_untrained_run_can_be_done_where_the_chains_weights_were_dropped(tmp_path: Path) -> None:
    """The chain's runs are then trained again for what the criterion reads, and dropped again."""
    ticket = {"name": "t", "criterion": "movement"}
    carry_out(mask_plan(ticket, network="fc-8"), tmp_path, keep="masks")
    plan = mask_plan(ticket, {"name": "u", "criterion": "movement", "trained": False}, network="fc-8")
    carried = carry_out(plan, tmp_path, keep="masks")
    assert {v.verdict for v in runs.verify(tmp_path)} <= {"held", "partly"}
    level_1 = next(m.run_id for m in plan.treatment_runs if (m.treatment, m.level) == ("t", 1))
    assert level_1 in carried.retraced
    assert not Store(tmp_path).has_weights(level_1)
    fresh = tmp_path / "fresh"
    carry_out(plan, fresh)
    for run_id in plan.runs:
        assert Store(fresh).tensor_hashes(run_id)["tensors"] == Store(tmp_path).tensor_hashes(run_id)["tensors"]
