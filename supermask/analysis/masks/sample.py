"""A specimen: a mask to look at, with the weights around it as far as they are known, and what it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Masks = Mapping[str, NDArray[np.bool_]]
"""Maskable tensor name -> bool array of the kernel's shape: True = kept."""

WeightArrays = Mapping[str, NDArray[Any]]
"""Maskable tensor name -> float32 array of the kernel's shape."""


@dataclass(frozen=True)
class MaskInfo:
    """One mask to look at. Weights that are not known are None.

    `w_i` and `w_f` are what the mask criterion saw: the *parent's* weights at the step's two points (its start and its
    end, unless a study says else). The kept and the pruned of `alive` lie in that plane. `start` and `end` are the
    network's own weights, before and after the training with this mask. Of a dense run, that nothing has pruned, `w_i`
    and `w_f` are its own start and end; of a ticket file, `w_i` is the initial network of its seed, `end` the network
    in the file.
    """

    name: str
    """Run id or file name: what tells specimens apart that are the same in all else."""
    masks: Masks
    alive: Masks
    """What the criterion chose among: the parent's mask. All ones for a dense run and a ticket file."""
    network: str | None = None
    dataset: str | None = None
    image_shape: tuple[int, int, int] | None = None
    """Channels, height, width."""
    criterion: str | None = None
    """None: dense."""
    level: int | None = None
    seed: int | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    """What else tells runs apart, such as mask1 -> rewind: part of a label only where it is needed."""
    w_i: WeightArrays | None = None
    w_f: WeightArrays | None = None
    initial_weights: WeightArrays | None = None
    final_weights: WeightArrays | None = None
    note: str = ""
    """What a reader has to know of it, such as that its run diverged."""
    label: str = ""
    """What it is called in tables and figures; given by `labelled`."""

    @property
    def subject(self) -> str:
        """`fc-300-100 on mnist`, as far as it is known."""
        return " on ".join(part for part in (self.network, self.dataset) if part) or "a network without a name"


def with_labels(specimens: Sequence[MaskInfo]) -> list[MaskInfo]:
    """The same specimens with labels: criterion, level and seed, and what else tells apart those that share them."""
    texts = [", ".join(part for part in _label_parts(specimen) if part) for specimen in specimens]
    extras = _distinguishing_details(specimens, texts)
    return [
        replace(specimen, label=", ".join([text, *extra]))
        for specimen, text, extra in zip(specimens, texts, extras, strict=True)
    ]


def common_and_short_labels(specimens: Sequence[MaskInfo]) -> tuple[str, list[str]]:
    """(what all have in common, what is left of each label): `level 5, seed 0` and `large_final`, `random` ...

    The labels differ from each other where the specimens' own labels do.
    """
    parts = [_label_parts(specimen) for specimen in specimens]
    shared: list[int] = []
    used: list[int] = []
    for place in range(3):
        values = {part[place] for part in parts} - {""}
        (shared if len(values) == 1 and len(specimens) > 1 else used).append(place)
    common = ", ".join(next(part[place] for part in parts if part[place]) for place in shared)
    rests = []
    for specimen, part in zip(specimens, parts, strict=True):
        full = ", ".join(text for text in part if text)
        extra = specimen.label.removeprefix(full).removeprefix(", ")
        rests.append(", ".join(text for text in [*(part[place] for place in used), extra] if text))
    if len(set(rests)) < len(rests) or not all(rests):
        return "", [specimen.label for specimen in specimens]
    return common, rests


def _label_parts(specimen: MaskInfo) -> tuple[str, str, str]:
    """Criterion, level and seed as text; empty where there is none (the level of a dense network says nothing)."""
    dense = specimen.criterion is None and not specimen.level
    level = "" if specimen.level is None or dense else f"level {specimen.level}"
    seed = "" if specimen.seed is None else f"seed {specimen.seed}"
    return specimen.criterion or ("dense" if dense else "mask"), level, seed


def _distinguishing_details(specimens: Sequence[MaskInfo], texts: Sequence[str]) -> list[list[str]]:
    """For each specimen what sets it apart from those with the same text: details that differ, or else its name."""
    found: list[list[str]] = []
    for specimen, text in zip(specimens, texts, strict=True):
        same = [other for other, its in zip(specimens, texts, strict=True) if its == text]
        keys = dict.fromkeys(key for other in same for key in other.details)
        telling = [key for key in keys if len({other.details.get(key) for other in same}) > 1]
        values = [specimen.details.get(key) for key in telling]
        extra = [value for value in values if value]
        alike = [other for other in same if [other.details.get(key) for key in telling] == values]
        if len(alike) > 1:
            extra.append(_short_name(specimen.name, [other.name for other in alike]))
        found.append(extra)
    return found


def _short_name(name: str, among: Sequence[str]) -> str:
    """As much of a name as tells it apart, 8 characters or more."""
    for length in range(8, len(name)):
        if [other[:length] for other in among].count(name[:length]) == 1:
            return name[:length]
    return name
