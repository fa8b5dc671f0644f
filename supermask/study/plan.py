"""Study -> Plan: every run that a study needs, each once, in an order in which parents come first.

Made before anything is trained, without data and without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from supermask.core.criteria import CRITERIA
from supermask.core.errors import UserError
from supermask.core.learned_masks import MaskLearning
from supermask.core.masks import prune_count
from supermask.core.recipe import UNTRAINED, Recipe, epochs_to_iterations
from supermask.core.types import PrunableTensor, Snapshot
from supermask.datasets.specs import DATASETS
from supermask.networks.sequential import Architecture, architecture, canonical_name, prunable_tensors
from supermask.study import Study, Supermask, Train, Treatment, resolve_criterion
from supermask.study.run import PruneStepSpec, Run


@dataclass(frozen=True)
class TreatmentRun:
    """What one run is to a study: a treatment's level for a seed. The dense run is every treatment's level 0."""

    treatment: str
    seed: int
    level: int
    run_id: str


@dataclass(frozen=True)
class RunGraph:
    """Runs by id, parents before children: all that an executor has to know."""

    runs: dict[str, Run]

    @cached_property
    def children(self) -> dict[str, list[Run]]:
        """Run id -> the runs of this graph that start from it."""
        found: dict[str, list[Run]] = {run_id: [] for run_id in self.runs}
        for run in self.runs.values():
            if run.parent is not None:
                found[run.parent].append(run)
        return found

    def required_snapshots(self, done: Callable[[str], bool]) -> dict[str, frozenset[Snapshot]]:
        """Run id -> points of its trajectory that runs still to be done will read, besides its start.

        A run to be done needs its parent's points for scoring; and its start, made from the starts of all its
        ancestors, needs those points of each that their children's starts are made of.
        """
        needed: dict[str, set[Snapshot]] = {run_id: set() for run_id in self.runs}
        start_needed: set[str] = set()
        for run in reversed(self.runs.values()):
            to_do = not done(run.id)
            if run.parent is None or not (to_do or run.id in start_needed):
                continue
            start_needed.add(run.parent)
            needed[run.parent] |= run.points if to_do else run.start_points
        return {run_id: frozenset(points) for run_id, points in needed.items()}


@dataclass(frozen=True)
class Plan(RunGraph):
    """A study's runs, and what each is to the study."""

    study: Study
    layers: Architecture
    treatment_runs: list[TreatmentRun]


def merge_plans(plans: Iterable[Plan]) -> RunGraph:
    """The runs of several studies, each once: what they have in common is trained for all of them."""
    runs: dict[str, Run] = {}
    for plan in plans:
        for run_id, run in plan.runs.items():
            runs.setdefault(run_id, run)
    return RunGraph(runs)


def make_plan(study: Study) -> Plan:
    """The plan of a study. Raises UserError where the study cannot be carried out.

    Source: paper.md section 1 (iterative and one-shot pruning).
    """
    facts = DATASETS[study.dataset]
    layers = architecture(study.network, facts.image_shape, facts.classes)
    network = canonical_name(study.network)
    images = facts.training_images - facts.validation_images
    recipe = resolve_recipe(study.train, images)
    study.check_points(recipe.iterations)
    found = prunable_tensors(layers)
    runs: dict[str, Run] = {}
    members: list[TreatmentRun] = []
    ways = {t.label: _treatment_runs(study, t, found, recipe, images) for t in study.treatments}
    for seed in study.seeds:
        dense = Run(network, study.dataset, seed, 0, recipe)
        runs[dense.id] = dense
        for label, stages in ways.items():
            members.append(TreatmentRun(label, seed, 0, dense.id))
            made: list[Run] = [dense]
            for stage in stages:
                parent = None if stage.parent_index is None else made[stage.parent_index].id
                run = Run(network, study.dataset, seed, stage.level, stage.recipe, parent, stage.step, stage.learning)
                made.append(runs.setdefault(run.id, run))
                if stage.reported:
                    members.append(TreatmentRun(label, seed, stage.level, run.id))
    return Plan(runs, study, layers, members)


@dataclass(frozen=True)
class _PlannedRun:
    """One run of a treatment, for any seed."""

    level: int
    recipe: Recipe
    step: PruneStepSpec | None
    parent_index: int | None
    """Its parent's place among the treatment's runs, the dense one being 0; None for a run without one."""
    learning: MaskLearning | None = None
    reported: bool = True
    """False of a run that is there for its mask alone."""


def _treatment_runs(
    study: Study, treatment: Treatment, found: Mapping[str, PrunableTensor], recipe: Recipe, images: int
) -> list[_PlannedRun]:
    """A treatment's runs, parents first."""
    if treatment.supermask is not None:
        return _supermask_runs(study, treatment, treatment.supermask, found, recipe, images)
    iterative = treatment.schedule == "iterative"
    steps = list(_steps(study, treatment, found))
    after = _retraining_recipe(recipe, treatment) if treatment.trained else UNTRAINED
    if treatment.trained or not iterative:
        return [_PlannedRun(n, after, step, n - 1 if iterative else 0) for n, step in enumerate(steps, start=1)]
    plain = {"mask1": "rewind", "mask0": "zero", "rescaled": False, "trained": True, "rewind_to": "start"}
    chain = list(_steps(study, treatment.model_copy(update=plain), found))[:-1]
    way = [_PlannedRun(n, recipe, step, n - 1, reported=False) for n, step in enumerate(chain, start=1)]
    for n, step in enumerate(steps, start=1):
        first = treatment.rescaled and n > 1
        way.append(_PlannedRun(n, UNTRAINED, replace(step, rescaled_before=not first), n - 1))
    return way


def _supermask_runs(
    study: Study,
    treatment: Treatment,
    kind: Supermask,
    found: Mapping[str, PrunableTensor],
    recipe: Recipe,
    images: int,
) -> list[_PlannedRun]:
    """A mask that is learned, then measured or trained on, then pruned further."""
    train = Train(**kind.train_settings(study.learn))
    start = None
    if kind.start_from is not None:
        heuristic = Treatment(
            name=treatment.label, criterion=kind.start_from, schedule="one_shot", scope=treatment.scope
        )
        start = list(_steps(study, heuristic, found, kind.start_level))[-1]
    learning = kind.learning(study.learn)
    way = [_PlannedRun(1, resolve_recipe(train, images), start, None if start is None else 0, learning)]
    levels = treatment.num_levels(study.prune)
    after = _retraining_recipe(recipe, treatment) if treatment.trained else UNTRAINED
    taken = PruneStepSpec("learned", treatment.mask1, treatment.mask0, "threshold", {}, 1)
    # Weights that a mask has inverted are so at its end.
    point: Snapshot = "end" if kind.method == "signed" else "start"
    taken = replace(taken, w_init=point, rewind_to=point, rescaled=treatment.rescaled)
    steps = list(_steps(study, treatment, found, max(levels - 1, 0)))
    for n, step in enumerate([taken, *steps][:levels], start=2):
        way.append(_PlannedRun(n, after, step, n - 1))
    return way


def resolve_recipe(train: Train, training_images: int) -> Recipe:
    """The study's `train` section with epochs turned into iterations, and without what never comes to pass."""

    def count(epochs: float) -> int:
        return epochs_to_iterations(epochs, training_images, train.batch_size)

    total = count(train.epochs)
    drops = tuple(at for at in map(count, train.lr_drops) if at < total)
    return Recipe(
        optimizer=train.optimizer,
        lr=train.lr,
        batch_size=train.batch_size,
        iterations=total,
        evaluate_every=train.evaluate_every,
        momentum=train.momentum if train.optimizer == "sgd" else 0.0,
        weight_decay=train.weight_decay,
        lr_milestones=drops,
        drop_factor=train.lr_drop_factor if drops else 1.0,
        warmup_iterations=count(train.warmup_epochs) if train.warmup_epochs else 0,
    )


def _retraining_recipe(recipe: Recipe, treatment: Treatment) -> Recipe:
    """Fine-tuning goes on at the final learning rate, unless the learning rate is rewound."""
    fine_tuned = treatment.rewind_to == "end" and not treatment.learning_rate_rewinding
    return recipe.at_final_learning_rate() if fine_tuned else recipe


def _steps(
    study: Study, treatment: Treatment, found: Mapping[str, PrunableTensor], levels: int | None = None
) -> Iterator[PruneStepSpec]:
    """One step a level."""
    levels = treatment.num_levels(study.prune) if levels is None else levels
    prune = study.prune
    rates: dict[str, float] = {kind: prune.rates.for_kind(kind) for kind in sorted({m.kind for m in found.values()})}
    if treatment.scope == "global":
        rates = {"global": prune.rates.global_}
    _check_no_empty_layer(study, treatment, found, rates, levels)
    own = treatment.criterion not in CRITERIA
    source = resolve_criterion(treatment.criterion).module_sha256 if own else None
    first = treatment.rewind_to if isinstance(treatment.rewind_to, int) else 0
    for level in range(1, levels + 1):
        begins = first if level > 1 and treatment.schedule == "iterative" else 0
        yield PruneStepSpec(
            criterion=treatment.criterion,
            mask1=treatment.mask1,
            mask0=treatment.mask0,
            scope=treatment.scope,
            rates=rates,
            levels=1 if treatment.schedule == "iterative" else level,
            w_init=_point(treatment, "w_init", begins),
            w_final=_point(treatment, "w_final", begins),
            rewind_to=_point(treatment, "rewind_to", begins),
            rescaled=treatment.rescaled,
            criterion_source=source,
        )


def _point(treatment: Treatment, key: str, begins: int) -> Snapshot:
    """One name for one point, so that equal steps are one run: the iteration at which the parent begins is its start.

    Raises UserError for an iteration before that: the parent was never there.
    """
    point: Snapshot = getattr(treatment, key)
    if isinstance(point, int) and point < begins:
        raise UserError(
            f"treatment {treatment.label!r}: {key}: {point} is before iteration {begins}, where the levels after the "
            f"first begin (rewind_to: {begins}); choose an iteration from {begins} on."
        )
    return "start" if point == begins else point


def _check_no_empty_layer(
    study: Study, treatment: Treatment, found: Mapping[str, PrunableTensor], rates: Mapping[str, float], levels: int
) -> None:
    """Raises UserError if the prune rates would empty a layer before the last level."""
    sizes = {name: (m.size, rates.get(m.kind, 0.0)) for name, m in found.items()}
    if treatment.scope == "global":
        sizes = {"the network": (sum(m.size for m in found.values()), rates["global"])}
    for name, (alive, rate) in sizes.items():
        for level in range(1, levels + 1):
            alive -= prune_count(alive, rate)
            if alive == 0:
                raise UserError(
                    f"study {study.name!r}: level {level} of {levels} would leave no weight in {name} "
                    f"(prune rate {rate:g}); use at most {level - 1} levels (prune.levels) or a lower rate "
                    "(prune.rates)."
                )
