"""Prune rates by name and pattern, tensors that are never pruned, and the certificate's own reading of the rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from supermask.core.certificate import certify
from supermask.core.errors import UserError
from supermask.core.invariants import is_named
from supermask.core.masks import is_pruned, matches_pattern, prune_rate_for, ranked_groups
from supermask.core.pruning import ParentRun, PruneStep, prune_and_reset
from supermask.core.rng import child_streams
from supermask.core.types import LearningCurve, NetworkState, TrainingResult
from supermask.networks.registry import named_network
from supermask.study import study_from_dict
from supermask.study.plan import make_plan

KINDS = {"conv": 0.1, "hidden": 0.2, "output": 0.05}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("fc", {"fc.weight"}),
        ("fc.weight", {"fc.weight"}),
        ("stage1.*", {"stage1.0.conv1.weight", "stage1.0.conv2.weight"}),
        ("*.conv2", {"stage1.0.conv2.weight"}),
        ("stage?.0.conv1", {"stage1.0.conv1.weight"}),
        ("stage1", set()),
        ("*", {"fc.weight", "stage1.0.conv1.weight", "stage1.0.conv2.weight"}),
    ],
)
def test_patterns_name_tensors_or_layers(pattern: str, names: set[str]) -> None:
    tensors = ("fc.weight", "stage1.0.conv1.weight", "stage1.0.conv2.weight")
    assert {name for name in tensors if matches_pattern(name, pattern)} == names


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({}, 0.1),
        ({"stage1.*": 0.5}, 0.5),
        ({"stage1.*": 0.5, "stage1.0.*": 0.4}, 0.4),
        ({"stage1.*": 0.5, "stage1.0.conv1": 0.0}, 0.0),
        ({"*.conv1": 0.3, "stage1*": 0.7}, 0.3),
        ({"*.conv1": 0.3, "stage?*": 0.7}, 0.3),
        ({"conv1": 0.3}, 0.1),
    ],
)
def test_the_longest_match_gives_the_rate(rates: dict[str, float], expected: float) -> None:
    assert prune_rate_for("stage1.0.conv1.weight", "conv", KINDS | rates) == expected


TEXTS = ("*", "?", "a.*", "?.b", "[12].b", "1.[b]", "[!1].b", "[", "]", "a]", "*[b*", r"\*", "a.b", "A.b")


def test_matching_agrees_with_the_certificate() -> None:
    names = ("1.b.weight", "2.b.weight", "a.b", "a]", "[", "[12].b.weight", "1.[b].weight", r"\a", "weight", "a\nb.c")
    for pattern in TEXTS:
        for name in names:
            assert matches_pattern(name, pattern) == is_named(name, pattern), (name, pattern)


def test_a_layer_may_have_any_name() -> None:
    assert is_pruned("a.weight", KINDS | {"any": 0.0})
    assert not is_pruned("any.weight", KINDS | {"any": 0.0})
    assert is_pruned("any.weight", KINDS | {"any": 0.3})
    assert prune_rate_for("weight", "conv", KINDS | {"": 0.3}) == 0.3
    groups = ranked_groups({"a.weight": 10, "any.weight": 10}, {"a.weight": "hidden"}, "layer", KINDS | {"any": 0.0})
    assert {name: group.remaining(1) for name, group in groups.items()} == {"a.weight": 8, "any.weight": 10}


def test_groups_of_spared_tensors_have_rate_0() -> None:
    alive, kinds = {"a.weight": 100, "b.weight": 50, "c.weight": 10}, {"a.weight": "conv", "b.weight": "conv"}
    kinds |= {"c.weight": "output"}

    def remaining(scope: str, rates: Mapping[str, float], **rules: Any) -> dict[str, int]:
        return {n: group.remaining(1) for n, group in ranked_groups(alive, kinds, scope, rates, **rules).items()}

    assert remaining("layer", KINDS | {"b": 0.4}) == {"a.weight": 90, "b.weight": 30, "c.weight": 10}
    assert remaining("layer", KINDS, only=["a"]) == {"a.weight": 90, "b.weight": 50, "c.weight": 10}
    assert remaining("global", {"global": 0.5, "c": 0.0}) == {"all": 75, "c.weight": 10}
    assert remaining("global", {"global": 0.5}, exclude=["a"]) == {"all": 30, "a.weight": 100}
    assert not is_pruned("a.weight", KINDS, only=["a"], exclude=["a.*"])


RULES: dict[str, dict[str, Any]] = {
    "by kind": {},
    "by name": {"rates": {"fc": 0.5, "stage1.*": 0.0, "stage2.0.conv1": 0.4}},
    "only": {"only": ("stage1.*", "fc")},
    "exclude": {"exclude": ("conv", "*.conv1")},
    "only and exclude": {"only": ("stage*",), "exclude": ("stage3.*",)},
}


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("rules", RULES)
def test_the_certificate_reads_the_rules_by_itself(scope: Any, levels: int, rules: str) -> None:
    network = named_network("resnet20-2", (1, 8, 8), 4)
    dense = network.initial_state(0)
    end = {n: w * (1 + 0.1 * torch.arange(w.numel()).reshape(w.shape) / w.numel()) for n, w in dense.weights.items()}
    parent = ParentRun(dense, {"end": NetworkState(end, dense.unmasked)}, network.tensors)
    rule = dict(RULES[rules])
    rates = (KINDS if scope == "layer" else {"global": 0.2}) | rule.pop("rates", {})
    if scope == "global":
        rates = {name: rate for name, rate in rates.items() if name == "global" or rate == 0}
    step = PruneStep("large_final", "rewind", "zero", rates, scope, levels, **rule)
    start = prune_and_reset(parent, step, child_streams(0, "level", 1))
    result = TrainingResult("finished", start.state, {}, LearningCurve(), {})

    def broken(of: PruneStep) -> list[str]:
        checks = certify(network.tensors, start, result, parent, of, trained=network.trained_others).checks
        return [name for name, items in checks.items() if items]

    assert broken(step) == []
    spared = [n for n, m in start.masks.items() if bool(m.all())]
    if rules in ("only", "exclude", "only and exclude"):
        assert spared
        assert "kept_count" in broken(replace(step, only=(), exclude=()))
    assert "kept_count" in broken(replace(step, exclude=("stage2.*", "stage1.*")))
    assert PruneStep(**step.to_data()) == replace(step, rates=dict(step.rates))


def plan(**prune: Any) -> Any:
    return make_plan(
        study_from_dict(
            {"network": "resnet20-2", "seeds": 1, "treatments": [{"name": "base"}], "prune": {"levels": 2, **prune}}
        )
    )


def test_rules_are_part_of_the_id_only_if_given() -> None:
    steps = [
        next(run.step for run in plan(**prune).runs.values() if run.step)
        for prune in ({}, {"only": ["fc"]}, {"exclude": ["fc"]}, {"rates": {"fc": 0.3}}, {"rates": {"fc": 0}})
    ]
    assert steps[0] is not None
    assert "only" not in steps[0].to_data()
    assert "exclude" not in steps[0].to_data()
    assert len({str(step.to_data()) for step in steps if step}) == 5


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ({"only": ["fc2"]}, "prune.only: 'fc2' matches no prunable tensor of resnet20-2"),
        ({"exclude": ["bn*"]}, "prune.exclude: 'bn*' matches no prunable tensor"),
        (
            {"rates": {"hiden": 0.2}},
            "prune.rates: 'hiden' matches no prunable tensor of resnet20-2; did you mean",
        ),
        ({"rates": {"fc": 1.0}}, "prune.rates.fc: 1.0 is not a prune rate"),
        ({"exclude": ["fc", "stage[12].*"]}, "prune.exclude: 'stage[12].*' has '[' or ']': in a name or pattern"),
        ({"only": ["fc]"]}, "prune.only: 'fc]' has '[' or ']'"),
        ({"rates": {"stage[12].*": 0.3}}, "prune.rates: 'stage[12].*' has '[' or ']'"),
        (
            {"rates": {"fc": {"weight": 0.5}}},
            "prune.rates.fc has a map, not a number; a name with dots is one key: write "
            "'prune.rates={fc.weight: 0.5}'.",
        ),
        ({"rates": {"stage1": {"0": {"conv1": 0}, "1": 3}}}, "write 'prune.rates={stage1.0.conv1: 0}'."),
        ({"only": "fc"}, "prune.only: 'fc' is not a list of names"),
    ],
)
def test_refused_rules(prune: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        plan(**prune)
    assert message in str(refused.value)
