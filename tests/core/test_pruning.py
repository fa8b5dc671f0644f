"""Pruning: whole chains against a slow implementation, and each rule of the algorithm by itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import LAYERS, MASKABLES, RATES, chain, dense, level_streams, parent_of, step_with, train
from torch import Tensor

from supermask.core.actions import MASK0_ACTIONS, MASK1_ACTIONS
from supermask.core.criteria import CRITERIA
from supermask.core.initializers import truncated_normal
from supermask.core.masks import count_kept, remaining_after
from supermask.core.pruning import (
    ParentRun,
    PruneStep,
    apply_masks,
    compute_masks,
    first_iteration,
    keep_counts,
    prune_and_reset,
)
from supermask.core.rng import Stream
from supermask.core.types import InitialState, Layer, NetworkState, Snapshot, TrainingResult
from supermask.networks.sequential import prunable_tensors

PLAIN = PruneStep(CRITERIA["large_final"], "rewind", "zero", RATES)

# --- slow implementation, one weight at a time, without randomness ---

SCORES: dict[str, Callable[[float, float], float]] = {
    "large_final": lambda i, f: abs(f),
    "small_final": lambda i, f: -abs(f),
    "large_init": lambda i, f: abs(i),
    "small_init": lambda i, f: -abs(i),
    "magnitude_increase": lambda i, f: float(np.float32(abs(f)) - np.float32(abs(i))),
    "movement": lambda i, f: abs(float(np.float32(f) - np.float32(i))),
}
KEPT: dict[str, Callable[[float, float], float]] = {
    "rewind": lambda i, std: i,
    "signed_constant": lambda i, std: float(np.copysign(np.float32(std), i)),
}
FROZEN: dict[str, Callable[[float, float], float]] = {
    "zero": lambda i, f: 0.0,
    "freeze_init": lambda i, f: i,
    "freeze_final": lambda i, f: f,
    "zero_if_shrunk": lambda i, f: 0.0 if abs(f) < abs(i) else i,
    "zero_if_shrunk_everywhere": lambda i, f: 0.0 if abs(f) < abs(i) else i,
    "zero_if_grown": lambda i, f: 0.0 if abs(f) > abs(i) else i,
}
WeightIndex = tuple[str, int]
"""(tensor name, index in C order)."""


def flatten(tensors: Mapping[str, Tensor]) -> dict[WeightIndex, Any]:
    return {(n, j): v for n, t in tensors.items() for j, v in enumerate(t.flatten().tolist())}


def pruned_count(alive: int, rate: float) -> int:
    return int((Decimal(str(rate)) * alive).to_integral_value(ROUND_HALF_EVEN))


def prune_slowly(
    start: dict[WeightIndex, float],
    end: dict[WeightIndex, float],
    alive: set[WeightIndex],
    names: tuple[str, str, str],
    scope: str,
    levels: int,
) -> tuple[dict[WeightIndex, float], set[WeightIndex]]:
    """Return (start values, alive weights) of the next run."""
    criterion, mask1, mask0 = names
    groups = [("global", alive)]
    if scope == "layer":
        groups = [(m.kind, {p for p in alive if p[0] == n}) for n, m in MASKABLES.items()]
    left: set[WeightIndex] = set()
    for rate, group in groups:
        count = len(group)
        for _ in range(levels):
            count -= pruned_count(count, RATES[rate])
        ranked = sorted(group, key=lambda p: SCORES[criterion](start[p], end[p]))
        left |= set(ranked[len(ranked) - count :])
    values = {}
    for place, before in start.items():
        shrunk = abs(end[place]) < abs(before)
        if place not in alive:
            values[place] = before
        elif place not in left:
            values[place] = FROZEN[mask0](before, end[place])
        elif mask0 == "zero_if_shrunk_everywhere" and shrunk:
            values[place] = 0.0
        else:
            values[place] = KEPT[mask1](before, MASKABLES[place[0]].std)
    return values, left


COMBINATIONS = [
    (("large_final", "rewind", "zero"), "layer"),
    (("large_final", "rewind", "zero"), "global"),
    (("large_final", "rewind", "freeze_init"), "layer"),
    (("magnitude_increase", "rewind", "freeze_final"), "layer"),
    (("magnitude_increase", "signed_constant", "zero_if_shrunk"), "global"),
    (("movement", "signed_constant", "zero_if_grown"), "layer"),
    (("movement", "rewind", "zero_if_shrunk_everywhere"), "global"),
    (("small_final", "rewind", "zero_if_shrunk_everywhere"), "layer"),
    (("large_init", "rewind", "zero_if_shrunk"), "layer"),
    (("small_init", "rewind", "freeze_init"), "global"),
]


@pytest.mark.parametrize("schedule", ["iterative", "one_shot"])
@pytest.mark.parametrize(("names", "scope"), COMBINATIONS)
def test_three_levels_agree_with_the_slow_implementation(
    names: tuple[str, str, str], scope: Any, schedule: str
) -> None:
    criterion, mask1, mask0 = names
    step = PruneStep(CRITERIA[criterion], mask1, mask0, RATES, scope)
    if schedule == "iterative":
        runs = chain([step] * 3)
    else:
        runs = [run for n in (1, 2, 3) for run in chain([step_with(step, levels=n)])[-1:]]
        runs.insert(0, chain([])[0])
    for level in (1, 2, 3):
        parent_start, parent_result = runs[level - 1 if schedule == "iterative" else 0]
        alive = {place for place, kept in flatten(parent_start.masks).items() if kept}
        start, end = flatten(parent_start.weights), flatten(parent_result.end.weights)
        values, left = prune_slowly(start, end, alive, names, scope, 1 if schedule == "iterative" else level)
        child = runs[level][0]
        assert {place for place, kept in flatten(child.masks).items() if kept} == left
        assert flatten(child.weights) == values
        assert all(torch.equal(child.unmasked[n], parent_start.unmasked[n]) for n in parent_start.unmasked)


# --- chains ---


@pytest.mark.parametrize("mask1", MASK1_ACTIONS)
def test_w_init_is_the_start_of_the_level(mask1: str) -> None:
    """Criterion and actions of the next level see reinitialized values, not those of the dense network."""
    runs = chain([step_with(PLAIN, mask1=mask1)] * 2)
    parent = parent_of(*runs[1])
    for name, layer in parent.layers(PLAIN).items():
        assert torch.equal(layer.w_init, runs[1][0].weights[name])
        assert torch.equal(layer.w_rewind, runs[1][0].weights[name])
        assert torch.equal(layer.w_final, runs[1][1].end.weights[name])
        assert torch.equal(layer.alive, runs[1][0].masks[name])
        assert layer.std == MASKABLES[name].std
    third = prune_and_reset(parent, PLAIN, level_streams(2))
    for name, mask in third.masks.items():
        assert torch.equal(third.weights[name][mask], runs[1][0].weights[name][mask])


@pytest.mark.parametrize("mask0", MASK0_ACTIONS)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_frozen_values_never_change(mask0: str, scope: Any) -> None:
    runs = chain(
        [step_with(PLAIN, mask0=mask0, scope=scope, mask1=mask1) for mask1 in ("rewind", "reinit", "constant")]
    )
    for (earlier, _), (later, _) in itertools.combinations(runs, 2):
        for name, mask in earlier.masks.items():
            assert not (later.masks[name] & ~mask).any()
            assert torch.equal(later.weights[name][~mask], earlier.weights[name][~mask])


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_one_shot_and_iterative_counts_are_equal(scope: Any) -> None:
    step = step_with(PLAIN, scope=scope)
    iterative = chain([step] * 5)
    for level in range(1, 6):
        straight = chain([step_with(step, levels=level)])[1][0]
        iterated = iterative[level][0]
        if scope == "layer":
            assert count_kept(straight.masks) == count_kept(iterated.masks)
        assert sum(count_kept(straight.masks).values()) == sum(count_kept(iterated.masks).values())


def test_keep_counts() -> None:
    parent = parent_of(dense(), train(dense(), 0))
    assert keep_counts(parent, PLAIN) == {"fc1.weight": 420, "fc2.weight": 240}
    assert keep_counts(parent, step_with(PLAIN, levels=2)) == {"fc1.weight": 294, "fc2.weight": 192}
    assert keep_counts(parent, step_with(PLAIN, scope="global")) == 675
    assert keep_counts(parent, step_with(PLAIN, scope="global", levels=2)) == remaining_after(900, 0.25, 2) == 506


def test_global_ranking_compares_layers() -> None:
    """The layer with larger weights keeps a larger share."""
    start = dense()
    end = NetworkState({"fc1.weight": torch.rand(30, 20), "fc2.weight": 10 + torch.rand(10, 30)}, start.unmasked)
    masks = compute_masks(ParentRun(start, {"end": end}, MASKABLES), step_with(PLAIN, scope="global"), level_streams(1))
    assert count_kept(masks) == {"fc1.weight": 375, "fc2.weight": 300}


@pytest.mark.parametrize("mask1", MASK1_ACTIONS)
def test_rescaled_does_not_compound(mask1: str) -> None:
    """Start values are (weights in layer / kept) times those of the same chain without `rescaled`."""
    plain = chain([step_with(PLAIN, mask1=mask1, criterion=CRITERIA["random"])] * 3)
    scaled = chain([step_with(PLAIN, mask1=mask1, criterion=CRITERIA["random"], rescaled=True)] * 3)
    for level in (1, 2, 3):
        for name, mask in plain[level][0].masks.items():
            assert torch.equal(mask, scaled[level][0].masks[name])
            factor = mask.numel() / int(mask.sum())
            assert torch.allclose(
                scaled[level][0].weights[name][mask], factor * plain[level][0].weights[name][mask], rtol=1e-6, atol=0
            )


@pytest.mark.parametrize("mask1", sorted(set(MASK1_ACTIONS) - {"rewind", "signed_constant"}))
def test_every_level_draws_new_values(mask1: str) -> None:
    """Level 2 repeats neither the values nor the signs of level 1."""
    runs = chain([step_with(PLAIN, mask1=mask1)] * 2)
    for name, mask in runs[2][0].masks.items():
        one, two = (run[0].weights[name][mask] for run in runs[1:])
        assert not torch.equal(one, two)
    again = chain([step_with(PLAIN, mask1=mask1)] * 2)
    assert all(torch.equal(again[2][0].weights[n], w) for n, w in runs[2][0].weights.items())
    other = chain([step_with(PLAIN, mask1=mask1)] * 2, seed=1)
    assert not any(torch.equal(other[2][0].weights[n], w) for n, w in runs[2][0].weights.items())


def test_streams_of_kept_and_pruned_weights() -> None:
    """Names of streams determine the numbers of every run."""
    rng = level_streams(1)
    step = step_with(PLAIN, mask1="reinit", mask0="freeze_reinit")
    child = prune_and_reset(parent_of(dense(), train(dense(), 0)), step, rng)
    for name, mask in child.masks.items():
        m = MASKABLES[name]
        kept, pruned = (
            torch.from_numpy(truncated_normal(m.shape, m.std, rng(part, name))) for part in ("mask1", "mask0")
        )
        assert torch.equal(child.weights[name], kept.where(mask, pruned))


# --- snapshots ---


def trained(snapshots: tuple[Snapshot, ...] = (10, 40, 60)) -> tuple[InitialState, TrainingResult]:
    return dense(), train(dense(), 0, snapshots)


@pytest.mark.parametrize(
    ("w_init", "w_final"),
    [("start", "lowest_validation_loss"), (10, 60), (40, "end"), (0, 40), ("start", 10), ("end", "start")],
)
def test_criterion_reads_any_two_snapshots(w_init: Snapshot, w_final: Snapshot) -> None:
    """Criterion and actions read the snapshots that the step names; `rewind` still reads the start."""
    start, result = trained()
    states = {**result.snapshots, "end": result.end, "start": start.state, 0: start.state}
    seen: list[Layer] = []

    def criterion(layer: Layer, rng: Stream) -> Tensor:
        seen.append(layer)
        return layer.w_final.abs()

    step = step_with(PLAIN, criterion=criterion, w_init=w_init, w_final=w_final, mask0="freeze_init")
    child = prune_and_reset(parent_of(start, result), step, level_streams(1))
    for layer, (name, mask) in zip(seen, child.masks.items(), strict=True):
        assert torch.equal(layer.w_init, states[w_init].weights[name])
        assert torch.equal(layer.w_final, states[w_final].weights[name])
        kept_least = states[w_final].weights[name].abs()[mask].min()
        assert kept_least > states[w_final].weights[name].abs()[~mask].max()
        assert torch.equal(child.weights[name][mask], start.weights[name][mask])
        assert torch.equal(child.weights[name][~mask], states[w_init].weights[name][~mask])


@pytest.mark.parametrize("rewind_to", ["start", 0, 10, 40, "end"])
def test_rewinding_resets_weights_and_biases(rewind_to: Snapshot) -> None:
    start, result = trained()
    states = {**result.snapshots, "end": result.end, "start": start.state, 0: start.state}
    child = prune_and_reset(parent_of(start, result), step_with(PLAIN, rewind_to=rewind_to), level_streams(1))
    for name, mask in child.masks.items():
        assert torch.equal(child.weights[name][mask], states[rewind_to].weights[name][mask])
        assert not child.weights[name][~mask].any()
    assert child.unmasked.keys() == start.unmasked.keys()
    for name, bias in child.unmasked.items():
        assert torch.equal(bias, states[rewind_to].unmasked[name])
    assert child.first_iteration == (rewind_to if isinstance(rewind_to, int) else 0)


def test_late_rewinding_in_a_chain() -> None:
    """Level 1 rewinds to iteration 10 of the dense run, later levels to their own start, which is that iteration."""
    late = step_with(PLAIN, rewind_to=10)
    runs = chain([late, PLAIN, step_with(PLAIN, rewind_to=10)], snapshots=(10, 40))
    at_10 = runs[0][1].snapshots[10]
    for start, _ in runs[1:]:
        assert start.first_iteration == 10
        for name, mask in start.masks.items():
            assert torch.equal(start.weights[name][mask], at_10.weights[name][mask])
        assert all(torch.equal(start.unmasked[n], at_10.unmasked[n]) for n in start.unmasked)
    assert first_iteration(parent_of(*runs[1]), PLAIN) == 10


def test_initial_state_is_recomputed_from_masks() -> None:
    """The store keeps masks only and recomputes start values from them."""
    parent = parent_of(dense(), train(dense(), 0))
    for mask1, mask0 in zip(MASK1_ACTIONS, [*MASK0_ACTIONS, "zero", "freeze_reinit", "zero"], strict=True):
        step = step_with(PLAIN, mask1=mask1, mask0=mask0)
        child = prune_and_reset(parent, step, level_streams(1))
        again = apply_masks(child.masks, parent, step_with(step, criterion=CRITERIA["random"]), level_streams(1))
        assert all(torch.equal(again.weights[n], w) for n, w in child.weights.items())


def test_snip_and_grad_read_the_gradient() -> None:
    start, result = trained()
    gradient = result.snapshots["gradient"].weights
    for criterion, times_weight in [("grad", False), ("snip", True)]:
        masks = compute_masks(
            parent_of(start, result), step_with(PLAIN, criterion=CRITERIA[criterion]), level_streams(1)
        )
        for name, mask in masks.items():
            scores = (gradient[name] * start.weights[name] if times_weight else gradient[name]).abs()
            assert scores[mask].min() > scores[~mask].max()


# --- purity and invalid criteria ---


@pytest.mark.parametrize("mask0", MASK0_ACTIONS)
@pytest.mark.parametrize("mask1", MASK1_ACTIONS)
def test_pruning_does_not_modify_the_parent(mask1: str, mask0: str) -> None:
    start, result = trained()
    parent = parent_of(start, result)
    before = {n: w.clone() for n, w in start.weights.items()}, {n: w.clone() for n, w in result.end.weights.items()}
    child = prune_and_reset(parent, step_with(PLAIN, mask1=mask1, mask0=mask0), level_streams(1))
    for tensors in (child.weights, child.masks):
        for tensor in tensors.values():
            tensor.zero_()
    for name in start.weights:
        assert torch.equal(start.weights[name], before[0][name])
        assert torch.equal(result.end.weights[name], before[1][name])
        assert start.masks[name].all()


def writes_into_its_layer(layer: Layer, rng: Stream) -> Tensor:
    layer.w_init.zero_()
    layer.w_rewind.zero_()
    layer.alive.zero_()
    return layer.w_final.abs_()


def test_criterion_that_writes_into_its_layer_changes_nothing() -> None:
    parent = parent_of(dense(), train(dense(), 0))
    child = prune_and_reset(parent, step_with(PLAIN, criterion=writes_into_its_layer), level_streams(1))
    expected = prune_and_reset(parent_of(dense(), train(dense(), 0)), PLAIN, level_streams(1))
    for name in MASKABLES:
        assert torch.equal(child.masks[name], expected.masks[name])
        assert torch.equal(child.weights[name], expected.weights[name])


def needs_gradient(layer: Layer, rng: Stream) -> Tensor:
    return layer.w_final.clone().requires_grad_().abs()


def test_scores_that_require_a_gradient_are_accepted() -> None:
    parent = parent_of(dense(), train(dense(), 0))
    child = prune_and_reset(parent, step_with(PLAIN, criterion=needs_gradient), level_streams(1))
    assert count_kept(child.masks) == {"fc1.weight": 420, "fc2.weight": 240}


def test_criterion_has_its_own_stream() -> None:
    def noise(layer: Layer, rng: Stream) -> Tensor:
        return torch.from_numpy(rng.random(tuple(layer.w_final.shape)))

    parent = parent_of(dense(), train(dense(), 0))
    step = step_with(PLAIN, criterion=noise)
    one, two, other = (compute_masks(parent, step, level_streams(1, seed)) for seed in (0, 0, 1))
    assert all(torch.equal(one[n], two[n]) and not torch.equal(one[n], other[n]) for n in one)


def one_score(layer: Layer, rng: Stream) -> Tensor:
    return layer.w_final.abs().sum()


def transposed(layer: Layer, rng: Stream) -> Tensor:
    return layer.w_final.T


def an_array(layer: Layer, rng: Stream) -> Any:
    return np.abs(layer.w_final.numpy())


def nothing(layer: Layer, rng: Stream) -> Any:
    return None


def not_a_number(layer: Layer, rng: Stream) -> Tensor:
    return layer.w_final / 0 * 0


def test_criterion_may_return_an_array() -> None:
    parent = parent_of(dense(), train(dense(), 0))
    given, same = (
        compute_masks(parent, step_with(PLAIN, criterion=criterion), level_streams(1))
        for criterion in (an_array, CRITERIA["large_final"])
    )
    assert all(torch.equal(given[name], same[name]) for name in same)


AS_RETURNED: dict[str, Callable[[Tensor], Any]] = {
    "bfloat16": lambda scores: scores.bfloat16(),
    "float16": lambda scores: scores.half(),
    "float64 array": lambda scores: scores.numpy().astype(np.float64),
    "reversed array": lambda scores: scores.flip(0).numpy()[::-1],
    "other byte order": lambda scores: scores.numpy().astype(">f4"),
    "read-only array": lambda scores: np.broadcast_to(scores.numpy(), tuple(scores.shape)),
    "Fortran order": lambda scores: np.asfortranarray(scores.numpy()),
    "negative view": lambda scores: torch.complex(scores, -scores).conj().imag,
    "int32": lambda scores: (scores * 256).int(),
    "bool array": lambda scores: scores.numpy() > 0.5,
}


@pytest.mark.parametrize("convert", AS_RETURNED.values(), ids=AS_RETURNED)
def test_real_scores_of_any_type_and_layout_are_ranked_alike(convert: Callable[[Tensor], Any]) -> None:
    """Scores are whole numbers from 0 to 255, which every type holds, over 256, with the ties of the plainest form."""

    def plain(layer: Layer, rng: Stream) -> Tensor:
        return torch.from_numpy(rng.integers(0, 256, size=tuple(layer.w_final.shape)).astype(np.float32) / 256)

    def converted(layer: Layer, rng: Stream) -> Any:
        return convert(plain(layer, rng))

    def expected(layer: Layer, rng: Stream) -> Tensor:
        returned = convert(plain(layer, rng))
        return torch.from_numpy(returned.astype(np.float32)) if isinstance(returned, np.ndarray) else returned.float()

    parent = parent_of(dense(), train(dense(), 0))
    found, wanted = (
        compute_masks(parent, step_with(PLAIN, criterion=criterion), level_streams(1))
        for criterion in (converted, expected)
    )
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "complex": (lambda w: w.to(torch.complex64), r"Tensor of shape \(30, 20\) and type torch.complex64"),
    "complex array": (lambda w: w.numpy().astype(complex), r"ndarray of shape \(30, 20\) and type complex128"),
    "objects": (lambda w: w.numpy().astype(object), r"ndarray of shape \(30, 20\) and type object"),
    "texts": (lambda w: w.numpy().astype(str), r"ndarray of shape \(30, 20\) and type <U32"),
    "sparse": (
        lambda w: w.to_sparse(),
        r"Tensor of shape \(30, 20\) and type torch.float32 \(torch.sparse_coo, device cpu\)",
    ),
    "without values": (
        lambda w: w.to("meta"),
        r"Tensor of shape \(30, 20\) and type torch.float32 \(torch.strided, device meta\)",
    ),
    "masked": (lambda w: np.ma.masked_array(w.numpy()), r"MaskedArray of shape \(30, 20\)"),
    "nested": (lambda w: torch.nested.nested_tensor([w, w[:1]]), "Tensor, a nested one"),
    "one number": (lambda w: np.float32(1), r"float32 of shape \(\)"),
}


if np.dtype(np.longdouble).itemsize > 8:
    REFUSED["long double"] = (lambda w: w.numpy().astype(np.longdouble), r"ndarray of shape \(30, 20\) and type float")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize(("convert", "given"), REFUSED.values(), ids=REFUSED)
def test_scores_that_are_no_real_numbers_are_refused(convert: Callable[[Tensor], Any], given: str) -> None:
    def unusable(layer: Layer, rng: Stream) -> Any:
        return convert(layer.w_final)

    needed = r"it has to return one score per weight, a tensor or array of shape \(30, 20\) and real numbers"
    parent = parent_of(dense(), train(dense(), 0))
    with pytest.raises(ValueError, match=f"^criterion 'unusable' gave {given}.* for fc1.weight; {needed}"):
        compute_masks(parent, step_with(PLAIN, criterion=unusable), level_streams(1))


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (one_score, r"'one_score' gave Tensor of shape \(\) for fc1.weight; .* a tensor or array of shape \(30, 20\)"),
        (transposed, r"'transposed' gave Tensor of shape \(20, 30\) for fc1.weight"),
        (nothing, r"'nothing' gave NoneType for fc1.weight"),
        (not_a_number, r"fc1.weight is NaN"),
    ],
)
def test_invalid_scores_are_refused(criterion: Any, message: str) -> None:
    parent = parent_of(dense(), train(dense(), 0))
    with pytest.raises(ValueError, match=message):
        prune_and_reset(parent, step_with(PLAIN, criterion=criterion), level_streams(1))


def test_prunable_tensors_of_the_tiny_network() -> None:
    assert {n: (m.shape, m.kind) for n, m in prunable_tensors(LAYERS).items()} == {
        "fc1.weight": ((30, 20), "hidden"),
        "fc2.weight": ((10, 30), "output"),
    }
