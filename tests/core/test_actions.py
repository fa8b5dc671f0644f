"""Actions: a literal table of start values of kept weights, and one of frozen values of pruned weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny import STD, W_FINAL, W_INIT, eighths, kept_at, six
from scipy import stats
from torch import Tensor

from supermask.core.actions import KEEPS_W_INIT_VALUES, MASK0_ACTIONS, MASK1_ACTIONS, USES_W_FINAL, rescale_factor
from supermask.core.initializers import truncated_normal
from supermask.core.invariants import CARRIES_RESCALING, MASK0_INVARIANTS, MASK1_INVARIANTS, MAX_ABS_DRAWS
from supermask.core.rng import random_stream
from supermask.core.types import Layer

MAX_DRAW = MAX_ABS_DRAWS["glorot_normal"] * STD
KEPT, PRUNED = [0, 3, 5], [1, 2, 4]
MASK = kept_at(KEPT)
Property = Callable[[np.ndarray], bool]
"""Predicate on the values of the kept weights 0, 3, 5 (w_i 1/2, -1/4, 3/4) or of the pruned weights 1, 2, 4."""

# --- mask-1 actions ---


def has_signs_of_w_init(v: np.ndarray) -> bool:
    return bool((np.sign(v) == [1, -1, 1]).all())


def is_fresh_draw(v: np.ndarray) -> bool:
    return bool((np.abs(v) <= MAX_DRAW).all() and not set(np.abs(v)) & {0.5, 0.25, 0.75})


MASK1_TABLE: dict[str, list[float] | Property] = {
    "rewind": [0.5, -0.25, 0.75],
    "reinit": is_fresh_draw,
    "reshuffle": lambda v: sorted(v) == [-0.25, 0.5, 0.75],
    "constant": lambda v: np.abs(v).tolist() == [0.5, 0.5, 0.5],
    "signed_reinit": lambda v: is_fresh_draw(v) and has_signs_of_w_init(v),
    "signed_reshuffle": lambda v: sorted(v) == [-0.25, 0.5, 0.75] and has_signs_of_w_init(v),
    "signed_constant": [0.5, -0.5, 0.5],
    "bimodal_reinit": lambda v: not set(np.abs(v)) & {0.5, 0.25, 0.75},
    "signed_bimodal_reinit": lambda v: not set(np.abs(v)) & {0.5, 0.25, 0.75} and has_signs_of_w_init(v),
    "permute": lambda v: len(set(v)) == 3 and set(v) <= {w / 8 for w in W_INIT},
    "randomise_signs": lambda v: np.abs(v).tolist() == [0.5, 0.25, 0.75],
}
RANDOM_MASK1 = {name for name, expected in MASK1_TABLE.items() if callable(expected)}


def start_values_of_kept(action: str, rescaled: bool = False, seed: int = 0, layer: Layer | None = None) -> np.ndarray:
    layer = layer or six()
    values = MASK1_ACTIONS[action](layer, MASK, random_stream(seed, "mask1"))
    assert values.shape == layer.w_init.shape and values.dtype == torch.float32
    if rescaled:
        values = values * rescale_factor(action, layer, MASK)
    return values[MASK].numpy()


def test_tables_list_every_action_in_order() -> None:
    assert list(MASK1_TABLE) == list(MASK1_ACTIONS) == list(MASK1_INVARIANTS)
    assert list(MASK0_TABLE) == list(MASK0_ACTIONS) == list(MASK0_INVARIANTS)
    assert set(MASK1_ACTIONS) >= KEEPS_W_INIT_VALUES == set(CARRIES_RESCALING)
    assert set(MASK0_ACTIONS) >= USES_W_FINAL


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("action", MASK1_ACTIONS)
def test_start_values_of_kept_weights(action: str, rescaled: bool) -> None:
    """`rescaled` doubles every value: 6 weights, 3 kept."""
    expected = MASK1_TABLE[action]
    for seed in range(30):
        values = start_values_of_kept(action, rescaled, seed) / (2 if rescaled else 1)
        assert expected(values) if callable(expected) else values.tolist() == expected


@pytest.mark.parametrize("action", MASK1_ACTIONS)
def test_only_random_mask1_actions_depend_on_the_stream(action: str) -> None:
    starts = {tuple(start_values_of_kept(action, seed=seed)) for seed in range(30)}
    assert (len(starts) > 1) == (action in RANDOM_MASK1)
    assert np.array_equal(start_values_of_kept(action, seed=1), start_values_of_kept(action, seed=1))


def large_layer(seed: int = 0) -> tuple[Layer, Tensor]:
    """Return a layer of 4,000 weights and a mask that keeps 3,000 of them."""
    w_init = torch.from_numpy(truncated_normal((50, 80), STD, random_stream(seed, "init")))
    alive = torch.ones(50, 80, dtype=torch.bool)
    mask = torch.from_numpy(random_stream(seed, "mask").permutation(4000).reshape(50, 80) < 3000)
    return Layer(STD, w_init, w_init * 1.5, alive, w_init), mask


@pytest.mark.parametrize("action", ["reinit", "constant", "bimodal_reinit", "reshuffle", "permute", "randomise_signs"])
def test_unsigned_actions_lose_the_signs(action: str) -> None:
    layer, mask = large_layer()
    values = MASK1_ACTIONS[action](layer, mask, random_stream(0))
    agree = float((values.sign() == layer.w_init.sign())[mask].float().mean())
    assert 0.45 < agree < 0.55


@pytest.mark.parametrize("action", ["signed_reinit", "signed_constant", "signed_bimodal_reinit", "signed_reshuffle"])
def test_signed_actions_keep_every_sign(action: str) -> None:
    layer, mask = large_layer()
    values = MASK1_ACTIONS[action](layer, mask, random_stream(0))
    assert torch.equal(values.sign()[mask], layer.w_init.sign()[mask])


@pytest.mark.parametrize("action", ["reinit", "signed_reinit"])
def test_reinit_draws_from_the_initializer_of_the_layer(action: str) -> None:
    layer, mask = large_layer()
    values = MASK1_ACTIONS[action](layer, mask, random_stream(3)).abs()[mask].numpy()
    half_normal = stats.truncnorm(0, 2, scale=MAX_DRAW / 2).cdf
    assert stats.kstest(values, half_normal).pvalue > 1e-4


@pytest.mark.parametrize("signed", [False, True])
def test_reshuffle_permutes_uniformly(signed: bool) -> None:
    """Every permutation occurs equally often: 3! of the kept weights, or 2! of the two positive ones."""
    seen: dict[tuple[float, ...], int] = {}
    for seed in range(600):
        values = tuple(start_values_of_kept("signed_reshuffle" if signed else "reshuffle", seed=seed).tolist())
        seen[values] = seen.get(values, 0) + 1
    assert len(seen) == (2 if signed else 6)
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4


@pytest.mark.parametrize("sign", [1, -1])
def test_signed_reshuffle_permutes_each_sign_separately(sign: int) -> None:
    layer, mask = large_layer()
    values = MASK1_ACTIONS["signed_reshuffle"](layer, mask, random_stream(0))
    places = mask & (layer.w_init.sign() == sign)
    assert torch.equal(values[places].sort().values, layer.w_init[places].sort().values)
    assert int((values == layer.w_init)[places].sum()) < 10  # 1 expected


def test_reshuffle_uses_kept_values_and_permute_uses_alive_values() -> None:
    layer, mask = large_layer()
    layer = replace(layer, alive=mask | (torch.arange(4000).reshape(50, 80) % 3 > 0))
    reshuffled, permuted = (MASK1_ACTIONS[a](layer, mask, random_stream(0)) for a in ("reshuffle", "permute"))
    assert torch.equal(reshuffled[mask].sort().values, layer.w_init[mask].sort().values)
    assert torch.equal(permuted[layer.alive].sort().values, layer.w_init[layer.alive].sort().values)
    assert not torch.equal(permuted[mask].sort().values, layer.w_init[mask].sort().values)


def test_only_rewind_reads_w_rewind() -> None:
    late = replace(six(), w_rewind=eighths([10, 20, 30, 40, 50, 60]))
    for action in set(MASK1_ACTIONS) - {"rewind"}:
        assert np.array_equal(start_values_of_kept(action, layer=late), start_values_of_kept(action)), action
    assert (start_values_of_kept("rewind", layer=late) * 8).tolist() == [10, 40, 60]


@pytest.mark.parametrize("action", MASK1_ACTIONS)
def test_rescaling_does_not_compound(action: str) -> None:
    """Values kept from the previous level already contain its factor, so only the remaining factor is applied."""
    second = replace(six(), alive=kept_at([0, 1, 3, 5]))
    assert rescale_factor(action, six(), kept_at([0, 1, 3, 5])) == 1.5
    factor = rescale_factor(action, second, kept_at([0, 3, 5]))
    assert factor * (1.5 if action in KEEPS_W_INIT_VALUES else 1) == 2.0


def test_rescale_factor_of_an_emptied_layer_is_finite() -> None:
    assert rescale_factor("rewind", six(), kept_at([])) == 6.0


# --- mask-0 actions ---

# Among the pruned weights 1, 2, 4 (w_i -5/8, 3/8, 1/8) only weight 1 shrank; among the kept ones only weight 5.

MASK0_TABLE: dict[str, list[float] | Property] = {
    # All six start values with kept weights rewound, or a predicate on the pruned ones.
    "zero": [0.5, 0, 0, -0.25, 0, 0.75],
    "freeze_init": [0.5, -0.625, 0.375, -0.25, 0.125, 0.75],
    "freeze_final": [0.5, -0.125, -0.5, -0.25, 0.375, 0.75],
    "freeze_reinit": lambda v: bool((np.abs(v) <= MAX_DRAW).all()) and not set(v * 8) & {*W_INIT, *W_FINAL, 0},
    "zero_if_shrunk": [0.5, 0, 0.375, -0.25, 0.125, 0.75],
    "zero_if_shrunk_everywhere": [0.5, 0, 0.375, -0.25, 0.125, 0],
    "zero_random": lambda v: v.tolist() in ([0, 0.375, 0.125], [-0.625, 0, 0.125], [-0.625, 0.375, 0]),
    "zero_if_grown": [0.5, -0.625, 0, -0.25, 0, 0.75],
}
RANDOM_MASK0 = {name for name, expected in MASK0_TABLE.items() if callable(expected)}


def start_values(action: str, seed: int = 0) -> Tensor:
    layer = six()
    kept = MASK1_ACTIONS["rewind"](layer, MASK, random_stream(seed, "mask1"))
    values = MASK0_ACTIONS[action](layer, MASK, kept, random_stream(seed, "mask0"))
    assert values.shape == (2, 3) and values.dtype == torch.float32
    return values


@pytest.mark.parametrize("action", MASK0_ACTIONS)
def test_frozen_values_of_pruned_weights(action: str) -> None:
    expected = MASK0_TABLE[action]
    for seed in range(30):
        values = start_values(action, seed).flatten()
        if callable(expected):
            assert expected(values[PRUNED].numpy())
            assert values[KEPT].tolist() == [0.5, -0.25, 0.75]
        else:
            assert values.tolist() == expected


@pytest.mark.parametrize("action", MASK0_ACTIONS)
def test_only_random_mask0_actions_depend_on_the_stream(action: str) -> None:
    starts = {tuple(start_values(action, seed).flatten().tolist()) for seed in range(30)}
    assert (len(starts) > 1) == (action in RANDOM_MASK0)


def test_zero_random_zeroes_every_weight_equally_often() -> None:
    zeroed = [int((start_values("zero_random", seed).flatten()[PRUNED] == 0).nonzero()) for seed in range(300)]
    assert stats.chisquare(np.bincount(zeroed, minlength=3)).pvalue > 1e-4


def test_zero_random_counts_only_weights_pruned_at_this_level() -> None:
    """Weight 1, which shrank, was pruned earlier. No weight pruned at this level shrank, so none is set to zero."""
    layer = replace(six(), alive=kept_at([0, 2, 3, 4, 5]))
    values = MASK0_ACTIONS["zero_random"](layer, MASK, layer.w_init, random_stream(0)).flatten()
    assert values[[2, 4]].tolist() == [0.375, 0.125]


def test_unmoved_weights_neither_shrank_nor_grew() -> None:
    layer = replace(six(), w_final=six().w_init)
    for action in ("zero_if_shrunk", "zero_if_shrunk_everywhere", "zero_random", "zero_if_grown"):
        assert torch.equal(MASK0_ACTIONS[action](layer, MASK, layer.w_init, random_stream(0)), layer.w_init), action


@pytest.mark.parametrize("action", [*MASK1_ACTIONS, *MASK0_ACTIONS])
def test_actions_do_not_modify_their_inputs(action: str) -> None:
    layer, kept = six(), eighths([9] * 6)
    if action in MASK1_ACTIONS:
        values = MASK1_ACTIONS[action](layer, MASK, random_stream(0))
    else:
        values = MASK0_ACTIONS[action](layer, MASK, kept, random_stream(0))
        assert values is not kept
    assert torch.equal(layer.w_init, eighths(W_INIT)) and torch.equal(layer.w_final, eighths(W_FINAL))
    assert torch.equal(MASK, kept_at(KEPT)) and torch.equal(kept, eighths([9] * 6)) and layer.alive.all()
    assert values.isfinite().all()


@pytest.mark.parametrize("action", sorted(set(MASK0_ACTIONS) - USES_W_FINAL))
def test_only_listed_mask0_actions_read_w_final(action: str) -> None:
    layer = replace(six(), w_final=torch.full((2, 3), torch.nan))
    values = MASK0_ACTIONS[action](layer, MASK, layer.w_init, random_stream(0, "mask0"))
    assert torch.equal(values, start_values(action))


@pytest.mark.parametrize("action", MASK1_ACTIONS)
def test_no_mask1_action_reads_w_final(action: str) -> None:
    layer = replace(six(), w_final=torch.full((2, 3), torch.nan))
    assert np.array_equal(start_values_of_kept(action, layer=layer), start_values_of_kept(action))
