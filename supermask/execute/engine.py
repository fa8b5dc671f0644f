"""The engine that trains a task here, and the environment that its bits depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from supermask.engines.choice import Choice, choose
from supermask.engines.job import Data, Job
from supermask.environment import environment
from supermask.errors import MachineError
from supermask.execute.tasks import Site, Task
from supermask.lineage import layers_of
from supermask.runs import Run
from supermask.store import Store
from supermask.store.entry import Facts
from supermask.types import Outcome

if TYPE_CHECKING:
    from supermask.engines.stacked import Feed


@dataclass(frozen=True)
class Engine:
    """An engine, why it was chosen, and in what environment it trains."""

    choice: Choice
    environment: Facts
    device: str

    def train(self, job: Job, data: Data) -> Outcome:
        """Trains one run, alone."""
        jobs, of = [job], [data]
        if self.choice.engine == "stacked":
            from supermask.engines import stacked

            around = self.environment
            return stacked.train(jobs, of, self.device, around["precision"], around["convolutions"])[0]
        if self.choice.engine == "sparse":
            from supermask.engines import sparse

            return sparse.train(jobs, of, sparse.Costs.from_data(self.environment["costs"]))[0]
        if job.learning is not None:
            from supermask.engines import learning

            return learning.train(jobs, of, self.device)[0]
        from supermask.engines import reference

        return reference.train(jobs, of, self.device)[0]

    def train_from(self, feed: Feed, size: int) -> None:
        """Trains a stack of at most so many from what feeds it."""
        from supermask.engines import stacked

        stacked.train_from(feed, size, self.device, self.environment["precision"], self.environment["convolutions"])


class Engines:
    """Which engine trains what at a site; what is found out about the machine for it is found out once."""

    def __init__(self, site: Site, store: Store) -> None:
        self.site, self._store = site, store
        self._known: dict[Any, Facts] = {}

    def stack_of(self, task: Task) -> int:
        """How many runs like this one are trained at once: one, unless the stacked engine was chosen."""
        if task.retrace or self._choice(task.run).engine != "stacked":
            return 1
        return self.site.stack or self._fastest_stack(task.run)

    def engine(self, task: Task) -> Engine:
        """Who trains it: a run that is trained again, as it was the first time."""
        site, run = self.site, task.run
        if task.retrace:
            before = self._store.facts(run.id)
            device = "cpu" if before["engine"] == "sparse" else site.device
            choice = choose(before["engine"], layers_of(run), device, run.learning)
            return Engine(choice, self._environment_again(choice.engine, device, before["environment"]), device)
        choice = self._choice(run)
        key = (run.network, run.dataset, run.recipe, run.learning) if choice.engine == "stacked" else choice.engine
        if key not in self._known:
            self._known[key] = self._environment(run, choice.engine)
        return Engine(choice, self._known[key], site.device)

    def _choice(self, run: Run) -> Choice:
        return choose(self.site.engine, layers_of(run), self.site.device, run.learning)

    def _environment(self, run: Run, engine: str) -> Facts:
        site = self.site
        if engine == "sparse":
            from supermask.engines import sparse

            return environment(engine, site.device, 1, sparse.environment_facts(sparse.costs_here()))
        if engine != "stacked":
            return environment(engine, site.device, site.threads)
        from supermask.engines import stacked

        size = site.stack or self._fastest_stack(run)
        ways = stacked.ways_here(layers_of(run), run.recipe.batch_size, size, site.device, site.precision)
        facts = stacked.environment_facts(ways, site.precision, site.stack == 1, site.device)
        return environment(engine, site.device, site.threads, facts)

    def _environment_again(self, engine: str, device: str, before: Facts) -> Facts:
        """With what was chosen the first time."""
        if engine == "stacked":
            chosen = {key: before.get(key) for key in ("precision", "convolutions", "optimizer_compiled", "stack")}
            return environment(engine, device, self.site.threads, chosen)
        if engine != "sparse":
            return environment(engine, device, self.site.threads)
        from supermask.engines import sparse

        try:
            costs = sparse.Costs.from_data(before["costs"])
        except (KeyError, TypeError):
            raise MachineError(
                "a run whose weights are needed again was trained by another release of supermask, which chose its "
                "kernels by other costs: it cannot come to the same bits here. Use another folder (--store)."
            ) from None
        return environment(engine, device, 1, sparse.environment_facts(costs))

    def _fastest_stack(self, run: Run) -> int:
        from supermask.engines import stacked

        site = self.site
        return stacked.replicas_here(
            layers_of(run), run.recipe, site.device, site.precision, run.learning, site.threads
        )
