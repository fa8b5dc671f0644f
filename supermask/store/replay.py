"""Starts made again: from a run's id back through its ancestors, with what the store holds of each."""

from __future__ import annotations

import traceback
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from supermask.core.criteria import ALL_CRITERIA, Criterion
from supermask.core.errors import UserError
from supermask.core.learned_masks import MaskLearning, initial_mask_state, mask_scores
from supermask.core.pruning import ParentRun, PruneStep, apply_masks, prune_and_reset
from supermask.core.rng import Stream, Streams, child_streams
from supermask.core.types import InitialState, Layer, NetworkState, Snapshot, Weights
from supermask.datasets.specs import DATASETS
from supermask.networks.sequential import Architecture, architecture, initial_state, prunable_tensors
from supermask.store import CorruptEntry, Store
from supermask.store.files.entry import RunFacts
from supermask.store.records import (
    apply_inversion,
    decode_logits,
    decode_masks,
    decode_state,
    snapshot_name,
    state_hash,
    zero_weights,
)
from supermask.study import resolve_criterion
from supermask.study.run import PruneStepSpec, Run

if TYPE_CHECKING:
    from torch import Tensor


class SnapshotMissing(CorruptEntry):
    """A point of a stored run that is not there: dropped, or never asked for. The run can be trained again for it."""

    def __init__(self, run_id: str, point: Snapshot) -> None:
        super().__init__(f"{run_id}-{snapshot_name(point)}", "it is not there")
        self.run_id, self.point = run_id, point

    def __reduce__(self) -> tuple[type[SnapshotMissing], tuple[str, Snapshot]]:
        return SnapshotMissing, (self.run_id, self.point)

    def __str__(self) -> str:
        what = "weights" if self.point == "end" else f"point {snapshot_name(self.point)}"
        return f"run {self.run_id} has no {what} in the store: dropped (--keep), or never kept. Run its study again."


class UserCriterionNotLoaded(UserError):
    """A start that is made of a user's own criterion, where none is to be imported."""


def run_architecture(run: Run) -> Architecture:
    """The network of a run as plain data."""
    facts = DATASETS[run.dataset]
    return architecture(run.network, facts.image_shape, facts.classes)


def load_criterion(facts: PruneStepSpec) -> Criterion:
    """The function that scores.

    Raises UserError if a user's own cannot be imported, or stands in a file that was changed since the plan was made.
    """
    if facts.criterion in ALL_CRITERIA:
        return ALL_CRITERIA[facts.criterion]
    return _load_user_criterion(facts.criterion, facts.criterion_source)


def build_step(facts: PruneStepSpec, criterion: Criterion | None = None) -> PruneStep:
    """The step as `ticket` takes it; it can score with the package's own criteria, and with one that is given."""
    return PruneStep(
        criterion=criterion or ALL_CRITERIA.get(facts.criterion, _unavailable_criterion),
        mask1=facts.mask1,
        mask0=facts.mask0,
        rates=facts.rates,
        scope=facts.scope,
        levels=facts.levels,
        w_init=facts.w_init,
        w_final=facts.w_final,
        rewind_to=facts.rewind_to,
        rescaled=facts.rescaled,
        rescaled_before=facts.rescaled_before,
    )


def step_streams(run: Run) -> Streams:
    """The random streams of the step that leads to a run: by seed and level, the same for every treatment."""
    return child_streams(run.seed, "level", run.level)


class StoredSnapshots(Mapping[Snapshot, NetworkState]):
    """The stored points of one run's trajectory, read when asked for; NotKept for one that is not there."""

    def __init__(self, store: Store, run: Run, start: InitialState) -> None:
        self._store, self._run, self._run_id, self._start = store, run, run.id, start
        self._read: dict[Snapshot, NetworkState] = {}

    def __getitem__(self, point: Snapshot) -> NetworkState:
        if point not in self._read:
            self._read[point] = self._load(point)
        return self._read[point]

    def __contains__(self, point: object) -> bool:
        if point == "end":
            return not self._run.is_trained or self._store.has_weights(self._run_id)
        return self._store.has_snapshot(self._run_id, snapshot_name(point))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Snapshot]:
        raise TypeError("points are read by name")

    def __len__(self) -> int:
        raise TypeError("points are read by name")

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
            return decode_state(stored, zero_weights(self._start) if point == "gradient" else self._start)
        except ValueError as error:
            key = self._run_id if point == "end" else f"{self._run_id}-{snapshot_name(point)}"
            raise CorruptEntry(key, str(error)) from error


class StateReplayer:
    """Makes starts again, and remembers the last few: a chain's next level asks for its parent's."""

    def __init__(self, store: Store, remembered: int = 4, imports: bool = True) -> None:
        """`imports`: whether a user's own criterion may be, for the start of a mask that began from it."""
        assert remembered > 1, "a start is made from its parent's, which is remembered meanwhile"
        self._store, self._remembered, self._imports = store, remembered, imports
        self._parents: OrderedDict[str, ParentRun] = OrderedDict()

    def parent_run(self, run_id: str) -> ParentRun:
        """A stored run as the next round sees it.

        Raises Damaged if it, or an ancestor, is not what was committed; its kind NotKept if a point is not there (any
        more) that the start of one of them is made of. Raises NotImportedError.
        """
        unknown: list[str] = []
        above: str | None = run_id
        while above is not None and above not in self._parents:
            unknown.append(above)
            above = self._run(above, self._store.facts(above)).parent
        if above is not None:
            self._parents.move_to_end(above)
        for each in reversed(unknown):
            self._rebuild(each)
        return self._parents[run_id]

    def cache(self, run: Run, start: InitialState) -> None:
        """Keeps a start that was just made, so that the next level finds it."""
        found = prunable_tensors(run_architecture(run))
        learned = None if run.learning is None else partial(_layer_mask_scores, run.learning)
        self._parents[run.id] = ParentRun(start, StoredSnapshots(self._store, run, start), found, learned)
        self._parents.move_to_end(run.id)
        while len(self._parents) > self._remembered:
            self._parents.popitem(last=False)

    def initial_state(self, run: Run) -> InitialState:
        """The start of a run that is to be trained: scored and made from its parent.

        Raises as `parent` and `criterion_of` do, and UserError or ValueError for a criterion that fails.
        """
        if run.learning is not None:
            return self._learning_start(run, run.learning)
        if run.parent is None or run.step is None:
            return initial_state(run_architecture(run), run.seed)
        return prune_and_reset(
            self.parent_run(run.parent), build_step(run.step, load_criterion(run.step)), step_streams(run)
        )

    def _learning_start(self, run: Run, learning: MaskLearning) -> InitialState:
        if run.step is not None and run.step.criterion not in ALL_CRITERIA and not self._imports:
            raise UserCriterionNotLoaded(
                f"its mask began from criterion {run.step.criterion!r}, which is not imported here."
            )
        parent = None if run.parent is None else self.parent_run(run.parent)
        step = None if run.step is None else build_step(run.step, load_criterion(run.step))
        return initial_mask_state(
            learning,
            prunable_tensors(run_architecture(run)),
            initial_state(run_architecture(run), run.seed),
            run.seed,
            parent,
            step,
            step_streams(run),
        )

    def _rebuild(self, run_id: str) -> None:
        """The start of a stored run whose parent is remembered: its masks as stored, its values made as then."""
        entry = self._store.read(run_id)
        run = self._run(run_id, entry.facts)
        if run.learning is not None:
            start = self._learning_start(run, run.learning)
        elif run.parent is None or run.step is None:
            start = initial_state(run_architecture(run), run.seed)
        else:
            parent = self._parents[run.parent]
            step = build_step(run.step)
            if run.step.w_final not in run.step.initial_state_snapshots:
                # Only the criterion read it, so it need not be there any more.
                step = replace(step, w_final="start")
            try:
                masks = decode_masks(entry.tensors, parent.maskables)
            except ValueError as error:
                raise CorruptEntry(run_id, str(error)) from error
            start = apply_masks(masks, parent, step, step_streams(run))
        if state_hash(start) != entry.facts["start_content"]:
            raise CorruptEntry(run_id, "its start, made again from its parent, is not the start it was trained from")
        self.cache(run, start)

    def _run(self, run_id: str, facts: RunFacts) -> Run:
        run = Run.from_data(facts)
        if run.id != run_id:
            raise CorruptEntry(run_id, f"its facts are those of run {run.id}")
        return run


def _layer_mask_scores(learning: MaskLearning, logits: Weights) -> Weights:
    return {name: mask_scores(learning, m) for name, m in logits.items()}


def _unavailable_criterion(layer: Layer, rng: Stream) -> Tensor:
    raise AssertionError("a user's own criterion comes from criterion_of")


@lru_cache
def _load_user_criterion(name: str, source: str | None) -> Criterion:
    """A user's own criterion, of this source, once for all in this process.

    It sees no gradient, because whether one is there depends on what else was asked of the parent.
    """
    found = resolve_criterion(name)
    if found.module_sha256 != source:
        raise UserError(
            f"criterion {name!r}: its file was changed since the plan was made. Run the same command again: "
            "what was trained with the former text is kept, and the new text makes other runs."
        )

    def score(layer: Layer, rng: Stream) -> Tensor:
        try:
            return found.function(replace(layer, gradient=None), rng)  # type: ignore[no-any-return]
        except (Exception, SystemExit) as error:
            raise UserError(
                f"criterion {name!r} failed {_error_location(error)}: {type(error).__name__}: {error}"
            ) from error

    score.__name__ = name
    return score


def _error_location(error: BaseException) -> str:
    """Where in the user's code it happened: the innermost frame that is not an installed package's."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"at line {own[-1].lineno} of {own[-1].filename}" if own else "when it was called"
