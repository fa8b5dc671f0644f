"""The built-in studies: the paper's settings and treatments, names and scales."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from helpers.study_refusals import labels

from supermask.core.actions import MASK0_ACTIONS, MASK1_ACTIONS
from supermask.core.criteria import CRITERIA
from supermask.study.loading import builtin_studies, builtin_study_names, load_study, paper_studies, study_from_dict
from supermask.study.plan import make_plan

PAPER = {  # Zhou et al. 2019, Table S1: network, dataset, learning rate, epochs, rates
    "paper": ("fc-300-100", "mnist", 1.2e-3, 55, {"hidden": 0.2, "output": 0.1}),
    "paper-conv2": ("conv2", "cifar10", 2e-4, 27, {"conv": 0.1, "hidden": 0.2, "output": 0.1}),
    "paper-conv4": ("conv4", "cifar10", 3e-4, 34, {"conv": 0.1, "hidden": 0.2, "output": 0.1}),
    "paper-conv6": ("conv6", "cifar10", 3e-4, 40, {"conv": 0.15, "hidden": 0.2, "output": 0.1}),
}


@pytest.mark.parametrize("name", [study.name for study in paper_studies()])
@pytest.mark.parametrize("scale", PAPER)
def test_builtin_studies_have_the_papers_settings(name: str, scale: str) -> None:
    study = load_study(name, [f"scale={scale}"])
    network, dataset, lr, epochs, rates = PAPER[scale]
    assert (study.network, study.dataset, study.train.lr, study.train.epochs) == (network, dataset, lr, epochs)
    assert study.prune.rates.model_dump(include=set(rates)) == rates
    assert (study.train.optimizer, study.train.batch_size, study.train.evaluate_every) == ("adam", 60, 100)
    assert (study.train.weight_decay, study.train.lr_drops, study.train.warmup_epochs) == (0, (), 0)
    assert (study.prune.schedule, study.prune.scope, study.prune.levels) == ("iterative", "layer", 24)
    assert study.seeds == (0, 1, 2, 3, 4)
    if scale == "paper":
        assert load_study(name) == study, "the keys at the top are the paper's settings"


@pytest.mark.parametrize("name", ["mask-criteria", "mask-1-actions", "mask-0-actions"])
def test_conv2_scale_is_the_papers_recipe_with_fewer_levels_and_iterations(name: str) -> None:
    short, paper = (load_study(name, [f"scale={scale}"]) for scale in ("conv2", "paper-conv2"))
    assert (short.train.epochs, short.prune.levels, short.seeds) == (4, 4, paper.seeds)
    assert short.train.model_copy(update={"epochs": paper.train.epochs}) == paper.train
    for kind, rate in {"conv": 0.1, "hidden": 0.2, "output": 0.1}.items():
        # Each level prunes about as much as four of the paper's.
        assert 1 - getattr(short.prune.rates, kind) == pytest.approx((1 - rate) ** 4, abs=0.015)
    assert short.prune.model_copy(update={"levels": 24, "rates": paper.prune.rates}) == paper.prune


MASK1 = [action for action in MASK1_ACTIONS if action not in ("permute", "randomise_signs")]


@pytest.mark.parametrize(
    ("name", "field", "others", "values", "reference"),
    [
        ("mask-criteria", "criterion", ("mask1", "mask0"), list(CRITERIA)[:9], "large_final"),
        ("mask-1-actions", "mask1", ("criterion", "mask0"), MASK1, "rewind"),
        ("mask-0-actions", "mask0", ("criterion", "mask1"), list(MASK0_ACTIONS), "zero"),
    ],
)
def test_builtin_studies_compare_the_papers_treatments(
    name: str, field: str, others: tuple[str, ...], values: list[str], reference: str
) -> None:
    default = study_from_dict({"treatments": [{}]}).treatments[0]
    for scale in next(s.scales for s in builtin_studies() if s.name == name):
        study = load_study(name, [f"scale={scale}"])
        assert labels(study) == values == [getattr(t, field) for t in study.treatments]
        assert study.reference == reference
        assert all(getattr(t, other) == getattr(default, other) for t in study.treatments for other in others)


def test_builtin_study_names_and_scales() -> None:
    wanted = [
        "bimodal-initialization",
        "heuristic-supermasks",
        "learned-curve",
        "learned-supermasks",
        "mask-0-actions",
        "mask-1-actions",
    ]
    wanted += ["mask-1-rescaled", "mask-criteria", "mask-points", "mask-trajectory", "resnet20", "supermask-questions"]
    wanted += ["table-one", "trained-supermasks"]
    assert [s.name for s in builtin_studies()] == builtin_study_names() == wanted
    for study in builtin_studies():
        assert study.title
        papers = {"paper"} if study.name == "resnet20" else set(PAPER)
        assert {"digits", "laptop", *papers} <= set(study.scales)


@pytest.mark.parametrize("scale", ["digits", "laptop", *PAPER])
def test_points_of_the_trajectory_are_at_the_shares_that_their_names_say(scale: str) -> None:
    """To one percent of the training, because the paper's scales round their iterations as Table S1 does."""
    shares = {"start": 0.0, "10%": 0.1, "half": 0.5, "end": 1.0}
    plan = make_plan(load_study("mask-trajectory", [f"scale={scale}", "seeds=1"]))
    iterations = max(run.recipe.iterations for run in plan.runs.values())
    resolved = {"start": 0, "end": iterations}
    for treatment in plan.study.treatments:
        *first, last = re.split(" to |, ", treatment.label)[1:]
        named = {"w_init": first[0] if first else "start", "w_final": last}
        for key, name in named.items():
            point = getattr(treatment, key)
            assert abs(resolved.get(point, point) / iterations - shares[name]) < 0.01, (treatment.label, key)


@pytest.mark.slow
def test_studies_need_no_torch() -> None:
    code = "import sys; from supermask.study import load_study as load; load('mask-1-actions'); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
