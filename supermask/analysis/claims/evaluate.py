"""Evaluation of claims: the verdict of each from those of its clauses, by study and network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from supermask.analysis.claims.clauses import compared_treatments, evaluate_clause
from supermask.analysis.claims.evidence import ClaimData
from supermask.analysis.claims.findings import ClaimFinding, ClauseFinding, Verdict
from supermask.analysis.claims.paper import ClaimTask, paper_tasks, study_tasks
from supermask.analysis.claims.sentences import describe_claim, describe_clause
from supermask.analysis.summary import DEMONSTRATION_NOTE
from supermask.core.text import Row
from supermask.datasets.specs import DatasetSpec, dataset_spec, is_demonstration
from supermask.study import Study

VERDICTS: tuple[Verdict, ...] = ("no verdict", "contradicted", "not supported", "not enough data", "supported")
"""A claim has the first of these verdicts that one of its clauses has."""


def evaluate_claims(
    studies: Sequence[tuple[Study, Sequence[Row]]],
    whole_paper: bool = False,
    own_data: Mapping[str, DatasetSpec] = MappingProxyType({}),
) -> list[ClaimFinding]:
    """Evaluate every claim about these studies: the paper's by number, then the studies' own.

    `studies`: each with one row per planned run, finished or not; a study may occur several times, with other settings.
    `whole_paper`: include the paper's claims about other studies, and those that no shipped study can decide.
    A claim about networks that none of the studies trained is `not enough data`; its sentence is the reason, with the
    command that would test it. Claims about demonstration data have no verdict.
    `own_data`: specifications of datasets that are not in `DATASETS`, by name.

    Source: Zhou et al. 2019, Sec. 2 to 5; statistics: authors' response, items 2 and 4.
    """
    evidence = [
        ClaimData(study, rows, dataset_spec(study.dataset, own_data.get(study.dataset)).classes)
        for study, rows in studies
    ]
    # With a demonstration alone, other networks are not asked for.
    is_demo = bool(evidence) and all(is_demonstration(data.study.dataset) for data in evidence)
    findings: list[ClaimFinding] = []
    for task in paper_tasks():
        named = [data for name in task.studies for data in evidence if data.study.name == name]
        about = [data for data in named if task.is_about(data.network, data.study)]
        findings += [_evaluate_task(task_for, data) for task_for, data in _select_deciding_studies(task, about)]
        if not about and (named or whole_paper) and not (is_demo and task.study):
            finding = _unevaluated_finding(task)
            findings.append(replace(finding, verdict="no verdict") if is_demo else finding)
    for data in evidence:
        findings += [_evaluate_task(task, data) for task in study_tasks(data.study)]
    return findings


def _select_deciding_studies(task: ClaimTask, about: Sequence[ClaimData]) -> Iterator[tuple[ClaimTask, ClaimData]]:
    """Yield the studies that decide a claim: those of the first's name, and others with finished runs that add to them.

    Several studies can decide one claim, such as masks learned for 500 and for 2,000 epochs. They share runs, and at
    some scales all of them: one verdict on the same runs is enough.
    """
    seen: set[str] = set()
    for data in about:
        task_for = task.with_claim_for(data.study)
        clauses = task_for.claim.clauses if task_for.claim else ()
        run_ids = data.finished_run_ids(compared_treatments(clauses))
        if data.study.name == about[0].study.name or not run_ids <= seen:
            yield task_for, data
        seen |= run_ids


def _evaluate_task(task: ClaimTask, evidence: ClaimData) -> ClaimFinding:
    if task.claim is None:
        return _as_demonstration(_unevaluated_finding(task, evidence))
    clauses = tuple(evaluate_clause(clause, evidence, task.claim.detect) for clause in task.claim.clauses)
    verdict = combine_verdicts(clauses)
    return _as_demonstration(
        replace(
            _unevaluated_finding(task, evidence),
            verdict=verdict,
            sentence=describe_claim(verdict, clauses, evidence.study.name),
            clauses=clauses,
            data_notes=evidence.data_notes,
        )
    )


def combine_verdicts(clauses: Sequence[ClauseFinding]) -> Verdict:
    """The verdict of a claim: that of its worst clause, since all have to hold."""
    return next(verdict for verdict in VERDICTS if any(clause.verdict == verdict for clause in clauses))


def _unevaluated_finding(task: ClaimTask, evidence: ClaimData | None = None) -> ClaimFinding:
    return ClaimFinding(
        task.id,
        task.number,
        task.statement,
        evidence.study.name if evidence else task.study,
        task.source,
        task.figure,
        "not enough data",
        task.reason_not_evaluable,
        (),
        dataset=evidence.study.dataset if evidence else "",
        part=task.part,
        setting=evidence.describe_setting(compared_treatments(task.claim.clauses if task.claim else ()))
        if evidence
        else "",
    )


def _as_demonstration(finding: ClaimFinding) -> ClaimFinding:
    """The finding without verdicts, outcomes and p-values if its data is a demonstration; else the finding itself."""
    if not is_demonstration(finding.dataset):
        return finding
    clauses = tuple(_remove_tests(clause) for clause in finding.clauses)
    sentence = describe_claim("no verdict", clauses, finding.study) if clauses else finding.sentence
    return replace(finding, verdict="no verdict", sentence=sentence, clauses=clauses)


def _remove_tests(clause: ClauseFinding) -> ClauseFinding:
    untested: dict[str, Any] = {"p": None, "p_opposite": None, "p_sign_flip": None, "outcome": "untested"}
    untested["note"] = DEMONSTRATION_NOTE
    shown = replace(
        clause,
        verdict="no verdict",
        levels=tuple(replace(level, p_holm=None, p_opposite_holm=None, **untested) for level in clause.levels),
        effect=None if clause.effect is None else replace(clause.effect, **untested),
        seeds_needed=None,
        note="",
    )
    return replace(shown, sentence=describe_clause(shown))
