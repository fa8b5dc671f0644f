"""Captions of figures: n, test, pairing, correction, band, marks, and the runs that are in no mean."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import cache
from itertools import accumulate

from supermask.analysis.claims.endpoint_band import compare_over_band
from supermask.analysis.stats import SIGNIFICANCE, Comparison
from supermask.analysis.summary import Summary
from supermask.core.text import Row, format_percent, format_range, pluralize
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


MAX_NAMED = 8
"""Treatments of excluded runs that a caption names; of more, the others are counted."""


def summary_caption(summary: Summary, remarks: Sequence[str] = ()) -> str:
    """Return the caption of a summary figure: n, test, pairing, correction, `remarks`, excluded runs.

    Source: Zhou et al. 2019, authors' response, items 2 and 4 (n and the test are stated).
    """
    sentences = [
        mean_note(summary),
        significance_note(summary),
        dense_note(summary, "Dotted line: mean of the dense network.", "first point of its line"),
        *remarks,
        excluded_note(summary),
        *data_notes(summary),
        takeaway(summary),
    ]
    return join_sentences(sentences)


def takeaway(summary: Summary) -> str:
    """State in one sentence which treatments differ from the reference, by direction.

    Where the study has a primary endpoint, by its one test per treatment; else at some level: those with stars. A
    treatment that differs both ways is named with both. Empty if there is nothing to compare, and on a demonstration,
    from which nothing follows.
    """
    if demonstration_note(summary.subject):
        return ""
    higher, lower = ("better", "worse") if summary.metric.unit == "percent" else ("later", "earlier")
    if text := _endpoint_takeaway(summary, higher, lower):
        return text
    groups: dict[str, list[str]] = {higher: [], lower: [], f"{higher} at one level and {lower} at another": []}
    same: list[str] = []
    tested = 0
    for label, points in summary.series.items():
        compared = [point for point in points if point.comparison is not None and point.p_holm is not None]
        if label == summary.reference or not compared:
            continue
        tested += 1
        signs = {p.comparison.difference > 0 for p in compared if p.significant and p.comparison is not None}
        if not signs:
            same.append(label)
        else:
            groups[list(groups)[2 if len(signs) == 2 else 0 if True in signs else 1]].append(label)
    if not tested:
        return ""
    parts = [f"{_list_names(labels)} {word} at some level" for word, labels in groups.items() if labels]
    parts = [text.replace("another at some level", "another") for text in parts]
    parts += [f"{_list_names(same)} different at no level"] if same else []
    return f"Takeaway: against {summary.reference}, {'; '.join(parts)}."


def _endpoint_takeaway(summary: Summary, higher: str, lower: str) -> str:
    """State by the primary endpoint which treatments differ from the reference; empty without one or its seeds."""
    comparisons = compare_over_band(summary)
    if not comparisons or summary.band is None:
        return ""
    groups: dict[str, list[str]] = {higher: [], lower: [], "not significantly different": []}
    for label, comparison in comparisons.items():
        significant = comparison.p is not None and comparison.p < SIGNIFICANCE
        groups[list(groups)[2 if not significant else 0 if comparison.difference > 0 else 1]].append(label)
    most, least = map(format_percent, summary.band)
    n = format_range([comparison.n for comparison in comparisons.values()])
    parts = [f"{_list_names(labels)} {word}" for word, labels in groups.items() if labels]
    return (
        f"Takeaway: in the mean from {most}% to {least}% of the weights, against {summary.reference}, "
        f"{'; '.join(parts)} (one t-test per treatment over n = {n} seeds, p < {SIGNIFICANCE})."
    )


def _list_names(labels: Sequence[str]) -> str:
    """Join names, with their verb: `a is`, `a and b are`."""
    return f"{join_names(labels)} {'is' if len(labels) == 1 else 'are'}"


def join_names(labels: Sequence[str]) -> str:
    """Join names: `a`, `a and b`; of more than eight the rest is counted."""
    # A name with a comma of its own is quoted, so that the list can be read.
    shown, more = [f'"{label}"' if "," in label else label for label in labels[:8]], len(labels) - 8
    names = [*shown, f"{more} more"] if more > 0 else shown
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def join_sentences(sentences: Sequence[str]) -> str:
    """Join the sentences that are not empty into one paragraph."""
    return " ".join(sentence for sentence in sentences if sentence)


def data_notes(summary: Summary) -> list[str]:
    """Return the notes on the data, one sentence each: first that it is a demonstration, if it is."""
    return [*demonstration_note(summary.subject), *data_notices(summary.data_notes)]


def row_data_notes(rows: Sequence[Row]) -> list[str]:
    """Return the notes on the data of these rows, for figures that are not drawn from a summary."""
    datasets = dict.fromkeys(str(row.get("dataset")) for row in rows)
    demonstrations = [sentence for dataset in datasets for sentence in demonstration_note(f"network on {dataset}")]
    return [*demonstrations, *data_notices(sorted({str(row["data_note"]) for row in rows if row.get("data_note")}))]


def demonstration_note(subject: str) -> list[str]:
    """Return the sentence for captions of figures on demonstration data; none for other data.

    `subject`: network and dataset, as in `Summary.subject`.
    """
    dataset = subject.rpartition(" on ")[2]
    if not is_demonstration(dataset):
        return []
    return [f"A demonstration on {dataset}: nothing is tested; intervals say nothing about the paper's networks."]


def dense_note(summary: Summary, common: str, own_place: str) -> str:
    """Describe the dense network: the sentence `common`, or where each treatment's own one is."""
    if summary.dense:
        return common
    if summary.has_own_dense_networks:
        return f"Each treatment has its own {summary.own_settings} and its own dense network: {own_place}."
    return "No dense network has finished."


def mean_note(summary: Summary) -> str:
    """Describe the points: network, n, band."""
    points = summary.points or [point for point in [summary.dense] if point]
    counts = [point.interval.n for point in points]
    start = f"Network {summary.subject}: " if summary.subject else ""
    if max(counts) < 2:
        return f"{start}n = 1 seed, so no band and no test."
    fewer = " (fewer where runs are in no mean)" if len(set(counts)) > 1 else ""
    seeds = f"n = {format_range(counts)} seeds{fewer}"
    levels = sorted({point.level for point in points})
    by_level = [{point.level: point.interval.low is not None for point in series} for series in summary.series.values()]
    lines = [[has_interval.get(level, False) for level in levels] for has_interval in by_level]
    dense = "" if summary.has_own_dense_networks or not summary.dense else "dense network"
    return f"{start}mean over {seeds}; {interval_mark(lines, dense)}: 95% t-interval of the mean."


def interval_mark(lines: Sequence[Sequence[bool]], also_bar: str = "") -> str:
    """Return what shows the intervals of a figure: `band`, `bar`, or `band (single points: bar)`.

    `lines`: for each line, whether each of its points has an interval. `also_bar`: what else has a bar, if anything.
    """
    single = sum(len(find_single_intervals(line)) for line in lines)
    if single and single == sum(map(sum, lines)):
        return "bar"
    bars = " and ".join(name for name in (also_bar, "single points" if single else "") if name)
    return f"band ({bars}: bar)" if bars else "band"


def find_single_intervals(has_interval: Sequence[bool]) -> list[int]:
    """Return the indices of the points with an interval whose neighbors have none: a band there has no width."""
    padded = [False, *has_interval, False]
    return [i for i, has in enumerate(has_interval) if has and not padded[i] and not padded[i + 2]]


def significance_note(*summaries: Summary) -> str:
    """Describe the stars: test, pairing, correction; and count the comparisons that were not tested.

    `summaries`: one per panel, with the same reference. Empty on a demonstration, which has no stars.

    Source: Zhou et al. 2019, authors' response, items 2 and 4: each level is tested by itself.
    """
    if any(demonstration_note(summary.subject) for summary in summaries):
        return ""
    reference, points = summaries[0].reference, [point for summary in summaries for point in summary.points]
    compared = [(point, point.comparison) for point in points if point.comparison]
    tested = [(point, comparison) for point, comparison in compared if comparison.p is not None]
    untested = _untested_note([comparison for _, comparison in compared])
    if all(point.interval.n < 2 or point.treatment == reference for point in points):
        return untested if any(point.interval.n > 1 for point in points) else ""
    if not tested:
        return untested or f"No comparison with {reference} could be tested."
    test = {
        frozenset({"paired t"}): "paired t-test, pairs share a seed",
        frozenset({"Welch t"}): "Welch's t-test, not paired: the seeds differ",
    }.get(frozenset(c.test for _, c in tested), "paired t-test where both have the same seeds, else Welch's t-test")
    levels = sorted(count for summary in summaries for count in _count_tested_levels(summary))
    correction = (
        "one level, so no correction"
        if levels[-1] == 1
        else f"after Holm's correction over {format_range(levels)} levels, for each treatment by itself"
    )
    none = "" if any(point.significant for point, _ in tested) else " (there is none)"
    stars = f"Star{none}: differs from {reference} at that level, p < {SIGNIFICANCE} ({test}), {correction}."
    return f"{stars} {untested}".strip()


def _count_tested_levels(summary: Summary) -> list[int]:
    """Return the number of tested levels of each treatment with one."""
    tested = [point for point in summary.points if point.comparison is not None and point.comparison.p is not None]
    return list(Counter(point.treatment for point in tested).values())


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
    """Describe the `rows` that are in no mean, by status and label; `runs` is the number of all runs.

    The first `MAX_NAMED` labels of each status are named.
    """
    parts = []
    for status in dict.fromkeys([*STATUS_WORDING, *(str(row["status"]) for row in rows)]):
        matching = [row for row in rows if row["status"] == status]
        counts = Counter(
            label for row in matching for label in treatment_labels(row) if label == DENSE or label in labels
        )
        named = [f"{label} {count}" for label, count in counts.items()]
        if len(named) > MAX_NAMED + 1:
            named[MAX_NAMED:] = [f"and {pluralize(len(named) - MAX_NAMED, 'more treatment')}"]
        names = ", ".join(named)
        if matching:
            parts.append(f"{len(matching)} {STATUS_WORDING.get(status, status)} ({names})")
    return f"In no mean, of {pluralize(runs, 'run')}: {'; '.join(parts)}." if parts else ""


def format_seeds(counts: Collection[int]) -> str:
    """Format the number of seeds: `n = 1 seed`, `n = 3 to 5 seeds`."""
    return f"n = {format_range(counts)} seed{'' if max(counts, default=0) == 1 else 's'}"


def wrap_to_width(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """Wrap text greedily at spaces, and inside words wider than `width`; `measure` returns widths in its unit."""
    words = text.split()
    whole = " ".join(words)
    whole_width = measure(whole)
    if whole_width <= width:
        return [whole] if words else []
    lines: list[str] = []
    # Measuring is the cost of wrapping, about 2 ms per line. The search for the end of a line starts at its share of
    # the whole text, then at the length of the line before.
    length = int(len(whole) * width / whole_width)
    while words:
        count = _count_fitting_words(words, width, measure, length)
        if count > 0:
            lines.append(" ".join(words[:count]))
            del words[:count]
        else:
            word = words[0]
            fits = max(1, bisect_right(range(1, len(word)), width, key=lambda end: measure(word[:end])))
            lines.append(word[:fits])
            words[:1] = [word[fits:]] if fits < len(word) else []
        length = len(lines[-1])
    return lines


def _count_fitting_words(words: list[str], width: float, measure: Callable[[str], float], length: int) -> int:
    """Return how many of the first words fit side by side; the search starts at those within `length` characters."""

    @cache
    def fits(count: int) -> bool:
        return measure(" ".join(words[:count])) <= width

    ends = list(accumulate(len(word) + 1 for word in words))
    count = bisect_right(ends, length + 1)
    while count > 0 and not fits(count):
        count -= 1
    while count < len(words) and fits(count + 1):
        count += 1
    return count
