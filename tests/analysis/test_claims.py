"""Verdicts of claims against plain scipy and statsmodels."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from helpers.claims import LEVELS, SEEDS, decided, rows_of, study_with
from scipy import stats as scipy_stats
from statsmodels.stats.weightstats import DescrStatsW

from supermask.analysis.claims import evaluate_claims
from supermask.analysis.claims.formats import format_csv, format_json, format_text
from supermask.analysis.stats import seeds_needed
from supermask.core.text import Row, format_p
from supermask.store.tables import DENSE
from supermask.study import study_from_dict


@pytest.mark.slow
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


def test_the_weakest_clause_is_the_one_of_largest_p() -> None:
    strong = {"treatment": "a", "above": "b", "levels": [1, 1]}
    weak = {"treatment": "a", "above": "b", "levels": [3, 3]}
    (finding,) = evaluate_claims([(study_with(strong, weak), rows_of([9.0, 9.0, 0.3, 0.3]))])
    assert finding.sentence == f"All 2 clauses are supported. The weakest: {finding.clauses[1].sentence}"


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
    assert finding.censored == (("a", 4, 20), ("b", 0, 20))
    assert "+380 [" in finding.sentence and "] iterations, mean over 4 levels" in finding.sentence
    assert "censored: in 4 of 20 runs of a the loss was lowest at the last iteration" in finding.sentence
    below = decided({"treatment": "b", "below": "a", "measure": "early_stop_iteration"}, rows).clauses[0]
    assert below.censored == (("b", 0, 20), ("a", 4, 20)), "the reference's runs are censored in the same way"
    assert "censored: in 4 of 20 runs of a the loss" in below.sentence
    # Only runs that are compared: seed 0 is not, as b has it at three of four levels.
    lost = [each | {"status": "diverged"} if each["id"] == "b-2-0" else each for each in rows]
    assert decided(clause, lost).clauses[0].censored == (("a", 0, 16), ("b", 0, 16))


@pytest.mark.slow
def test_without_a_loss_of_the_control_a_share_of_it_is_no_margin() -> None:
    """Here b gains 4 points on c: a negative margin would turn each relation around."""
    for relation in ("at_least", "matches", "above", "below", "at_most"):
        for where in ("mean", "every", "some"):
            clause = {"treatment": "a", relation: "c", "share": 25, "control": "b", "where": where}
            for difference in (0.0, -4.0, -8.0):
                finding = decided(clause, rows_of([difference] * LEVELS))
                assert finding.verdict == "not supported", (relation, where, difference)
                assert "b loses nothing against c, so a share of it is no margin" in finding.sentence
                assert "the margin is" not in finding.sentence and "opposite" not in finding.sentence
                assert {level.outcome for level in finding.clauses[0].levels} == {"undecided"}


def test_the_level_that_decides_is_shown() -> None:
    some = decided({"treatment": "a", "above": "b", "where": "some"}, rows_of([0.3, 0, 0, -9]))
    assert some.verdict == "supported"
    assert "the opposite at 1; clearest at 50%: +0.30 [" in some.sentence
    # Level 3 has the wrong sign and a small p; it is farther from holding than level 1, whose p is larger.
    rows = rows_of([0.12, 2, -0.1, 2])
    every = decided({"treatment": "a", "above": "b", "where": "every"}, rows).clauses[0]
    assert [level.outcome for level in every.levels] == ["undecided", "holds", "undecided", "holds"]
    assert every.verdict == "not supported" and "weakest at 12.5%: -0.10 [" in every.sentence
    assert every.deciding == 2


def test_the_seeds_that_one_of_several_levels_needs_count_holms_correction() -> None:
    rows = rows_of([0, 0, 0, 0.06])
    some = decided({"treatment": "a", "above": "b", "where": "some"}, rows).clauses[0]
    alone = decided({"treatment": "a", "above": "b", "where": "some", "levels": [4, 4]}, rows).clauses[0]
    apart = (accuracies(rows, "a") - accuracies(rows, "b"))[3]
    spread = apart.std(ddof=1)
    assert (some.verdict, alone.verdict) == ("not supported", "not supported")
    assert alone.seeds_needed == seeds_needed(apart.mean(), spread)
    assert some.seeds_needed == seeds_needed(apart.mean(), spread, alpha=0.05 / LEVELS)


def test_more_seeds_are_asked_for_only_where_seeds_are_missing() -> None:
    rows = rows_of([2] * LEVELS)
    for each in rows:
        if each["treatment"] == "a":
            each["early_stop_test_accuracy"] = 0.098
    finding = decided({"treatment": "a", "at_most": "chance", "margin": 5}, rows)
    assert finding.verdict == "not enough data"
    assert finding.sentence.endswith("n = 5 seeds; no variance: t is undefined.")
    one = [each for each in rows_of([2] * LEVELS) if each["seed"] == 0]
    for where, reference, unit in [("every", "b", "pair"), ("some", "chance", "seed"), ("mean", "b", "pair")]:
        sentence = decided({"treatment": "a", "above": reference, "where": where}, one).sentence
        assert re.search(rf"n = 1 {unit}\b", sentence)
        assert sentence.endswith("A verdict takes 5 seeds on both sides: run it with more seeds, such as seeds=5.")


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
