"""Claims: verdicts against plain scipy and statsmodels, refused claims, and the paper's fifteen claims."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML
from scipy import stats as scipy_stats
from statsmodels.stats.weightstats import DescrStatsW

from supermask.analysis.claims import ClaimFinding, evaluate_claims
from supermask.analysis.claims.formats import format_csv, format_json, format_text
from supermask.analysis.claims.paper import paper_tasks
from supermask.core.errors import UserError
from supermask.core.text import Row, format_p
from supermask.store.tables import DENSE
from supermask.study import Study, builtin_studies, load_study, study_from_dict

SEEDS, LEVELS = 5, 4
NOISE = np.random.default_rng(5).normal(0.0, 0.1, (2, LEVELS + 1, SEEDS))
NOISE -= NOISE.mean(axis=-1, keepdims=True)
"""Centered noise, so that mean differences are exactly the requested ones."""


def study_with(*clauses: dict[str, Any], seeds: int = SEEDS, **claim: Any) -> Study:
    asked = {"id": "mine", "statement": "It is so.", "clauses": list(clauses), **claim}
    treatments = [{"name": "a"}, {"name": "b", "criterion": "random"}, {"name": "c", "criterion": "small_final"}]
    return study_from_dict(
        {
            "dataset": "mnist",
            "seeds": seeds,
            "prune": {"levels": LEVELS},
            "treatments": treatments,
            "claims": [asked],
        },
        name="own",
    )


def rows_of(differences: list[float], **changed: dict[tuple[str, int, int], Any]) -> list[Row]:
    """Rows of three treatments over LEVELS: b about 90% at each, a `differences` points above, c 4 below; dense 91%."""
    rows: list[Row] = []
    for seed in range(SEEDS):
        rows.append(row(DENSE, 0, seed, 91.0 + NOISE[1, 0, seed]))
        for level, difference in enumerate(differences, start=1):
            base = 90.0 + NOISE[1, level, seed]
            rows.append(row("b", level, seed, base))
            rows.append(row("a", level, seed, base + difference + NOISE[0, level, seed]))
            rows.append(row("c", level, seed, base - 4.0 + NOISE[0, level - 1, seed]))
    for each in rows:
        for column, values in changed.items():
            key = (str(each["treatment"]), int(each["level"] or 0), int(each["seed"] or 0))
            if key in values:
                each[column] = values[key]
    return rows


def row(treatment: str, level: int, seed: int, accuracy: float) -> Row:
    return {
        "id": f"{treatment}-{level}-{seed}",
        "treatment": treatment,
        "level": level,
        "seed": seed,
        "status": "finished",
        "density": 0.5**level,
        "early_stop_test_accuracy": accuracy / 100,
        "early_stop_validation_accuracy": accuracy / 100,
    }


def decided(clause: dict[str, Any], rows: list[Row]) -> ClaimFinding:
    (finding,) = evaluate_claims([(study_with(clause), rows)])
    return finding


@pytest.mark.parametrize(
    ("clause", "differences", "verdict", "outcome"),
    [
        ({"above": "b"}, [2, 2, 2, 2], "supported", "holds"),
        ({"above": "b"}, [2, 2, 0, 2], "supported", "holds"),
        ({"above": "b"}, [-2, -2, 0, -2], "contradicted", "opposite"),
        ({"above": "b"}, [0, 0, 0, 0], "not supported", "undecided"),
        ({"above": "b"}, [2, -2, 2, -2], "not supported", "undecided"),
        ({"above": "b", "margin": 3}, [2, 2, 2, 2], "contradicted", "opposite"),
        ({"above": "b", "margin": 1}, [2, 2, 2, 2], "supported", "holds"),
        ({"below": "b"}, [-2, -2, 2, -2], "supported", "holds"),
        ({"below": "b", "margin": 1}, [-2, -2, -2, -0.5], "supported", "holds"),
        ({"at_least": "b", "margin": 1}, [0, 2, 0, 2], "supported", "holds"),
        ({"at_least": "b", "margin": 1}, [-1, -1, -1, -1], "not supported", "undecided"),
        ({"at_least": "b", "margin": 1}, [0, -9, 0, 0], "contradicted", "opposite"),
        ({"at_most": "b", "margin": 1}, [0, -3, 0, 0], "supported", "holds"),
        ({"at_most": "b", "margin": 1}, [3, 3, 0, 0], "contradicted", "opposite"),
        ({"matches": "b", "margin": 1}, [0, 1, 0, 0], "supported", "holds"),
        ({"matches": "b", "margin": 1}, [1, 1, 1, 1], "not supported", "undecided"),
        ({"matches": "b", "margin": 1}, [-3, -3, -3, -3], "contradicted", "opposite"),
        # c loses 4 points against b.
        ({"at_least": "b", "share": 25, "control": "c"}, [-0.5, -0.5, -0.5, -0.5], "supported", "holds"),
        ({"at_least": "b", "share": 10, "control": "c"}, [-0.5, -0.5, -0.5, -0.5], "contradicted", "opposite"),
        ({"matches": "b", "share": 25, "control": "c"}, [0, 0, 0.5, 0.5], "supported", "holds"),
        ({"matches": "b", "share": 25, "control": "c"}, [3, 3, 3, 3], "contradicted", "opposite"),
        ({"above": "b", "share": 25, "control": "c"}, [2, 2, 2, 2], "supported", "holds"),
        ({"below": "b", "share": 25, "control": "c"}, [-2, -2, -2, -2], "supported", "holds"),
        ({"at_least": "dense", "margin": 3}, [2, 2, 2, 2], "supported", "holds"),
        ({"above": "chance", "margin": 70}, [0, 0, 0, 0], "supported", "holds"),
        ({"at_most": "chance", "margin": 5}, [0, 0, 0, 0], "contradicted", "opposite"),
        ({"above": "b", "band": [30, 10]}, [-9, 2, 2, -9], "supported", "holds"),
        ({"above": "b", "remaining": [25.4, 24.6]}, [-9, 2, -9, -9], "supported", "holds"),
        ({"above": "b", "levels": [2, 3]}, [-9, 2, 2, -9], "supported", "holds"),
        ({"above": "b", "at": "best"}, [0, 0, 2, 0], "supported", "holds"),
    ],
)
def test_one_test_of_the_band_mean_decides(
    clause: dict[str, Any], differences: list[float], verdict: str, outcome: str
) -> None:
    finding = decided({"treatment": "a", **clause}, rows_of(differences))
    effect = finding.clauses[0].effect
    assert effect is not None and effect.outcome == outcome
    assert finding.verdict == finding.clauses[0].verdict == verdict
    assert finding.sentence == finding.clauses[0].sentence


@pytest.mark.parametrize(
    ("clause", "differences", "verdict", "outcomes"),
    [
        ({"above": "b", "where": "every"}, [2, 2, 2, 2], "supported", "hhhh"),
        ({"above": "b", "where": "every"}, [2, 2, 0, 2], "not supported", "hhuh"),
        ({"above": "b", "where": "every"}, [2, -2, 0, 2], "contradicted", "houh"),
        ({"at_least": "b", "margin": 1, "where": "every"}, [0, -3, 0, 0], "contradicted", "hohh"),
        ({"matches": "b", "margin": 1, "where": "every"}, [0, -3, 3, 0], "contradicted", "hooh"),
        ({"matches": "b", "share": 25, "control": "c", "where": "every"}, [0, 0, 0.5, 0.5], "supported", "hhhh"),
        ({"above": "b", "where": "some"}, [0, 0, 2, 0], "supported", "uuhu"),
        # A reversal elsewhere does not refute "some": otherwise more seeds would make the right verdict rarer.
        ({"above": "b", "where": "some"}, [0, -2, 2, 0], "supported", "uohu"),
        ({"above": "b", "where": "some"}, [0, -2, 0, 0], "not supported", "uouu"),
        ({"above": "b", "where": "some"}, [-2, -2, -2, -2], "contradicted", "oooo"),
        ({"above": "b", "band": [3, 1], "where": "every"}, [2, 2, 2, 2], "not enough data", ""),
    ],
)
def test_levels_decide_where_the_claim_is_about_levels(
    clause: dict[str, Any], differences: list[float], verdict: str, outcomes: str
) -> None:
    finding = decided({"treatment": "a", **clause}, rows_of(differences))
    assert "".join(level.outcome[0] for level in finding.clauses[0].levels) == outcomes
    assert finding.verdict == verdict


def test_every_level_is_tested_without_correction_and_some_level_with_it() -> None:
    """Intersection-union: a level of p 0.03 holds where all have to, and does not where one of four has to."""
    rows = rows_of([2, 2, 2, 0.5])
    noise = np.array([1.0, -1.0, 0.5, -0.5, 0.0])
    for each in rows:
        if each["id"] in {f"a-4-{seed}" for seed in range(SEEDS)}:
            base = next(r for r in rows if r["id"] == str(each["id"]).replace("a", "b"))
            each["early_stop_test_accuracy"] = float(base["early_stop_test_accuracy"] or 0) + 0.01 * (
                1.0 + 0.9 * noise[int(each["seed"] or 0)]
            )
    every = decided({"treatment": "a", "above": "b", "where": "every"}, rows).clauses[0]
    some = decided({"treatment": "a", "above": "b", "where": "some", "levels": [4, 4]}, rows).clauses[0]
    p = every.levels[3].p
    assert p is not None and 0.0125 < p < 0.05
    assert every.verdict == "supported" and "weakest at 6.2%: +1.00" in every.sentence
    assert some.levels[0].p_holm == pytest.approx(p)  # one level: nothing to correct
    fourth = decided({"treatment": "a", "above": "b", "where": "some"}, rows).clauses[0].levels[3]
    assert fourth.p_holm == pytest.approx(p)  # the largest p of Holm's four is not multiplied


def accuracies(rows: list[Row], name: str, scale: float = 100.0) -> np.ndarray[Any, Any]:
    """Accuracies of a treatment, (level, seed)."""
    by_id = {r["id"]: scale * float(r["early_stop_test_accuracy"] or 0) for r in rows}
    return np.array([[by_id[f"{name}-{level}-{s}"] for s in range(SEEDS)] for level in range(1, LEVELS + 1)])


def test_the_band_mean_agrees_with_scipy_and_statsmodels() -> None:
    rows = rows_of([0.3, 0.1, -0.2, 0.05])
    ours, theirs, control = (accuracies(rows, name).mean(axis=0) for name in "abc")
    apart, lost = ours - theirs, theirs - control

    def effect(**clause: Any) -> Any:
        return decided({"treatment": "a", **clause}, rows).clauses[0].effect

    above = effect(above="b")
    test = scipy_stats.ttest_rel(ours, theirs)
    interval = test.confidence_interval(0.95)
    assert (above.n, above.test) == (SEEDS, "paired t")
    assert above.p == above.p_opposite == pytest.approx(test.pvalue, rel=1e-9)
    assert above.difference == pytest.approx(apart.mean(), rel=1e-9)
    assert above.interval95 == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert above.interval95 == pytest.approx(DescrStatsW(apart).tconfint_mean(0.05), rel=1e-9)
    assert above.mean == pytest.approx(ours.mean()) and above.reference_mean == pytest.approx(theirs.mean())
    logs = np.log((100 - accuracies(rows, "a")) / (100 - accuracies(rows, "b"))).mean(axis=0)
    assert above.error_ratio == pytest.approx(math.exp(logs.mean()), rel=1e-12)
    assert above.error_ratio_interval95 == pytest.approx(np.exp(DescrStatsW(logs).tconfint_mean(0.05)), rel=1e-9)
    least = effect(at_least="b", margin=0.4)
    assert least.p == pytest.approx(scipy_stats.ttest_1samp(apart, -0.4, alternative="greater").pvalue, rel=1e-9)
    assert least.p_opposite == pytest.approx(1 - least.p, rel=1e-9)
    equal = effect(matches="b", margin=0.4)
    bounds = DescrStatsW(apart).ttost_mean(-0.4, 0.4)
    assert equal.p == pytest.approx(bounds[0], rel=1e-9)
    # A share of what the control loses is part of the tested contrast.
    share = effect(at_least="b", share=25, control="c")
    contrast = apart + 0.25 * lost
    assert share.p == pytest.approx(scipy_stats.ttest_1samp(contrast, 0, alternative="greater").pvalue, rel=1e-9)
    assert share.margin == pytest.approx(0.25 * lost.mean(), rel=1e-9)
    both = effect(matches="b", share=25, control="c")
    low = scipy_stats.ttest_1samp(contrast, 0, alternative="greater").pvalue
    high = scipy_stats.ttest_1samp(apart - 0.25 * lost, 0, alternative="less").pvalue
    assert both.p == pytest.approx(max(low, high), rel=1e-9)
    chance = effect(above="chance", margin=79.9)
    assert chance.p == pytest.approx(scipy_stats.ttest_1samp(ours, 89.9).pvalue, rel=1e-9)
    assert chance.test == "one-sample t"


def test_levels_are_described_as_scipy_has_them() -> None:
    rows = rows_of([0.3, 0.1, -0.2, 0.05])
    levels = decided({"treatment": "a", "above": "b"}, rows).clauses[0].levels
    for i, (a, b) in enumerate(zip(accuracies(rows, "a"), accuracies(rows, "b"), strict=True)):
        test = scipy_stats.ttest_rel(a, b)
        interval = test.confidence_interval(0.95)
        assert levels[i].p == pytest.approx(test.pvalue, rel=1e-10)
        assert levels[i].difference == pytest.approx((a - b).mean(), rel=1e-10)
        assert levels[i].interval95 == pytest.approx((interval.low, interval.high), rel=1e-9)
        assert levels[i].remaining == pytest.approx(100 * 0.5 ** (i + 1))
    ps = sorted(level.p or 0.0 for level in levels)
    holm = np.maximum.accumulate([min(1.0, (4 - k) * p) for k, p in enumerate(ps)])
    assert sorted(level.p_holm or 0.0 for level in levels) == pytest.approx(list(holm))


def test_the_dense_network_is_measured_as_the_treatment_is() -> None:
    rows = rows_of([0.0] * LEVELS)
    for each in rows:
        accuracy = float(each["early_stop_test_accuracy"] or 0)
        lost = 0.05 if each["treatment"] == DENSE else 0.01
        each |= {"final_test_accuracy": accuracy - lost, "thresholded_test_accuracy": None}
        if each["treatment"] == "a":
            each["thresholded_test_accuracy"] = accuracy
    for measure, difference in [
        ("early_stop_test_accuracy", -1.0),
        ("final_test_accuracy", 3.0),
        ("thresholded_test_accuracy", -1.0),  # the dense network has none
    ]:
        clause = {"treatment": "a", "above": "dense", "measure": measure}
        for level in decided(clause, rows).clauses[0].levels:
            assert level.difference == pytest.approx(difference)


def test_only_seeds_that_both_sides_have_at_every_level_count() -> None:
    lost = {("b", 2, 0): "diverged", ("b", 3, 0): "ancestor_diverged"}
    rows = rows_of([2] * LEVELS, status=lost)
    finding = decided({"treatment": "a", "above": "b"}, rows)
    effect = finding.clauses[0].effect
    assert effect is not None and (effect.n, effect.p) == (4, None)
    assert finding.verdict == "not enough data"
    assert ", n = 4 pairs; error rate x 0.80 [" in finding.sentence
    assert "; fewer than 5 seeds on a side; missing: b: 1 diverged (level 2 seed 0); " in finding.sentence
    assert finding.sentence.endswith("A verdict takes 5 seeds on both sides: run it with more seeds, such as seeds=5.")
    # The other levels have all five.
    assert [level.n for level in finding.clauses[0].levels] == [5, 4, 4, 5]
    whole = decided({"treatment": "a", "above": "b", "levels": [4, 4]}, rows)
    assert whole.verdict == "supported"


def test_no_verdict_from_fewer_than_five_seeds() -> None:
    rows = [each for each in rows_of([2] * LEVELS) if each["seed"] != 4]
    for where in ("mean", "every", "some"):
        finding = decided({"treatment": "a", "above": "b", "where": where}, rows)
        assert finding.verdict == "not enough data"
        assert {level.outcome for level in finding.clauses[0].levels} == {"untested"}
    effect = finding.clauses[0].effect
    assert effect is not None and effect.difference == pytest.approx(2.0, abs=0.2) and effect.interval95 is not None


def test_the_weakest_part_is_the_one_of_largest_p() -> None:
    strong = {"treatment": "a", "above": "b", "levels": [1, 1]}
    weak = {"treatment": "a", "above": "b", "levels": [3, 3]}
    (finding,) = evaluate_claims([(study_with(strong, weak), rows_of([9.0, 9.0, 0.3, 0.3]))])
    assert finding.sentence == f"All 2 parts are supported. The weakest: {finding.clauses[1].sentence}"


@pytest.mark.parametrize(
    ("relation", "difference", "side"), [("at_least", -2, "less"), ("at_most", 2, "greater"), ("matches", 2, "greater")]
)
def test_contradicted_clauses_show_the_p_of_the_opposite(relation: str, difference: float, side: str) -> None:
    rows = rows_of([difference] * LEVELS)
    finding = decided({"treatment": "a", relation: "b", "margin": 1.9}, rows)
    effect = finding.clauses[0].effect
    apart = (accuracies(rows, "a") - accuracies(rows, "b")).mean(axis=0)
    reverse = scipy_stats.ttest_1samp(apart, math.copysign(1.9, difference), alternative=side).pvalue
    assert effect is not None and effect.p_opposite == pytest.approx(reverse, rel=1e-9)
    assert finding.verdict == "contradicted"
    assert f"no, the opposite; {difference:+.2f} [" in finding.sentence and format_p(reverse) in finding.sentence


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0004, "p < 0.001"), (0.021, "p = 0.021"), (0.0496, "p = 0.049"), (0.05, "p = 0.05"), (0.056, "p = 0.056")],
)
def test_a_significant_p_is_not_rounded_up_to_005(p: float, text: str) -> None:
    assert format_p(p) == text


def test_seeds_needed_have_the_stated_power_for_the_difference_found() -> None:
    rows = rows_of([0.02, 0.02, 0.02, 0.02])
    clause = decided({"treatment": "a", "above": "b"}, rows).clauses[0]
    assert clause.verdict == "not supported"
    apart = (accuracies(rows, "a") - accuracies(rows, "b")).mean(axis=0)

    def power(n: int, difference: float) -> float:
        edge = scipy_stats.t.ppf(0.975, n - 1)
        # The other tail is negligible.
        return float(1 - scipy_stats.nct.cdf(edge, n - 1, abs(difference) / apart.std(ddof=1) * math.sqrt(n)))

    needed = clause.seeds_needed
    assert needed is not None and power(needed, apart.mean()) >= 0.8 > power(needed - 1, apart.mean())
    assert f"to see the difference found takes {needed:,} seeds" in clause.sentence
    (finding,) = evaluate_claims([(study_with({"treatment": "a", "above": "b"}, detect=0.1), rows)])
    needed = finding.clauses[0].seeds_needed
    assert needed is not None and power(needed, 0.1) >= 0.8 > power(needed - 1, 0.1)
    assert f"to see 0.1 points takes {needed:,} seeds" in finding.sentence


def test_missing_runs_are_named_with_the_command_that_trains_them() -> None:
    status = {("a", 2, seed): "to_do" for seed in range(3)} | {("b", 1, 4): "diverged"}
    finding = decided({"treatment": "a", "above": "b"}, rows_of([2, 2, 2, 2], status=status))
    (clause,) = finding.clauses
    assert finding.verdict == "not enough data"
    assert clause.missing == ("a: 3 to do", "b: 1 diverged (level 1 seed 4)")
    assert "missing: b: 1 diverged (level 1 seed 4)" in finding.sentence
    assert finding.sentence.endswith("`supermask run own`, with the same settings, trains what is missing.")


@pytest.mark.parametrize(
    ("rise", "verdict", "text"),
    [
        (0.0009, "supported", ""),
        (
            0.0011,
            "not enough data",
            "a has not converged: its validation accuracy still rises by 0.11 points per doubling",
        ),
        (None, "not enough data", "a: whether its masks have converged is not known"),
    ],
)
def test_a_learned_mask_that_still_improves_has_no_verdict(rise: float | None, verdict: str, text: str) -> None:
    rows = rows_of([2] * LEVELS)
    for each in rows:
        if each["treatment"] == "a":
            each |= {"supermask": "bernoulli", "validation_rise": rise}
    finding = decided({"treatment": "a", "above": "b"}, rows)
    assert finding.verdict == verdict
    assert text in finding.sentence


def test_iterations_are_compared_and_censoring_is_said() -> None:
    rows = rows_of([0] * LEVELS)
    for each in rows:
        late = 1000 if (each["treatment"], each["seed"]) == ("a", 0) else 600 + 10 * int(each["seed"] or 0)
        each |= {"iterations": 1000, "early_stop_iteration": late - 300 * (each["treatment"] == "b")}
    clause = {"treatment": "a", "above": "b", "measure": "early_stop_iteration"}
    finding = decided(clause, rows).clauses[0]
    ours, theirs = np.array([1000, 610, 620, 630, 640]), np.array([300, 310, 320, 330, 340])
    assert finding.effect is not None and finding.effect.error_ratio is None
    assert finding.effect.difference == pytest.approx((ours - theirs).mean())
    assert finding.effect.p == pytest.approx(scipy_stats.ttest_rel(ours, theirs).pvalue, rel=1e-9)
    assert finding.censored == (4, 20)
    assert "+380 [" in finding.sentence and "] iterations, mean over 4 levels" in finding.sentence
    assert "censored: in 4 of 20 runs of a the loss was lowest at the last iteration" in finding.sentence


def test_a_demonstration_has_effects_and_no_verdict() -> None:
    data = study_with({"treatment": "a", "above": "b"}, {"treatment": "a", "above": "b", "where": "every"}).as_data()
    study = study_from_dict({**data, "dataset": "digits"}, name="own")
    (finding,) = evaluate_claims([(study, rows_of([2] * LEVELS))])
    assert finding.verdict == "no verdict"
    for text in (format_text([finding]), format_json([finding]), format_csv([finding])):
        for word in ("supported", "contradicted", "holds", "p =", "p <", "not enough data"):
            assert word not in text
    assert finding.sentence.count("a against b: +2.00 [") == 2
    assert format_text([finding]).splitlines()[-1] == "1 claim shown on a demonstration, without a verdict."
    for clause in finding.clauses:
        assert clause.effect is not None and clause.effect.p is clause.effect.p_opposite is None
        assert all(level.p is level.p_holm is level.p_sign_flip is None for level in clause.levels)


def test_no_finished_run_is_not_an_error() -> None:
    rows = rows_of([0, 0, 0, 0])
    for each in rows:
        each["status"] = "to_do"
    for clause in ({"above": "b"}, {"above": "b", "at": "best"}, {"above": "chance"}):
        finding = decided({"treatment": "a", **clause}, rows)
        assert finding.verdict == "not enough data"
        assert all(level.mean is None and level.difference is None for level in finding.clauses[0].levels)
        json.loads(format_json([finding]))
    assert decided({"treatment": "a", "above": "b"}, []).verdict == "not enough data"


def test_levels_of_other_densities_are_not_compared() -> None:
    rows = rows_of([2, 2, 2, 2], density={("a", 2, seed): 0.3 for seed in range(SEEDS)})
    (clause,) = decided({"treatment": "a", "above": "b"}, rows).clauses
    assert [level.level for level in clause.levels] == [1, 3, 4]
    assert "mean over 3 levels from 50% to 6.2% of the weights" in clause.sentence


def test_the_best_level_of_each_seed_is_chosen_on_the_validation_set_on_both_sides() -> None:
    rows = rows_of([5, 5, 1, 5])
    for each in rows:
        # Seed 0 of a is best at level 2, the others at level 3; all of b are best at level 1.
        best = {"a": 2 if each["seed"] == 0 else 3, "b": 1}.get(str(each["treatment"]))
        each["early_stop_validation_accuracy"] = 0.99 if each["level"] == best else 0.9
    (clause,) = decided({"treatment": "a", "above": "b", "at": "best"}, rows).clauses
    (level,) = clause.levels
    assert level.level == 3 and clause.at == "best"
    ours, theirs = accuracies(rows, "a"), accuracies(rows, "b")
    apart = np.where(np.arange(SEEDS) == 0, ours[1], ours[2]) - theirs[0]
    assert clause.effect is not None and clause.effect.difference == pytest.approx(apart.mean(), rel=1e-9)
    assert "each seed at its best level" in clause.sentence
    # A seed whose run at some level is missing has no best level.
    for each in rows:
        if each["id"] == "a-4-2":
            each["status"] = "to_do"
    (clause,) = decided({"treatment": "a", "above": "b", "at": "best"}, rows).clauses
    assert clause.effect is not None and clause.effect.n == 4 and clause.missing == ("a: 1 to do",)


def test_a_claim_needs_all_of_its_parts() -> None:
    good, bad = {"treatment": "a", "above": "b"}, {"treatment": "a", "below": "b"}
    rows = rows_of([2, 2, 2, 2])
    (finding,) = evaluate_claims([(study_with(good, bad), rows)])
    assert finding.verdict == "contradicted"
    assert finding.sentence.startswith("Of 2 parts: 1 supported, 1 contradicted. a is below b: ")
    (finding,) = evaluate_claims([(study_with(good, good), rows)])
    assert finding.sentence.startswith("All 2 parts are supported. The weakest: a is above b: yes; +2.00 [")
    assert ", mean over 4 levels from 50% to 6.2% of the weights, n = 5 pairs, p < 0.001; error rate x 0.80 [" in (
        finding.sentence
    )


def test_lists_of_treatments_and_patterns_become_clauses() -> None:
    study = study_with({"treatment": [{"criterion": "large_final"}, "b"], "below": "chance"}, detect=2)
    (claim,) = study.claims
    assert [(c.treatment, c.relation, c.reference) for c in claim.clauses] == [
        ("a", "below", "chance"),
        ("b", "below", "chance"),
    ]
    assert study_from_dict(study.as_data(), name="own") == study


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (3, "claims[0]: 3 is not a map of keys and values"),
        ({"statement": "x", "clauses": []}, "claims[0]: clauses: there have to be some"),
        ({"id": "a b"}, "claims[0].id: 'a b' is not a short name: a-z, 0-9 and -."),
        ({"id": "../x"}, "claims[0].id: '../x' is not a short name"),
        ({"statment": "x"}, "has no key 'statment'; did you mean 'statement'?"),
        ({"clauses": [{"above": "b"}]}, "claims[0].clauses[0]: a clause needs a treatment, and one of above, below"),
        ({"clauses": [{"treatment": "a", "above": "b", "below": "b"}]}, "a clause needs a treatment, and one of"),
        ({"clauses": [{"treatment": "d", "above": "b"}]}, "claims[0].clauses[0].treatment: 'd' is not a map"),
        ({"clauses": [{"treatment": "a", "above": {"criterion": "grad"}}]}, "above: no treatment has {criterion: "),
        ({"clauses": [{"treatment": "a", "above": "b", "margn": 1}]}, "has no key 'margn'; did you mean 'margin'?"),
        ({"clauses": [{"treatment": "a", "matches": "b"}]}, "matches needs a margin in percentage points"),
        ({"clauses": [{"treatment": "a", "above": "b", "remaining": [5, 20]}]}, "the larger one first"),
        ({"clauses": [{"treatment": "a", "above": "b", "band": 20}]}, "two shares of the weights in percent"),
        (
            {"clauses": [{"treatment": "a", "above": "b", "levels": [3, 1]}]},
            "two pruning levels, the smaller one first",
        ),
        ({"clauses": [{"treatment": "a", "above": "b", "band": [20, 5], "at": "best"}]}, "leave out band, levels"),
        ({"clauses": [{"treatment": "a", "above": "b", "band": [20, 5], "remaining": [9, 1]}]}, "former name of band"),
        ({"clauses": [{"treatment": "a", "above": "b", "band": [20, 5], "levels": [1, 2]}]}, "leave one out"),
        ({"clauses": [{"treatment": "a", "above": "b", "where": "any"}]}, "Allowed: mean, every, some"),
        ({"clauses": [{"treatment": "a", "above": "b", "where": "some", "at": "best"}]}, "leave out where: some"),
        ({"clauses": [{"treatment": "a", "at_least": "b", "share": 25}]}, "share and control belong together"),
        ({"clauses": [{"treatment": "a", "above": "b", "control": "c"}]}, "share and control belong together"),
        ({"clauses": [{"treatment": "a", "at_least": "b", "share": 25, "control": "b"}]}, "a side of the comparison"),
        ({"clauses": [{"treatment": "a", "at_least": "b", "share": 25, "control": "x"}]}, ".control: 'x' is not a map"),
        ({"clauses": [{"treatment": "a", "at_least": "b", "share": 25, "control": "c", "margin": 1}]}, "leave one out"),
        ({"clauses": [{"treatment": "a", "above": "chance", "share": 25, "control": "c"}]}, "an accuracy without"),
        ({"clauses": [{"treatment": "a", "above": "chance", "measure": "early_stop_iteration"}]}, "chance is an acc"),
        ({"clauses": [{"treatment": "a", "above": "b", "margin": 200}]}, "200 percentage points; at most 100"),
        ({"clauses": [{"treatment": "a", "above": "b", "measure": "id"}]}, "'id' is not what a claim can be about"),
        ({"clauses": [{"treatment": [], "above": "b"}]}, "clauses[0].treatment: an empty list claims nothing"),
        ({"clauses": [{"treatment": ["b", "a"], "above": "b"}]}, "clauses[0]: 'b' cannot be compared with itself."),
        ({"clauses": [{"treatment": "a", "above": "b", "relation": "below"}]}, "has no key 'relation'"),
        ({"clauses": [{"treatment": "a", "above": "b", "reference": "c"}]}, "Allowed: treatment, above, below, at_le"),
        ({"clauses": [{"treatment": "a", "above": "b"}] * 1001}, "claims: there are more than 1,000 clauses"),
        ({"clauses": [{"treatment": ["a"] * 1001, "above": "b"}]}, "claims: there are more than 1,000 clauses"),
        ({"statement": "\x1b[31mred"}, "'\\x1b[31mred' is not a sentence: one line of text"),
        ({"source": "two\nlines"}, "claims[0].source: 'two\\nlines' is not a sentence: one line of text"),
        ({"figure": "../x"}, "claims[0].figure: '../x' is not the name of a figure"),
        ({"figure": 5}, "claims[0].figure: 5 is not the name of a figure, such as accuracy."),
    ],
)
def test_invalid_claims_of_a_study_file_are_refused(claim: Any, message: str) -> None:
    whole = {"id": "x", "statement": "y", "clauses": [{"treatment": "a", "above": "b"}]}
    given = {**whole, **claim} if isinstance(claim, dict) else claim
    with pytest.raises(UserError) as refused:
        study_from_dict(
            {
                "treatments": [{"name": "a"}, {"name": "b", "criterion": "random"}, {"name": "c", "mask1": "reinit"}],
                "claims": [given],
            }
        )
    assert message in str(refused.value)


@pytest.mark.parametrize("name", ["dense", "chance", "(chain)"])
def test_reference_words_are_refused_as_treatment_names(name: str) -> None:
    with pytest.raises(UserError, match="have a meaning of their own"):
        study_from_dict({"treatments": [{"name": name}]})


def test_many_treatments_and_claims_are_read_in_time() -> None:
    treatments = [{"name": f"t{k}", "rewind_to": k + 1} for k in range(1000)]
    clauses = [{"treatment": {"rewind_to": k + 1}, "above": "t999"} for k in range(900)]
    claims = [{"id": "x", "statement": "y", "clauses": clauses}]
    began = time.process_time()
    study = study_from_dict({"treatments": treatments, "claims": claims})
    assert [clause.treatment for clause in study.claims[0].clauses] == [f"t{k}" for k in range(900)]
    assert time.process_time() - began < 10


def test_two_claims_with_one_id_are_refused() -> None:
    claim = {"id": "x", "statement": "y", "clauses": [{"treatment": "a", "above": "chance"}]}
    with pytest.raises(UserError, match="two claims have the id x"):
        study_from_dict({"treatments": [{"name": "a"}], "claims": [claim, claim]})


def test_the_paper_s_fifteen_claims_can_all_be_decided_at_some_scale() -> None:
    shipped = {study.name: study for study in builtin_studies()}
    assert sorted({task.number or 0 for task in paper_tasks()}) == list(range(1, 16))
    assert len({task.id for task in paper_tasks()}) == len(paper_tasks())
    for task in paper_tasks():
        if not task.study:
            assert task.number == 15 and "ResNet-20" in task.reason_not_evaluable
            continue
        scales = [load_study(task.study, [f"scale={scale}"]) for scale in shipped[task.study].scales]
        about = [study for study in scales if task.is_about(study.network, study)]
        assert {study.network for study in about if study.dataset != "digits"} == set(task.networks)
        for study in about:
            claim = task.with_claim_for(study).claim
            assert claim is not None and claim.clauses
            assert task.statement and task.source and task.figure
        command = re.search(r"`supermask run (\S+) (scale=\S+)`", task.reason_not_evaluable)
        assert command is not None
        named = load_study(command[1], [command[2]])
        assert task.is_about(named.network, named)


def test_a_clause_of_the_paper_states_its_band_and_a_margin_or_a_share() -> None:
    for task in paper_tasks():
        if not task.study:
            continue
        claim = task.with_claim_for(load_study(task.study)).claim
        assert claim is not None
        for clause in claim.clauses:
            assert clause.where != "some"
            assert clause.band is not None or clause.at == "best" or clause.where == "every"
            if clause.relation in ("at_least", "at_most", "matches") and clause.reference != "chance":
                assert clause.margin == 0.2 or clause.share == 25


def test_a_changed_study_decides_the_claims_it_has_treatments_for() -> None:
    treatments = "treatments=[{criterion: [large_final, magnitude_increase]}]"
    study = load_study("mask-criteria", ["scale=laptop", treatments])
    found = {claim.name: claim for claim in evaluate_claims([(study, [])])}
    assert "lacks treatments of the claim" in found["2a"].sentence
    assert "no level" in found["1a"].sentence


def test_claims_on_networks_that_were_not_run_say_what_would_decide_them() -> None:
    laptop = load_study("mask-0-actions", ["scale=laptop"])
    found = {claim.name: claim for claim in evaluate_claims([(laptop, [])])}
    assert list(found) == ["7a", "7b", "7c", "8a", "8b"]
    for name in ("7a", "8b"):
        assert found[name].verdict == "not enough data" and found[name].setting == ""
        assert found[name].sentence.startswith(
            "No run on Conv2, Conv4, Conv6 on CIFAR-10. `supermask run mask-0-actions "
        )
    conv = load_study("mask-0-actions", ["scale=paper-conv4"])
    found = {claim.name: claim for claim in evaluate_claims([(laptop, []), (conv, [])])}
    assert {name: claim.setting for name, claim in found.items()} == {
        "7a": "conv4 on cifar10",
        "7b": "fc-300-100 on mnist",
        "7c": "fc-300-100 on mnist",
        "8a": "fc-300-100 on mnist",
        "8b": "conv4 on cifar10",
    }
    other = load_study("mask-0-actions", ["scale=laptop", "network=fc-20"])
    assert all(claim.sentence.startswith("No run on ") for claim in evaluate_claims([(other, [])]))


def test_claim_13_needs_the_paper_s_prune_rates() -> None:
    for scale, decides in (("laptop", False), ("paper", True)):
        study = load_study("supermask-questions", [f"scale={scale}"])
        (claim,) = (claim for claim in evaluate_claims([(study, [])]) if claim.number == 13)
        assert (claim.setting != "") == decides
        assert ("at most 20% of a hidden layer pruned per level" in claim.sentence) != decides


def test_all_claims_without_runs() -> None:
    every = evaluate_claims([], whole_paper=True)
    assert [claim.name for claim in every] == [f"{task.number}{task.part}" for task in paper_tasks()]
    assert {claim.verdict for claim in every} == {"not enough data"}


def test_hostile_names_are_literal_and_on_one_line() -> None:
    name = "<script>alert(1)</script> שלום 🎭 " + "x" * 200
    study = study_from_dict(
        {
            "treatments": [{"name": name}, {"name": "../x", "criterion": "random"}],
            "dataset": "mnist",
            "claims": [{"id": "x", "statement": "y", "clauses": [{"treatment": name, "above": "../x"}]}],
        }
    )
    rows = [{**r, "treatment": {"a": name, "b": "../x"}.get(str(r["treatment"]), "other")} for r in rows_of([2] * 4)]
    (finding,) = evaluate_claims([(study, rows)])
    assert finding.verdict == "supported"
    assert finding.sentence.startswith(f"{name} is above ../x: ")
    assert "\n" not in finding.sentence


def test_text_csv_and_json_agree() -> None:
    finding = decided({"treatment": "a", "above": "b"}, rows_of([0.01, -0.01, 0, 0]))
    text = format_text([finding])
    assert text.splitlines()[0] == "- mine: It is so."
    assert text.splitlines()[-1] == "1 claim: 0 supported, 1 not supported, 0 contradicted, 0 not enough data."
    lines = list(csv.DictReader(io.StringIO(format_csv([finding]))))
    clause = json.loads(format_json([finding]))[0]["clauses"][0]
    assert [line["endpoint"] for line in lines] == ["band", *["level"] * LEVELS]
    both = [clause["effect"], *clause["levels"]]
    assert [float(line["difference"]) for line in lines] == [each["difference"] for each in both]
    assert [line["outcome"] for line in lines] == [each["outcome"] for each in both]
    undecided = ClaimFinding("x", 15, "s", "", "", "", "not enough data", "It needs it.", ())
    assert len(list(csv.DictReader(io.StringIO(format_csv([undecided, finding]))))) == 6


def test_the_example_of_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    block = text[text.index("```yaml\nclaims:") + len("```yaml\n") :].partition("```")[0]
    data = YAML(typ="safe").load(block)
    study = study_from_dict({"treatments": [{"mask1": ["rewind", "signed_constant", "constant"]}], **data})
    assert [(c.treatment, c.relation, c.reference) for c in study.claims[0].clauses] == [
        ("signed_constant", "at_least", "rewind"),
        ("signed_constant", "above", "constant"),
    ]
