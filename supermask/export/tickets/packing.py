"""A stored run as a ticket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from supermask import __version__
from supermask.core.errors import UserError, did_you_mean, quote
from supermask.core.learned_masks import MaskLearning, threshold_masks
from supermask.core.types import InitialState, Masks, NetworkState, Weights
from supermask.export.run_folder import run_record
from supermask.export.tickets.model import Ticket
from supermask.networks.sequential import initial_state
from supermask.store import Store
from supermask.store.files.entry import RunFacts
from supermask.store.records import state_hash
from supermask.store.replay import StateReplayer, run_architecture
from supermask.store.rows import resolve_run_id
from supermask.study.run import Run

if TYPE_CHECKING:
    from torch import Tensor

WeightsToPack = Literal["auto", "final", "start"]
"""Which network of a run: the trained one, or the one that its training began with. `auto`: the trained one, unless
nothing was trained."""


def pack_run(store: Store, run_id: str, weights: WeightsToPack = "auto") -> Ticket:
    """The ticket of a stored run, named by its id or the beginning of it.

    `final`: masks, kept final weights and biases, whose accuracy is the run's `final_test_accuracy`. `start`: the
    ticket itself, untrained. A learned supermask is its thresholded mask on the weights that it was learned for,
    inverted and rescaled where that belongs to it. What the seed gives, kept weights or frozen ones, is not stored.
    Raises UserError for a run that is no result, or whose weights are not kept; Damaged as `Lineage.parent` does.
    """
    if weights not in get_args(WeightsToPack):
        allowed = f"allowed: {', '.join(get_args(WeightsToPack))}"
        raise UserError(f"weights={quote(weights)}{did_you_mean(str(weights), get_args(WeightsToPack))} ({allowed}).")
    run_id = resolve_run_id(store, run_id)
    facts = store.facts(run_id)
    run = Run.from_data(facts)
    which = ("final" if run.is_trained else "start") if weights == "auto" else weights
    _check(store, run, facts, which)
    parent = StateReplayer(store).parent_run(run_id)
    masks = parent.start.masks
    state = parent.start.state if which == "start" else parent.state_at("end")
    initial = initial_state(run_architecture(run), run.seed)
    told: dict[str, Any] = {"weights": which, "supermask": __version__, "run": run_record(facts)}
    measured, of = (
        facts["metrics"].get("final_test_accuracy"),
        "final weights" if run.is_trained else "untrained weights",
    )
    if run.learning is not None:
        masks, state = _supermask(run.learning, state)
        measured, of = facts["metrics"]["thresholded_test_accuracy"], "thresholded supermask"
    if measured is not None and (which == "final" or not run.is_trained):
        told["accuracy"] = {"test": measured, "of": of}
    if _descends_from_learned_mask(store, run):
        told["from_a_learned_mask"] = True
    return Ticket(
        masks=masks,
        weights=_changed_kept_tensors(state, masks, initial),
        frozen=_nonzero_frozen(state, masks, initial),
        others=None if _same(state.unmasked, initial.unmasked) else state.unmasked,
        network=run.network,
        dataset=run.dataset,
        seed=run.seed,
        initial_content=state_hash(initial),
        facts=told,
    )


def _supermask(learning: MaskLearning, state: NetworkState) -> tuple[Masks, NetworkState]:
    """The thresholded mask, and the network that it makes: b w, times (size / ones) of each layer where rescaled."""
    masks = threshold_masks(learning, state.logits)
    weights = {}
    for name, mask in masks.items():
        ratio = mask.numel() / max(float(mask.sum()), 1.0) if learning.rescaled else 1.0
        weights[name] = state.weights[name] * mask.float() * ratio
    return masks, NetworkState(weights, state.unmasked)


def _descends_from_learned_mask(store: Store, run: Run) -> bool:
    """Whether the run, or an ancestor, learned its mask: its counts do not follow from level and prune rates."""
    while run.learning is None and run.parent is not None:
        run = Run.from_data(store.facts(run.parent))
    return run.learning is not None


def _check(store: Store, run: Run, facts: RunFacts, which: str) -> None:
    if facts["status"] == "certificate_failed":
        raise UserError(f"run {run.id} is no result: its certificate does not hold. `supermask verify` says why.")
    if which == "start" and run.learning is not None:
        raise UserError(
            f"run {run.id} learned a supermask: it started as the whole network, which is no ticket. "
            "Leave out --weights start."
        )
    if which == "start":
        return
    if facts["status"] == "diverged":
        raise UserError(
            f"run {run.id} diverged at iteration {facts['metrics']['diverged_at']}: it has no final weights. "
            "Its ticket, untrained, can be packed with --weights start."
        )
    if run.learning is not None and not store.has_weights(run.id):
        raise UserError(f"the logits of run {run.id} were dropped (--keep): run its study again with --keep all.")
    if run.is_trained and not store.has_weights(run.id):
        raise UserError(
            f"the final weights of run {run.id} were dropped (--keep). "
            "Its ticket, untrained, can be packed with --weights start."
        )


def _changed_kept_tensors(state: NetworkState, masks: Masks, initial: InitialState) -> Weights:
    """The tensors whose kept weights are not, bit for bit, the initial ones."""
    return {n: state.weights[n] for n, m in masks.items() if not _same_bits(state.weights[n][m], initial.weights[n][m])}


def _nonzero_frozen(state: NetworkState, masks: Masks, initial: InitialState) -> dict[str, Tensor | None]:
    """The tensors whose pruned weights are not all 0; None where they are the initial ones."""
    frozen: dict[str, Tensor | None] = {}
    for name, mask in masks.items():
        values = state.weights[name]
        if bool((values[~mask] != 0).any()):
            frozen[name] = None if _same_bits(values[~mask], initial.weights[name][~mask]) else values
    return frozen


def _same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(_same_bits(tensor, other[name]) for name, tensor in one.items())


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
