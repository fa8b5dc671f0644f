"""Replay of initial states: from a run's id back through its ancestors, with the tensors stored for each.

Initial states are not stored, because each follows from its parent: seed -> dense start -> (mask, kept weights) ->
start of level 1 -> ... Every replayed start is compared with the hash recorded when its run was trained.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NoReturn

from supermask.core.certificate import Certificate, certify
from supermask.core.criteria import ALL_CRITERIA, Criterion
from supermask.core.errors import UserError
from supermask.core.layer_facts import count_ties_drawn
from supermask.core.learned_masks import MaskLearning, initial_mask_state, mask_scores
from supermask.core.pruning import ParentRun, PruneStep, apply_masks, compute_scores, select_masks
from supermask.core.rng import Stream, Streams, child_streams
from supermask.core.types import InitialState, Layer, NetworkState, Snapshot, TrainingResult, Weights
from supermask.networks.network import Network
from supermask.store import CorruptEntry, Store
from supermask.store.files.entry import RunFacts, Tensors
from supermask.store.records import (
    apply_inversion,
    decode_dense,
    decode_logits,
    decode_masks,
    decode_state,
    snapshot_name,
    state_hash,
    zero_weights,
)
from supermask.study import resolve_criterion
from supermask.study.networks import run_network
from supermask.study.run import Run
from supermask.study.user_code import guard_function

if TYPE_CHECKING:
    from torch import Tensor


class SnapshotMissing(CorruptEntry):
    """A snapshot that the store does not have: dropped, or never requested. Training the run again gives it."""

    def __init__(self, run_id: str, point: Snapshot) -> None:
        super().__init__(f"{run_id}-{snapshot_name(point)}", "it is missing")
        self.run_id, self.point = run_id, point

    def __reduce__(self) -> tuple[type[SnapshotMissing], tuple[str, Snapshot]]:
        # Copies and pickles would otherwise call __init__ with CorruptEntry's arguments.
        return SnapshotMissing, (self.run_id, self.point)

    def __str__(self) -> str:
        what = "weights" if self.point == "end" else f"snapshot {snapshot_name(self.point)}"
        return f"run {self.run_id} has no {what} in the store: dropped (--keep), or never kept. Run its study again."


class UserCodeNotLoaded(UserError):
    """An initial state that needs a user's criterion or network, where user code must not be imported."""


def load_step(step: PruneStep) -> PruneStep:
    """Return a step that can score weights: the import path of a user's criterion is replaced by its function.

    Raises UserError if a user's criterion cannot be imported, or if its file was changed after the plan was made.
    """
    if not isinstance(step.criterion, str) or step.criterion in ALL_CRITERIA:
        return step
    return replace(step, criterion=_load_user_criterion(step.criterion, step.criterion_source))


def certify_run(run: Run, start: InitialState, result: TrainingResult, parent: ParentRun | None) -> Certificate:
    """Return the certificate of a run that trained weights, or evaluated them untrained, with the run's settings."""
    network = run_network(run)
    return certify(
        network.tensors,
        start,
        result,
        parent,
        run.step,
        run.recipe.weight_decay,
        network.trained_others,
        network.aliases,
        run.recipe.max_input,
        network.fixed_names,
    )


def step_streams(run: Run) -> Streams:
    """Return the random streams of the step that leads to a run: by seed and level, equal for all treatments."""
    return child_streams(run.seed, "level", run.level)


class StoredSnapshots(Mapping[Snapshot, NetworkState]):
    """Stored snapshots of one run, read on first use. Raises SnapshotMissing for one that the store does not have."""

    def __init__(self, store: Store, run: Run, start: InitialState) -> None:
        self._store, self._run, self._run_id, self._start = store, run, run.id, start
        self._read: dict[Snapshot, NetworkState] = {}

    def __getitem__(self, point: Snapshot) -> NetworkState:
        if point not in self._read:
            self._read[point] = self._load(point)
        return self._read[point]

    def __contains__(self, point: object) -> bool:
        # An untrained network ends as it starts: its end is always available.
        if point == "end":
            return not self._run.is_trained or self._store.has_weights(self._run_id)
        return self._store.has_snapshot(self._run_id, snapshot_name(point))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Snapshot]:
        raise TypeError("snapshots are read by name")

    def __len__(self) -> int:
        raise TypeError("snapshots are read by name")

    def _load(self, point: Snapshot) -> NetworkState:
        if point not in self:
            raise SnapshotMissing(self._run_id, point)
        if not self._run.is_trained:
            return self._start.state
        try:
            if point == "end":
                entry = self._store.read(self._run_id)
                if entry.weights is None:
                    raise SnapshotMissing(self._run_id, point)
                if self._run.learning is not None:
                    return apply_inversion(decode_logits(entry.weights, self._start), self._run.learning)
                return decode_state(entry.tensors | entry.weights, self._start)
            stored = self._store.read_snapshot(self._run_id, snapshot_name(point)).tensors
            # Frozen weights have no gradient; at every other point they have their initial values.
            return decode_state(stored, zero_weights(self._start) if point == "gradient" else self._start)
        except ValueError as error:
            key = self._run_id if point == "end" else f"{self._run_id}-{snapshot_name(point)}"
            raise CorruptEntry(key, str(error)) from error


class StateReplayer:
    """Replays initial states and caches the last few: the next level of a chain needs its parent's."""

    def __init__(self, store: Store, cache_size: int = 4, import_user_code: bool = True) -> None:
        """`import_user_code`: import a user's criterion if the initial logits of a learned mask came from it, and a
        user's network if weights were drawn by its constructors after the first level."""
        assert cache_size > 1, "a start is replayed from its parent's, which must stay in the cache meanwhile"
        self._store, self._cache_size, self._import_user_code = store, cache_size, import_user_code
        self._parents: OrderedDict[str, ParentRun] = OrderedDict()
        self.ties_drawn: dict[str, dict[str, int]] = {}
        """Run id -> `count_ties_drawn` of the initial states made here, until the run's facts are collected."""

    def parent_run(self, run_id: str) -> ParentRun:
        """Return a stored run as the parent of the next pruning step.

        Raises CorruptEntry if the run or an ancestor is damaged, SnapshotMissing if a snapshot that one of their
        initial states is made of is missing, UserCodeNotLoaded.
        """
        missing: list[str] = []
        ancestor: str | None = run_id
        # A loop, not recursion: chains of 1,000 levels are allowed.
        while ancestor is not None and ancestor not in self._parents:
            missing.append(ancestor)
            ancestor = self._run(ancestor, self._store.facts(ancestor)).parent
        if ancestor is not None:
            # Needed by the first rebuild below, so it must not be the next one evicted.
            self._parents.move_to_end(ancestor)
        for missing_id in reversed(missing):
            self._rebuild(missing_id)
        return self._parents[run_id]

    def cache(self, run: Run, start: InitialState) -> None:
        """Cache an initial state that was just made, so that the next level does not replay it."""
        prunable = self._network(run).tensors
        score_learned = None if run.learning is None else partial(_layer_mask_scores, run.learning)
        self._parents[run.id] = ParentRun(start, StoredSnapshots(self._store, run, start), prunable, score_learned)
        self._parents.move_to_end(run.id)
        while len(self._parents) > self._cache_size:
            self._parents.popitem(last=False)

    def initial_state(self, run: Run) -> InitialState:
        """Return the initial state of a run to be trained: score the parent's weights, prune and reset.

        Raises as `parent_run` and `load_step` do, and UserError or ValueError if the criterion fails.
        """
        if run.learning is not None:
            return self._mask_learning_start(run, run.learning)
        if run.parent is None or run.step is None:
            return run_network(run).initial_state(run.seed)
        parent, step, rng = self.parent_run(run.parent), load_step(run.step), step_streams(run)
        # `prune_and_reset` in steps: the scores are needed twice, and a user's criterion may take long.
        scores = compute_scores(parent, step, rng)
        masks = select_masks(scores, parent, step, rng)
        self.ties_drawn[run.id] = count_ties_drawn(scores, masks, parent, step)
        return apply_masks(masks, parent, step, rng)

    def _network(self, run: Run) -> Network:
        """Return the run's network; one of user code refuses to be built where that must not be imported."""
        network = run_network(run)
        if not network.is_user_code or self._import_user_code:
            return network

        def refuse() -> NoReturn:
            raise UserCodeNotLoaded(f"its initial weights come from {run.network}, which is not imported here.")

        return replace(network, make=refuse)

    def _dense_state(self, run: Run, stored: Tensors | None, parent: ParentRun | None) -> InitialState:
        """Return the dense network of the run's seed; of user code from the store, once the run is in it."""
        network = self._network(run)
        if not network.is_user_code or stored is None:
            return network.initial_state(run.seed)
        if parent is not None:
            return parent.start
        try:
            return decode_dense(stored, network)
        except ValueError as error:
            raise CorruptEntry(run.id, str(error)) from error

    def _mask_learning_start(self, run: Run, learning: MaskLearning, stored: Tensors | None = None) -> InitialState:
        if run.step is not None and run.step.criterion not in ALL_CRITERIA and not self._import_user_code:
            raise UserCodeNotLoaded(
                f"its initial logits come from criterion {run.step.criterion!r}, which is not imported here."
            )
        parent = None if run.parent is None else self.parent_run(run.parent)
        step = None if run.step is None else load_step(run.step)
        return initial_mask_state(
            learning,
            self._network(run).tensors,
            self._dense_state(run, stored, parent),
            run.seed,
            parent,
            step,
            step_streams(run),
        )

    def _rebuild(self, run_id: str) -> None:
        """Replay and cache the initial state of a stored run whose parent is cached: stored masks, replayed weights."""
        entry = self._store.read(run_id)
        run = self._run(run_id, entry.facts)
        if run.learning is not None:
            start = self._mask_learning_start(run, run.learning, entry.tensors)
        elif run.parent is None or run.step is None:
            start = self._dense_state(run, entry.tensors, None)
        else:
            parent = self._parents[run.parent]
            step = run.step
            if run.step.w_final not in run.step.initial_state_snapshots:
                # Only the criterion read w_final. The masks are stored, so the snapshot may have been dropped.
                step = replace(step, w_final="start")
            try:
                masks = decode_masks(entry.tensors, parent.prunable)
            except ValueError as error:
                raise CorruptEntry(run_id, str(error)) from error
            start = apply_masks(masks, parent, step, step_streams(run))
        # Catches another mask, another parent and another program version, whatever the seals say.
        if state_hash(start) != entry.facts["start_content"]:
            raise CorruptEntry(
                run_id, "its initial state, replayed from its parent, is not the one it was trained from"
            )
        self.cache(run, start)

    def _run(self, run_id: str, facts: RunFacts) -> Run:
        run = Run.from_data(facts)
        if run.id != run_id:
            raise CorruptEntry(run_id, f"its facts are those of run {run.id}")
        return run


def _layer_mask_scores(learning: MaskLearning, logits: Weights) -> Weights:
    return {name: mask_scores(learning, m) for name, m in logits.items()}


@lru_cache
def _load_user_criterion(name: str, source: str | None) -> Criterion:
    """Load a user's criterion with this source hash, once per process.

    It gets no gradient: whether the parent stored one depends on the other treatments of the study.
    """
    function = guard_function("criterion", resolve_criterion(name), source)

    def score(layer: Layer, rng: Stream) -> Tensor:
        return function(replace(layer, gradient=None), rng)  # type: ignore[no-any-return]

    score.__name__ = name
    return score
