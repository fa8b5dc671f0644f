"""Measures of masks by hand and against slow versions: planes, distributions, densities, pixels, signs, units."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from helpers.tiny import W_FINAL, W_INIT, dense, kept_at, six
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from supermask.analysis.masks import (
    ALL_LAYERS,
    Density,
    MaskInfo,
    SignAgreement,
    UnitConnectivity,
    WeightPlane,
    common_and_short_labels,
    hexbin,
    layer_densities,
    pixel_map,
    sign_agreement,
    sign_agreement_between,
    symmetric_limit,
    unit_connectivity,
    weight_distribution,
    weight_plane,
    with_labels,
)
from supermask.analysis.masks.layers import INPUTS
from supermask.analysis.masks.tables import format_summary, layer_table
from supermask.core.rng import random_stream
from supermask.networks.registry import is_layer_chain, named_network

Bools = NDArray[np.bool_]

LAYER = six()
W_I, W_F = LAYER.w_init.numpy(), LAYER.w_final.numpy()
KEPT, ALIVE = kept_at([0, 3, 4]).numpy(), kept_at([0, 1, 3, 4, 5]).numpy()
"""Weight 2 was dead before; 1 and 5 are pruned."""

# --- the six-weight layer, by hand ---


def test_the_plane_of_six_weights() -> None:
    plane = weight_plane(W_I, W_F, KEPT, ALIVE)
    places = [0, 1, 3, 4, 5]
    assert (plane.w_i * 8).tolist() == [W_INIT[place] for place in places]
    assert (plane.w_f * 8).tolist() == [W_FINAL[place] for place in places]
    assert plane.kept.tolist() == [True, False, True, True, False]
    assert weight_plane(W_I, W_F, KEPT).kept.tolist() == KEPT.ravel().tolist()


def test_the_distributions_of_six_weights() -> None:
    """w_i in eighths: 4 -5 -2 1 6 alive, of which 4 -2 1 are kept; -5 lies beyond the edges."""
    edges = np.array([-4, -2, 0, 2, 4, 6]) / 8
    found = weight_distribution(W_I, KEPT, ALIVE, edges)
    assert found.before.tolist() == [0, 1, 1, 0, 2]
    assert found.after.tolist() == [0, 1, 1, 0, 1]
    assert found.outside == 1
    assert weight_distribution(W_I, KEPT, None, edges).before.sum() == 5
    assert weight_distribution(W_I, KEPT, None, edges).after.sum() == 3


def test_the_signs_of_six_weights() -> None:
    """Weights 2 and 5 change sign; so both directions have one of each."""
    (kept, pruned), total = sign_agreement({"a": W_I}, {"a": W_F}, {"a": KEPT}, {"a": ALIVE}).values()
    assert (kept, pruned) == total
    assert (kept, pruned) == (SignAgreement(3, 3), SignAgreement(2, 1))
    assert (kept.share, pruned.share) == (1, 0.5)
    everywhere = sign_agreement({"a": W_I}, {"a": W_F}, {"a": KEPT})[ALL_LAYERS]
    assert everywhere == (SignAgreement(3, 3), SignAgreement(3, 1))
    assert SignAgreement(0, 0).share is None


def test_zero_has_a_sign_of_its_own() -> None:
    values = np.array([[0.0, -0.0, 1.0]])
    found = sign_agreement({"a": values}, {"a": np.array([[-0.0, 1.0, 1.0]])}, {"a": values < 9})["a"][0]
    assert found == SignAgreement(3, 2)


def test_signs_between_two_networks_count_what_both_keep() -> None:
    other = kept_at([0, 2, 3]).numpy()
    found = sign_agreement_between({"a": W_I}, {"a": W_F}, {"a": kept_at([0, 1, 2]).numpy()}, {"a": other})
    assert found == {"a": SignAgreement(2, 1), ALL_LAYERS: SignAgreement(2, 1)}
    with pytest.raises(ValueError, match="different networks"):
        sign_agreement_between({"a": W_I}, {"a": W_F}, {"a": KEPT}, {"b": KEPT})


def test_densities_of_two_layers() -> None:
    found = layer_densities({"a": KEPT, "b": np.array([[True, False]])})
    assert found == {"a": Density(6, 3), "b": Density(2, 1), ALL_LAYERS: Density(8, 4)}
    assert found["a"].density == 0.5


# --- hexagons ---


def nearest_centres(
    plane: WeightPlane, limits: tuple[float, float], columns: int, rows: int
) -> dict[tuple[int, int], int]:
    """Twice the centers in steps -> count, by comparing each weight with every center of the honeycomb."""
    ends = range(-2 * max(columns, rows) - 2, 2 * max(columns, rows) + 3)
    centres = [(x, y) for x, y in product(ends, ends) if (x - y) % 2 == 0]
    counts: dict[tuple[int, int], int] = {}
    for w_i, w_f in zip(plane.w_i, plane.w_f, strict=True):
        if abs(w_i) > limits[0] or abs(w_f) > limits[1]:
            continue
        across, up = w_i / (2 * limits[0] / columns), w_f / (2 * limits[1] / rows)
        near = min(centres, key=lambda c: (c[0] / 2 - across) ** 2 + 3 * (c[1] / 2 - up) ** 2)
        counts[near] = counts.get(near, 0) + 1
    return counts


@pytest.mark.parametrize(("columns", "rows"), [(4, 2), (5, 3), (6, 6)])
def test_every_weight_is_in_its_nearest_hexagon(columns: int, rows: int) -> None:
    rng = random_stream(0, "hexagons")
    plane = WeightPlane(rng.normal(size=200), rng.normal(size=200) * 3, rng.random(200) < 0.3)
    limits = (1.5, 6.0)
    found = hexbin(plane, limits, columns, rows)
    twice = [(round(2 * x / found.width), round(2 * y / found.rise)) for x, y in zip(found.x, found.y, strict=True)]
    counts = dict(zip(twice, (found.kept + found.pruned).tolist(), strict=True))
    assert counts == nearest_centres(plane, limits, columns, rows)
    inside = (abs(plane.w_i) <= 1.5) & (abs(plane.w_f) <= 6)
    assert found.kept.sum() == (plane.kept & inside).sum()
    assert found.outside == 200 - inside.sum() > 0


def test_weights_that_never_moved_and_zeros_have_a_hexagon() -> None:
    plane = WeightPlane(np.array([0.0, -0.0, 1.0]), np.array([-0.0, 0.0, 1.0]), np.array([True, False, True]))
    found = hexbin(plane, (1, 1), 2, 2)
    assert sorted(zip(found.x, found.y, found.kept, found.pruned, strict=True)) == [(0, 0, 1, 1), (1, 1, 1, 0)]
    empty = hexbin(WeightPlane(plane.w_i[:0], plane.w_f[:0], plane.kept[:0]), (1, 1), 2, 2)
    assert (empty.x.size, empty.kept.size, empty.outside) == (0, 0, 0)
    with pytest.raises(ValueError, match="above 0"):
        hexbin(plane, (1, 0), 2, 2)


def test_symmetric_limits_contain_nearly_all_and_are_positive() -> None:
    assert symmetric_limit([np.arange(-1000.0, 1.0), np.ones(3)]) == pytest.approx(999)
    assert symmetric_limit([np.zeros(5)]) == symmetric_limit([]) == symmetric_limit([np.ones(0)]) == 1


# --- pixels ---


def test_a_hand_made_pixel_map() -> None:
    """Four units over 2 x 3 pixels: pixel (0, 0) keeps all, (1, 2) nothing, (0, 1) one weight of four."""
    mask = np.zeros((4, 6), dtype=bool)
    mask[:, 0] = True
    mask[2, 1] = True
    assert pixel_map(mask, (1, 2, 3)).tolist() == [[1, 0.25, 0], [0, 0, 0]]


def test_pixel_map_averages_over_channels() -> None:
    """One unit, two channels of 1 x 2 pixels: the first pixel keeps both of its weights, the other one of two."""
    assert pixel_map(np.array([[True, False, True, True]]), (2, 1, 2)).tolist() == [[1, 0.5]]


@pytest.mark.parametrize("shape", [(4, 5), (4, 1, 3, 3), (6,)])
def test_pixel_map_refuses_other_masks(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not one of a fully connected first layer"):
        pixel_map(np.ones(shape, dtype=bool), (1, 2, 3))


# --- units ---


def test_dead_units_of_a_hand_made_network() -> None:
    """Inputs 0, 1, 2; hidden a, b, c, d; outputs x, y.

    0 - a - x is a path; b has inputs and no reader, c a reader and no input, d neither; input 2 is read by b alone.
    """
    first = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]], dtype=bool)
    second = np.array([[1, 0, 1, 0], [0, 0, 0, 0]], dtype=bool)
    assert unit_connectivity({"one": first, "two": second}) == {
        INPUTS: UnitConnectivity(units=3, no_incoming=0, no_outgoing=1, connected=1, connected_weights=0),
        "one": UnitConnectivity(units=4, no_incoming=2, no_outgoing=2, connected=1, connected_weights=1),
        "two": UnitConnectivity(units=2, no_incoming=1, no_outgoing=0, connected=1, connected_weights=1),
    }
    assert unit_connectivity({"one": first, "two": second})["one"].dead == 3


def test_a_dead_end_two_layers_later_is_no_connection() -> None:
    """a -> b -> nothing: `a` has an outgoing weight, but reaches no output."""
    masks = {"1": np.ones((1, 1), dtype=bool), "2": np.ones((1, 1), dtype=bool), "3": np.zeros((1, 1), dtype=bool)}
    found = unit_connectivity(masks)
    assert (found["1"].no_outgoing, found["1"].connected) == (0, 0)
    assert (found["2"].no_outgoing, found["3"].no_incoming) == (1, 1)


def test_channels_of_a_convolution_before_a_fully_connected_layer() -> None:
    """Two channels of 2 x 2 pixels: only channel 1 has an outgoing weight, at its last pixel."""
    conv = np.zeros((2, 1, 3, 3), dtype=bool)
    conv[0, 0, 1, 1] = conv[1, 0, 2, 2] = True
    flat = np.zeros((1, 8), dtype=bool)
    flat[0, 7] = True
    assert unit_connectivity({"conv": conv, "fc": flat})["conv"] == UnitConnectivity(2, 0, 1, 1, 1)
    with pytest.raises(ValueError, match="fc has 7 inputs"):
        unit_connectivity({"conv": conv, "fc": flat[:, :7]})


def paths(masks: list[Bools]) -> list[list[tuple[int, ...]]]:
    """Every path of kept weights from an input to an output, as its units."""
    found: list[tuple[int, ...]] = [(unit,) for unit in range(masks[0].shape[1])]
    for mask in masks:
        found = [(*path, unit) for path in found for unit in range(mask.shape[0]) if mask[unit, path[-1]]]
    return [[path[place : place + 2] for path in found] for place in range(len(masks))]


@pytest.mark.slow
@given(st.lists(st.integers(1, 4), min_size=2, max_size=4).flatmap(
    lambda widths: st.tuples(*(arrays(bool, (out, into)) for into, out in pairwise(widths)))
))  # fmt: skip
def test_connected_units_lie_on_a_path(masks: tuple[Bools, ...]) -> None:
    found = unit_connectivity({str(place): mask for place, mask in enumerate(masks)})
    for place, steps in enumerate(paths(list(masks))):
        assert found[str(place)].connected_weights == len(set(steps))
        assert found[str(place)].connected == len({step[1] for step in steps})
        assert found[INPUTS if place == 0 else str(place - 1)].connected == len({step[0] for step in steps})


def test_a_dense_network_is_connected() -> None:
    masks = {name: mask.numpy() for name, mask in dense().masks.items()}
    found = unit_connectivity(masks)
    assert [(units.units, units.dead) for units in found.values()] == [(20, 0), (30, 0), (10, 0)]
    assert sum(units.connected_weights for units in found.values()) == 30 * 20 + 10 * 30


@pytest.mark.parametrize("name", ["resnet20-4", "wrn-10-1"])
def test_networks_with_shortcuts_have_no_unit_counts(name: str) -> None:
    """Identity shortcuts, where the layers' shapes fit each other, and 1x1 convolutions, where they do not."""
    tensors = named_network(name, (1, 8, 8), 10).tensors
    rng = np.random.default_rng(0)
    masks = {tensor: rng.random(info.shape) < 0.3 for tensor, info in tensors.items()}
    mask = MaskInfo("m", masks, masks, network=name, is_chain=is_layer_chain(name), label="m")
    columns = ("units", "units_without_incoming", "units_without_outgoing", "connected_units", "connected_weights")
    for row in layer_table([mask]):
        assert {row[column] for column in columns} == {None}
        assert row["kept"] == sum(int(m.sum()) for n, m in masks.items() if row["layer"] in (n[:-7], ALL_LAYERS))
    cells = format_summary([mask]).splitlines()[-1].split()
    assert cells[-2:] == ["-", "-"]


# --- what infos are called ---


def info(name: str, criterion: str | None, level: int | None, seed: int | None, **details: str) -> MaskInfo:
    return MaskInfo(name, {}, {}, criterion=criterion, level=level, seed=seed, details=details)


def labels(*infos: MaskInfo) -> list[str]:
    return [each.label for each in with_labels(infos)]


def test_labels_are_criterion_level_and_seed() -> None:
    assert labels(info("1", "movement", 3, 0), info("2", None, 0, 1), info("3", None, None, None)) == [
        "movement, level 3, seed 0",
        "dense, seed 1",
        "dense",
    ]


def test_labels_have_distinguishing_details_only_if_needed() -> None:
    found = labels(
        info("a" * 8 + "1", "movement", 1, 0, mask1="rewind", mask0="zero"),
        info("a" * 8 + "2", "movement", 1, 0, mask1="reinit", mask0="zero"),
        info("b" * 8 + "1", "movement", 1, 0, mask1="reinit", mask0="zero"),
        info("c", "random", 1, 0, mask1="reinit"),
    )
    assert found == [
        "movement, level 1, seed 0, rewind",
        "movement, level 1, seed 0, reinit, aaaaaaaa",
        "movement, level 1, seed 0, reinit, bbbbbbbb",
        "random, level 1, seed 0",
    ]


def test_short_labels_leave_out_the_common_part() -> None:
    level5 = [info("1", "movement", 5, 0), info("2", "random", 5, 0), info("3", None, 0, 0)]
    assert common_and_short_labels(with_labels(level5)) == ("level 5, seed 0", ["movement", "random", "dense"])
    chain = [info(str(level), "movement", level, 0) for level in (1, 2)]
    assert common_and_short_labels(with_labels(chain)) == ("movement, seed 0", ["level 1", "level 2"])
    assert common_and_short_labels(with_labels(chain[:1])) == ("", ["movement, level 1, seed 0"])
    twins = [info("1", "movement", 1, 0, mask1="rewind"), info("2", "movement", 1, 0, mask1="reinit")]
    assert common_and_short_labels(with_labels(twins)) == ("movement, level 1, seed 0", ["rewind", "reinit"])
    assert common_and_short_labels(with_labels([])) == ("", [])


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.integers(0, 1), st.integers(0, 1)), max_size=8))
def test_labels_are_unique(rows: list[tuple[str | None, int, int]]) -> None:
    found = with_labels([info(f"run {place:08d}", *row) for place, row in enumerate(rows)])
    assert len({each.label for each in found}) == len(found)
    assert len(set(common_and_short_labels(found)[1])) == len(found)
