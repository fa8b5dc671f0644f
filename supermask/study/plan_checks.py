"""Checks of a study before it is planned: its size, emptied layers, and settings without the expected effect."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import get_args

from pydantic import BaseModel

from supermask.core.errors import UserError, did_you_mean, quote
from supermask.core.initializers import INITIALIZERS, OWN
from supermask.core.learned_masks import MaskLearning
from supermask.core.masks import (
    ALL_TENSORS,
    RATE_KINDS,
    RankedGroup,
    is_pruned,
    matches_pattern,
    ranked_groups,
    rate_key,
)
from supermask.core.recipe import epochs_to_iterations
from supermask.core.types import PrunableTensor, TensorKind
from supermask.networks.network import Network, NetworkFacts
from supermask.study.prune_settings import Prune
from supermask.study.schema import Study, Treatment
from supermask.study.train_settings import Statistics, Train

MAX_RUNS = 200_000
"""Runs of a study, counted before shared runs are merged; each takes about 2 kB of memory and a folder in the store."""
MAX_RUNS_VARIABLE = "SUPERMASK_MAX_RUNS"


def max_runs() -> int:
    """Return the limit in SUPERMASK_MAX_RUNS, else `MAX_RUNS`. Raises UserError for anything but a whole number."""
    value = os.environ.get(MAX_RUNS_VARIABLE)
    if not value:
        return MAX_RUNS
    if not re.fullmatch(r"[0-9]{1,18}", value, re.ASCII):
        raise UserError(f"{MAX_RUNS_VARIABLE} is {quote(value)}, not a whole number, such as {MAX_RUNS}.")
    return int(value)


def count_requested_runs(study: Study) -> int:
    """Return an upper bound of the number of a study's runs, without planning them."""
    per_seed = len(
        {
            (study.resolve_train(t), study.resolve_initializer(t), study.resolve_network_name(t))
            for t in study.treatments
        }
    )
    for treatment in study.treatments:
        levels = treatment.num_levels(study.prune)
        if treatment.supermask is not None:
            per_seed += 1 + levels
        else:
            # Iterative masks on untrained weights need a trained chain that provides the masks.
            has_mask_chain = treatment.schedule == "iterative" and not treatment.trained
            per_seed += levels * (2 if has_mask_chain else 1)
    return per_seed * len(study.seeds)


def check_size(study: Study) -> None:
    """Raise UserError if the study has more than `max_runs()` runs."""
    runs, limit = count_requested_runs(study), max_runs()
    if runs > limit:
        size = f"{len(study.treatments):,} treatments, {len(study.seeds):,} seeds, {study.prune.levels:,} levels"
        raise UserError(
            f"study {study.name!r} has up to {runs:,} runs ({size}); at most {limit:,} are planned. Use fewer of them, "
            f"or set {MAX_RUNS_VARIABLE}={runs}, which takes about {runs * 2 / 1e6:,.1f} GB of memory."
        )


def layer_rates(prune: Prune, scope: str, network: Network) -> dict[str, float]:
    """Return the prune rate per kind of tensor; under global ranking, the rate called `global`.

    Of the paper's networks only the kinds that they have. Other networks have all three, because ids must not depend
    on whether the tensors of a user's module are known already.
    """
    by_name = prune.rates.by_name
    if scope == "global":
        return {"global": prune.rates.global_} | {name: rate for name, rate in by_name.items() if rate == 0}
    kinds = set(get_args(TensorKind)) if network.layers is None else {t.kind for t in network.tensors.values()}
    return {kind: prune.rates.for_kind(kind) for kind in sorted(kinds)} | by_name


def check_patterns(study: Study, network: Network) -> None:
    """Raise UserError if a name or pattern of the `prune` section matches no prunable tensor of the network."""
    prune = study.prune
    named = {"only": prune.only, "exclude": prune.exclude, "rates": tuple(prune.rates.by_name)}
    for key, patterns in named.items():
        for pattern in patterns:
            if any(matches_pattern(name, pattern) for name in network.tensors):
                continue
            names = [*RATE_KINDS, *network.tensors] if key == "rates" else list(network.tensors)
            listed = ", ".join(list(network.tensors)[:12]) + (" ..." if len(network.tensors) > 12 else "")
            raise UserError(
                f"study {quote(study.name)}: prune.{key}: {quote(pattern)} matches no prunable tensor of "
                f"{network.name}{did_you_mean(pattern, names) or ';'} its prunable tensors: {listed}."
            )


def check_masks_a_tensor(study: Study, treatment: Treatment, learning: MaskLearning, network: Network) -> None:
    """Raise UserError if `prune.only` and `prune.exclude` leave a supermask no tensor."""
    if not any(map(learning.masks_tensor, network.tensors)):
        raise UserError(
            f"study {quote(study.name)}: treatment {treatment.label!r} learns a mask, but prune.only and prune.exclude "
            f"leave no tensor of {network.name} to mask; its prunable tensors: {', '.join(network.tensors)}."
        )


def check_no_empty_layer(
    study: Study,
    treatment: Treatment,
    tensors: Mapping[str, PrunableTensor],
    rates: Mapping[str, float],
    levels: int,
    is_mask_start: bool = False,
) -> None:
    """Raise UserError if the prune rates would empty a layer at the last of these pruning levels or before.

    `is_mask_start`: the levels are those of the heuristic mask that the logits of a learned mask start from. A group
    without weights, of a network in which nothing is pruned, is not emptied.
    """
    groups = _groups(study.prune, treatment.scope, tensors, rates)
    emptied_at = {
        name: next(n for n in range(1, levels + 1) if group.remaining(n) == 0)
        for name, group in groups.items()
        if group.alive > 0 and group.remaining(levels) == 0
    }
    if not emptied_at:
        return
    name = min(emptied_at, key=lambda name: emptied_at[name])
    level = emptied_at[name]
    key = "start_level" if is_mask_start else _levels_key(treatment)
    # Level 1 learns a mask, and level 2, the first of its `levels`, applies it.
    before, most = (2, level) if treatment.supermask is not None and not is_mask_start else (0, level - 1)
    emptied, kind = ("the network", "global") if name == ALL_TENSORS else (name, tensors[name].kind)
    fewer = f"at most {most:,} level{'s' if most > 1 else ''} ({key}) or " if most else ""
    raise UserError(
        f"study {quote(study.name)}: treatment {quote(treatment.label)}: level {level + before} of {levels + before} "
        f"would leave no weight in {emptied} (prune rate {_rate_text(groups[name].prune_rate)}); use {fewer}a lower "
        f"rate (prune.rates: {quote(rate_key(name, rates) or kind)})."
    )


def _levels_key(treatment: Treatment) -> str:
    """Return the key that gives the number of a treatment's levels."""
    return "prune.levels" if treatment.levels is None else "levels of this treatment"


def _rate_text(rate: float) -> str:
    """Return a prune rate as it was written: 0.2, 0.999999999."""
    return f"{rate:g}" if float(f"{rate:g}") == rate else repr(rate)


def check_distinct_runs(study: Study, chains: Mapping[str, tuple[str, ...]]) -> None:
    """Raise UserError if two treatments are the same runs, so that no setting in which they differ has an effect.

    `chains`: label -> ids of the treatment's runs of one seed, dense run first. Schedules and numbers of levels may be
    the same runs, because a study that compares them may be tried with one level.
    """
    first: dict[tuple[str, ...], Treatment] = {}
    for treatment in study.treatments:
        twin = first.setdefault(chains[treatment.label], treatment)
        different = [key for key, value in twin if key != "name" and value != getattr(treatment, key)]
        if twin is treatment or set(different) <= {"schedule", "levels"}:
            continue
        keys = [path for key in different for path in _differing_keys(study, twin, treatment, key)]
        raise UserError(
            f"study {quote(study.name)}: treatments {quote(twin.label)} and {quote(treatment.label)} are the same runs "
            f"at every level: they differ only in {', '.join(keys)}, without effect here; remove one of them."
        )


def _differing_keys(study: Study, one: Treatment, other: Treatment, key: str) -> list[str]:
    """Return the key, or the keys of its section, in which two treatments differ."""
    values = [study.resolve_train(t) if key == "train" else getattr(t, key) for t in (one, other)]
    if not all(isinstance(value, BaseModel) for value in values):
        return [key]
    return [f"{key}.{inner}" for inner, value in values[0] if value != getattr(values[1], inner)]


def check_initializer(study: Study, treatment: Treatment, network: Network) -> None:
    """Raise UserError for the initializer `own` of a network that has no module with values of its own."""
    if network.layers is None or network.initializer != OWN:
        return
    place = f"treatment {quote(treatment.label)}: " if treatment.initializer else ""
    raise UserError(
        f"study {quote(study.name)}: {place}initializer: {OWN} is for modules that draw their own weights, such as "
        f"resnet20 or module:function; {network.name} has none. Allowed: {', '.join(INITIALIZERS)}."
    )


def check_image_settings(study: Study, train: Train, image_shape: tuple[int, int, int]) -> None:
    """Raise UserError if augmentation or normalization do not fit the images of the study's dataset.

    `image_shape`: (channels, height, width).
    """
    channels, height, width = image_shape
    side, images = min(height, width), f"the images of {study.dataset}, {width} x {height} pixels"
    for key, most in (("crop", side - 1), ("cutout", side)):
        if getattr(train.augment, key) > most:
            raise UserError(
                f"study {study.name!r}: train.augment.{key}: {getattr(train.augment, key)} is too large for {images}: "
                f"use at most {most}."
            )
    if isinstance(train.normalize, Statistics) and len(train.normalize.mean) != channels:
        raise UserError(
            f"study {study.name!r}: train.normalize: {len(train.normalize.mean)} means and standard deviations do not "
            f"fit {images} and {channels} channel{'s' if channels > 1 else ''}: give one per channel, or per_channel."
        )


def ineffective_settings(study: Study, network: Network, num_images: int) -> list[str]:
    """Return one sentence per setting that is allowed but has no effect, or not the one that it suggests.

    `num_images`: the number of images that the dense networks are trained on.
    """
    warnings = []
    for train in dict.fromkeys(map(study.resolve_train, study.treatments)):
        warnings += _ineffective_train_settings(study, train, num_images)
    warnings += _ineffective_learn_settings(study, num_images)
    warnings += _equal_schedules(study)
    return list(dict.fromkeys(warnings)) + _unused_rates(study, network) + _levels_without_pruning(study, network)


def mostly_unpruned_networks(network_facts: Mapping[str, NetworkFacts]) -> list[str]:
    """Return one sentence per user's network most of whose trained matrices cannot be pruned.

    Rates and densities count prunable weights alone, so such a network keeps more than its density says. Vectors
    (biases, normalization parameters) do not count.
    """
    warnings = []
    for name, facts in network_facts.items():
        matrices = {t.name: prod(t.shape) for t in facts.unmasked if t.trained and len(t.shape) >= 2}
        prunable, spared = sum(prod(t.shape) for t in facts.tensors), sum(matrices.values())
        if spared > prunable:
            listed = ", ".join(list(matrices)[:3]) + (" ..." if len(matrices) > 3 else "")
            warnings.append(
                f"network {quote(name)}: {spared:,} of its {spared + prunable:,} weights ({listed}) are trained but "
                "never pruned, and no density counts them: only weights of Linear, Conv, attention and recurrent "
                "layers are pruned."
            )
    return warnings


def _ineffective_learn_settings(study: Study, num_images: int) -> list[str]:
    learn = study.learn
    supermasks = [t.supermask for t in study.treatments if t.supermask is not None]
    if not supermasks:
        return []
    warnings = _warn_of_large_batches("learn.batch_size", learn.batch_size, study.dataset, num_images)
    iterations = epochs_to_iterations(learn.epochs, num_images, learn.batch_size)
    warnings += _warn_of_late_evaluation("learn.evaluate_every", learn.evaluate_every, iterations)
    is_default = learn.momentum == type(learn).model_fields["momentum"].default
    if not is_default and all((mask.optimizer or learn.optimizer) != "sgd" for mask in supermasks):
        warnings.append(f"learn.momentum: {learn.momentum:g} has no effect: every mask is learned with adam.")
    return warnings


def _equal_schedules(study: Study) -> list[str]:
    """Return one sentence per pair of treatments of one level that differ in their schedule alone."""
    warnings = []
    first: dict[object, Treatment] = {}
    for treatment in study.treatments:
        if treatment.num_levels(study.prune) != 1 or treatment.supermask is not None:
            continue
        settings = tuple((key, value) for key, value in treatment.identity if key != "schedule")
        twin = first.setdefault(settings, treatment)
        if twin is not treatment:
            warnings.append(
                f"treatments {quote(twin.label)} and {quote(treatment.label)} are the same runs: with one level both "
                "schedules prune the dense network."
            )
    return warnings


def _warn_of_large_batches(key: str, batch_size: int, dataset: str, num_images: int) -> list[str]:
    if batch_size <= num_images:
        return []
    return [
        f"{key}: {batch_size:,} is more than the {num_images:,} training images of {dataset}: images repeat within "
        "every batch; use a smaller one."
    ]


def _warn_of_late_evaluation(key: str, evaluate_every: int, iterations: int) -> list[str]:
    if evaluate_every <= iterations:
        return []
    return [
        f"{key}: {evaluate_every:,} is more than the {iterations:,} iterations of the training: the validation loss is "
        "evaluated at its end only, so there is no early stopping."
    ]


def _ineffective_train_settings(study: Study, train: Train, num_images: int) -> list[str]:
    warnings = _warn_of_large_batches("train.batch_size", train.batch_size, study.dataset, num_images)
    iterations = epochs_to_iterations(train.epochs, num_images, train.batch_size)
    warnings += _warn_of_late_evaluation("train.evaluate_every", train.evaluate_every, iterations)
    if late := [epochs for epochs in train.lr_drops if epochs >= train.epochs]:
        listed = ", ".join(f"{epochs:g}" for epochs in late)
        warnings.append(f"train.lr_drops: {listed}: not before the end of the training ({train.epochs:g} epochs).")
    if train.warmup_epochs >= train.epochs:
        warnings.append(
            f"train.warmup_epochs: {train.warmup_epochs:g} is not before the end of the training ({train.epochs:g} "
            "epochs): the learning rate train.lr is never reached."
        )
    fine_tuned = [t for t in study.treatments if study.resolve_train(t) == train and not t.learning_rate_rewinding]
    if train.schedule in ("cosine", "linear") and any(t.rewind_to == "end" for t in fine_tuned):
        warnings.append(
            f"learning_rate_rewinding: false with train.schedule: {train.schedule}: fine-tuning uses the final "
            "learning rate, which is close to 0, so weights hardly move after pruning."
        )
    return warnings


def _unused_rates(study: Study, network: Network) -> list[str]:
    """Return one sentence per name or pattern of `prune.rates` whose rate no tensor is pruned at.

    A rate of 0 always counts: it spares the tensors that it matches.
    """
    prune, by_name = study.prune, study.prune.rates.by_name
    is_global = all(treatment.scope == "global" for treatment in study.treatments)
    warnings = []
    for key, rate in by_name.items():
        matching = [name for name in network.tensors if matches_pattern(name, key)]
        if rate == 0 or not matching:
            continue
        pruned = [name for name in matching if is_pruned(name, {}, prune.only, prune.exclude)]
        if not pruned:
            listed = ", ".join(matching[:3]) + (" ..." if len(matching) > 3 else "")
            reason = f"prune.only and prune.exclude keep {listed} from being pruned"
        elif is_global:
            reason = (
                f"with scope: global all tensors have one rate, prune.rates.global: {_rate_text(prune.rates.global_)}"
            )
        elif not any(rate_key(name, by_name) == key for name in pruned):
            others = dict.fromkeys(quote(rate_key(name, by_name)) for name in pruned)
            reason = f"of all names that match a tensor the longest counts, here {', '.join(others)}"
        else:
            continue
        warnings.append(f"prune.rates: {quote(key)}: {_rate_text(rate)} has no effect: {reason}.")
    return warnings


def _levels_without_pruning(study: Study, network: Network) -> list[str]:
    """Return one sentence per scope and number of levels for the levels that prune no weight."""
    warnings: list[str] = []
    if not network.tensors:
        return warnings
    kinds: dict[tuple[str, int, int, bool], Treatment] = {}
    for treatment in study.treatments:
        # A learned mask is level 1, and level 2 applies it: both prune by no rate.
        before = 0 if treatment.supermask is None else 2
        levels = treatment.num_levels(study.prune) - before // 2
        kinds.setdefault((treatment.scope, levels, before, treatment.levels is None), treatment)
    for (scope, levels, before, is_study), treatment in sorted(kinds.items(), key=lambda item: item[0]):
        rates = layer_rates(study.prune, scope, network)
        groups = _groups(study.prune, scope, network.tensors, rates)
        for level in range(1, levels + 1):
            left = {name: group.remaining(1) for name, group in groups.items()}
            if all(left[name] == group.alive for name, group in groups.items()):
                rate_list = ", ".join(f"{kind} {_rate_text(rate)}" for kind, rate in rates.items())
                most = level - 1 + before // 2
                advice = f"at most {most:,} level{'s' if most > 1 else ''} or higher rates" if most else "higher rates"
                if study.prune.only or study.prune.exclude:
                    advice += ", or change prune.only and prune.exclude"
                first, last = level + before, levels + before
                idle = f"level {first:,} prunes" if first == last else f"levels {first:,} to {last:,} prune"
                key = "prune.levels" if is_study else f"treatment {quote(treatment.label)}: levels"
                warnings.append(
                    f"{key}: {idle} no weight (scope: {scope}; prune rates: {rate_list}; {sum(left.values()):,} "
                    f"weights left): use {advice}."
                )
                break
            groups = {name: replace(group, alive=left[name]) for name, group in groups.items()}
    return warnings


def _groups(
    prune: Prune, scope: str, tensors: Mapping[str, PrunableTensor], rates: Mapping[str, float]
) -> dict[str, RankedGroup]:
    sizes = {name: tensor.size for name, tensor in tensors.items()}
    kinds = {name: tensor.kind for name, tensor in tensors.items()}
    return ranked_groups(sizes, kinds, scope, rates, prune.only, prune.exclude)
