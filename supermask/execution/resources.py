"""The engine that trains a task here, and the environment that its bits depend on.

The data set that a worker trains on, and each seed's split of it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from supermask.core.environment import environment_info
from supermask.core.errors import SystemFailure, UserError
from supermask.core.types import SplitData, TrainingResult
from supermask.datasets import ImageDataset, load
from supermask.datasets.images import split_data
from supermask.engines.job import TrainingJob
from supermask.engines.selection import EngineChoice, select_engine
from supermask.execution.tasks import Task, WorkerConfig
from supermask.store import Store
from supermask.store.files.entry import RunFacts
from supermask.store.replay import run_architecture
from supermask.study.run import Run

if TYPE_CHECKING:
    from supermask.engines.stacked import JobSource


@dataclass(frozen=True)
class SelectedEngine:
    """An engine, why it was chosen, and in what environment it trains."""

    choice: EngineChoice
    environment: RunFacts
    device: str

    def train(self, job: TrainingJob, data: SplitData) -> TrainingResult:
        """Trains one run, alone."""
        jobs, of = [job], [data]
        if self.choice.engine == "stacked":
            from supermask.engines import stacked

            around = self.environment
            return stacked.train(jobs, of, self.device, around["precision"], around["convolutions"])[0]
        if self.choice.engine == "sparse":
            from supermask.engines import sparse

            return sparse.train(jobs, of, sparse.CostTable.from_data(self.environment["costs"]))[0]
        if job.learning is not None:
            from supermask.engines import reference_masks

            return reference_masks.train(jobs, of, self.device)[0]
        from supermask.engines import reference

        return reference.train(jobs, of, self.device)[0]

    def train_stream(self, feed: JobSource, size: int) -> None:
        """Trains a stack of at most so many from what feeds it."""
        from supermask.engines import stacked

        stacked.train_stream(feed, size, self.device, self.environment["precision"], self.environment["convolutions"])


class EngineSelector:
    """Which engine trains what at a site; what is found out about the machine for it is found out once."""

    def __init__(self, site: WorkerConfig, store: Store) -> None:
        self.site, self._store = site, store
        self._known: dict[Any, RunFacts] = {}

    def stack_size(self, task: Task) -> int:
        """How many runs like this one are trained at once: one, unless the stacked engine was chosen."""
        if task.replay or self._choice(task.run).engine != "stacked":
            return 1
        return self.site.stack or self._fastest_stack(task.run)

    def engine(self, task: Task) -> SelectedEngine:
        """Who trains it: a run that is trained again, as it was the first time."""
        site, run = self.site, task.run
        if task.replay:
            before = self._store.facts(run.id)
            device = "cpu" if before["engine"] == "sparse" else site.device
            choice = select_engine(before["engine"], run_architecture(run), device, run.learning)
            return SelectedEngine(
                choice, self._recorded_environment(choice.engine, device, before["environment"]), device
            )
        choice = self._choice(run)
        key = (run.network, run.dataset, run.recipe, run.learning) if choice.engine == "stacked" else choice.engine
        if key not in self._known:
            self._known[key] = self._environment(run, choice.engine)
        return SelectedEngine(choice, self._known[key], site.device)

    def _choice(self, run: Run) -> EngineChoice:
        return select_engine(self.site.engine, run_architecture(run), self.site.device, run.learning)

    def _environment(self, run: Run, engine: str) -> RunFacts:
        site = self.site
        if engine == "sparse":
            from supermask.engines import sparse

            return environment_info(engine, site.device, 1, sparse.environment_facts(sparse.measured_costs()))
        if engine != "stacked":
            return environment_info(engine, site.device, site.threads)
        from supermask.engines import stacked

        size = site.stack or self._fastest_stack(run)
        ways = stacked.fastest_algorithms(
            run_architecture(run), run.recipe.batch_size, size, site.device, site.precision
        )
        facts = stacked.environment_facts(ways, site.precision, site.stack == 1, site.device)
        return environment_info(engine, site.device, site.threads, facts)

    def _recorded_environment(self, engine: str, device: str, before: RunFacts) -> RunFacts:
        """With what was chosen the first time."""
        if engine == "stacked":
            chosen = {key: before.get(key) for key in ("precision", "convolutions", "optimizer_compiled", "stack")}
            return environment_info(engine, device, self.site.threads, chosen)
        if engine != "sparse":
            return environment_info(engine, device, self.site.threads)
        from supermask.engines import sparse

        try:
            costs = sparse.CostTable.from_data(before["costs"])
        except (KeyError, TypeError):
            raise SystemFailure(
                "a run whose weights are needed again was trained by another release of supermask, which chose its "
                "kernels by other costs: it cannot come to the same bits here. Use another folder (--store)."
            ) from None
        return environment_info(engine, device, 1, sparse.environment_facts(costs))

    def _fastest_stack(self, run: Run) -> int:
        from supermask.engines import stacked

        site = self.site
        return stacked.choose_stack_size(
            run_architecture(run), run.recipe, site.device, site.precision, run.learning, site.threads
        )


CACHED_SPLITS = 32
"""Seeds whose split of the data set stays in memory when nobody is at them."""


class DatasetCache:
    """The last data set asked for, and the last few seeds' splits: runs of one seed that are stacked share it, and so
    their batches.
    """

    def __init__(self, data_dir: Path | None) -> None:
        self._dir = data_dir
        self._images: ImageDataset | None = None
        self._splits: WeakValueDictionary[int, SplitData] = WeakValueDictionary()
        """By seed, of all that somebody is at: also where a stack has more seeds than are held."""
        self._held: OrderedDict[int, SplitData] = OrderedDict()

    def images(self, run: Run) -> ImageDataset:
        """The data set of a run."""
        if self._images is None or self._images.facts.name != run.dataset:
            self._images = load(run.dataset, self._dir)
            self._splits.clear()
            self._held.clear()
        return self._images

    def split_for(self, run: Run) -> SplitData:
        """The split of its seed."""
        images = self.images(run)
        data = self._splits.get(run.seed)
        if data is None:
            data = self._splits[run.seed] = split_data(images, run.seed)
        self._held[run.seed] = data
        self._held.move_to_end(run.seed)
        if len(self._held) > CACHED_SPLITS:
            self._held.popitem(last=False)
        return data


def check_data_fingerprint(store: Store, run_id: str, images: ImageDataset) -> None:
    """Raises UserError if a stored run was trained on other data than these: its study cannot go on with them."""
    trained_on = store.facts(run_id)["data"]["fingerprint"]
    if trained_on != images.fingerprint:
        raise UserError(
            f"the runs of {images.facts.name} in {store.root} were trained on other data ({trained_on[:12]}) "
            f"than is there now ({images.fingerprint[:12]}): use another --store, or the former data (SUPERMASK_DATA)."
        )
