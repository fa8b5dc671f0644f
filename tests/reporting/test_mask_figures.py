"""Figures of masks: numbers, literal names, and texts inside the page."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.patches import Rectangle, StepPatch
from matplotlib.text import Text
from numpy.typing import NDArray

from supermask.analysis.masks import (
    ALL_LAYERS,
    Overlap,
    hexbin,
    layer_densities,
    pairwise_overlaps,
    weight_distribution,
    weight_plane,
)
from supermask.core.rng import random_stream
from supermask.reporting.figures import (
    RenderedFigure,
    density_by_level_figure,
    density_figure,
    distribution_figure,
    overlap_by_layer_figure,
    overlap_figure,
    pixel_map_figure,
    weight_plane_figure,
)
from supermask.reporting.figures.layout import fit_text, num_columns, panel_titles, text_measure
from supermask.reporting.figures.mask_takeaways import (
    density_takeaway,
    distribution_takeaway,
    overlap_by_layer_takeaway,
    overlap_takeaway,
    pixel_map_takeaway,
    plane_takeaway,
)
from supermask.reporting.figures.style import PRUNED_KEPT_COLORS, SEQUENTIAL_COLORS, colormap

Bools = NDArray[np.bool_]

HOSTILE = ["$x_1$ is_a_$ name", "_hidden", "very_long_" * 12]


def mask(seed: int, share: float = 0.5, shape: tuple[int, int] = (20, 16)) -> Bools:
    return np.asarray(random_stream(seed, "mask").random(shape) < share)


def random_masks(n: int) -> list[dict[str, Bools]]:
    return [{"fc1.weight": mask(seed), "fc2.weight": mask(seed, 0.3, (10, 20))} for seed in range(n)]


def pairs(masks: list[dict[str, Bools]]) -> dict[tuple[int, int], dict[str, Overlap]]:
    return pairwise_overlaps(masks, [{name: np.ones_like(m) for name, m in each.items()} for each in masks])


def weights(seed: int) -> NDArray[np.float32]:
    return random_stream(seed, "weights").normal(size=(20, 16)).astype(np.float32)


def every_figure(labels: list[str]) -> dict[str, RenderedFigure]:
    masks = random_masks(len(labels))
    found = [layer_densities(each) for each in masks]
    edges = np.linspace(-3, 3, 13)
    kept = [each["fc1.weight"] for each in masks]
    rows = [
        (weight_distribution(weights(1), each, None, edges), weight_distribution(weights(2), each, None, edges))
        for each in kept
    ]
    planes = [weight_plane(weights(1), weights(2), each) for each in kept]
    maps = [each.mean(axis=0).reshape(4, 4) for each in kept]
    figures = {
        "density": density_figure(found, labels, "Density"),
        "levels": density_by_level_figure({label: {1: d, 2: d} for label, d in zip(labels, found, strict=True)}, "L"),
        "planes": weight_plane_figure(planes, labels, "Planes"),
        "layers": weight_plane_figure(planes[:3], labels[:3], "Layers", shared_axes=False),
        "distributions": distribution_figure(rows, labels, "Distributions"),
        "pixels": pixel_map_figure(maps, labels, "Pixels"),
    }
    if len(labels) > 1:
        figures["overlap"] = overlap_figure(pairs(masks), labels, "Overlap")
        figures["by layer"] = overlap_by_layer_figure(pairs(masks), labels, "Overlap")
    return figures


MANY = [f"large_init_large_final, level {number}" for number in range(33)]


@pytest.mark.slow
@pytest.mark.parametrize("labels", [["one"], ["a", "b"], HOSTILE, MANY], ids=["one", "two", "hostile", "many"])
def test_every_text_is_inside_the_page_and_literal(labels: list[str]) -> None:
    for name, drawn in every_figure(labels).items():
        figure = drawn.figure
        figure.draw_without_rendering()
        page = figure.bbox
        for text in figure.texts:
            box = text.get_window_extent()
            assert not text.get_parse_math(), name
            assert page.x0 <= box.x0 <= box.x1 <= page.x1 + 1, (name, text.get_text())
            assert page.y0 <= box.y0 <= box.y1 <= page.y1 + 1, (name, text.get_text())
        for axes in figure.axes:
            around = axes.get_tightbbox()
            assert around is not None
            assert page.x0 <= around.x0 <= around.x1 <= page.x1 + 1, name
            assert page.y0 <= around.y0 <= around.y1 <= page.y1 + 1, name
        assert drawn.data_rows
        assert drawn.caption.rstrip(".").rpartition(". ")[2].startswith("Takeaway: "), drawn.caption


@pytest.mark.slow
def test_no_panel_is_empty_and_none_covers_another() -> None:
    for name, drawn in every_figure([f"mask {n}" for n in range(7)]).items():
        drawn.figure.draw_without_rendering()
        boxes = [axes.get_window_extent() for axes in drawn.figure.axes]
        for place, box in enumerate(boxes):
            assert all(not box.overlaps(other) for other in boxes[:place]), name
        assert all(axes.has_data() for axes in drawn.figure.axes), name


# --- overlap ---


def test_the_heat_map_is_measured_below_and_expected_above_the_diagonal() -> None:
    masks = random_masks(3)
    masks[2] = masks[0]
    found = pairs(masks)
    drawn = overlap_figure(found, ["a", "b", "c"], "Overlap")
    (shown,) = drawn.figure.axes[0].images
    values = np.asarray(shown.get_array())
    rows = {(row["mask_a"], row["mask_b"]): row for row in drawn.data_rows if row["layer"] == ALL_LAYERS}
    for (one, other), (row, column) in zip([("a", "b"), ("a", "c"), ("b", "c")], [(0, 1), (0, 2), (1, 2)], strict=True):
        assert values[column, row] == rows[one, other]["jaccard"]
        assert values[row, column] == rows[one, other]["chance_expected"]
    hatched = [p.get_xy() for p in drawn.figure.axes[0].patches if isinstance(p, Rectangle) and p.get_hatch()]
    within = [(row, column) for (row, column), pair in found.items() if pair[ALL_LAYERS].chance_position == "within"]
    assert hatched == [(row - 0.5, column - 0.5) for row, column in within]
    assert (0, 2) not in within
    assert "1.00" in [text.get_text() for text in drawn.figure.axes[0].texts]
    assert rows["a", "c"]["against_chance"] == "above"
    assert "of 3 pairs: 1 above" in drawn.caption


@pytest.mark.slow
def test_many_masks_are_numbered_and_not_listed() -> None:
    labels = [f"mask {n}" for n in range(30)]
    figures = every_figure(labels)
    assert not figures["overlap"].figure.axes[0].texts
    assert "The numbers are those of the figure of all layers together." in figures["by layer"].caption
    assert len(figures["by layer"].figure.axes) == 3 + 1


# --- planes, distributions, densities, pixels ---


def test_hexagons_have_the_counted_colors_and_positions() -> None:
    kept = mask(0, 0.7)
    drawn = weight_plane_figure([weight_plane(weights(1), weights(2), kept)], ["a"], "Plane")
    (collection,) = [c for c in drawn.figure.axes[0].collections if isinstance(c, PolyCollection)]
    assert len(collection.get_paths()) == len(drawn.data_rows)
    counts = [(int(row["kept"] or 0), int(row["pruned"] or 0)) for row in drawn.data_rows]
    colors = colormap(PRUNED_KEPT_COLORS)
    expected = [colors(k / (k + p)) for k, p in counts]
    assert np.allclose(collection.get_facecolor(), expected)
    assert sum(k for k, _ in counts) <= kept.sum()
    for path, row in zip(collection.get_paths(), drawn.data_rows, strict=True):
        x, y = np.asarray(path.vertices)[:6].mean(axis=0)
        assert (x, y) == pytest.approx((row["w_i"], row["w_f"]))


def test_full_hexagons_touch_and_do_not_overlap() -> None:
    """The corners of the fullest hexagon are a third of the rise above its center and half a step beside it."""
    plane = weight_plane(np.zeros((1, 4)), np.zeros((1, 4)), np.ones((1, 4), dtype=bool))
    drawn = weight_plane_figure([plane], ["a"], "Plane")
    (collection,) = [c for c in drawn.figure.axes[0].collections if isinstance(c, PolyCollection)]
    corners = np.asarray(collection.get_paths()[0].vertices)
    width = drawn.figure.axes[0].get_window_extent().width
    across = round(width / drawn.figure.dpi / 0.04)
    found = hexbin(plane, (1.02, 1.0), across, 5)
    assert np.ptp(corners[:, 0]) == pytest.approx(found.width)


def test_histograms_have_area_one() -> None:
    kept, edges = mask(0, 0.7), np.linspace(-6, 6, 25)
    pair = (weight_distribution(weights(1), kept, None, edges), weight_distribution(weights(2), kept, None, edges))
    drawn = distribution_figure([pair], ["a"], "Distributions")
    for axes in drawn.figure.axes:
        for stairs in axes.patches:
            assert isinstance(stairs, StepPatch)
            values, at, _ = stairs.get_data()
            assert np.sum(values * np.diff(at)) == pytest.approx(1)
    assert sum(int(row["kept"] or 0) for row in drawn.data_rows) == 2 * kept.sum()


def test_chains_with_the_same_densities_share_a_panel() -> None:
    one, other = layer_densities(random_masks(1)[0]), layer_densities(random_masks(2)[1])
    drawn = density_by_level_figure({"a": {1: one, 2: other}, "b": {1: one, 2: other}, "c": {1: other}}, "Density")
    assert len(drawn.figure.axes) == 2
    assert "a stands for 2 chains with the same densities: a, b." in drawn.caption
    assert len(drawn.data_rows) == 3 * (2 + 2 + 1)
    lines = {tuple(np.asarray(line.get_ydata())) for line in drawn.figure.axes[0].lines}
    assert lines == {(one[layer].density * 100, other[layer].density * 100) for layer in one}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 20, 54])
def test_the_legend_of_layers_is_inside_the_page_and_covers_no_panel(count: int) -> None:
    densities = layer_densities({f"stage{n}.block.conv{n}.weight": np.ones(4, dtype=bool) for n in range(count)})
    for drawn in (density_figure([densities], ["x"], "D"), density_by_level_figure({"x": {0: densities}}, "D")):
        figure = drawn.figure
        figure.draw_without_rendering()
        legend = figure.legends[0].get_window_extent()
        assert figure.bbox.x0 <= legend.x0 <= legend.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= legend.y0 <= legend.y1 <= figure.bbox.y1
        assert not legend.overlaps(figure.axes[0].get_window_extent())
        assert len(figure.legends[0].get_texts()) == count + 1


def test_masks_of_several_networks_share_a_density_figure() -> None:
    one, other = (layer_densities({name: mask(0), "fc.weight": mask(1)}) for name in ("conv.weight", "fc1.weight"))
    for drawn in (
        density_figure([one, other], ["a", "b"], "D"),
        density_by_level_figure({"a": {0: one, 1: one}, "b": {0: other, 1: other}}, "D"),
    ):
        drawn.figure.draw_without_rendering()
        names = [text.get_text() for text in drawn.figure.legends[0].get_texts()]
        assert names == ["conv", "fc", "fc1", "all layers"]
        layers = {(row["mask"], row["layer"]) for row in drawn.data_rows}
        assert {layer for name, layer in layers if str(name).startswith("b")} == {"fc1", "fc", "all layers"}
    curves = [len(axes.lines) for axes in drawn.figure.axes]
    assert curves == [3, 3]


def test_an_empty_layer_can_be_drawn() -> None:
    empty = layer_densities({"a": np.zeros((2, 2), dtype=bool), "b": np.ones((2, 2), dtype=bool)})
    density_figure([empty], ["x"], "Density").figure.draw_without_rendering()


def test_pixel_maps_draw_the_shares_and_count_empty_pixels() -> None:
    maps = [np.array([[0, 0.5], [1, 0]]), np.array([[0.25, 0.5], [0.5, 0]])]
    drawn = pixel_map_figure(maps, ["a", "b"], "Pixels")
    for axes, pixels in zip(drawn.figure.axes, maps, strict=False):
        assert np.array_equal(np.asarray(axes.images[0].get_array()), pixels * 100)
    assert "of 4: 1 (b), 2 (a)." in drawn.caption
    assert drawn.data_rows[2] == {"mask": "a", "row": 1, "column": 0, "kept_share": 1.0}


# --- takeaways ---


def test_overlap_takeaways_name_the_extremes() -> None:
    first = np.arange(100).reshape(10, 10) < 50
    masks = [{"a.weight": first}, {"a.weight": first}, {"a.weight": ~first}]
    # J = 1 and 0; by chance two halves of 100 overlap by about a third.
    assert overlap_takeaway(pairs(masks), ["x", "y", "z"]) == (
        "Takeaway: x and y overlap 3 times as much as by chance; x and z overlap 0 times as much as by chance."
    )
    sparse = [{"a.weight": np.arange(1000) < 2}] * 2
    assert overlap_takeaway(pairs(sparse), ["x", "y"]) == "Takeaway: x and y overlap 750 times as much as by chance."
    masks = [m | {"b.weight": mask(seed, 0.5)} for seed, m in enumerate(masks)]
    assert overlap_by_layer_takeaway(pairs(masks)) == (
        "Takeaway: in a 1 of 3 pairs are above chance; in b 0 of 3 pairs are above chance."
    )


def test_density_takeaway_is_about_the_mask_whose_layers_differ_most() -> None:
    even, uneven = ({"a": np.arange(10) < n, "b": np.arange(10) < m} for n, m in ((5, 5), (9, 2)))
    layers = [layer_densities(even), layer_densities(uneven)]
    assert density_takeaway(layers, ["even", "uneven"]) == "Takeaway: uneven keeps 90% of a and 20% of b."
    named = [{f"{name}.weight": density for name, density in layers[1].items()}]
    assert density_takeaway(named, ["x"]) == "Takeaway: x keeps 90% of a and 20% of b."


def test_weight_takeaways_compare_mean_magnitudes() -> None:
    w = np.array([0.0, 1.0, -2.0, 3.0])
    planes = [weight_plane(w, w, np.array(kept)) for kept in ([False, False, True, True], [True, True, False, False])]
    # (2 + 3) / (0 + 1) and its inverse.
    assert plane_takeaway(planes, ["large", "small"]) == (
        "Takeaway: the kept weights' mean |w_f| is 5 times (large) and 0.2 times (small) that of the pruned ones."
    )
    edges = np.array([-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])
    rows = [(d, d) for d in (weight_distribution(w, plane.kept, None, edges) for plane in planes)]
    # 2.5 and 0.5 beside the mean of all, 1.5.
    assert distribution_takeaway(rows, ["large", "small"]) == (
        "Takeaway: the kept weights' mean |w_f| is 1.7 times (large) and 0.33 times (small) that of all alive before."
    )
    assert plane_takeaway([weight_plane(w, w, np.ones(4, dtype=bool))], ["all"]) == ""


def test_pixel_takeaway_is_the_share_of_the_fullest_tenth() -> None:
    center = np.full(20, 0.1)
    center[:2] = 0.6
    assert pixel_map_takeaway([center.reshape(4, 5), np.full((4, 5), 0.5)], ["center", "even"]) == (
        "Takeaway: the fullest tenth of the pixels has 40% (center) and 10% (even) of the kept weights."
    )


# --- the page ---


@pytest.mark.parametrize("colors", [SEQUENTIAL_COLORS, PRUNED_KEPT_COLORS])
def test_color_scales_are_readable_in_grayscale(colors: tuple[str, ...]) -> None:
    """Luminance falls at every step of the scale."""
    shades = colormap(colors)(np.linspace(0, 1, 100))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(shades) < 0).all()


def test_names_are_wrapped_and_shortened_to_fit() -> None:
    assert fit_text("movement", 2.0) == "movement"
    cut = fit_text("large_init_large_final, level 5, seed 0", 1.0)
    assert cut.startswith("large_init…") and cut.endswith("seed 0")
    assert text_measure()(cut, 7.0) <= 1.0
    two = fit_text("large_init_large_final, level 5, seed 0", 1.2, lines=2).split("\n")
    assert (len(two), two[0]) == (2, "large_init_large_final,")
    assert panel_titles(["a", "large_init_large_final, level 5, seed 0"], 1.2)[1] > panel_titles(["a"], 1.2)[1] == 0


def test_panels_are_in_even_rows() -> None:
    assert [num_columns(n, 3) for n in (1, 2, 3, 4, 5, 7)] == [1, 2, 3, 2, 3, 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    "labels",
    [
        [f"lab {'x' * 90}{letter}{'y' * 90}" for letter in "abc"],
        ["lab a", "lab a\u200b", "lab  a"],
        ["lab 研究", "lab 研究室", "lab \u202ea"],
    ],
    ids=["equal ends", "invisible", "scripts"],
)
def test_no_two_labels_of_a_mask_figure_are_equal(labels: list[str]) -> None:
    for name, drawn in every_figure(labels).items():
        if name in ("by layer", "levels"):  # names are in the caption, and equal chains share a panel
            continue
        drawn.figure.draw_without_rendering()
        texts = ["".join(text.get_text().split()) for text in drawn.figure.findobj(Text)]  # type: ignore[attr-defined]
        shown = [text for text in texts if text.startswith("lab")]
        assert len(shown) == len(set(shown)) == len(labels), (name, shown)
