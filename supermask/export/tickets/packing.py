"""Tickets of stored runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from supermask import __version__
from supermask.core.errors import UserError, did_you_mean, quote
from supermask.core.invariants import bitwise_equal, to_numpy
from supermask.core.learned_masks import MaskLearning, threshold_masks
from supermask.core.types import InitialState, Masks, NetworkState, Weights
from supermask.export.run_folder import run_record
from supermask.export.tickets.model import Ticket
from supermask.store import Store
from supermask.store.files.entry import RunFacts
from supermask.store.records import state_hash
from supermask.store.replay import StateReplayer
from supermask.store.rows import resolve_run_id
from supermask.study.networks import run_network
from supermask.study.run import Run

if TYPE_CHECKING:
    from torch import Tensor

WeightsToPack = Literal["auto", "final", "start"]
"""Network of the run to pack: after its training (`final`) or before (`start`). `auto` means `final` if the run was
trained, else `start`."""


def pack_run(store: Store, run_id: str, weights: WeightsToPack = "auto") -> Ticket:
    """Return the ticket of a stored run, named by its id or a unique prefix of it.

    `final`: masks, kept final weights and biases, with the run's `final_test_accuracy`. `start`: the untrained
    ticket. A learned supermask is packed as its thresholded mask on its fixed weights, inverted and rescaled as its
    method says. Weights that equal the initial ones of the seed are not stored. A network named by import path is
    packed with all of its tensors, for `Ticket.apply_to`.
    Raises UserError for a run without a valid result or without weights, CorruptEntry for a damaged one.
    """
    if weights not in get_args(WeightsToPack):
        allowed = f"allowed: {', '.join(get_args(WeightsToPack))}"
        raise UserError(f"weights={quote(weights)}{did_you_mean(str(weights), get_args(WeightsToPack))} ({allowed}).")
    return pack_known_run(StateReplayer(store), store, resolve_run_id(store, run_id), weights)


def pack_known_run(replayer: StateReplayer, store: Store, run_id: str, weights: WeightsToPack = "auto") -> Ticket:
    """Return the ticket of a run as `pack_run` does, given its whole id.

    `replayer`: of this store; it keeps the states of runs packed before, which the next levels are made of.
    """
    facts = store.facts(run_id)
    run = Run.from_data(facts)
    snapshot = ("final" if run.is_trained else "start") if weights == "auto" else weights
    _check_packable(store, run, facts, snapshot)
    parent = replayer.parent_run(run_id)
    masks = parent.start.masks
    state = parent.start.state if snapshot == "start" else parent.state_at("end")
    ticket_facts: dict[str, Any] = {"weights": snapshot, "supermask": __version__, "run": run_record(facts)}
    accuracy = facts["metrics"].get("final_test_accuracy")
    source = "final weights" if run.is_trained else "untrained weights"
    if run.learning is not None:
        masks, state = _threshold_supermask(run.learning, state, masks)
        accuracy, source = facts["metrics"]["thresholded_test_accuracy"], "thresholded supermask"
    # Of an untrained network with batch normalization, running statistics were estimated to measure it.
    is_as_measured = snapshot == "final" or not (run.is_trained or run_network(run).buffers)
    if accuracy is not None and is_as_measured:
        ticket_facts["accuracy"] = {"test": accuracy, "of": source}
    if _descends_from_learned_mask(store, run):
        ticket_facts["from_a_learned_mask"] = True
    network = run_network(run)
    if network.is_user_code:
        # Only user code makes the seed's network again, so the ticket has every value and names no network.
        nonzero = {n: state.weights[n] for n, m in masks.items() if bool((state.weights[n][~m] != 0).any())}
        return Ticket(masks, state.weights, state.unmasked, frozen=dict(nonzero), facts=ticket_facts)
    initial = network.initial_state(run.seed)
    return Ticket(
        masks=masks,
        weights=_changed_kept_tensors(state, masks, initial),
        frozen=_nonzero_frozen(state, masks, initial),
        others=None if _are_bitwise_equal(state.unmasked, initial.unmasked) else state.unmasked,
        network=run.network,
        dataset=run.dataset,
        seed=run.seed,
        initial_content=state_hash(initial),
        facts=ticket_facts,
    )


def _threshold_supermask(learning: MaskLearning, state: NetworkState, start: Masks) -> tuple[Masks, NetworkState]:
    """Return the thresholded mask b and the state with weights b * w, times (size / ones) per layer if rescaled."""
    masks = threshold_masks(learning, state.logits, start)
    weights = {}
    for name, mask in masks.items():
        ratio = mask.numel() / max(float(mask.sum()), 1.0) if learning.rescaled else 1.0
        weights[name] = state.weights[name] * mask.float() * ratio
    return masks, NetworkState(weights, state.unmasked)


def _descends_from_learned_mask(store: Store, run: Run) -> bool:
    """Return whether the run or an ancestor learned its mask, so that level and prune rates do not give its counts."""
    while run.learning is None and run.parent is not None:
        run = Run.from_data(store.facts(run.parent))
    return run.learning is not None


def _check_packable(store: Store, run: Run, facts: RunFacts, snapshot: str) -> None:
    if facts["status"] == "certificate_failed":
        raise UserError(
            f"run {run.id} cannot be packed: its certificate does not hold. `supermask verify` names the failed checks."
        )
    if snapshot == "start" and run.learning is not None:
        raise UserError(
            f"run {run.id} learned a supermask: it started as the whole network, which has no mask to pack. "
            "Leave out --weights start."
        )
    if snapshot == "start":
        return
    if facts["status"] == "diverged":
        raise UserError(
            f"run {run.id} diverged at iteration {facts['metrics']['diverged_at']}: it has no final weights. "
            "Use --weights start to pack the untrained ticket."
        )
    if run.learning is not None and not store.has_weights(run.id):
        raise UserError(f"the logits of run {run.id} were dropped (--keep): run its study again with --keep all.")
    if run.is_trained and not store.has_weights(run.id):
        raise UserError(
            f"the final weights of run {run.id} were dropped (--keep). "
            "Use --weights start to pack the untrained ticket."
        )


def _changed_kept_tensors(state: NetworkState, masks: Masks, initial: InitialState) -> Weights:
    """Return the tensors whose kept weights are not bit-identical to the initial ones."""
    return {
        n: state.weights[n]
        for n, m in masks.items()
        if not _is_bitwise_equal(state.weights[n][m], initial.weights[n][m])
    }


def _nonzero_frozen(state: NetworkState, masks: Masks, initial: InitialState) -> dict[str, Tensor | None]:
    """Return the tensors whose pruned weights are not all 0; None if they are the initial ones."""
    frozen: dict[str, Tensor | None] = {}
    for name, mask in masks.items():
        values = state.weights[name]
        if bool((values[~mask] != 0).any()):
            frozen[name] = None if _is_bitwise_equal(values[~mask], initial.weights[name][~mask]) else values
    return frozen


def _are_bitwise_equal(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(_is_bitwise_equal(tensor, b[name]) for name, tensor in a.items())


def _is_bitwise_equal(a: Tensor, b: Tensor) -> bool:
    return bitwise_equal(to_numpy(a), to_numpy(b))
