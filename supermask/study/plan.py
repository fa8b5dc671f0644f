"""Study -> Plan: every run that a study needs, each once, parents before children.

A plan is made before anything is trained, without data and without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from supermask.core.errors import UserError, quote
from supermask.core.learned_masks import MaskLearning
from supermask.core.pruning import PruneStep
from supermask.core.recipe import UNTRAINED, Augmentation, ChannelStatistics, Recipe, epochs_to_iterations
from supermask.core.types import Snapshot
from supermask.datasets.locators import is_module_locator
from supermask.datasets.specs import DATASETS, DatasetSpec
from supermask.networks.network import Network, is_user_network
from supermask.networks.registry import canonical_name
from supermask.study import Study, Supermask, Train, Treatment
from supermask.study.networks import default_initializer, network_source, resolve_network
from supermask.study.plan_checks import (
    check_distinct_runs,
    check_image_settings,
    check_initializer,
    check_masks_a_tensor,
    check_no_empty_layer,
    check_patterns,
    check_size,
    layer_rates,
)
from supermask.study.plan_inputs import PlanInputs
from supermask.study.run import Run
from supermask.study.source_files import UserModuleNotFound
from supermask.study.train_settings import Statistics
from supermask.study.user_code import code_sha256

NO_SOURCES: Mapping[str, str] = {}


@dataclass(frozen=True)
class TreatmentRun:
    """The role of a run in a study: a treatment's level for a seed. The dense run is level 0 of every treatment."""

    treatment: str
    seed: int
    level: int
    run_id: str


@dataclass(frozen=True)
class RunGraph:
    """Runs by id, parents before children: all that an executor needs."""

    runs: dict[str, Run]

    @cached_property
    def children(self) -> dict[str, list[Run]]:
        """Run id -> the runs of this graph that are pruned from it."""
        children: dict[str, list[Run]] = {run_id: [] for run_id in self.runs}
        for run in self.runs.values():
            if run.parent is not None:
                children[run.parent].append(run)
        return children

    def required_snapshots(self, is_done: Callable[[str], bool]) -> dict[str, frozenset[Snapshot]]:
        """Return run id -> snapshots of its trajectory that unfinished runs will read, besides its initial state.

        An unfinished run needs snapshots of its parent for scoring. Its initial state is computed from the initial
        states of all its ancestors, so it also needs the snapshots that those are computed from.
        """
        required: dict[str, set[Snapshot]] = {run_id: set() for run_id in self.runs}
        initial_state_needed: set[str] = set()
        # Children come before their parents here, so that a run's own need is known when it is visited.
        for run in reversed(self.runs.values()):
            is_unfinished = not is_done(run.id)
            if run.parent is None or not (is_unfinished or run.id in initial_state_needed):
                continue
            initial_state_needed.add(run.parent)
            required[run.parent] |= run.required_snapshots if is_unfinished else run.initial_state_snapshots
        return {run_id: frozenset(snapshots) for run_id, snapshots in required.items()}


@dataclass(frozen=True)
class Plan(RunGraph):
    """The runs of a study, and the role of each in it."""

    study: Study
    """The study that was planned."""
    network: Network
    """The study's network, with its tensors; if no treatment uses it, the network of the first treatment."""
    treatment_runs: list[TreatmentRun]
    """Roles: which run is which level of which treatment and seed."""
    inputs: PlanInputs = field(default_factory=PlanInputs)
    """Data and user code that enter the ids of the runs."""
    mask_runs: int = 0
    """Runs that only provide masks for other levels, per treatment and seed; no treatment reports them."""
    notices: tuple[str, ...] = ()
    """Assumptions about inputs that were not found, one sentence each."""

    def __repr__(self) -> str:
        return f"Plan({self.study!r}, {len(self.runs):,} runs)"

    @cached_property
    def has_one_dense_network(self) -> bool:
        """False if treatments of a seed have different dense runs: by training settings, network or initializer."""
        return len({role.run_id for role in self.treatment_runs if role.level == 0}) <= len(self.study.seeds)

    @cached_property
    def networks(self) -> tuple[str, ...]:
        """Canonical names of all networks that are trained, in the order of the treatments."""
        return tuple(dict.fromkeys(run.network for run in self.runs.values()))

    @property
    def spec(self) -> DatasetSpec:
        """Specification of the study's dataset, with the number of validation images of its runs."""
        return next(iter(self.runs.values())).spec


def merge_plans(plans: Iterable[Plan]) -> RunGraph:
    """Return the runs of several studies, each once: common runs are trained once for all studies."""
    runs: dict[str, Run] = {}
    for plan in plans:
        for run_id, run in plan.runs.items():
            runs.setdefault(run_id, run)
    return RunGraph(runs)


def make_plan(study: Study, inputs: PlanInputs | None = None) -> Plan:
    """Return the plan of a study, by default on the published dataset and with the user code that is found now.

    Iterative pruning gives one chain of runs per treatment and seed; one-shot pruning starts every level from the
    dense run. Raises UserError if a layer would be emptied, a snapshot does not exist, user code is not found, two
    treatments are the same runs or the study has more than `max_runs()` runs.

    Source: Zhou et al. 2019, Sec. 1 and 2; Frankle & Carbin 2019.
    """
    check_size(study)
    inputs = inputs or PlanInputs()
    user_networks = study.user_networks
    inputs = replace(
        inputs,
        criterion_sources=_identify("criterion", study.user_criteria, inputs.criterion_sources, study),
        loss_sources=_identify("loss", study.user_losses, inputs.loss_sources, study),
        network_sources={name: inputs.network_sources.get(name) or network_source(name) for name in user_networks},
        network_facts={name: facts for name, facts in inputs.network_facts.items() if name in user_networks},
    )
    spec = _study_spec(study, inputs)
    options = study.data_options.resolve(spec)
    num_images = options.num_training(spec)

    def make_network(name: str, initializer: str | None) -> Network:
        source, facts = inputs.network_sources.get(name), inputs.network_facts.get(name)
        network = resolve_network(name, spec.image_shape, spec.classes, initializer, facts, source)
        if network.tensors:
            check_patterns(study, network)
        return network

    def dense_run_key(treatment: Treatment) -> tuple[Train, str, str | None]:
        """Return the settings of a treatment that determine its dense network, besides the seed."""
        name = _canonical_name(study.resolve_network_name(treatment))
        initializer = study.resolve_initializer(treatment)
        return study.resolve_train(treatment), name, None if initializer == default_initializer(name) else initializer

    networks = {dense_run_key(t)[1:]: make_network(*dense_run_key(t)[1:]) for t in study.treatments}
    # A study whose treatments all have networks of their own has none besides: the first stands for it.
    trained = {name for name, _ in networks}
    own_name = _canonical_name(study.network)
    network = make_network(own_name, study.initializer) if own_name in trained else next(iter(networks.values()))
    for treatment in study.treatments:
        check_initializer(study, treatment, networks[dense_run_key(treatment)[1:]])
    contexts = {
        key: _make_context(study, key[0], networks[key[1:]], spec, num_images, inputs)
        for key in map(dense_run_key, study.treatments)
    }

    def new_run(
        key: tuple[Train, str, str | None],
        seed: int,
        level: int,
        recipe: Recipe,
        parent: str | None = None,
        step: PruneStep | None = None,
        learning: MaskLearning | None = None,
    ) -> Run:
        _, name, initializer = key
        return Run(
            name,
            study.dataset,
            seed,
            level,
            recipe,
            parent,
            step,
            learning,
            data_fingerprint=inputs.data_fingerprint,
            data_source=inputs.data_source,
            data_options=options,
            data_spec=inputs.data_spec,
            initializer=initializer,
            network_source=inputs.network_sources.get(name),
            network_facts=inputs.network_facts.get(name),
        )

    runs: dict[str, Run] = {}
    treatment_runs: list[TreatmentRun] = []
    planned = {t.label: (dense_run_key(t), _plan_treatment(contexts[dense_run_key(t)], t)) for t in study.treatments}
    chains: dict[str, tuple[str, ...]] = {}
    for seed in study.seeds:
        dense_runs = {key: new_run(key, seed, 0, context.recipe) for key, context in contexts.items()}
        for label, (key, planned_runs) in planned.items():
            # Settings that resolve to one recipe share the dense network.
            dense = runs.setdefault(dense_runs[key].id, dense_runs[key])
            treatment_runs.append(TreatmentRun(label, seed, 0, dense.id))
            chain: list[Run] = [dense]
            for item in planned_runs:
                parent = None if item.parent_index is None else chain[item.parent_index].id
                run = new_run(key, seed, item.level, item.recipe, parent, item.step, item.learning)
                # Treatments with equal first steps share runs: the id is the same.
                chain.append(runs.setdefault(run.id, run))
                if item.reported:
                    treatment_runs.append(TreatmentRun(label, seed, item.level, run.id))
            chains.setdefault(label, tuple(run.id for run in chain))
    check_distinct_runs(study, chains)
    mask_runs = sum(not item.reported for _, planned_runs in planned.values() for item in planned_runs)
    return Plan(runs, study, network, treatment_runs, inputs, mask_runs * len(study.seeds))


def _canonical_name(network: str) -> str:
    """Return the name of a network as runs have it; an import path is canonical in a study already."""
    return network if is_user_network(network) else canonical_name(network)


def _study_spec(study: Study, inputs: PlanInputs) -> DatasetSpec:
    """Return the specification of the study's dataset. Raises UserError for own data that nobody has read yet."""
    if study.dataset in DATASETS:
        return DATASETS[study.dataset]
    if inputs.data_spec is None or inputs.data_spec.name != study.dataset:
        hint = (
            "its function is called by `supermask run` and `supermask data inspect` only: give one of these commands"
            if is_module_locator(study.dataset)
            else "plan the study with `supermask plan` or `supermask.api.runs.plan`, which read them"
        )
        raise UserError(f"study {study.name!r}: the data {quote(study.dataset)} have not been read yet; {hint}.")
    return inputs.data_spec


def _identify(kind: str, names: Iterable[str], known: Mapping[str, str], study: Study) -> dict[str, str]:
    """Return the identity of the code of each user function. Raises UserModuleNotFound for one that is not known."""
    sources = {}
    for name in names:
        try:
            sources[name] = known[name] if name in known else code_sha256(name)
        except UserModuleNotFound as error:
            raise UserModuleNotFound(f"study {study.name!r}: {kind} {name!r}: {error}") from None
    return sources


@dataclass(frozen=True)
class _Context:
    """Facts of a study that the plans of all treatments with the same training settings need."""

    study: Study
    network: Network
    recipe: Recipe
    """Recipe of the dense runs."""
    num_images: int
    """Training images without the validation images."""
    criterion_sources: Mapping[str, str]

    @property
    def untrained(self) -> Recipe:
        """Recipe of an untrained network, on the inputs of the trained ones."""
        return replace(UNTRAINED, normalize=self.recipe.normalize)


def _make_context(
    study: Study, train: Train, network: Network, spec: DatasetSpec, num_images: int, inputs: PlanInputs
) -> _Context:
    """Return the facts for the treatments with these training settings. Raises UserError for unsuitable settings."""
    check_image_settings(study, train, spec.image_shape)
    recipe = resolve_recipe(train, num_images, inputs.loss_sources)
    study.check_points(recipe.iterations, train)
    return _Context(study, network, recipe, num_images, inputs.criterion_sources)


@dataclass(frozen=True)
class _PlannedRun:
    """One run of a treatment, for any seed."""

    level: int
    recipe: Recipe
    step: PruneStep | None
    parent_index: int | None
    """Index of its parent among the treatment's runs, where 0 is the dense run; None for a run without parent."""
    learning: MaskLearning | None = None
    reported: bool = True
    """False for a run that only provides a mask."""


def _plan_treatment(context: _Context, treatment: Treatment) -> list[_PlannedRun]:
    """Return a treatment's runs, parents first."""
    if treatment.supermask is not None:
        return _plan_supermask(context, treatment, treatment.supermask)
    is_iterative = treatment.schedule == "iterative"
    steps = list(_steps(context, treatment))
    level_recipe = _retraining_recipe(context.recipe, treatment) if treatment.trained else context.untrained
    if treatment.trained or not is_iterative:
        return [_PlannedRun(n, level_recipe, step, n - 1 if is_iterative else 0) for n, step in enumerate(steps, 1)]
    # Iterative masks on untrained weights: the chain that the same criterion prunes with rewind and zero is trained
    # for its masks (shared with the study of criteria); each level then evaluates its own actions on that mask.
    plain = {"mask1": "rewind", "mask0": "zero", "rescaled": False, "trained": True, "rewind_to": "start"}
    chain = list(_steps(context, treatment.model_copy(update=plain)))[:-1]
    planned_runs = [_PlannedRun(n, context.recipe, step, n - 1, reported=False) for n, step in enumerate(chain, 1)]
    for n, step in enumerate(steps, start=1):
        # The chain itself is not rescaled, so weights of levels after the first carry no factor yet.
        is_unscaled_before = treatment.rescaled and n > 1
        planned_runs.append(
            _PlannedRun(n, context.untrained, replace(step, rescaled_before=not is_unscaled_before), n - 1)
        )
    return planned_runs


def _plan_supermask(context: _Context, treatment: Treatment, supermask: Supermask) -> list[_PlannedRun]:
    """Return the run that learns a mask, then the levels that evaluate it or train with it and prune it further."""
    study = context.study
    recipe = resolve_recipe(Train(**supermask.train_settings(study.learn)), context.num_images)
    recipe = replace(recipe, normalize=context.recipe.normalize)
    initial_step = None
    if supermask.start_from is not None:
        heuristic = Treatment(
            name=treatment.label, criterion=supermask.start_from, schedule="one_shot", scope=treatment.scope
        )
        initial_step = list(_steps(context, heuristic, supermask.start_level, is_mask_start=True))[-1]
    learning = supermask.learning(study.learn, study.prune)
    if context.network.tensors:
        check_masks_a_tensor(study, treatment, learning, context.network)
    parent_index = None if initial_step is None else 0
    planned_runs = [_PlannedRun(1, recipe, initial_step, parent_index, learning)]
    levels = treatment.num_levels(study.prune)
    level_recipe = _retraining_recipe(context.recipe, treatment) if treatment.trained else context.untrained
    apply_mask = PruneStep("learned", treatment.mask1, treatment.mask0, {}, "threshold")
    # Only the last snapshot has the weights as a signed mask inverts them, and the biases and normalization parameters
    # that were trained beside a mask.
    point: Snapshot = "end" if supermask.method == "signed" or supermask.others_lr else "start"
    apply_mask = replace(apply_mask, w_init=point, rewind_to=point, rescaled=treatment.rescaled)
    steps = list(_steps(context, treatment, max(levels - 1, 0)))
    for n, step in enumerate([apply_mask, *steps][:levels], start=2):
        planned_runs.append(_PlannedRun(n, level_recipe, step, n - 1))
    return planned_runs


def resolve_recipe(train: Train, num_images: int, loss_sources: Mapping[str, str] = NO_SOURCES) -> Recipe:
    """Return a `train` section with epochs converted to iterations, without settings that have no effect."""

    def iterations(epochs: float) -> int:
        return epochs_to_iterations(epochs, num_images, train.batch_size)

    total = iterations(train.epochs)
    drops = tuple(drop for drop in map(iterations, train.lr_drops) if drop < total)
    statistics = train.normalize
    return Recipe(
        # Without decay both are the same optimizer.
        optimizer="adam" if train.optimizer == "adamw" and not train.weight_decay else train.optimizer,
        lr=train.lr,
        batch_size=train.batch_size,
        iterations=total,
        evaluate_every=train.evaluate_every,
        momentum=train.momentum if train.optimizer == "sgd" else 0.0,
        weight_decay=train.weight_decay,
        lr_milestones=drops,
        drop_factor=train.lr_drop_factor if drops else 1.0,
        warmup_iterations=iterations(train.warmup_epochs) if train.warmup_epochs else 0,
        schedule=train.schedule if train.schedule in ("cosine", "linear") else "step",
        nesterov=train.nesterov,
        betas=train.betas,
        eps=train.eps,
        label_smoothing=train.label_smoothing,
        loss=train.loss,
        loss_source=loss_sources.get(train.loss),
        augment=Augmentation(train.augment.crop, train.augment.flip, train.augment.cutout),
        normalize=ChannelStatistics(statistics.mean, statistics.std)
        if isinstance(statistics, Statistics)
        else statistics,
        precision=train.precision,
        channels_last=train.channels_last,
        compile=train.compile,
    )


def _retraining_recipe(recipe: Recipe, treatment: Treatment) -> Recipe:
    """Return the recipe after pruning: fine-tuning uses the final learning rate, unless the rate is rewound."""
    is_fine_tuned = treatment.rewind_to == "end" and not treatment.learning_rate_rewinding
    return recipe.at_final_learning_rate() if is_fine_tuned else recipe


def _steps(
    context: _Context, treatment: Treatment, levels: int | None = None, is_mask_start: bool = False
) -> Iterator[PruneStep]:
    """Yield one step per level. `is_mask_start`: those of a heuristic mask that a learned mask starts from."""
    study, network = context.study, context.network
    levels = treatment.num_levels(study.prune) if levels is None else levels
    rates = layer_rates(study.prune, treatment.scope, network)
    if network.tensors:
        check_no_empty_layer(study, treatment, network.tensors, rates, levels, is_mask_start)
    source = context.criterion_sources.get(treatment.criterion)
    rewind_iteration = treatment.rewind_to if isinstance(treatment.rewind_to, int) else 0
    for level in range(1, levels + 1):
        # After late rewinding to iteration k, every later level of a chain begins at iteration k.
        first_iteration = rewind_iteration if level > 1 and treatment.schedule == "iterative" else 0
        yield PruneStep(
            criterion=treatment.criterion,
            mask1=treatment.mask1,
            mask0=treatment.mask0,
            scope=treatment.scope,
            rates=rates,
            levels=1 if treatment.schedule == "iterative" else level,
            w_init=_resolve_point(treatment, "w_init", first_iteration),
            w_final=_resolve_point(treatment, "w_final", first_iteration),
            rewind_to=_resolve_point(treatment, "rewind_to", first_iteration),
            rescaled=treatment.rescaled,
            criterion_source=source,
            only=study.prune.only,
            exclude=study.prune.exclude,
        )


def _resolve_point(treatment: Treatment, key: str, first_iteration: int) -> Snapshot:
    """Return the treatment's point; the parent's first iteration becomes `start`, so that equal steps are one run.

    Raises UserError for an iteration before the parent's first one.
    """
    point: Snapshot = getattr(treatment, key)
    if isinstance(point, int) and point < first_iteration:
        raise UserError(
            f"treatment {treatment.label!r}: {key}: {point} is before iteration {first_iteration}, where the levels "
            f"after the first begin (rewind_to: {first_iteration}); choose an iteration from {first_iteration} on."
        )
    return "start" if point == first_iteration else point
