"""Masks: exact counts, random ties, ranks and packing, each against a slower implementation."""

from __future__ import annotations

import ast
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import kept_at
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

import supermask
from supermask.core.masks import count_kept, density, keep_top, pack, prune_count, rank, remaining_after, unpack
from supermask.core.rng import child_streams

MIN_P_VALUE = 1e-4
"""Threshold of statistical tests: a new fixed seed fails one of them once in 10,000 times."""

# --- counts ---


@pytest.mark.parametrize(
    ("alive", "rate", "pruned"),
    [
        (235_200, 0.2, 47_040),  # FC's first layer; truncating the float product gives 47,039
        (30_000, 0.2, 6_000),
        (1_000, 0.1, 100),
        (5, 0.5, 2),  # 2.5
        (7, 0.5, 4),  # 3.5
        (25, 0.1, 2),  # 2.5, although 25 * 0.1 is 2.5 in floats by luck
        (35, 0.1, 4),  # 3.5
        (10, 0.15, 2),  # 1.5
        (30, 0.15, 4),  # 4.5: to even
        (50, 0.15, 8),  # 7.5
        (45, 0.7, 32),  # 31.5, where the float product is 31.499999999999996
        (0, 0.2, 0),
        (1, 0.2, 0),
        (10, 0.0, 0),
        (10, 1.0, 10),
        (10**9, 1e-9, 1),
    ],
)
def test_prune_count(alive: int, rate: float, pruned: int) -> None:
    assert prune_count(alive, rate) == pruned


@pytest.mark.parametrize("rate", [0.1, 0.15, 0.2, 0.3, 0.05, 0.7, 0.999, 1e-3, 0.25, "0.1"])
def test_prune_count_equals_exact_decimal_arithmetic(rate: float | str) -> None:
    for alive in [*range(400), *range(235_000, 235_400), 4_194_304]:
        exact = (alive * Decimal(str(rate))).to_integral_value(ROUND_HALF_EVEN)
        assert prune_count(alive, rate) == int(exact), alive


def test_remaining_after_rounds_at_every_level() -> None:
    left, chain = 235_200, []
    for _ in range(24):
        left -= prune_count(left, 0.2)
        chain.append(left)
    assert [remaining_after(235_200, 0.2, n) for n in range(1, 25)] == chain
    assert remaining_after(235_200, 0.2, 0) == 235_200
    assert chain[:4] == [188_160, 150_528, 120_422, 96_338]
    assert chain[-1] == 1_111


# --- selection ---

shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6)
few_values = st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.0, float("inf"), float("-inf"), 1e-30])


@st.composite
def layers(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Draw scores with many ties and both infinities, and masks of alive weights."""
    scores, alive = {}, {}
    for name in draw(st.sampled_from([("a",), ("a", "b"), ("b", "a", "c")])):
        shape = draw(shapes)
        scores[name] = torch.from_numpy(draw(hnp.arrays(np.float32, shape, elements=few_values.map(np.float32))))
        alive[name] = torch.from_numpy(draw(hnp.arrays(np.bool_, shape)))
    return scores, alive


def check_top(scores: np.ndarray, alive: np.ndarray, mask: np.ndarray, count: int) -> None:
    """Check by sorting that `mask` keeps `count` alive weights with the highest scores."""
    assert mask.shape == scores.shape and mask.dtype == np.bool_
    assert int(mask.sum()) == count
    assert not (mask & ~alive).any()
    assert sorted(scores[mask].tolist()) == sorted(scores[alive].tolist())[int(alive.sum()) - count :]


@pytest.mark.slow
@given(layers(), st.data())
def test_keep_top_per_layer(
    given: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]], data: st.DataObject
) -> None:
    scores, alive = given
    counts = {name: data.draw(st.integers(0, int(a.sum()))) for name, a in alive.items()}
    masks = keep_top(scores, alive, counts, child_streams(0))
    assert list(masks) == list(scores)
    for name, count in counts.items():
        check_top(scores[name].numpy(), alive[name].numpy(), masks[name].numpy(), count)
    assert count_kept(masks) == counts


@pytest.mark.slow
@given(layers(), st.data())
def test_keep_top_over_all_layers(
    given: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]], data: st.DataObject
) -> None:
    scores, alive = given
    count = data.draw(st.integers(0, sum(int(a.sum()) for a in alive.values())))
    masks = keep_top(scores, alive, count, child_streams(0))

    def flat(of: dict[str, torch.Tensor]) -> np.ndarray:
        return np.concatenate([of[name].numpy().ravel() for name in scores])

    assert {n: m.shape for n, m in masks.items()} == {n: s.shape for n, s in scores.items()}
    check_top(flat(scores), flat(alive), flat(masks), count)


@pytest.mark.slow
@given(layers(), st.integers(0, 3))
def test_same_stream_gives_the_same_mask(
    given: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]], seed: int
) -> None:
    scores, alive = given
    half = {name: int(a.sum()) // 2 for name, a in alive.items()}
    for keep in (half, sum(half.values())):
        one, other = (keep_top(scores, alive, keep, child_streams(seed)) for _ in range(2))
        assert all(torch.equal(one[n], other[n]) for n in scores)


def test_keep_top_does_not_modify_its_inputs() -> None:
    scores, alive = {"a": torch.tensor([3.0, 1.0, 2.0])}, {"a": torch.tensor([True, True, False])}
    masks = keep_top(scores, alive, {"a": 1}, child_streams(0))
    masks["a"][:] = False
    assert scores["a"].tolist() == [3, 1, 2] and alive["a"].tolist() == [True, True, False]


def test_mask_without_ties_does_not_depend_on_the_stream() -> None:
    scores = torch.from_numpy(np.random.default_rng(0).permutation(30_000).astype(np.float32).reshape(100, 300))
    alive = {"a": scores % 3 != 0}
    masks = [keep_top({"a": scores}, alive, {"a": 7_000}, child_streams(seed))["a"] for seed in (0, 1)]
    assert torch.equal(*masks)
    check_top(scores.numpy(), alive["a"].numpy(), masks[0].numpy(), 7_000)


@pytest.mark.slow
@pytest.mark.parametrize("tied_score", [0.0, -np.inf, np.inf, 1e-38])
@pytest.mark.parametrize("is_global", [False, True])
def test_ties_are_uniformly_random(tied_score: float, is_global: bool) -> None:
    """Every set of 2 out of 5 tied weights is as likely as any other."""
    better = [] if tied_score == np.inf else [2.0]
    worse = [] if tied_score == -np.inf else [-3.0]
    scores = {"a": torch.tensor([*better, *worse, *[tied_score] * 5])}
    alive = {"a": torch.ones(len(scores["a"]), dtype=torch.bool)}
    count = len(better) + 2
    keep = count if is_global else {"a": count}
    seen: dict[tuple[bool, ...], int] = {}
    for seed in range(1000):
        mask = keep_top(scores, alive, keep, child_streams(seed))["a"].tolist()
        assert all(mask[: len(better)]) and not any(mask[len(better) : len(better) + len(worse)])
        seen[tuple(mask)] = seen.get(tuple(mask), 0) + 1
    assert len(seen) == 10
    assert stats.chisquare(list(seen.values())).pvalue > MIN_P_VALUE


def test_global_ties_prefer_no_layer() -> None:
    scores = {"a": torch.zeros(30), "b": torch.zeros(70)}
    alive = {name: torch.ones(len(s), dtype=torch.bool) for name, s in scores.items()}
    in_a = sum(int(keep_top(scores, alive, 50, child_streams(seed))["a"].sum()) for seed in range(300))
    expected = 300 * 15
    sd = (300 * 50 * 0.3 * 0.7 * 50 / 99) ** 0.5
    assert abs(in_a - expected) < 4 * sd


def test_each_layer_breaks_ties_with_its_own_stream() -> None:
    alive = {name: torch.ones(40, dtype=torch.bool) for name in ("a", "b")}
    both = keep_top({name: torch.zeros(40) for name in alive}, alive, {"a": 20, "b": 20}, child_streams(0))
    alone = keep_top({"b": torch.zeros(40)}, alive, {"b": 20}, child_streams(0))
    assert torch.equal(both["b"], alone["b"]) and not torch.equal(both["a"], both["b"])


def test_positive_and_negative_zero_tie() -> None:
    scores = {"a": torch.tensor([0.0, -0.0])}
    alive = {"a": torch.ones(2, dtype=torch.bool)}
    assert {keep_top(scores, alive, {"a": 1}, child_streams(seed))["a"].tolist()[0] for seed in range(20)} == {
        True,
        False,
    }


@pytest.mark.parametrize("keep", [1, {"fc1.weight": 1}])
def test_nan_is_refused(keep: int | dict[str, int]) -> None:
    scores, alive = {"fc1.weight": torch.tensor([1.0, np.nan])}, {"fc1.weight": torch.ones(2, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"fc1\.weight is NaN"):
        keep_top(scores, alive, keep, child_streams(0))


def test_nan_of_a_pruned_weight_is_ignored() -> None:
    scores, alive = {"a": torch.tensor([1.0, np.nan, 2.0])}, {"a": torch.tensor([True, False, True])}
    assert keep_top(scores, alive, {"a": 1}, child_streams(0))["a"].tolist() == [False, False, True]


def test_count_above_the_alive_weights_is_an_internal_error() -> None:
    with pytest.raises(AssertionError):
        keep_top({"a": torch.zeros(3)}, {"a": torch.tensor([True, False, False])}, {"a": 2}, child_streams(0))


def test_no_other_core_module_sorts_scores() -> None:
    """Criteria, actions and pruning leave ranking to `core.masks`."""
    sorting = {"sort", "argsort", "sorted", "topk", "kthvalue", "partition", "argpartition", "quantile", "median"}
    package = Path(supermask.__file__).parent
    for module in ("criteria", "actions", "pruning"):
        tree = ast.parse((package / "core" / f"{module}.py").read_text())
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not names & sorting, module


# --- ranks and packing ---


@pytest.mark.slow
@given(hnp.arrays(np.float32, shapes, elements=st.floats(-4, 4, width=16)), st.data())
def test_rank_equals_that_of_scipy(values: np.ndarray, data: st.DataObject) -> None:
    alive = data.draw(hnp.arrays(np.bool_, values.shape))
    ranks = rank(torch.from_numpy(values), torch.from_numpy(alive))
    assert ranks.dtype == torch.float64 and ranks.shape == values.shape
    expected = stats.rankdata(values[alive], method="average") / max(int(alive.sum()), 1)
    assert np.array_equal(ranks.numpy()[alive], expected)
    assert not ranks.numpy()[~alive].any()


def test_rank_of_the_largest_is_one() -> None:
    assert rank(torch.tensor([3.0, 9.0, 1.0, 50.0]), torch.tensor([True, True, True, False])).tolist() == [
        pytest.approx(2 / 3),
        1.0,
        pytest.approx(1 / 3),
        0.0,
    ]


def test_nan_has_no_rank() -> None:
    ranks = rank(torch.tensor([1.0, np.nan, 2.0]), torch.ones(3, dtype=torch.bool))
    assert torch.isnan(ranks).tolist() == [False, True, False]


@pytest.mark.slow
@given(hnp.arrays(np.bool_, hnp.array_shapes(max_dims=4, max_side=5)))
def test_pack_and_unpack(mask: np.ndarray) -> None:
    packed = pack(torch.from_numpy(mask))
    assert packed.dtype == np.uint8 and packed.shape == (-(-mask.size // 8),)
    assert np.array_equal(unpack(packed, mask.shape), mask)
    bits = "".join("1" if kept else "0" for kept in mask.ravel())
    assert packed.tolist() == [int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8)]


@pytest.mark.parametrize(
    "packed",
    [np.zeros(1, np.uint8), np.zeros(3, np.uint8), np.zeros((1, 2), np.uint8), np.zeros(2, np.int8)],
    ids=["too few", "too many", "two axes", "another type"],
)
def test_unpack_rejects_arrays_of_another_size(packed: np.ndarray) -> None:
    with pytest.raises(ValueError, match="has 2 bytes"):
        unpack(packed, (3, 3))


def test_density_and_count_kept() -> None:
    masks = {"a": kept_at([0, 2]), "b": torch.ones(2, dtype=torch.bool)}
    assert count_kept(masks) == {"a": 2, "b": 2}
    assert density(masks) == 0.5
