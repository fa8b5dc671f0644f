"""Figures of accuracy and convergence: numbers, stars, captions, excluded runs, files."""

from __future__ import annotations

import csv
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from scipy import stats as scipy_stats

from supermask.core.errors import SystemFailure, UserError
from supermask.core.text import Row, format_percent
from supermask.reporting.figures import RenderedFigure, accuracy_figure, convergence_figure, save_figure, slugify
from supermask.reporting.figures.caption import describe_excluded, interval_mark, wrap_to_width
from supermask.reporting.figures.catalog import FIGURES
from supermask.reporting.figures.save import figure_stem
from supermask.reporting.figures.style import FALLBACK_STYLES, STYLES, assign_styles, thin_ticks

TREATMENTS = ["large_final", "random"]
# treatment -> level -> accuracy by seed
ACCURACIES = {
    "large_final": {1: [0.97, 0.98, 0.96], 2: [0.95, 0.97, 0.96]},
    "random": {1: [0.90, 0.92, 0.89], 2: [0.951, 0.968, 0.962]},
}


def run(treatment: str, level: int, seed: int, accuracy: float | None, **facts: int | float | str | None) -> Row:
    return {
        "id": f"{treatment}-{level}-{seed}",
        "network": "fc",
        "dataset": "mnist",
        "treatment": treatment,
        "level": level,
        "seed": seed,
        "density": 0.8**level,
        "status": "finished" if accuracy is not None else "to_do",
        "early_stop_test_accuracy": accuracy,
        "early_stop_iteration": None if accuracy is None else 1000 + 100 * seed + 10 * level,
        "data_note": None,
        **facts,
    }


def study(seeds: int = 3, **facts: str) -> list[Row]:
    rows = [run("dense", 0, seed, 0.95 + 0.01 * seed, **facts) for seed in range(seeds)]
    for treatment, levels in ACCURACIES.items():
        for level, accuracies in levels.items():
            rows += [run(treatment, level, seed, accuracies[seed], **facts) for seed in range(seeds)]
    return rows


def draw(rows: list[Row], treatments: list[str] = TREATMENTS) -> RenderedFigure:
    return accuracy_figure(rows, treatments, treatments[0], "A study")


def curves(figure: RenderedFigure) -> dict[str, list[tuple[float, float]]]:
    """Color -> the points of each connecting line (without markers)."""
    return {
        str(line.get_color()): [
            (float(x), float(y))
            for x, y in zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True)
            if len(np.asarray(line.get_xdata())) > 1
        ]
        for line in figure.figure.axes[0].lines
        if line.get_marker() == "None" and len(np.asarray(line.get_xdata())) > 2
    }


def stars(figure: RenderedFigure) -> list[tuple[str, list[float]]]:
    return [
        (str(line.get_color()), [float(x) for x in np.asarray(line.get_xdata())])
        for line in figure.figure.axes[0].lines
        if line.get_marker() == "*" and len(np.asarray(line.get_xdata()))
    ]


def legend(figure: RenderedFigure) -> list[str]:
    return [text.get_text() for text in figure.figure.legends[0].get_texts()]


def test_lines_go_through_the_means_of_the_seeds_and_start_at_the_dense_network() -> None:
    drawn_lines = curves(draw(study()))
    expected: dict[str, list[tuple[float, float]]]
    expected = {"large_final": [(100, 96), (80, 97), (64, 96)], "random": [(100, 96), (80, 271 / 3), (64, 288.1 / 3)]}
    for label, points in expected.items():
        assert np.ravel(drawn_lines[STYLES[label].color]) == pytest.approx(np.ravel(points))


def test_weights_remaining_is_logarithmic_and_falls_to_the_right() -> None:
    axes = draw(study()).figure.axes[0]
    assert axes.get_xscale() == "log"
    left, right = axes.get_xlim()
    assert left > 100 > 64 > right
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100", "80", "64"]


def test_band_is_the_95_percent_interval_of_the_mean() -> None:
    row = next(r for r in draw(study()).data_rows if (r["treatment"], r["level"]) == ("random", 1))
    low, high = scipy_stats.ttest_1samp([90.0, 92.0, 89.0], 0).confidence_interval(0.95)
    assert row["mean_low95"] == pytest.approx(low)
    assert row["mean_high95"] == pytest.approx(high)
    assert "band (dense network: bar): 95% t-interval of the mean" in draw(study()).caption


def bars(axes: Axes) -> list[list[float]]:
    """The ends of every vertical bar: x, low, high."""
    segments = [c.get_segments() for c in axes.collections if isinstance(c, LineCollection)]
    return [[float(s[0][0]), float(s[0][1]), float(s[1][1])] for group in segments for s in group]


def test_the_interval_of_a_single_level_is_a_bar() -> None:
    one_level = [row for row in study() if row["level"] in (0, 1)]
    drawn = draw(one_level)
    point = next(r for r in drawn.data_rows if r["treatment"] == "random")
    assert [80.0, point["mean_low95"], point["mean_high95"]] in [
        pytest.approx(bar) for bar in bars(drawn.figure.axes[0])
    ]
    assert "; bar: 95% t-interval of the mean." in drawn.caption
    levels = {"large_final": (1, 2, 3), "random": (1, 3)}
    gap = [
        run(label, level, seed, 0.9 + 0.01 * seed) for label in levels for level in levels[label] for seed in range(3)
    ]
    drawn = draw(gap)
    assert [bar[0] for bar in bars(drawn.figure.axes[0])] == pytest.approx([80.0, 51.2])
    assert "; band (single points: bar): 95% t-interval of the mean." in drawn.caption
    assert bars(draw(study()).figure.axes[0]) == []


def test_words_for_intervals() -> None:
    assert interval_mark([]) == interval_mark([[True, True], [False, True, True]]) == "band"
    assert interval_mark([[True], [False, True, False]]) == "bar"
    assert interval_mark([[True], [True, True]]) == "band (single points: bar)"
    assert interval_mark([[True], [True, True]], "dense network") == "band (dense network and single points: bar)"


def test_stars_mark_significant_paired_tests_after_holm() -> None:
    figure = draw(study())
    ps = [
        float(scipy_stats.ttest_rel(ACCURACIES["random"][level], ACCURACIES["large_final"][level]).pvalue)
        for level in (1, 2)
    ]
    assert ps[0] * 2 < 0.05 < ps[1]
    rows = [r for r in figure.data_rows if r["treatment"] == "random"]
    assert [r["p"] for r in rows] == pytest.approx(ps)
    assert [r["p_holm"] for r in rows] == pytest.approx([2 * ps[0], ps[1]])
    assert [r["significant"] for r in rows] == [True, False]
    ((color, places),) = stars(figure)
    assert color == STYLES["random"].color
    assert places == pytest.approx([80])
    assert "differs from large_final" in figure.caption
    assert "paired t-test, pairs share a seed" in figure.caption
    assert "Holm's correction over 2 levels" in figure.caption
    assert legend(figure) == ["large_final (reference)", "random", "dense network", "significant difference"]


def test_a_demonstration_has_intervals_and_no_marks() -> None:
    figure = draw(study(dataset="digits"))
    assert stars(figure) == []
    assert legend(figure) == ["large_final (reference)", "random", "dense network"]
    rows = [r for r in figure.data_rows if r["treatment"] == "random"]
    assert [(r["p"], r["p_holm"], r["p_sign_flip"], r["significant"]) for r in rows] == [(None,) * 4] * 2
    assert {r["note"] for r in rows} == {"a demonstration"}
    assert all(r["difference_low95"] is not None for r in rows)
    assert "p <" not in figure.caption
    assert figure.caption.endswith("nothing is tested; intervals say nothing about the paper's networks.")


def test_a_caption_names_some_of_many_unfinished_treatments() -> None:
    names = [f"t{number}" for number in range(12)]
    unfinished = [run(name, 1, seed, None) for name in names for seed in range(2)]
    assert describe_excluded(unfinished[:4], names, 20) == "In no mean, of 20 runs: 4 still to do (t0 2, t1 2)."
    assert describe_excluded(unfinished, names, 30).endswith("t6 2, t7 2, and 4 more treatments).")


@pytest.mark.parametrize(
    ("facts", "settings"),
    [
        ({"network": "fc-20"}, "network"),
        ({"initializer": "constant"}, "initializer"),
        ({"lr": 0.1}, "training settings"),
        ({"network": "resnet20", "initializer": "own"}, "network"),
        ({"network": "fc-20", "optimizer": "sgd"}, "network and training settings"),
    ],
)
def test_the_caption_says_in_what_the_dense_networks_differ(facts: dict[str, str | float], settings: str) -> None:
    rows = [run("large_final", level, 0, 0.9) for level in (0, 1)]
    rows += [run("random", level, 0, 0.8, **facts) for level in (0, 1)]
    caption = draw(rows, ["large_final", "random"]).caption
    assert f"Each treatment has its own {settings} and its own dense network: first point of its line." in caption


def test_the_caption_lists_three_networks() -> None:
    rows = [run(f"network={name}", level, 0, 0.9, network=name) for name in ("a", "b", "c") for level in (0, 1)]
    assert draw(rows, ["network=a", "network=b", "network=c"]).caption.startswith("Network a, b and c on mnist: ")


def test_dense_mean_is_a_dotted_line() -> None:
    figure = draw(study())
    (line,) = [line for line in figure.figure.axes[0].lines if list(np.asarray(line.get_xdata())) == [0, 1]]
    assert list(np.asarray(line.get_ydata())) == pytest.approx([96, 96])
    assert "Dotted line: mean of the dense network" in figure.caption


def test_one_seed_has_no_band_and_no_star_and_a_note() -> None:
    figure = draw(study(seeds=1))
    assert stars(figure) == []
    assert "n = 1 seed, so no band and no test" in figure.caption
    assert all(row["p"] is None and row["mean_low95"] is None for row in figure.data_rows)
    assert "significant difference" not in legend(figure)


def test_runs_that_are_in_no_mean_are_counted() -> None:
    rows = study()
    rows[-1] |= {"status": "diverged", "early_stop_test_accuracy": 0.1}
    rows[-4] |= {"status": "certificate_failed"}
    rows += [run("random", 3, seed, None) for seed in range(3)]
    rows += [run("random", 4, 0, None, status="ancestor_diverged")]
    figure = draw(rows)
    assert "In no mean, of 19 runs: 1 diverged (random 1)" in figure.caption
    assert "1 not started because an ancestor diverged (random 1)" in figure.caption
    assert "1 failed the certificate (random 1)" in figure.caption
    assert "3 still to do (random 3)" in figure.caption
    assert "n = 2 to 3 seeds (fewer where" in figure.caption
    assert "Welch's t-test, not paired: the seeds differ" in figure.caption
    last = figure.data_rows[-1]
    assert (last["level"], last["n"], last["left_out"]) == (2, 2, 1)
    assert last["mean"] == pytest.approx((95.1 + 96.8) / 2)


def test_a_finished_run_without_the_value_is_excluded_and_counted() -> None:
    for value in (None, math.nan):
        rows = study()
        rows[-1]["early_stop_test_accuracy"] = value
        assert "1 finished without a value (random 1)" in draw(rows).caption


def test_a_missing_level_leaves_a_gap() -> None:
    rows = [*study(), *(run(label, 3, seed, 0.9 - 0.01 * seed) for label in TREATMENTS for seed in range(3))]
    rows = [row for row in rows if (row["treatment"], row["level"]) != ("random", 2)]
    points = curves(draw(rows))[STYLES["random"].color]
    assert [math.isnan(y) for _, y in points] == [False, False, True, False]


def test_a_treatment_without_a_finished_run_is_marked_in_the_legend() -> None:
    rows = [row | {"status": "to_do"} if row["treatment"] == "random" else row for row in study()]
    assert "random (no finished run)" in legend(draw(rows))


def test_only_the_dense_network_has_finished() -> None:
    rows = [row | {"status": "to_do"} if row["level"] else row for row in study()]
    figure = draw(rows)
    assert [row["treatment"] for row in figure.data_rows] == ["dense"]
    assert "12 still to do" in figure.caption


def test_nothing_has_finished() -> None:
    with pytest.raises(UserError, match="none of the 15 runs has finished"):
        draw([row | {"status": "to_do"} for row in study()])


def test_a_run_that_serves_several_treatments_is_in_each_and_counted_once() -> None:
    rows = study()
    for seed in range(3):
        rows.append(run("large_final | movement", 3, seed, 0.9 + 0.01 * seed))
    rows.append(run("large_final | movement", 4, 0, None))
    figure = accuracy_figure(rows, ["large_final", "movement"], "large_final", "")
    shared = [row for row in figure.data_rows if row["level"] == 3]
    assert [row["treatment"] for row in shared] == ["large_final", "movement"]
    assert [row["mean"] for row in shared] == pytest.approx([91, 91])
    assert shared[1]["p"] == 1.0
    assert "of 13 runs: 1 still to do (large_final 1, movement 1)" in figure.caption


def test_equal_differences_in_every_seed_get_no_star_and_a_note() -> None:
    rows = [run(label, 1, s, 0.8 + 0.01 * s - 0.1 * (label == "random")) for label in TREATMENTS for s in range(3)]
    figure = draw(rows)
    assert stars(figure) == []
    assert "1 comparison not tested: the same difference in every seed" in figure.caption
    assert "No dense network has finished" in figure.caption


def test_the_reference_alone_is_not_compared() -> None:
    figure = draw(study(), ["large_final"])
    assert all(word not in figure.caption for word in ("Star", "tested"))
    assert all(row["reference"] is None for row in figure.data_rows)


def test_a_treatment_with_one_finished_run_is_drawn_and_not_tested() -> None:
    rows = [row for row in study() if (row["treatment"], row["level"]) != ("random", 2) or row["seed"] == 0]
    figure = draw(rows)
    assert (figure.data_rows[-1]["n"], figure.data_rows[-1]["p"]) == (1, None)
    assert "1 comparison not tested: fewer than two runs on a side" in figure.caption
    assert "one level, so no correction" in figure.caption


def test_the_note_on_the_data_is_in_the_caption() -> None:
    assert "Data: CIFAR-10 as JPEG. Takeaway: " in draw(study(data_note="CIFAR-10 as JPEG.")).caption


@pytest.mark.parametrize(
    ("treatments", "reference", "message"),
    [
        (["large_finale"], "large_finale", "did you mean 'large_final'"),
        (["random"], "large_final", "not one of the treatments drawn"),
        (["dense"], "dense", "no run has the treatment 'dense'"),
    ],
)
def test_unknown_treatments_are_refused(treatments: list[str], reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        accuracy_figure(study(), treatments, reference, "")


def test_runs_of_two_studies_are_not_averaged() -> None:
    with pytest.raises(UserError, match="several runs of one seed"):
        draw(study() + study())
    with pytest.raises(UserError, match="fc on cifar10, fc on mnist"):
        draw(study() + [row | {"dataset": "cifar10", "seed": 7} for row in study()])


def test_the_accuracy_axis_is_logarithmic_if_one_treatment_falls_to_chance() -> None:
    rows = study()
    assert draw(rows).figure.axes[0].get_yscale() == "linear"
    rows += [run("random", 3, seed, 0.1 + 0.01 * seed) for seed in range(3)]
    figure = draw(rows)
    axes = figure.figure.axes[0]
    assert "logarithmic in the test error" in figure.caption
    low, high = axes.get_ylim()
    assert low < 11
    assert 98 < high < 100
    heights = axes.transData.transform([(80, 10), (80, 90), (80, 97), (80, 98)])[:, 1]
    assert heights[3] - heights[2] > 0.05 * (heights[3] - heights[0])  # linear: 0.01
    ticks = [float(label.get_text()) for label in axes.get_yticklabels()]
    assert {50, 90, 98} <= set(ticks)


def test_perfect_accuracy_can_be_drawn() -> None:
    rows = [run(label, 1, s, 1.0 if label == "random" else 0.2) for label in TREATMENTS for s in range(3)]
    figure = draw(rows).figure
    assert figure.axes[0].get_yscale() == "linear"
    assert figure.axes[0].get_ylim()[1] > 100


def test_early_stop_figure_shows_iterations() -> None:
    figure = convergence_figure(study(), TREATMENTS, "large_final", "Speed")
    assert figure.figure.axes[0].get_ylabel() == "Early-stopping iteration"
    assert [row["mean"] for row in figure.data_rows[:2]] == pytest.approx([1100, 1110])
    assert {row["unit"] for row in figure.data_rows} == {"iterations"}


def test_names_are_literal_and_inside_the_page() -> None:
    names = ["$x_1$ is_a_$ name", "_hidden", "very_long_" * 12]
    rows = [run(name, level, seed, 0.9) for name in names for level in (1, 2) for seed in range(3)]
    figure = accuracy_figure(rows, names, names[0], "A $study$ of " + "W" * 200).figure
    figure.draw_without_rendering()
    shown = [text.get_text().replace("\n", "") for text in figure.legends[0].get_texts()]
    assert shown == ["$x_1$ is_a_$ name (reference)", "_hidden", "very_long_" * 12]
    assert not any(text.get_parse_math() for text in [*figure.legends[0].get_texts(), *figure.texts])
    width, height = figure.bbox.width, figure.bbox.height
    boxes = [item.get_window_extent() for item in (*figure.texts, *figure.legends, figure.axes[0].yaxis.label)]
    for box in boxes:
        assert box.x0 >= 0
        assert box.x1 <= width
        assert box.y0 >= 0
        assert box.y1 <= height
    axes = figure.axes[0].get_window_extent()
    assert not any(axes.overlaps(box) for box in boxes)


@pytest.mark.slow
def test_saved_files_are_byte_identical(tmp_path: Path) -> None:
    contents = []
    for folder in ("a", "b/c"):
        paths = save_figure(draw(study()), tmp_path / folder, "mask-criteria accuracy")
        assert [path.name for path in paths] == [
            f"mask-criteria-accuracy.{s}" for s in ("pdf", "svg", "png", "csv", "txt")
        ]
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    pdf, svg, png, table, caption = contents[0]
    assert caption.decode() == draw(study()).caption + "\n"
    assert (pdf[:4], png[:4], b"<svg" in svg) == (b"%PDF", b"\x89PNG", True)
    lines = list(csv.DictReader(table.decode().splitlines()))
    assert [(line["treatment"], line["level"]) for line in lines] == [
        ("dense", "0"),
        ("large_final", "1"),
        ("large_final", "2"),
        ("random", "1"),
        ("random", "2"),
    ]
    assert lines[3]["values_by_seed"] == "0=90 1=92 2=89"


def test_errors_if_the_output_folder_is_a_file_or_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        save_figure(draw(study(seeds=1)), tmp_path / "file", "x")

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(SystemFailure, match="No space left on device"):
        save_figure(draw(study(seeds=1)), tmp_path / "new", "x")


@pytest.mark.slow
@given(st.text(max_size=100))
def test_a_slug_is_never_a_path(text: str) -> None:
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,58}[a-z0-9])?", slugify(text))


def test_slugs() -> None:
    assert slugify("Mask criteria: FC") == "mask-criteria-fc"
    assert slugify("../../etc/passwd") == "etc-passwd"
    assert slugify("Überprüfung") == "uberprufung"
    assert slugify("研究") == slugify("") == "figure"


def test_figures_of_a_group_never_share_a_file_name() -> None:
    assert figure_stem("mask-criteria", "accuracy") == "mask-criteria-accuracy"
    groups = ["long " * 30, "long " * 30 + "other", "研究甲", "研究乙", "x" * 60, "mask-criteria"]
    stems = [figure_stem(group, name) for group in groups for name in FIGURES]
    assert len(set(stems)) == len(stems)
    for stem, name in zip(stems, FIGURES * len(groups), strict=True):
        assert stem.endswith(f"-{name}")
        assert stem == slugify(stem)


def test_a_treatment_has_the_same_style_in_every_figure() -> None:
    assert (
        assign_styles(["random", "mine", "large_final"])["large_final"] == assign_styles(["large_final"])["large_final"]
    )
    assert assign_styles(["zero", "freeze_init"])["zero"] == STYLES["zero"]


@pytest.mark.parametrize("labels", [list(STYLES)[:15], [f"mine {number}" for number in range(len(FALLBACK_STYLES))]])
def test_styles_in_a_figure_are_distinct(labels: list[str]) -> None:
    assert len(set(assign_styles(labels).values())) == len(labels)
    mixed = assign_styles(["rewind", "large_final", "random", "mine"])
    assert len(set(mixed.values())) == 4


def test_tick_labels_are_short_and_ticks_are_thinned() -> None:
    assert [format_percent(value) for value in (100, 51.2, 26.214, 6.87, 0.4722, 99.5)] == [
        "100", "51.2", "26.2", "6.9", "0.47", "99.5",
    ]  # fmt: skip
    assert thin_ticks([0.0, 0.1, 0.2, 0.3, 0.35, 1.0], 0.2) == [0, 2, 5]


@given(st.text(st.characters(codec="ascii"), max_size=60), st.integers(1, 12))
def test_wrapped_text_is_complete_and_fits(text: str, width: int) -> None:
    lines = wrap_to_width(text, width, len)
    assert all(len(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def _wrap_word_by_word(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and measure(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
            continue
        while measure(word) > width and len(word) > 1:
            fits = max(end for end in range(1, len(word)) if end == 1 or measure(word[:end]) <= width)
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    return lines


@given(st.text("iiiiWm   ", max_size=120), st.floats(0.5, 12))
def test_lines_are_those_of_wrapping_word_by_word(text: str, width: float) -> None:
    def measure(part: str) -> float:
        return sum({"i": 0.3, "W": 1.1}.get(letter, 0.8) for letter in part)

    assert wrap_to_width(text, width, measure) == _wrap_word_by_word(text, width, measure)


def test_a_caption_is_wrapped_with_few_measurements() -> None:
    measured: list[str] = []
    caption = " ".join(f"{'word' * (number % 3 + 1)}" for number in range(300))
    lines = wrap_to_width(caption, 100, lambda part: measured.append(part) or len(part))  # type: ignore[func-returns-value]
    assert len(measured) < 4 * len(lines)


def test_a_long_word_is_wrapped_with_few_measurements() -> None:
    measured: list[int] = []

    def measure(part: str) -> int:
        measured.append(len(part))
        return len(part)

    assert wrap_to_width("a" * 10_000, 100, measure) == ["a" * 100] * 100
    assert len(measured) < 3_000


@pytest.mark.slow
def test_importing_figures_loads_no_heavy_module() -> None:
    heavy = {"matplotlib", "scipy", "torch", "duckdb", "pandas"}
    code = (
        f"import sys, supermask.reporting.figures, supermask.store.tables; sys.exit(bool({heavy!r} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
