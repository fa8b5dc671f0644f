"""Checks before a plan: size limit, and warnings about settings without the expected effect."""

from __future__ import annotations

from typing import Any

import pytest

from supermask.core.errors import UserError
from supermask.core.types import PrunableTensor
from supermask.networks.network import NetworkFacts, UnmaskedTensor
from supermask.study import builtin_studies, load_study, plan, study_from_dict
from supermask.study.plan import make_plan
from supermask.study.plan_checks import MAX_RUNS, count_requested_runs, ineffective_settings, mostly_unpruned_networks

HUGE: dict[str, Any] = {
    "seeds": 10_000,
    "prune": {"levels": 1000, "rates": {"hidden": 0.001, "output": 0.001}},
    "treatments": [{"criterion": ["large_final", "random"]}],
}
"""20 million runs."""


def test_a_huge_study_is_refused_before_it_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_steps", None)
    monkeypatch.setattr(plan, "Run", None)
    with pytest.raises(UserError) as caught:
        make_plan(study_from_dict(HUGE, name="huge"))
    assert str(caught.value) == (
        "study 'huge' has up to 20,010,000 runs (2 treatments, 10,000 seeds, 1,000 levels); at most 200,000 are "
        "planned. Use fewer of them, or set SUPERMASK_MAX_RUNS=20010000, which takes about 40.0 GB of memory."
    )


def test_the_limit_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_from_dict({"treatments": [{}], "prune": {"levels": 3}, "seeds": 2})
    monkeypatch.setenv("SUPERMASK_MAX_RUNS", "7")
    with pytest.raises(UserError, match="has up to 8 runs"):
        make_plan(study)
    monkeypatch.setenv("SUPERMASK_MAX_RUNS", "8")
    assert len(make_plan(study).runs) == 8
    for value in ("many", "-1", "1e9", " 8"):
        monkeypatch.setenv("SUPERMASK_MAX_RUNS", value)
        with pytest.raises(UserError, match="not a whole number, such as 200000"):
            make_plan(study)


@pytest.mark.slow
@pytest.mark.parametrize("study", [s.name for s in builtin_studies()])
@pytest.mark.parametrize("scale", ["digits", "laptop", "paper"])
def test_the_count_is_an_upper_bound_of_the_runs(study: str, scale: str) -> None:
    loaded = load_study(study, [f"scale={scale}"])
    requested = count_requested_runs(loaded)
    assert len(make_plan(loaded).runs) <= requested <= MAX_RUNS


def test_each_network_has_dense_runs() -> None:
    networks = [{"name": name, "network": name} for name in ("fc-8", "fc-9", "fc-10")]
    study = study_from_dict({"treatments": networks, "prune": {"levels": 1}, "seeds": 2})
    assert count_requested_runs(study) == len(make_plan(study).runs) == 12


def find_ineffective(made: plan.Plan) -> list[str]:
    dense = next(iter(made.runs.values()))
    return ineffective_settings(made.study, made.network, dense.data_options.num_training(dense.spec))


def warnings(data: dict[str, Any]) -> list[str]:
    return find_ineffective(make_plan(study_from_dict({"treatments": [{}], "prune": {"levels": 3}, **data})))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"train": {"batch_size": 100_000}},
            "train.batch_size: 100,000 is more than the 1,237 training images of digits: images repeat within every",
        ),
        ({"learn": {"batch_size": 1_238}, "treatments": [{"supermask": {}}]}, "learn.batch_size: 1,238 is more than"),
        (
            {"train": {"epochs": 1}},
            "train.evaluate_every: 100 is more than the 21 iterations of the training: the validation loss is",
        ),
        (
            {"learn": {"epochs": 1}, "treatments": [{"supermask": {}}]},
            "learn.evaluate_every: 220 is more than the 5 iterations of the training: the validation loss is evaluated",
        ),
        (
            {"learn": {"momentum": 0.5, "optimizer": "adam"}, "treatments": [{"supermask": {}}]},
            "learn.momentum: 0.5 has no effect: every mask is learned with adam.",
        ),
        (
            {"train": {"lr_drops": [10, 60, 70]}},
            "train.lr_drops: 60, 70: not before the end of the training (55 epochs).",
        ),
        ({"train": {"warmup_epochs": 55}}, "train.warmup_epochs: 55 is not before the end of the training (55 epochs)"),
        (
            {"network": "fc-20", "prune": {"levels": 500, "rates": {"hidden": 0.2, "output": 0.2}}},
            "prune.levels: levels 29 to 500 prune no weight (scope: layer; prune rates: hidden 0.2, output 0.2; "
            "4 weights left): use at most 28 levels or higher rates.",
        ),
        (
            {"network": "fc-20", "treatments": [{"name": "a", "supermask": {}, "levels": 500}]},
            "treatment 'a': levels: levels 37 to 501 prune no weight (scope: layer; prune rates: hidden 0.2, output",
        ),
        (
            {"network": "fc-20", "prune": {"levels": 2, "scope": "global", "rates": {"global": 0.0001}}},
            "prune.levels: levels 1 to 2 prune no weight (scope: global; prune rates: global 0.0001; 1,480 weights "
            "left): use higher rates.",
        ),
        (
            {"network": "fc-20", "prune": {"levels": 1, "rates": {"hidden": 0.0001, "output": 0.0001}}},
            "prune.levels: level 1 prunes no weight (scope: layer;",
        ),
    ],
)
def test_settings_without_the_expected_effect_give_a_warning(data: dict[str, Any], message: str) -> None:
    texts = warnings(data)
    assert any(text.startswith(message) for text in texts), texts


EMPTIED: list[tuple[dict[str, Any], str]] = [
    (
        {"treatments": [{"name": "random"}], "prune": {"levels": 40, "rates": {"hidden": 0.6, "output": 0.6}}},
        "treatment 'random': level 7 of 40 would leave no weight in fc2.weight (prune rate 0.6); use at most 6 levels "
        "(prune.levels) or a lower rate (prune.rates: 'output').",
    ),
    (
        {"treatments": [{"name": "a", "levels": 100}], "prune": {"rates": {"hidden": 0.2, "fc2": 0.6}}},
        "treatment 'a': level 7 of 100 would leave no weight in fc2.weight (prune rate 0.6); use at most 6 levels "
        "(levels of this treatment) or a lower rate (prune.rates: 'fc2').",
    ),
    (
        {"treatments": [{"name": "a", "supermask": {}, "levels": 100}], "prune": {"rates": {"output": 0.6}}},
        "treatment 'a': level 9 of 101 would leave no weight in fc2.weight (prune rate 0.6); use at most 7 levels "
        "(levels of this treatment) or a lower rate (prune.rates: 'output').",
    ),
    (
        {
            "treatments": [{"name": "a", "supermask": {"start_from": "large_final", "start_level": 100}}],
            "prune": {"rates": {"output": 0.6}},
        },
        "treatment 'a': level 7 of 100 would leave no weight in fc2.weight (prune rate 0.6); use at most 6 levels "
        "(start_level) or a lower rate (prune.rates: 'output').",
    ),
    (
        {"treatments": [{"name": "a"}], "prune": {"rates": {"fc1.weight": 0.999999999}, "levels": 1}},
        "treatment 'a': level 1 of 1 would leave no weight in fc1.weight (prune rate 0.999999999); use a lower rate "
        "(prune.rates: 'fc1.weight').",
    ),
    (
        {"treatments": [{"name": "a"}], "prune": {"scope": "global", "rates": {"global": 0.98}, "levels": 9}},
        "treatment 'a': level 3 of 9 would leave no weight in the network (prune rate 0.98); use at most 2 levels "
        "(prune.levels) or a lower rate (prune.rates: 'global').",
    ),
]


@pytest.mark.parametrize(("data", "message"), EMPTIED, ids=str)
def test_a_layer_that_would_be_emptied_names_treatment_level_and_rate(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_plan(study_from_dict({"network": "fc-20", **data}))
    assert str(caught.value) == f"study 'study': {message}"


@pytest.mark.parametrize("treatment", [{}, {"supermask": {}}, {"supermask": {}, "levels": 2}], ids=str)
@pytest.mark.parametrize("prune", [{"rates": {"*": 0}}, {"only": ["fc1"], "exclude": ["fc1"]}], ids=str)
def test_a_network_without_pruned_tensors_is_not_emptied(prune: dict[str, Any], treatment: dict[str, Any]) -> None:
    """Under global ranking: the levels prune nothing, of which a warning says; only masks need a tensor."""
    data = {"network": "fc-20", "prune": {"scope": "global", "levels": 3, **prune}, "treatments": [treatment]}
    if "supermask" in treatment and "only" in prune:
        with pytest.raises(UserError, match="leave no tensor of fc-20 to mask"):
            warnings(data)
        return
    texts = [text for text in warnings(data) if "prune no weight" in text or "prunes no weight" in text]
    assert len(texts) == (0 if treatment == {"supermask": {}} else 1)


SPARED = "prune.only and prune.exclude keep fc1.weight from being pruned"


@pytest.mark.parametrize(
    ("prune", "reasons"),
    [
        (
            {"rates": {"fc1": 0.3}, "exclude": ["fc1"]},
            ["prune.only and prune.exclude keep fc1.weight from being pruned"],
        ),
        ({"rates": {"fc1": 0.3}, "only": ["fc2"]}, ["prune.only and prune.exclude keep fc1.weight from being pruned"]),
        (
            {"rates": {"fc1": 0.3}, "scope": "global"},
            ["with scope: global all tensors have one rate, prune.rates.global: 0.2"],
        ),
        (
            {"rates": {"fc1*": 0.3, "fc1.weight": 0.2}},
            ["of all names that match a tensor the longest counts, here 'fc1.weight'"],
        ),
        ({"rates": {"fc1": 0.0}, "scope": "global"}, []),
        ({"rates": {"f*": 0.3, "fc1": 0.2}, "exclude": ["fc2"]}, []),
    ],
)
def test_rates_that_no_tensor_is_pruned_at_give_a_warning(prune: dict[str, Any], reasons: list[str]) -> None:
    key = next(iter(prune["rates"]))
    expected = [f"prune.rates: {key!r}: 0.3 has no effect: {reason}." for reason in reasons]
    assert warnings({"prune": {"levels": 1, **prune}}) == expected


@pytest.mark.slow
def test_sensible_settings_give_no_warning() -> None:
    assert warnings({}) == []
    for study in builtin_studies():
        for scale in study.scales:
            assert find_ineffective(make_plan(load_study(study.name, [f"scale={scale}", "seeds=1"]))) == []


def test_a_network_that_is_mostly_never_pruned_gives_a_warning() -> None:
    kernels = [UnmaskedTensor(name, (20, 16), "float32", trained=True) for name in ("a.kernel", "b.kernel")]
    others = [
        UnmaskedTensor("frozen", (99, 99), "float32", trained=False),
        UnmaskedTensor("bias", (999,), "float32", trained=True),
    ]
    head = PrunableTensor("head.weight", (10, 40), "output", 40, 10)

    def texts(*unmasked: UnmaskedTensor) -> list[str]:
        return mostly_unpruned_networks({"nets:Net": NetworkFacts((1, 8, 8), 10, (head,), unmasked)})

    assert texts(*kernels, *others) == [
        "network 'nets:Net': 640 of its 1,040 weights (a.kernel, b.kernel) are trained but never pruned, and no "
        "density counts them: only weights of Linear, Conv, attention and recurrent layers are pruned."
    ]
    assert texts(kernels[0], *others) == []
