"""Claims in docs/findings.md: all fifteen, with the verdicts of the tables in results/."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import duckdb
import numpy as np
import pytest
from helpers import findings
from scipy import stats as scipy_stats

from supermask.analysis.claims import ClaimFinding, ClauseFinding
from supermask.analysis.claims.formats import format_markdown
from supermask.analysis.claims.paper import paper_tasks

ROOT = Path(__file__).parent.parent
PRUNED_FROM = "large_final + initializer="


def claims_table(document: str) -> list[list[str]]:
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    first = lines.index("| | claim | runs | verdict | what it comes down to |") + 2
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def test_findings_has_a_verdict_for_each_claim() -> None:
    table = claims_table("docs/findings.md")
    assert list(dict.fromkeys(row[0] for row in table)) == [f"{task.number}{task.part}" for task in paper_tasks()]
    verdicts = {"**supported**", "**not supported**", "**contradicted**", "**not enough data**"}
    assert {row[3] for row in table} <= verdicts
    assert all(len(row) == 5 and all(row) for row in table)


@pytest.mark.slow
def test_findings_has_the_verdicts_of_the_published_tables() -> None:
    """`PYTHONPATH=tests python -m helpers.findings` writes them."""
    assert findings.page() == findings.PAGE.read_text(encoding="utf-8")


def test_a_verdict_in_findings_has_five_seeds() -> None:
    for row in claims_table("docs/findings.md"):
        if row[3] != "**not enough data**":
            assert re.search(r"n = (\d+) (pairs|seeds)", row[4])
            assert all(int(n) >= 5 for n in re.findall(r"n = (\d+) (?:pairs|seeds)", row[4]))


def test_readme_counts_the_decided_claims() -> None:
    verdicts: dict[str, set[str]] = {}
    for row in claims_table("docs/findings.md"):
        verdicts.setdefault(row[0].rstrip("abc"), set()).add(row[3])
    decided = [found - {"**not enough data**"} for found in verdicts.values() if found != {"**not enough data**"}]
    words = {0: "no", 1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}
    words |= {10: "ten", 11: "eleven", 12: "twelve", 13: "thirteen", 14: "fourteen", 15: "fifteen"}
    supported = sum(found == {"**supported**"} for found in decided)
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    expected = (
        f"{words[len(decided)]} are decided so far, all on FC and MNIST with five or ten seeds "
        f"({words[supported]} supported"
    )
    assert expected in text


def test_markdown_escapes_what_markdown_would_read() -> None:
    clause = ClauseFinding("a|b", "above", "c", 0.0, "supported", "a|b <script> is *above* [c](x).", ())
    claim = ClaimFinding("own", None, "It_is | so.", "s", "the `file`", "", "supported", clause.sentence, (clause,))
    text = format_markdown([claim])
    assert text.splitlines()[2] == (
        r"| own | It\_is \| so. | none | **supported** | a\|b \<script\> is \*above\* \[c\](x). |"
    )
    assert "1 claim: 1 supported, 0 not supported, 0 contradicted, 0 not enough data." in text
    assert r"- supported: a\|b \<script\> is \*above\* \[c\](x)." in text


@pytest.mark.slow
def test_the_table_of_learned_masks_is_that_of_the_published_rows() -> None:
    text = findings.PAGE.read_text(encoding="utf-8")
    section = text[text.index("### Learned supermasks at `scale=paper`") :]
    rows = duckdb.read_parquet(str(ROOT / "results" / "learned-supermasks-paper.parquet"))
    cell_of_column = {"early_stop_test_accuracy": 2, "thresholded_test_accuracy": 3, "expected_density": 5}
    densities = []
    for label in ("learned, w_i", "learned, signed constant", "DWR, w_i", "DWR, signed constant"):
        line = next(line for line in section.splitlines() if line.startswith(f"| {label} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        chosen = rows.filter(f"treatment = '{label}' AND level = 1 AND status = 'finished'")
        means = ", ".join(f"100 * avg({column})" for column in [*cell_of_column, "density"])
        *values, density, n = chosen.aggregate(f"{means}, count(*)").fetchall()[0]
        assert n == 5
        for (column, index), value in zip(cell_of_column.items(), values, strict=True):
            if cells[index]:
                digits = 1 if column == "expected_density" else 2
                assert cells[index].startswith(f"{value:.{digits}f}"), (label, column)
        densities.append(f"{density:.1f}")
    assert "the thresholded masks have {}, {}, {} and {}%".format(*densities) in section


def accuracies(name: str) -> dict[tuple[str, int], dict[int, float]]:
    """Return (treatment, level) -> seed -> test accuracy in percent, of a published table."""
    columns = "treatment, level, seed, 100 * early_stop_test_accuracy"
    rows = duckdb.read_parquet(str(ROOT / "results" / f"{name}.parquet")).project(columns).fetchall()
    by_cell: dict[tuple[str, int], dict[int, float]] = {}
    for treatments, level, seed, accuracy in rows:
        for treatment in treatments.split(" | "):
            by_cell.setdefault((treatment, level), {})[seed] = accuracy
    return by_cell


def difference(name: str, treatment: str, reference: str, levels: range) -> str:
    """Return the mean over seeds of the difference over these levels, with its 95% t-interval."""
    table = accuracies(name)
    pairs = [(table[treatment, level], table[reference, level]) for level in levels]
    assert all(ours.keys() == theirs.keys() == set(range(5)) for ours, theirs in pairs)
    values = [np.mean([ours[seed] - theirs[seed] for ours, theirs in pairs]) for seed in range(5)]
    low, high = scipy_stats.ttest_1samp(values, 0.0).confidence_interval()
    return f"{np.mean(values):+.2f} [{low:+.2f}, {high:+.2f}]"


def test_the_table_of_conv2_is_that_of_the_published_rows() -> None:
    text = findings.PAGE.read_text(encoding="utf-8")
    table = accuracies("mask-criteria-conv2") | {
        key: value for key, value in accuracies("mask-0-actions-conv2").items() if key[0] == "freeze_init"
    }
    treatments = ("large_final", "magnitude_increase", "random", "freeze_init")
    for level, share in ((1, "40.2%"), (2, "16.3%"), (3, "6.6%")):
        values = [list(table[treatment, level].values()) for treatment in treatments]
        assert all(len(seeds) == 5 for seeds in values)
        cells = [f"{np.mean(seeds):.2f} ({np.std(seeds, ddof=1):.2f})" for seeds in values]
        assert f"| {share} | {' | '.join(cells)} |" in text


@pytest.mark.parametrize(
    ("name", "treatment", "reference", "levels"),
    [
        *(
            ("bimodal-initialization-laptop", f"{PRUNED_FROM}{ours}", f"{PRUNED_FROM}{reference}", levels)
            for ours, reference in combinations(("bimodal", "glorot_normal_wide", "glorot_normal"), 2)
            for levels in (range(4, 11), range(1))
        ),
        *(
            ("mask-trajectory-laptop", f"magnitude_increase, {points}", "magnitude_increase, start to end", levels)
            for points in ("10% to end", "half to end", "start to 10%", "start to half")
            for levels in (range(4, 8), range(4, 11))
        ),
        *(
            ("mask-trajectory-laptop", f"large_final, {point}", "large_final, end", levels)
            for point in ("10%", "half")
            for levels in (range(4, 8), range(4, 11))
        ),
        ("mask-0-actions-conv2", "zero", "freeze_init", range(1, 4)),
        ("mask-criteria-conv2", "magnitude_increase", "large_final", range(2, 4)),
    ],
)
def test_differences_in_findings_are_those_of_the_published_rows(
    name: str, treatment: str, reference: str, levels: range
) -> None:
    assert difference(name, treatment, reference, levels) in findings.PAGE.read_text(encoding="utf-8")
