"""Resources of a worker: the engine for a task with its environment, the data set, and each seed's split."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from supermask.core.environment import environment_info
from supermask.core.errors import SystemFailure, UserError
from supermask.core.types import SplitData, TrainingResult
from supermask.datasets import ImageDataset
from supermask.datasets.images import split_data
from supermask.datasets.specs import DataOptions
from supermask.engines.job import TrainingJob, stack_settings
from supermask.engines.selection import EngineChoice, select_engine
from supermask.execution.tasks import Task, WorkerConfig
from supermask.networks.network import Network
from supermask.store import Store
from supermask.store.files.entry import RunFacts
from supermask.study.networks import run_network
from supermask.study.run import Run
from supermask.study.user_data import check_source, load_data

if TYPE_CHECKING:
    from supermask.engines.stacked import JobSource


def select_run_engine(run: Run, requested: str, device: str) -> EngineChoice:
    """Return the engine that trains a run on a device. Raises UserError if the requested one cannot.

    A module is built and checked, once per process, if the stacked engine is to train it.
    """
    return select_engine(requested, run_network(run), device, run.learning, run.recipe, _check_module)


EVALUATED_BESIDE_GPU = EngineChoice("reference", "nothing is trained: measured on the CPU, beside the GPU")
"""The engine of runs that are only evaluated while a GPU trains the others."""


def evaluates_beside_gpu(engine: str, device: str, cluster: str | None) -> bool:
    """Return True if runs that are only evaluated get workers of their own: with stacks on a GPU of this machine.

    Evaluating one network takes a CPU tens of milliseconds, most of which are scoring and the commit: a stack would
    wait for them.
    """
    return cluster is None and device != "cpu" and engine in ("auto", "stacked")


def _check_module(network: Network, device: str) -> str:
    # Imported here: plans that do not select the stacked engine need no torch.
    from supermask.engines.stacked.modules import module_obstacle

    return module_obstacle(network, device)


@dataclass(frozen=True)
class SelectedEngine:
    """An engine, the reason for its selection, and the environment that its bits depend on."""

    choice: EngineChoice
    environment: RunFacts
    device: str

    def train(self, job: TrainingJob, data: SplitData) -> TrainingResult:
        """Train one run alone."""
        # The engines are imported here: each costs seconds, and a worker uses one or two of them.
        if self.choice.engine == "stacked":
            from supermask.engines import stacked

            precision, algorithms = self.environment["precision"], self.environment["convolutions"]
            return stacked.train([job], [data], self.device, precision, algorithms)[0]
        if self.choice.engine == "sparse":
            from supermask.engines import sparse

            return sparse.train([job], [data], sparse.CostTable.from_data(self.environment["costs"]))[0]
        if job.learning is not None:
            from supermask.engines import reference_masks

            return reference_masks.train([job], [data], self.device)[0]
        from supermask.engines import reference

        return reference.train([job], [data], self.device)[0]

    def train_stream(self, feed: JobSource, stack_size: int) -> None:
        """Train the jobs of a feed in a stack of at most `stack_size` runs."""
        from supermask.engines import stacked

        precision, algorithms = self.environment["precision"], self.environment["convolutions"]
        stacked.train_stream(feed, stack_size, self.device, precision, algorithms)


class EngineSelector:
    """Selects the engine of each task. Measurements of the machine are made once and kept."""

    def __init__(self, config: WorkerConfig, store: Store) -> None:
        self.config, self._store = config, store
        self._environments: dict[Any, RunFacts] = {}

    def stack_size(self, task: Task) -> int:
        """Return the number of runs like this one to train at once: 1, unless the stacked engine is selected."""
        if task.replay or self._choice(task.run).engine != "stacked":
            return 1
        return self.config.stack or self._fastest_stack(task.run)

    def engine(self, task: Task) -> SelectedEngine:
        """Return the engine for a task. A replay uses the engine and the settings of the run's first training."""
        config, run = self.config, task.run
        if task.replay:
            facts = self._store.facts(run.id)
            # The sparse engine trains on CPUs only, also if this worker has a GPU.
            device = "cpu" if facts["engine"] == "sparse" else config.device
            choice = select_run_engine(run, facts["engine"], device)
            environment = self._recorded_environment(run, choice.engine, device, facts["environment"])
            return SelectedEngine(choice, environment, device)
        choice = self._choice(run)
        # The stacked engine's algorithms are measured per kind of run; other engines have one environment per process.
        settings = (run.network, run.dataset, *stack_settings(run.recipe, run.learning))
        key = settings if choice.engine == "stacked" else choice.engine
        if key not in self._environments:
            self._environments[key] = self._measured_environment(run, choice.engine)
        return SelectedEngine(choice, self._environments[key], config.device)

    def _choice(self, run: Run) -> EngineChoice:
        if self.config.evaluates_only:
            return EVALUATED_BESIDE_GPU
        return select_run_engine(run, self.config.engine, self.config.device)

    def _measured_environment(self, run: Run, engine: str) -> RunFacts:
        config = self.config
        if engine == "sparse":
            from supermask.engines import sparse

            return environment_info(engine, config.device, 1, sparse.environment_facts(sparse.current_costs()))
        if engine != "stacked":
            return environment_info(engine, config.device, config.threads)
        from supermask.engines import stacked

        size = config.stack or self._fastest_stack(run)
        algorithms = stacked.choose_conv_algorithms(
            run_network(run).layers or (), run.recipe.batch_size, size, config.device, config.precision
        )
        facts = stacked.environment_facts(
            algorithms, config.precision, config.stack == 1, run.recipe, config.device, run.learning
        )
        return environment_info(engine, config.device, config.threads, facts)

    def _recorded_environment(self, run: Run, engine: str, device: str, recorded: RunFacts) -> RunFacts:
        """Return this machine's environment with the choices that were recorded at the first training."""
        if engine == "stacked":
            from supermask.engines import stacked

            choices = {key: recorded.get(key) for key in ("precision", "convolutions", "stack")}
            # Not choices: they depend on the compilers of this machine.
            choices |= stacked.compiled_facts(run.recipe, device, run.learning)
            return environment_info(engine, device, self.config.threads, choices)
        if engine != "sparse":
            return environment_info(engine, device, self.config.threads)
        from supermask.engines import sparse

        try:
            costs = sparse.CostTable.from_data(recorded["costs"])
        except (KeyError, TypeError):
            raise SystemFailure(
                "a run whose weights are needed again was trained by another release of supermask, which chose its "
                "kernels by other costs: a replay here would not be bit-identical. Use another folder (--store)."
            ) from None
        return environment_info(engine, device, 1, sparse.environment_facts(costs))

    def _fastest_stack(self, run: Run) -> int:
        from supermask.engines import stacked

        config = self.config
        return stacked.choose_stack_size(
            run_network(run), run.recipe, config.device, config.precision, run.learning, config.threads
        )


CACHED_SPLITS = 32
"""Splits (one per seed) that stay in memory although no run uses them."""


class DatasetCache:
    """The last data set, and its splits by seed.

    Runs of one seed get the same `SplitData` object: in a stack they then share their batches.
    """

    def __init__(self, data_dir: Path | None) -> None:
        self._dir = data_dir
        self._images: ImageDataset | None = None
        self._splits: WeakValueDictionary[tuple[int, DataOptions], SplitData] = WeakValueDictionary()
        """(seed, options) -> every split in use anywhere, so that a stack with more seeds than `_recent` shares too."""
        self._recent: OrderedDict[tuple[int, DataOptions], SplitData] = OrderedDict()
        """(seed, options) -> the splits used last, kept alive up to CACHED_SPLITS."""

    def images(self, run: Run) -> ImageDataset:
        """Return the run's data set."""
        if self._images is None or self._images.facts.name != run.dataset:
            check_source(run.dataset, run.data_source)
            self._images = load_data(run.dataset, self._dir, run.data_fingerprint)
            self._splits.clear()
            self._recent.clear()
        check_planned_data(run, self._images)
        return self._images

    def split_for(self, run: Run) -> SplitData:
        """Return the split of the run's seed."""
        images = self.images(run)
        key = (run.seed, run.data_options)
        data = self._splits.get(key)
        if data is None:
            data = self._splits[key] = split_data(images, run.seed, run.data_options)
        self._recent[key] = data
        self._recent.move_to_end(key)
        if len(self._recent) > CACHED_SPLITS:
            self._recent.popitem(last=False)
        return data


def check_planned_data(run: Run, images: ImageDataset) -> None:
    """Raise UserError if the run's id is for other data than `images`."""
    if run.data_fingerprint != images.run_fingerprint:
        planned, found = (
            "the published files" if fingerprint is None else f"data with fingerprint {fingerprint[:12]}"
            for fingerprint in (run.data_fingerprint, images.run_fingerprint)
        )
        raise UserError(
            f"run {run.id} of {run.dataset} was planned for {planned}, but {found} is found now: run the command "
            "again; on a cluster, give every machine the same data (SUPERMASK_DATA)."
        )


def check_data_fingerprint(store: Store, run_id: str, images: ImageDataset) -> None:
    """Raise UserError if a stored run was trained on other data than `images`."""
    trained_on = store.facts(run_id)["data"]["fingerprint"]
    if trained_on != images.fingerprint:
        raise UserError(
            f"the runs of {images.facts.name} in {store.root} were trained on other data ({trained_on[:12]}) "
            f"than is there now ({images.fingerprint[:12]}): use another --store, or the former data (SUPERMASK_DATA)."
        )
