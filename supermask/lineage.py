"""Starts made again: from a run's id back through its ancestors, with what the store holds of each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace

from supermask.datasets.facts import DATASETS
from supermask.networks import Architecture, architecture, initial_start, maskables
from supermask.records import point_name, start_content, unpack_masks, unpack_state
from supermask.rng import Streams, streams
from supermask.run import Run, StepFacts
from supermask.store import Damaged, Entry, Store
from supermask.study import resolve_criterion
from supermask.ticket import Parent, Step, next_start, start_with
from supermask.types import Maskable, Point, Start, State


def layers_of(run: Run) -> Architecture:
    """The network of a run as plain data."""
    facts = DATASETS[run.dataset]
    return architecture(run.network, facts.image_shape, facts.classes)


def step_of(facts: StepFacts) -> Step:
    """Names -> functions. Raises UserError if a user's own criterion cannot be imported."""
    return Step(
        criterion=resolve_criterion(facts.criterion).function,
        mask1=facts.mask1,
        mask0=facts.mask0,
        rates=facts.rates,
        scope=facts.scope,
        levels=facts.levels,
        w_init=facts.w_init,
        w_final=facts.w_final,
        rewind_to=facts.rewind_to,
        rescaled=facts.rescaled,
    )


def streams_of(run: Run) -> Streams:
    """The random streams of the step that leads to a run: by seed and level, the same for every treatment."""
    return streams(run.seed, "level", run.level)


class StoredPoints(Mapping[Point, State]):
    """The stored points of one run's trajectory, read when asked for."""

    def __init__(self, store: Store, run_id: str, start: Start) -> None:
        self._store, self._run_id, self._start = store, run_id, start
        self._read: dict[Point, State] = {}

    def __getitem__(self, point: Point) -> State:
        if point not in self._read:
            if point == "end":
                entry = self._store.read(self._run_id)
                stored = None if entry.weights is None else entry.tensors | entry.weights
            else:
                stored = self._store.read_point(self._run_id, point_name(point)).tensors
            if stored is None:
                raise KeyError(point)
            self._read[point] = unpack_state(stored, self._start)
        return self._read[point]

    def __contains__(self, point: object) -> bool:
        if point == "end":
            return self._store.has_weights(self._run_id)
        return self._store.has_point(self._run_id, point_name(point))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Point]:
        raise TypeError("points are read by name")

    def __len__(self) -> int:
        raise TypeError("points are read by name")


class Lineage:
    """Makes starts again, and remembers the last few: a chain's next level asks for its parent's."""

    def __init__(self, store: Store, remembered: int = 4) -> None:
        self._store, self._remembered = store, remembered
        self._parents: OrderedDict[str, Parent] = OrderedDict()

    def parent(self, run_id: str) -> Parent:
        """A stored run as the next round sees it. Raises Damaged if it, or an ancestor, is not what was committed."""
        if run_id in self._parents:
            self._parents.move_to_end(run_id)
            return self._parents[run_id]
        entry = self._store.read(run_id)
        run = Run.from_data(entry.facts)
        start = self.start_again(run, entry)
        if start_content(start) != entry.facts["start_content"]:
            raise Damaged(run_id, "its start, made again from its parent, is not the start it was trained from")
        return self.remember(run, start)

    def remember(self, run: Run, start: Start) -> Parent:
        """Keeps a start that was just made, so that the next level finds it."""
        found = maskables(layers_of(run))
        self._parents[run.id] = Parent(start, StoredPoints(self._store, run.id, start), found)
        while len(self._parents) > self._remembered:
            self._parents.popitem(last=False)
        return self._parents[run.id]

    def start_of(self, run: Run) -> Start:
        """The start of a run that is to be trained: scored and made from its parent."""
        if run.parent is None or run.step is None:
            return initial_start(layers_of(run), run.seed)
        return next_start(self.parent(run.parent), step_of(run.step), streams_of(run))

    def start_again(self, run: Run, entry: Entry) -> Start:
        """The start of a stored run: its masks as stored, its values made as they were made then."""
        if run.parent is None or run.step is None:
            return initial_start(layers_of(run), run.seed)
        parent = self.parent(run.parent)
        masks = unpack_masks(entry.tensors, _by_name(parent))
        # The criterion is not asked again, so it need not be importable, nor the weights be there that it alone read.
        step = step_of(replace(run.step, criterion="random"))
        if run.step.w_final not in run.step.start_points:
            step = replace(step, w_final="start")
        return start_with(masks, parent, step, streams_of(run))


def _by_name(parent: Parent) -> dict[str, Maskable]:
    return dict(parent.maskables)
