"""Labels in figures, tables and pages: literal or escaped with a note, shortened in the middle, never two alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from supermask.analysis.summary import summarize
from supermask.core.text import Row
from supermask.reporting.figures import (
    ACCURACY,
    RenderedFigure,
    accuracy_figure,
    compute_ranking,
    convergence_figure,
    difference_figure,
    learning_curves_figure,
    overview_figure,
    ranking_figure,
    save_figure,
    supermask_figure,
    untrained_figure,
)
from supermask.reporting.figures.labels import (
    GLYPH_NOTE,
    distinct_labels,
    escape_invisible,
    escape_missing_glyphs,
    short_labels,
    shorten_middle,
)
from supermask.reporting.figures.layout import fit_labels, text_measure
from supermask.reporting.figures.learned import supermask_results
from supermask.reporting.figures.learning_curves import average_curves
from supermask.reporting.figures.untrained import heuristic_points
from supermask.reporting.plotly.accuracy import overview_plot, ranking_plot
from supermask.reporting.plotly.masks import learned_masks_plot, learning_plot, untrained_plot
from supermask.reporting.status import format_status

LONG = "lab " + "x" * 120
LABELS = {
    "equal ends": [f"{LONG}{middle}{'y' * 120}" for middle in ("a", "b", "c")],
    "invisible": ["lab a", "lab a\u200b", "lab a\u200c", "lab\u202e a"],
    "spaces": ["lab a b", "lab a  b", "lab  a b"],
    "numbers": ["lab" + "z" * 299, "lab" + "z" * 298, "lab" + "z" * 200 + " (2)"],
    "scripts": ["lab 研究", "lab 研究室", "lab \U0001f389", "lab עברית"],
}


def rows_of(labels: list[str], **facts: Any) -> list[Row]:
    return [
        {
            "id": f"{index}-{level}-{seed}",
            "network": "fc",
            "dataset": "mnist",
            "treatment": label,
            "level": level,
            "seed": seed,
            "density": 0.5**level,
            "status": "finished",
            "early_stop_test_accuracy": 0.9 + 0.01 * index + 0.001 * seed,
            "early_stop_validation_accuracy": 0.9,
            "early_stop_iteration": 100 + seed,
            **facts,
        }
        for index, label in enumerate(labels)
        for level in (1, 2)
        for seed in (0, 1)
    ]


def heuristic_rows(labels: list[str]) -> list[Row]:
    rows = rows_of(labels, trained=False, mask1="rewind", schedule="one_shot")
    return [row | {"criterion": row["treatment"]} for row in rows]


def learned_rows(labels: list[str]) -> list[Row]:
    rows = rows_of(labels, supermask="top_k", trained=True, expected_density=0.5)
    return [row for row in rows if row["level"] == 1]


def curve_points(labels: list[str]) -> list[Row]:
    return [
        {"treatment": label, "seed": 0, "iteration": iteration, "validation_accuracy": 0.5 + 0.01 * iteration}
        for label in labels
        for iteration in (10, 20)
    ]


FIGURES: dict[str, Callable[[list[str]], RenderedFigure]] = {
    "accuracy": lambda labels: accuracy_figure(rows_of(labels), labels, labels[0], "t"),
    "early-stop": lambda labels: convergence_figure(rows_of(labels), labels, labels[0], "t"),
    "differences": lambda labels: difference_figure(rows_of(["dummy", *labels]), ["dummy", *labels], "dummy", "t"),
    "overview": lambda labels: overview_figure(rows_of(labels), labels, labels[0], "t"),
    "ranking": lambda labels: ranking_figure(rows_of(labels), labels, labels[0], "t"),
    "heuristic": lambda labels: untrained_figure(heuristic_rows(labels), "t"),
    "supermasks": lambda labels: supermask_figure(learned_rows(labels), labels, labels[0], "t", 10.0),
    "learning": lambda labels: learning_curves_figure(curve_points(labels), "t"),
}


def shown_labels(drawn: RenderedFigure) -> list[str]:
    """Texts of a figure that begin as the labels do, without white space and without the caption."""
    drawn.figure.draw_without_rendering()
    texts = ["".join(text.get_text().split()) for text in drawn.figure.findobj(Text)]  # type: ignore[attr-defined]
    return [text for text in texts if text.startswith("lab")]


@pytest.mark.slow
@pytest.mark.parametrize("labels", LABELS.values(), ids=list(LABELS))
@pytest.mark.parametrize("name", list(FIGURES))
def test_no_two_labels_of_a_figure_are_equal(name: str, labels: list[str]) -> None:
    drawn = FIGURES[name](labels)
    shown = shown_labels(drawn)
    assert len(shown) == len(set(shown)) == len(labels), shown
    treatments = {row.get("treatment", row.get("criterion")) for row in drawn.data_rows}
    assert treatments >= set(labels), "data rows have the labels themselves"


@pytest.mark.parametrize("labels", LABELS.values(), ids=list(LABELS))
def test_no_two_labels_of_a_plot_are_equal(labels: list[str]) -> None:
    summary = summarize(rows_of(labels), labels, labels[0], ACCURACY)
    results = supermask_results(learned_rows(labels), labels, labels[0])
    plots = [overview_plot(summary, labels)[0], *ranking_plot(summary, compute_ranking(summary))["views"]]
    plots.append(learned_masks_plot(results, labels[0], [90.0], 10.0))
    for plot in plots:
        ticks = ["".join(text.split()) for text in plot["layout"]["yaxis"]["ticktext"]]
        assert len(ticks) == len(set(ticks)) == len(labels)
    for plot in (
        untrained_plot(heuristic_points(heuristic_rows(labels)), []),
        learning_plot(average_curves(curve_points(labels))),
    ):
        hovers = {trace["hovertext"][0] for trace in plot["data"] if trace.get("name") in labels}
        assert len(hovers) == len(labels), "a hover text has the whole label"


def test_status_escapes_invisible_characters() -> None:
    text = format_status(LABELS["invisible"], rows_of(LABELS["invisible"]))
    assert [line.split("  ")[0] for line in text.splitlines()[2:]] == [
        "lab a",
        "lab a\\u200b",
        "lab a\\u200c",
        "lab\\u202e a",
    ]


# --- glyphs ---


@pytest.mark.slow
def test_missing_glyphs_are_escaped_with_a_note(tmp_path: Path) -> None:
    labels = ["lab 研究", "lab \u202eabc"]
    drawn = accuracy_figure(rows_of(labels), labels, labels[0], "A study of 研究")
    assert drawn.caption.endswith(GLYPH_NOTE)
    texts = [text.get_text() for text in (*drawn.figure.texts, *drawn.figure.legends[0].get_texts())]
    assert texts[0] == "A study of \\u7814\\u7a76"
    assert {"lab \\u7814\\u7a76 (reference)", "lab \\u202eabc"} <= {" ".join(text.split()) for text in texts}
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = save_figure(drawn, tmp_path, "x")
    assert "lab 研究" in paths[-2].read_text(encoding="utf-8"), "the CSV has the names themselves"


def test_glyphs_that_the_font_has_are_drawn_without_a_note() -> None:
    labels = ["Größe ≥ 3", "ширина"]
    drawn = accuracy_figure(rows_of(labels), labels, labels[0], "É")
    assert GLYPH_NOTE not in drawn.caption
    assert [text.get_text() for text in drawn.figure.legends[0].get_texts()] == ["Größe ≥ 3 (reference)", "ширина"]


@given(st.text(max_size=40))
def test_escaped_text_is_printable_and_stays_when_escaped_again(text: str) -> None:
    for escape in (escape_missing_glyphs, escape_invisible):
        once = escape(text)
        assert once.isprintable() and escape(once) == once
    assert "\udcff" not in escape_missing_glyphs("a\udcff")


# --- shortening ---


def test_names_lose_their_middle() -> None:
    assert shorten_middle("large_init_large_final, seed 0", lambda text: len(text) <= 15) == "large_in…seed 0"
    assert shorten_middle("random", lambda text: len(text) <= 6) == "random"
    assert short_labels(["x" * 30 + "a" + "x" * 30, "x" * 30 + "b" + "x" * 30], 9) == ["xxxx…xxxx", "xx…xx (2)"]


@pytest.mark.slow
@given(st.text(min_size=1, max_size=60), st.integers(3, 40))
def test_shortened_text_fits_and_has_both_ends(text: str, length: int) -> None:
    short = shorten_middle(text, lambda part: len(part) <= length)
    assert len(short) <= max(length, 2)
    if short != text:
        head, tail = short.split("…", 1) if text.count("…") == 0 else (short[:1], short[-1:])
        assert text.startswith(head.rstrip()) and text.endswith(tail.lstrip())


@given(st.lists(st.text("ab \u200b…()2", max_size=12), min_size=1, max_size=12, unique=True), st.integers(5, 12))
def test_short_labels_are_distinct(labels: list[str], length: int) -> None:
    short = short_labels(labels, length)
    assert len({"".join(text.split()) for text in short}) == len(labels)


@pytest.mark.slow
def test_fitted_labels_fit_and_are_distinct() -> None:
    labels = [f"{'w' * 80}{letter}{'w' * 80}" for letter in "abcdefghijkl"]
    fitted = fit_labels(labels, 1.0, lines=2)
    assert len(set(fitted)) == len(labels)
    for text in fitted:
        assert all(text_measure()(line, 7.0) <= 1.0 for line in text.split("\n"))
    assert distinct_labels(["a", "b"], lambda label, suffix: label + suffix) == ["a", "b"]
