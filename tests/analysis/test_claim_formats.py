"""Findings of claims as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from helpers.claims import LEVELS, decided, rows_of
from ruamel.yaml import YAML

from supermask.analysis.claims import ClaimFinding, evaluate_claims
from supermask.analysis.claims.formats import format_csv, format_json, format_text
from supermask.study import study_from_dict


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
