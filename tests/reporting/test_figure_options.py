"""Options of figures: width, title, caption, axis, style, formats, selection; LaTeX and Markdown tables."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import call
from helpers.harness import IS_FULL
from helpers.stored_study import TrainedStudy, train_study
from matplotlib.figure import Figure

from supermask.api import runs
from supermask.core.errors import UserError
from supermask.core.text import Row
from supermask.reporting.figures import (
    ACCURACY,
    FigureOptions,
    RenderedFigure,
    accuracy_figure,
    convergence_figure,
    criteria_table_figure,
    difference_figure,
    learning_curves_figure,
    network_panels_figure,
    overview_figure,
    ranking_figure,
    save_figure,
    summarize,
    supermask_curves_figure,
    supermask_figure,
    table_one_figure,
    untrained_figure,
    untrained_masks_figure,
    weight_changes_figure,
)
from supermask.reporting.figures.catalog import FIGURES as FIGURE_NAMES
from supermask.reporting.figures.catalog import split_labels, study_figures
from supermask.reporting.figures.network_panels import PAPER_NETWORKS, NetworkPanel
from supermask.reporting.figures.style import parse_width
from supermask.reporting.figures.table_one import COLUMNS
from supermask.reporting.tables import format_latex, format_markdown, table_of_rows

LABELS = ["large_final", "random", "movement"]


def rows_of(labels: list[str] = LABELS, **facts: Any) -> list[Row]:
    rows: list[Row] = []
    for index, label in enumerate(["dense", *labels]):
        for level in (0,) if label == "dense" else (1, 2, 3):
            for seed in (0, 1, 2):
                accuracy = 0.98 - 0.1 * index * level / 3 + 0.002 * seed * (index + 1)
                rows.append(
                    {
                        "id": f"{label}-{level}-{seed}",
                        "network": "fc-300-100",
                        "dataset": "mnist",
                        "treatment": label,
                        "level": level,
                        "seed": seed,
                        "density": 0.5**level,
                        "status": "finished",
                        "early_stop_test_accuracy": accuracy,
                        "early_stop_validation_accuracy": accuracy,
                        "early_stop_iteration": 100 * (index + 1) + seed,
                        **(facts if level else {}),
                    }
                )
    return rows


def heuristic_rows() -> list[Row]:
    rows = rows_of(trained=False, mask1="rewind", schedule="one_shot")
    return [row | {"criterion": row["treatment"]} for row in rows]


def table_rows() -> list[Row]:
    learned = rows_of(
        list(COLUMNS[2:-1]),
        supermask="bernoulli",
        trained=True,
        thresholded_test_accuracy=0.9,
        expected_test_accuracy=0.91,
        expected_density=0.5,
    )
    untrained = rows_of(list(COLUMNS[:2]), trained=False, criterion="large_final")
    return [row for row in learned if row["level"] in (0, 1)] + [row for row in untrained if row["level"]]


def curve_points() -> list[Row]:
    return [
        {"treatment": label, "seed": seed, "iteration": i, "validation_accuracy": 0.5 + 0.004 * i + 0.01 * seed}
        for label in LABELS
        for seed in (0, 1)
        for i in (1, 10, 100)
    ]


def panels(missing: int = 3) -> list[NetworkPanel]:
    summary = summarize(rows_of(), LABELS, "large_final", ACCURACY)
    return [
        NetworkPanel(network, title, None if place + missing > 3 else summary, "not run: supermask run x scale=y")
        for place, (network, title) in enumerate(PAPER_NETWORKS.items())
    ]


def figure_6_rows() -> list[Row]:
    masks = [
        row | {"criterion": criterion, "treatment": criterion}
        for criterion in ("random", "large_final")
        for row in heuristic_rows()
        if row["level"] and row["treatment"] == LABELS[0]
    ]
    return masks + [row | {"initial_validation_accuracy": 0.09} for row in rows_of(LABELS[:1]) if not row["level"]]


def figure_7_rows() -> list[Row]:
    learned = rows_of(
        ["learned", "learned, start logit 1"], supermask="bernoulli", trained=True, base="init", expected_density=0.4
    )
    constants = [row | {"mask1": "signed_constant"} for row in heuristic_rows() if row["level"]]
    return [row for row in learned if row["level"] == 1] + constants + heuristic_rows()


CHANGES = {"trained": True, "kept": 1000, "ties_drawn": 150, "sign_changed": 0.03, "shrunk": 0.2}

FIGURES: dict[str, Callable[[FigureOptions], RenderedFigure]] = {
    "accuracy": lambda o: accuracy_figure(rows_of(), LABELS, "large_final", "Title", o),
    "early-stop": lambda o: convergence_figure(rows_of(), LABELS, "large_final", "Title", o),
    "differences": lambda o: difference_figure(rows_of(), LABELS, "large_final", "Title", o),
    "overview": lambda o: overview_figure(rows_of(), LABELS, "large_final", "Title", o),
    "ranking": lambda o: ranking_figure(rows_of(), LABELS, "large_final", "Title", o),
    "heuristic": lambda o: untrained_figure(heuristic_rows(), "Title", 10.0, o),
    "supermasks": lambda o: supermask_figure(table_rows(), list(COLUMNS[:-1]), COLUMNS[0], "Title", 10.0, o),
    "table-one": lambda o: table_one_figure(table_rows(), "Title", 10.0, options=o),
    "figure-3": lambda o: network_panels_figure(panels(), "Title", o),
    "figure-4": lambda o: network_panels_figure(panels(missing=2), "Title", o),
    "figure-5": lambda o: network_panels_figure(panels(missing=0), "Title", o),
    "figure-6": lambda o: untrained_masks_figure(figure_6_rows(), "Title", 10.0, o),
    "figure-7": lambda o: supermask_curves_figure(figure_7_rows(), "Title", 10.0, o),
    "criteria": lambda o: criteria_table_figure(["large_final"], "Title", o),
    "weight-changes": lambda o: weight_changes_figure(rows_of(**CHANGES), LABELS, "Title", o),
    "learning": lambda o: learning_curves_figure(curve_points(), "Title", o),
}

OPTIONS = {
    "narrow": FigureOptions(width=4.5),
    "bare": FigureOptions(title=False, caption=False),
    "slides": FigureOptions(width=12.0, style="slides"),
    "log": FigureOptions(axis="log"),
    "log-error": FigureOptions(axis="log-error"),
}
if IS_FULL:
    OPTIONS |= {"wide": FigureOptions(width=12.0), "linear": FigureOptions(axis="linear")}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("name", list(FIGURES))
def test_every_figure_takes_every_option(name: str, options: FigureOptions) -> None:
    """All texts and axes stay inside the page, and the data rows do not depend on the options."""
    drawn = FIGURES[name](options)
    assert isinstance(drawn.figure, Figure)
    figure = drawn.figure
    figure.draw_without_rendering()
    assert figure.get_figwidth() == pytest.approx(options.width)
    page = figure.bbox
    boxes = [item.get_window_extent() for item in (*figure.texts, *figure.legends)]
    boxes += [box for axes in figure.axes if (box := axes.get_tightbbox()) is not None]
    for box in boxes:
        assert -1 <= box.x0 <= box.x1 <= page.x1 + 0.06 * figure.dpi, (name, box)
        assert -1 <= box.y0 <= box.y1 <= page.y1 + 1, (name, box)
    assert all(axes.get_window_extent().width > 0.15 * figure.dpi for axes in figure.axes)
    if name != "ranking":  # the caption of a ranking counts its panels
        assert drawn.data_rows == default_rows(name)


@cache
def default_rows(name: str) -> list[Row]:
    return FIGURES[name](FigureOptions()).data_rows


def test_registered_figures_are_all_tested() -> None:
    assert set(FIGURES) == set(FIGURE_NAMES)


def test_title_and_caption_can_be_omitted() -> None:
    whole = accuracy_figure(rows_of(), LABELS, "large_final", "Title")
    bare = accuracy_figure(rows_of(), LABELS, "large_final", "Title", OPTIONS["bare"])
    assert whole.figure.texts[0].get_text() == "Title"
    assert bare.figure.texts == []
    assert bare.caption == whole.caption
    assert bare.figure.get_figheight() < whole.figure.get_figheight() - 0.4


@pytest.mark.parametrize(("axis", "scale"), [("linear", "linear"), ("log", "log"), ("log-error", "function")])
def test_the_accuracy_axis_has_the_requested_scale(axis: Any, scale: str) -> None:
    drawn = accuracy_figure(rows_of(), LABELS, "large_final", "", FigureOptions(axis=axis))
    assert drawn.figure.axes[0].get_yscale() == scale
    assert ("logarithmic" in drawn.caption) == (axis != "linear")


@pytest.mark.slow
def test_slides_have_larger_fonts_and_lines() -> None:
    paper, slides = (
        accuracy_figure(rows_of(), LABELS, "large_final", "Title", FigureOptions(width=11.04, style=style)).figure
        for style in ("paper", "slides")
    )
    for figure in (paper, slides):
        figure.draw_without_rendering()
    ticks = zip(slides.axes[0].get_xticklabels(), paper.axes[0].get_xticklabels(), strict=True)
    for large, small in ((slides.texts[0], paper.texts[0]), *ticks):
        assert float(large.get_fontsize()) == pytest.approx(1.6 * float(small.get_fontsize()))
    assert slides.axes[0].lines[1].get_linewidth() == pytest.approx(1.6 * paper.axes[0].lines[1].get_linewidth())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 2.0}, "2 inches is not possible; a figure in the style paper is 4.5 to 40 inches wide"),
        ({"width": 5.0, "style": "slides"}, "style slides is 7.2 to 40"),
        ({"axis": "cubic"}, "allowed: auto, linear, log, log-error"),
        ({"style": "poster"}, "allowed: paper, slides"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        FigureOptions(**options)


def test_widths_have_units() -> None:
    assert [parse_width(text) for text in ("5.5in", "5.5", "13.97 cm", "397.485pt")] == pytest.approx([5.5] * 4)
    for text in ("", "wide", "5 furlongs", "-3in", "1e3in"):
        with pytest.raises(UserError, match=r"give a number with a unit|give a number and one of"):
            parse_width(text)


# --- files ---


@pytest.mark.slow
def test_formats_caption_and_tables_are_written(tmp_path: Path) -> None:
    drawn = table_one_figure(table_rows(), "Table 1", 10.0)
    paths = save_figure(drawn, tmp_path, "t", ["pdf", "tex", "md"])
    assert [path.suffix for path in paths] == [".pdf", ".tex", ".md", ".csv", ".txt"]
    assert paths[-1].read_text() == drawn.caption + "\n"
    tex, markdown = paths[1].read_text(), paths[2].read_text()
    assert r"heuristic, w\_i & 3 & " in tex and r"\caption{Network fc-300-100 on mnist" in tex and "(79.3)" in tex
    assert "| Mask and weights | n | Measured, % (95% interval) | Paper, % |" in markdown
    with pytest.raises(UserError, match="'gif' is not a format of figures; allowed: pdf, svg, png, tex, md"):
        save_figure(drawn, tmp_path, "t", ["gif"])


def test_latex_and_markdown_tables_escape_every_special_character() -> None:
    titles, rows = table_of_rows([{"a": "5% & $x_1$ #{~^}\\", "b": 1.0 / 3, "c": None, "d": True, "e|": "x|y\nz*"}])
    latex = format_latex(titles, rows)
    assert (
        r"5\% \& \$x\_1\$ \#\{\textasciitilde{}\textasciicircum{}\}\textbackslash{} & 0.333333 &  & true "
        r"& x\textbar{}y z* \\" in latex
    )
    assert r"\begin{tabular}{lrlll}" in latex and latex.count("\n") == 8
    markdown = format_markdown(titles, rows)
    assert r"x\|y z\*" in markdown and "| --- | ---: | --- | --- | --- |" in markdown
    assert len({line.replace(r"\|", "").count("|") for line in markdown.splitlines()}) == 1


def test_latex_tables_have_no_character_that_pdflatex_misreads() -> None:
    rows = [{"a": name, "b": "x"} for name in ("[128, 64]", "*all*", "<|w_f|>", "--layers", "−0.31 ± 0.2, α…")]
    latex = format_latex(*table_of_rows(rows))
    lines = latex.splitlines()[4:-2]
    assert [line.partition(" & ")[0] for line in lines[1:]] == [
        "{[}128, 64]",
        "{*}all*",
        r"\textless{}\textbar{}w\_f\textbar{}\textgreater{}",
        "-{}-layers",
        r"\ensuremath{-}0.31 \ensuremath{\pm} 0.2, \ensuremath{\alpha}\ldots{}",
    ]
    drawn = criteria_table_figure(["large_final"], "Criteria")
    assert drawn.table is not None
    assert format_latex(*drawn.table, drawn.caption).isascii()


def test_markdown_shows_the_text_itself() -> None:
    markdown = format_markdown(["a"], [["<b>&amp; ~~x~~ $y$ [z](u)"]])
    assert r"| \<b\>\&amp; \~\~x\~\~ \$y\$ \[z\](u) |" in markdown


def test_latex_compiles_where_latex_is_installed(tmp_path: Path) -> None:
    import shutil

    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    (tmp_path / "x.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\begin{document}"
        + format_latex(*table_of_rows([{"a_b": "50% & more", "b": 1}]), "A caption: $5")
        + r"\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "x.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


# --- selection ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("options"))


@pytest.mark.slow
def test_only_the_requested_figures_and_treatments_are_drawn(trained: TrainedStudy) -> None:
    plan, rows, _ = runs.study_rows(str(trained.study), store=trained.store)
    store = trained.open_store()
    whole = study_figures(plan, rows, store)
    assert list(study_figures(plan, rows, store, only=["overview", "accuracy"])) == ["accuracy", "overview"]
    drawn = study_figures(plan, rows, store, treatments=["random + zero"])["accuracy"]
    expected = ["large_final + zero", "random + zero"]
    assert {row["treatment"] for row in drawn.data_rows} == {"dense", *expected}, "the reference is always drawn"
    means = {(row["treatment"], row["level"]): row["mean"] for row in whole["accuracy"].data_rows}
    assert all(row["mean"] == means[row["treatment"], row["level"]] for row in drawn.data_rows)
    with pytest.raises(UserError, match=r"'acuracy' is not a figure; did you mean 'accuracy'\?"):
        study_figures(plan, rows, store, only=["acuracy"])
    with pytest.raises(UserError, match="has no figure table-one with these treatments and finished runs; it has: acc"):
        study_figures(plan, rows, store, only=["table-one"])
    with pytest.raises(UserError, match=r"no treatment 'random \+ zeroo'; did you mean"):
        study_figures(plan, rows, store, treatments=["random + zeroo"])


def test_labels_with_commas_are_split() -> None:
    labels = ["heuristic, w_i", "learned, w_i", "heuristic", "w_i"]
    assert split_labels("heuristic, w_i,learned, w_i", labels) == ["heuristic, w_i", "learned, w_i"]
    assert split_labels("heuristic,nothing, w_i", labels) == ["heuristic", "nothing", "w_i"]
    assert split_labels("", labels) == split_labels(" , ", labels) == []


@pytest.mark.slow
def test_the_command_takes_the_options(trained: TrainedStudy, tmp_path: Path) -> None:
    args = [*trained.args, "--out", str(tmp_path), "--only", "accuracy", "--format", "pdf,tex", "--width", "5.5in"]
    printed = call("figure", *args, "--no-title", "--no-caption", "--axis", "linear", "--style", "paper")
    assert printed.status == 0, printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"small-accuracy.{suffix}" for suffix in ("csv", "pdf", "tex", "txt")
    ]
    assert b"/MediaBox [ 0 0 396 " in (tmp_path / "small-accuracy.pdf").read_bytes()
    for option, message in (
        (["--width", "1in"], "4.5 to 40 inches"),
        (["--format", "gif"], "allowed: pdf, svg, png, tex, md"),
        (["--only", "x"], "is not a figure"),
        (["--treatments", "x"], "has no treatment"),
    ):
        refused = call("figure", *trained.args, "--out", str(tmp_path), *option)
        assert refused.status == 2 and message in " ".join(refused.err.split())


def test_the_table_command_writes_latex_and_markdown(trained: TrainedStudy) -> None:
    latex = call("table", *trained.args, "--format", "latex").out
    assert latex.count(r"\\") == 1 + 18 and "large\\_final + zero & 1 & 0 & finished" in latex
    markdown = call("table", *trained.args, "--format", "markdown").out
    assert len(markdown.splitlines()) == 2 + 18
