"""Captions of figures: n, test, pairing, correction, band, marks, and the runs that are in no mean."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from supermask.analysis.stats import SIGNIFICANCE, Comparison
from supermask.analysis.summary import Summary
from supermask.core.text import Row, format_range, pluralize
from supermask.datasets.specs import data_notices, is_demonstration
from supermask.store.tables import DENSE, treatment_labels

STATUS_WORDING = {
    "diverged": "diverged",
    "ancestor_diverged": "not started because an ancestor diverged",
    "certificate_failed": "failed the certificate",
    "ancestor_certificate_failed": "not started because an ancestor failed the certificate",
    "to_do": "still to do",
    "finished": "finished without a value",
}
"""Status -> wording in a caption, for runs that are in no mean."""


def summary_caption(summary: Summary, remarks: Sequence[str] = ()) -> str:
    """Return the caption of a summary figure: n, test, pairing, correction, `remarks`, excluded runs.

    Source: Zhou et al. 2019, authors' response, items 2 and 4 (n and the test are stated).
    """
    sentences = [
        mean_note(summary),
        significance_note(summary),
        "Dotted line: mean of the dense network." if summary.dense else "No dense network has finished.",
        *remarks,
        excluded_note(summary),
        *data_notes(summary),
    ]
    return join_sentences(sentences)


def join_sentences(sentences: Sequence[str]) -> str:
    """Join the sentences that are not empty into one paragraph."""
    return " ".join(sentence for sentence in sentences if sentence)


def data_notes(summary: Summary) -> list[str]:
    """Return the notes on the data, one sentence each: first that it is a demonstration, if it is."""
    return [*demonstration_note(summary.subject), *data_notices(summary.data_notes)]


def demonstration_note(subject: str) -> list[str]:
    """Return the sentence for captions of figures on demonstration data; none for other data.

    `subject`: network and dataset, as in `Summary.subject`.
    """
    dataset = subject.rpartition(" on ")[2]
    if not is_demonstration(dataset):
        return []
    return [f"A demonstration on {dataset}: marks and intervals say nothing about the paper's networks."]


def mean_note(summary: Summary) -> str:
    """Describe the points: network, n, band."""
    points = summary.points or [point for point in [summary.dense] if point]
    counts = [point.interval.n for point in points]
    start = f"Network {summary.subject}: " if summary.subject else ""
    if max(counts) < 2:
        return f"{start}n = 1 seed, so no band and no test."
    fewer = " (fewer where runs are in no mean)" if len(set(counts)) > 1 else ""
    seeds = f"n = {format_range(counts)} seeds{fewer}"
    return f"{start}mean over {seeds}; band (dense network: bar): 95% t-interval of the mean."


def significance_note(summary: Summary) -> str:
    """Describe the stars: test, pairing, correction; and count the comparisons that were not tested.

    Source: Zhou et al. 2019, authors' response, items 2 and 4: each level is tested by itself.
    """
    compared = [(point, point.comparison) for point in summary.points if point.comparison]
    tested = [(point, comparison) for point, comparison in compared if comparison.p is not None]
    untested = _untested_note([comparison for _, comparison in compared])
    if all(point.interval.n < 2 or point.treatment == summary.reference for point in summary.points):
        return untested if any(point.interval.n > 1 for point in summary.points) else ""
    if not tested:
        return untested or f"No comparison with {summary.reference} could be tested."
    test = {
        frozenset({"paired t"}): "paired t-test, pairs share a seed",
        frozenset({"Welch t"}): "Welch's t-test, not paired: the seeds differ",
    }.get(frozenset(c.test for _, c in tested), "paired t-test where both have the same seeds, else Welch's t-test")
    levels = sorted(Counter(point.treatment for point, _ in tested).values())
    correction = (
        "one level, so no correction"
        if levels[-1] == 1
        else f"after Holm's correction over {format_range(levels)} levels, for each treatment by itself"
    )
    none = "" if any(point.significant for point, _ in tested) else " (there is none)"
    stars = f"Star{none}: differs from {summary.reference} at that level, p < {SIGNIFICANCE} ({test}), {correction}."
    return f"{stars} {untested}".strip()


def _untested_note(comparisons: Sequence[Comparison]) -> str:
    reasons = {"no variance": "the same difference in every seed", "fewer than two": "fewer than two runs on a side"}
    parts = []
    for start, reason in reasons.items():
        count = sum(comparison.note.startswith(start) for comparison in comparisons)
        if count:
            parts.append(f"{pluralize(count, 'comparison')} not tested: {reason}.")
    return " ".join(parts)


def excluded_note(summary: Summary) -> str:
    """Describe the runs that are in no mean: number, status, treatment."""
    return describe_excluded(summary.excluded, summary.series, summary.runs)


def describe_excluded(rows: Sequence[Row], labels: Collection[str], runs: int) -> str:
    """Describe the `rows` that are in no mean, by status and label; `runs` is the number of all runs."""
    parts = []
    for status in dict.fromkeys([*STATUS_WORDING, *(str(row["status"]) for row in rows)]):
        matching = [row for row in rows if row["status"] == status]
        counts = Counter(
            label for row in matching for label in treatment_labels(row) if label == DENSE or label in labels
        )
        names = ", ".join(f"{label} {count}" for label, count in counts.items())
        if matching:
            parts.append(f"{len(matching)} {STATUS_WORDING.get(status, status)} ({names})")
    return f"In no mean, of {pluralize(runs, 'run')}: {'; '.join(parts)}." if parts else ""


def format_seeds(counts: Collection[int]) -> str:
    """Format the number of seeds: `n = 1 seed`, `n = 3 to 5 seeds`."""
    return f"n = {format_range(counts)} seed{'' if max(counts, default=0) == 1 else 's'}"


def wrap_to_width(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """Wrap text greedily at spaces, and inside words wider than `width`; `measure` returns widths in its unit."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and measure(longer) <= width:
            lines[-1] = longer
            continue
        while measure(word) > width and len(word) > 1:
            fits = max(1, bisect_right(range(1, len(word)), width, key=lambda end: measure(word[:end])))
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    return lines
