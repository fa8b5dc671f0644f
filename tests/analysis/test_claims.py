"""Claims: verdicts against plain scipy, refused claims, and the paper's fifteen claims."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML
from scipy import stats as scipy_stats

from supermask.analysis.claims import ClaimFinding, evaluate_claims
from supermask.analysis.claims.formats import format_csv, format_json, format_text
from supermask.analysis.claims.paper import claims_for_study, claims_without_study, studies_with_claims
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
    treatments = [{"name": "a"}, {"name": "b", "criterion": "random"}]
    return study_from_dict(
        {"seeds": seeds, "prune": {"levels": LEVELS}, "treatments": treatments, "claims": [asked]}, name="own"
    )


def rows_of(differences: list[float], **changed: dict[tuple[str, int, int], Any]) -> list[Row]:
    """Rows of two treatments over LEVELS: b about 90% at each, a `differences` points above b; dense 91%."""
    rows: list[Row] = []
    for seed in range(SEEDS):
        rows.append(row(DENSE, 0, seed, 91.0 + NOISE[1, 0, seed]))
        for level, difference in enumerate(differences, start=1):
            base = 90.0 + NOISE[1, level, seed]
            rows.append(row("b", level, seed, base))
            rows.append(row("a", level, seed, base + difference + NOISE[0, level, seed]))
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
    ("clause", "differences", "verdict", "outcomes"),
    [
        ({"above": "b"}, [2, 2, 2, 2], "supported", "hhhh"),
        ({"above": "b"}, [2, 2, 0, 2], "not supported", "hhuh"),
        ({"above": "b"}, [2, -2, 0, 2], "contradicted", "houh"),
        ({"above": "b", "where": "some"}, [0, 0, 2, 0], "supported", "uuhu"),
        ({"above": "b", "where": "some"}, [0, -2, 2, 0], "not supported", "uohu"),
        ({"above": "b", "where": "some"}, [0, -2, 0, 0], "contradicted", "uouu"),
        ({"above": "b", "where": "some"}, [0, 0, 0, 0], "not supported", "uuuu"),
        ({"above": "b", "margin": 3}, [2, 2, 2, 2], "contradicted", "oooo"),
        ({"above": "b", "margin": 1}, [2, 2, 2, 2], "supported", "hhhh"),
        ({"below": "b"}, [-2, -2, -2, -2], "supported", "hhhh"),
        ({"below": "b"}, [2, 2, 2, 2], "contradicted", "oooo"),
        ({"below": "b", "margin": 1}, [-2, -2, -2, -0.5], "contradicted", "hhho"),
        ({"at_least": "b", "margin": 1}, [0, 2, 0, 2], "supported", "hhhh"),
        ({"at_least": "b", "margin": 1}, [0, -1, 0, 0], "not supported", "huhh"),
        ({"at_least": "b", "margin": 1}, [0, -3, 0, 0], "contradicted", "hohh"),
        ({"at_most": "b", "margin": 1}, [0, -3, 0, 0], "supported", "hhhh"),
        ({"at_most": "b", "margin": 1}, [0, 3, 0, 0], "contradicted", "hohh"),
        ({"matches": "b", "margin": 1}, [0, 0, 0, 0], "supported", "hhhh"),
        ({"matches": "b", "margin": 1}, [0, 1, 0, 0], "not supported", "huhh"),
        ({"matches": "b", "margin": 1}, [0, -3, 3, 0], "contradicted", "hooh"),
        ({"at_least": "dense", "margin": 3}, [2, 2, 2, 2], "supported", "hhhh"),
        ({"above": "chance", "margin": 70}, [0, 0, 0, 0], "supported", "hhhh"),
        ({"at_most": "chance", "margin": 5}, [0, 0, 0, 0], "contradicted", "oooo"),
        ({"above": "b", "remaining": [30, 10]}, [0, 2, 2, 0], "supported", "hh"),
        ({"above": "b", "remaining": [25.4, 24.6]}, [0, 2, 0, 0], "supported", "h"),
        ({"above": "b", "remaining": [3, 1]}, [2, 2, 2, 2], "not enough data", ""),
        ({"above": "b", "at": "best"}, [0, 0, 2, 0], "supported", "h"),
    ],
)
def test_verdicts(clause: dict[str, Any], differences: list[float], verdict: str, outcomes: str) -> None:
    finding = decided({"treatment": "a", **clause}, rows_of(differences))
    assert "".join(level.outcome[0] for level in finding.clauses[0].levels) == outcomes
    assert finding.verdict == finding.clauses[0].verdict == verdict
    assert finding.sentence == finding.clauses[0].sentence


def test_numbers_agree_with_scipy() -> None:
    rows = rows_of([0.3, 0.1, -0.2, 0.05])
    accuracy = {r["id"]: 100 * float(r["early_stop_test_accuracy"] or 0) for r in rows}
    ours, theirs = (
        np.array([[accuracy[f"{name}-{level}-{s}"] for s in range(SEEDS)] for level in range(1, 5)]) for name in "ab"
    )
    two_sided = decided({"treatment": "a", "above": "b"}, rows).clauses[0].levels
    least = decided({"treatment": "a", "at_least": "b", "margin": 0.4}, rows).clauses[0].levels
    equal = decided({"treatment": "a", "matches": "b", "margin": 0.4}, rows).clauses[0].levels
    chance = decided({"treatment": "a", "above": "chance", "margin": 79.9}, rows).clauses[0].levels
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        test = scipy_stats.ttest_rel(a, b)
        interval = test.confidence_interval(0.95)
        assert two_sided[i].p == pytest.approx(test.pvalue, rel=1e-10)
        assert two_sided[i].difference == pytest.approx((a - b).mean(), rel=1e-10)
        assert two_sided[i].interval95 == pytest.approx((interval.low, interval.high), rel=1e-9)
        assert two_sided[i].remaining == pytest.approx(100 * 0.5 ** (i + 1))
        above = scipy_stats.ttest_1samp(a - b, -0.4, alternative="greater").pvalue
        below = scipy_stats.ttest_1samp(a - b, 0.4, alternative="less").pvalue
        assert least[i].p == pytest.approx(above, rel=1e-9)
        assert equal[i].p == pytest.approx(max(above, below), rel=1e-9)
        assert chance[i].p == pytest.approx(scipy_stats.ttest_1samp(a, 89.9).pvalue, rel=1e-9)
        assert chance[i].n_reference is None
    ps = sorted(level.p or 0.0 for level in two_sided)
    holm = np.maximum.accumulate([min(1.0, (4 - k) * p) for k, p in enumerate(ps)])
    assert sorted(level.p_holm or 0.0 for level in two_sided) == pytest.approx(list(holm))


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


def test_both_seed_counts_are_shown_if_they_differ() -> None:
    lost = {("b", level, 0): "diverged" for level in range(1, LEVELS + 1)}
    finding = decided({"treatment": "a", "above": "b"}, rows_of([2] * LEVELS, status=lost))
    assert finding.clauses[0].levels[0].test == "Welch t"
    assert "n = 5 and 4 seeds, p" in finding.sentence


def test_the_weakest_part_is_the_one_whose_weakest_level_is_weakest() -> None:
    every = {"treatment": "b", "at_most": "a", "margin": 0.1}
    some = {"treatment": "a", "above": "b", "where": "some"}
    (finding,) = evaluate_claims([(study_with(every, some), rows_of([9.0, 9.0, 0.05, 0.3]))])
    # At its best level the first clause has the smaller p, but it has to hold at all levels.
    assert min(held(finding, 0)) < min(held(finding, 1)) < max(held(finding, 0))
    assert finding.sentence == f"All 2 parts are supported. The weakest: {finding.clauses[0].sentence}"


@pytest.mark.parametrize(
    ("relation", "difference", "side"), [("at_least", -2, "less"), ("at_most", 2, "greater"), ("matches", 2, "greater")]
)
def test_contradicted_clauses_show_the_p_of_the_opposite(relation: str, difference: float, side: str) -> None:
    rows = rows_of([0, 0, difference, 0])
    finding = decided({"treatment": "a", relation: "b", "margin": 0.5}, rows)
    level = finding.clauses[0].levels[2]
    seen = [100 * float(r["early_stop_test_accuracy"] or 0) for r in rows if r["id"] in {f"a-3-{s}" for s in range(5)}]
    other = [100 * float(r["early_stop_test_accuracy"] or 0) for r in rows if r["id"] in {f"b-3-{s}" for s in range(5)}]
    shift = math.copysign(0.5, difference)
    reverse = scipy_stats.ttest_1samp(np.subtract(seen, other), shift, alternative=side).pvalue
    assert level.p_opposite_holm == pytest.approx(4 * reverse, rel=1e-9)
    assert level.p_holm == pytest.approx(1.0, abs=1e-3)
    assert format_p(4 * reverse) in finding.sentence and "p = 1" not in finding.sentence


def held(finding: ClaimFinding, clause: int) -> list[float]:
    return [level.p_holm or 0.0 for level in finding.clauses[clause].levels if level.outcome == "holds"]


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0004, "p < 0.001"), (0.021, "p = 0.021"), (0.0496, "p = 0.049"), (0.05, "p = 0.05"), (0.056, "p = 0.056")],
)
def test_a_significant_p_is_not_rounded_up_to_005(p: float, text: str) -> None:
    assert format_p(p) == text


def test_seeds_needed_have_the_stated_power() -> None:
    clause = decided({"treatment": "a", "above": "b"}, rows_of([0.02, 0.02, 0.02, 0.02])).clauses[0]
    assert clause.verdict == "not supported"
    needed, weakest = clause.seeds_needed, max(clause.levels, key=lambda level: level.p or 0.0)
    assert needed is not None and weakest.interval95 is not None
    half = (weakest.interval95[1] - weakest.interval95[0]) / 2
    spread = half / scipy_stats.t.ppf(0.975, SEEDS - 1) * math.sqrt(SEEDS)

    def power(n: int) -> float:
        edge = scipy_stats.t.ppf(1 - 0.05 / LEVELS / 2, n - 1)
        shifted = 0.5 / spread * math.sqrt(n)
        # The other tail is negligible.
        return float(1 - scipy_stats.nct.cdf(edge, n - 1, shifted))

    assert power(needed) >= 0.8 > power(needed - 1)
    assert f"to see 0.5 points takes {needed:,} seeds" in clause.sentence


def test_too_few_seeds_are_untested_and_missing_runs_are_named() -> None:
    status = {("a", 2, seed): "to_do" for seed in range(3)} | {("b", 1, 4): "diverged"}
    finding = decided({"treatment": "a", "above": "b"}, rows_of([2, 2, 2, 2], status=status))
    (clause,) = finding.clauses
    assert finding.verdict == "not enough data"
    assert [level.outcome for level in clause.levels] == ["holds", "untested", "holds", "holds"]
    assert [level.n for level in clause.levels] == [5, 2, 5, 5]
    assert clause.levels[0].test == "Welch t"  # a seed diverged on one side: no pairs
    assert clause.missing == ("a: 3 to do", "b: 1 diverged (level 1 seed 4)")
    assert "missing: b: 1 diverged (level 1 seed 4)" in finding.sentence


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
    assert [level.level for level in decided({"treatment": "a", "above": "b"}, rows).clauses[0].levels] == [1, 3, 4]


def test_the_best_level_is_chosen_on_the_validation_set() -> None:
    validated = {("a", 3, seed): 0.99 for seed in range(SEEDS)} | {("b", 1, seed): 0.99 for seed in range(SEEDS)}
    rows = rows_of([5, 5, 1, 5], early_stop_validation_accuracy=validated)
    (level,) = decided({"treatment": "a", "above": "b", "at": "best"}, rows).clauses[0].levels
    assert level.level == 3
    assert level.difference == pytest.approx(1.0, abs=0.3)


def test_a_claim_needs_all_of_its_parts() -> None:
    good, bad = {"treatment": "a", "above": "b"}, {"treatment": "a", "below": "b"}
    rows = rows_of([2, 2, 2, 2])
    (finding,) = evaluate_claims([(study_with(good, bad), rows)])
    assert finding.verdict == "contradicted"
    assert finding.sentence.startswith("Of 2 parts: 1 supported, 1 contradicted. a is below b: ")
    (finding,) = evaluate_claims([(study_with(good, good), rows)])
    assert finding.sentence.startswith("All 2 parts are supported. The weakest: a is above b: at 4 of 4 levels")


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
        ({"clauses": [{"treatment": "c", "above": "b"}]}, "claims[0].clauses[0].treatment: 'c' is not a map"),
        ({"clauses": [{"treatment": "a", "above": {"criterion": "grad"}}]}, "above: no treatment has {criterion: "),
        ({"clauses": [{"treatment": "a", "above": "b", "margn": 1}]}, "has no key 'margn'; did you mean 'margin'?"),
        ({"clauses": [{"treatment": "a", "matches": "b"}]}, "matches needs a margin in percentage points"),
        ({"clauses": [{"treatment": "a", "above": "b", "remaining": [5, 20]}]}, "the larger one first"),
        ({"clauses": [{"treatment": "a", "above": "b", "remaining": [20, 5], "at": "best"}]}, "leave out remaining"),
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
        study_from_dict({"treatments": [{"name": "a"}, {"name": "b", "criterion": "random"}], "claims": [given]})
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


def test_the_paper_s_fifteen_claims_can_all_be_decided_at_every_scale() -> None:
    numbers: list[int | None] = [asked.number for asked in claims_without_study()]
    shipped = {study.name: study for study in builtin_studies()}
    for name in studies_with_claims():
        for scale in shipped[name].scales:
            asked = claims_for_study(load_study(name, [f"scale={scale}"]))
            assert [each.reason_not_evaluable for each in asked if each.claim is None] == []
            assert all(each.statement and each.source and each.figure for each in asked)
        numbers += [each.number for each in asked]
    assert sorted(number or 0 for number in numbers) == list(range(1, 16))


def test_a_changed_study_decides_the_claims_it_has_treatments_for() -> None:
    treatments = "treatments=[{criterion: [large_final, magnitude_increase]}]"
    study = load_study("mask-criteria", ["scale=digits", treatments])
    found = {claim.number: claim for claim in evaluate_claims([(study, [])])}
    assert "lacks treatments of the claim" in found[2].sentence
    assert "no level" in found[1].sentence


def test_hostile_names_are_literal_and_on_one_line() -> None:
    name = "<script>alert(1)</script> שלום 🎭 " + "x" * 200
    study = study_from_dict(
        {
            "treatments": [{"name": name}, {"name": "../x", "criterion": "random"}],
            "claims": [{"id": "x", "statement": "y", "clauses": [{"treatment": name, "above": "../x"}]}],
        }
    )
    rows = [{**r, "treatment": {"a": name, "b": "../x"}.get(str(r["treatment"]), DENSE)} for r in rows_of([2] * 4)]
    (finding,) = evaluate_claims([(study, rows)])
    assert finding.verdict == "supported"
    assert finding.sentence.startswith(f"{name} is above ../x: ")
    assert "\n" not in finding.sentence


def test_text_csv_and_json_agree() -> None:
    finding = decided({"treatment": "a", "above": "b"}, rows_of([2, 0, 2, 2]))
    text = format_text([finding])
    assert text.splitlines()[0] == "- mine: It is so."
    assert text.splitlines()[-1] == "1 claim: 0 supported, 1 not supported, 0 contradicted, 0 not enough data."
    lines = list(csv.DictReader(io.StringIO(format_csv([finding]))))
    levels = json.loads(format_json([finding]))[0]["clauses"][0]["levels"]
    assert [float(line["difference"]) for line in lines] == [level["difference"] for level in levels]
    assert [line["outcome"] for line in lines] == [level["outcome"] for level in levels]
    undecided = ClaimFinding("x", 15, "s", "", "", "", "not enough data", "It needs it.", ())
    assert len(list(csv.DictReader(io.StringIO(format_csv([undecided, finding]))))) == 5


def test_the_example_of_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    block = text[text.index("```yaml\nclaims:") + len("```yaml\n") :].partition("```")[0]
    data = YAML(typ="safe").load(block)
    study = study_from_dict({"treatments": [{"mask1": ["rewind", "signed_constant", "constant"]}], **data})
    assert [(c.treatment, c.relation, c.reference) for c in study.claims[0].clauses] == [
        ("signed_constant", "at_least", "rewind"),
        ("signed_constant", "above", "constant"),
    ]
