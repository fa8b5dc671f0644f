"""The rules of claims in simulated studies: errors within bounds, right verdicts the more frequent the more seeds.

`benchmarks/decision_rules.py` has the rules for arrays of studies; here they are compared with the package's, study by
study, and a small version of its table is checked.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers.claims import row
from statsmodels.stats.multitest import multipletests

from supermask.analysis.claims import evaluate_claims
from supermask.analysis.stats import check_relation, compare
from supermask.core.text import Row
from supermask.store.tables import DENSE
from supermask.study import study_from_dict

STUDIES = 1_000


def load_benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "decision_rules.py"
    spec = importlib.util.spec_from_file_location("decision_rules", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


BENCHMARK: Any = load_benchmark()
SCENARIOS: dict[tuple[str, str], Any] = {(each.claim, each.name): each for each in BENCHMARK.SCENARIOS}


def rows_of(differences: Any) -> list[Row]:
    """Rows of b at 90% and of a at 90% + the differences (seed, level), at the levels of the benchmark."""
    rows: list[Row] = []
    for seed, levels in enumerate(differences):
        rows.append(row(DENSE, 0, seed, 90.0, 100.0))
        for level, (remaining, difference) in enumerate(zip(BENCHMARK.REMAINING, levels, strict=True), start=1):
            rows.append(row("a", level, seed, 90.0 + difference, remaining))
            rows.append(row("b", level, seed, 90.0, remaining))
    return rows


CLAUSES = {
    "above": {"above": "b", "band": [18, 4.9]},
    "matches": {"matches": "b", "margin": BENCHMARK.MARGIN, "band": [18, 4.9]},
    "at least, every level": {"at_least": "b", "margin": BENCHMARK.MARGIN, "band": [18, 4.9], "where": "every"},
}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", BENCHMARK.SCENARIOS, ids=lambda each: f"{each.claim}: {each.name}")
def test_the_package_s_verdicts_are_those_of_the_simulation(scenario: Any) -> None:
    differences = BENCHMARK.simulate(np.random.default_rng(3), scenario.truth, 20, 6)
    supported, contradicted = scenario.rule(differences)
    clause = {"treatment": "a", **CLAUSES[scenario.claim]}
    study = study_from_dict(
        {
            "dataset": "mnist",
            "seeds": 6,
            "prune": {"levels": len(BENCHMARK.REMAINING)},
            "treatments": [{"name": "a"}, {"name": "b", "criterion": "random"}],
            "claims": [{"id": "x", "statement": "y", "clauses": [clause]}],
        }
    )
    for index, one_study in enumerate(differences):
        (finding,) = evaluate_claims([(study, rows_of(one_study))])
        expected = {(True, False): "supported", (False, True): "contradicted", (False, False): "not supported"}
        assert finding.verdict == expected[bool(supported[index]), bool(contradicted[index])]


def test_holm_s_correction_of_arrays_is_that_of_statsmodels(monkeypatch: pytest.MonkeyPatch) -> None:
    # statsmodels collects garbage in every call: 0.4 s with the modules of all tests loaded.
    monkeypatch.setattr(gc, "collect", lambda: 0)
    ps = np.random.default_rng(5).uniform(size=(50, 10)) ** 3
    for line, adjusted in zip(ps, BENCHMARK.holm(ps), strict=True):
        np.testing.assert_allclose(adjusted, multipletests(line, method="holm")[1], rtol=1e-12)


@pytest.mark.parametrize("seeds", BENCHMARK.SEEDS)
def test_false_verdicts_are_at_most_five_percent(seeds: int) -> None:
    """Two-sided: 5% of either verdict without a difference. One-sided and TOST: 5% at the margin."""
    error = 3 * (0.05 * 0.95 / STUDIES) ** 0.5
    none = BENCHMARK.rates(SCENARIOS["above", "no difference"], BENCHMARK.above_on_the_band_mean, seeds, STUDIES)
    assert abs(sum(none) - 0.05) < error
    for claim, name in (
        ("matches", "-0.2 points (the margin)"),
        ("at least, every level", "-0.2 at one level of four"),
    ):
        scenario = SCENARIOS[claim, name]
        supported, _ = BENCHMARK.rates(scenario, scenario.rule, seeds, STUDIES)
        assert supported < 0.05 + error


@pytest.mark.slow
def test_a_margin_that_is_a_share_of_a_loss_keeps_the_level() -> None:
    """True difference = -25% of what the control truly loses, and both are estimated from the same seeds."""
    rng, found = np.random.default_rng(8), 0
    for _ in range(2 * STUDIES):
        reference = rng.normal(97, 0.3, 5)
        treatment = reference - 0.25 + rng.normal(0, 0.1, 5)
        control = reference - 1.0 + rng.normal(0, 0.4, 5)
        ours, theirs = dict(enumerate(treatment.tolist())), dict(enumerate(reference.tolist()))
        margin = {seed: 0.25 * (theirs[seed] - float(value)) for seed, value in enumerate(control)}
        values = {seed: ours[seed] - theirs[seed] for seed in ours}
        found += check_relation("at_least", compare(ours, theirs), values, margin).holds
    assert abs(found / (2 * STUDIES) - 0.05) < 3 * (0.05 * 0.95 / (2 * STUDIES)) ** 0.5


@pytest.mark.parametrize(
    "scenario",
    [scenario for scenario in BENCHMARK.SCENARIOS if scenario.right == "supported"],
    ids=lambda scenario: f"{scenario.claim}: {scenario.name}",
)
def test_the_chance_of_a_right_verdict_grows_with_the_seeds(scenario: Any) -> None:
    shares = [BENCHMARK.rates(scenario, scenario.rule, seeds, STUDIES)[0] for seeds in BENCHMARK.SEEDS]
    assert shares == sorted(shares) and shares[-1] > 0.99
    assert all(BENCHMARK.rates(scenario, scenario.rule, seeds, STUDIES)[1] < 0.01 for seeds in BENCHMARK.SEEDS)


def test_the_former_rule_was_the_worse_the_more_seeds_there_were() -> None:
    scenario = next(each for each in BENCHMARK.SCENARIOS if each.name.startswith("as measured"))
    former = [BENCHMARK.rates(scenario, scenario.former_rule, seeds, STUDIES)[0] for seeds in BENCHMARK.SEEDS]
    assert former == sorted(former, reverse=True) and former[-1] < 0.01


def test_the_documented_table_has_these_scenarios() -> None:
    text = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8")
    for scenario in BENCHMARK.SCENARIOS:
        assert text.count(f"| {scenario.name} | {scenario.claim} | {scenario.right} | now |") == 1
        assert text.count(f"| {scenario.name} | {scenario.claim} | {scenario.right} | before |") == 1
