"""`MaskInfo`: a mask to analyze, with the weights that are known and its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

MaskArrays = Mapping[str, NDArray[np.bool_]]
"""Prunable tensor name -> bool array of the kernel's shape: True = kept."""

WeightArrays = Mapping[str, NDArray[Any]]
"""Prunable tensor name -> float32 array of the kernel's shape."""


@dataclass(frozen=True)
class MaskInfo:
    """One mask to analyze. Unknown weights are None.

    `w_i` and `w_f` are the inputs of the mask criterion: the *parent's* weights at the two points of the trajectory
    that the study names, by default its start and its end. `initial_weights` and `final_weights` are the network's own,
    before and after the training with this mask. A dense run has no parent: both pairs are its own start and end. For a
    ticket file, `w_i` is the initial network of its seed and `final_weights` the network in the file.
    """

    name: str
    """Run id or name of a ticket; unique."""
    masks: MaskArrays
    """Prunable tensor name -> bool array, True = kept."""
    alive: MaskArrays
    """The weights that the criterion chose from: the parent's mask. All True for a dense run and a ticket file."""
    network: str | None = None
    """Name of the network, if known."""
    dataset: str | None = None
    """Name of the data set, if known."""
    image_shape: tuple[int, int, int] | None = None
    """Channels, height, width."""
    criterion: str | None = None
    """None for a dense network, and for masks of unknown origin."""
    level: int | None = None
    """Number of pruning rounds, if known."""
    seed: int | None = None
    """Seed of the run, if known."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Other settings of the run, such as mask1 -> rewind; part of a label only if labels would be equal without."""
    w_i: WeightArrays | None = None
    """First input of the criterion: by default the weights at the start of the parent's training."""
    w_f: WeightArrays | None = None
    """Second input of the criterion: by default the weights at the end of the parent's training."""
    initial_weights: WeightArrays | None = None
    """Weights before the training with this mask."""
    final_weights: WeightArrays | None = None
    """Weights after the training with this mask."""
    is_ticket: bool = False
    """True for a ticket, which does not hold the weights that its criterion saw."""
    is_chain: bool = False
    """True if each layer reads the previous one alone, without shortcuts: needed for connected and dead units."""
    note: str = ""
    """A remark for the reader, such as that the run diverged."""
    label: str = ""
    """Name in tables and figures; set by `with_labels`."""

    def __repr__(self) -> str:
        kept, size = (sum(int(part(mask)) for mask in self.masks.values()) for part in (np.count_nonzero, np.size))
        return f"MaskInfo({self.label or self.name!r}, {self.subject}, {kept:,} of {size:,} weights kept)"

    @property
    def subject(self) -> str:
        """`fc-300-100 on mnist`, as far as known."""
        return " on ".join(part for part in (self.network, self.dataset) if part) or "a network without a name"


def with_labels(infos: Sequence[MaskInfo]) -> list[MaskInfo]:
    """Set the labels: criterion, level and seed, and further details where these are equal."""
    texts = [", ".join(part for part in _label_parts(info) if part) for info in infos]
    extras = _distinguishing_details(infos, texts)
    return [
        replace(info, label=", ".join([text, *extra])) for info, text, extra in zip(infos, texts, extras, strict=True)
    ]


def common_and_short_labels(infos: Sequence[MaskInfo]) -> tuple[str, list[str]]:
    """(common part of all labels, the rest of each label): `level 5, seed 0` and `large_final`, `random`.

    Labels that differ stay different.
    """
    parts = [_label_parts(info) for info in infos]
    # Indices into criterion, level, seed.
    shared: list[int] = []
    distinct: list[int] = []
    for i in range(3):
        values = {part[i] for part in parts} - {""}
        (shared if len(values) == 1 and len(infos) > 1 else distinct).append(i)
    common = ", ".join(next(part[i] for part in parts if part[i]) for i in shared)
    rests = []
    for info, part in zip(infos, parts, strict=True):
        full = ", ".join(text for text in part if text)
        extra = info.label.removeprefix(full).removeprefix(", ")
        rests.append(", ".join(text for text in [*(part[i] for i in distinct), extra] if text))
    if len(set(rests)) < len(rests) or not all(rests):
        return "", [info.label for info in infos]
    return common, rests


def _label_parts(info: MaskInfo) -> tuple[str, str, str]:
    """Criterion, level and seed as text; empty if unknown, and for the level of a dense network, always 0.

    A ticket of a network and a criterion that are not known here has its own name in place of the criterion.
    """
    if info.is_ticket and info.network is None and info.criterion is None:
        return info.name.removesuffix(".safetensors"), "", ""
    # A ticket without facts has no criterion and no level either, but its mask prunes.
    is_dense = info.criterion is None and not info.level and all(mask.all() for mask in info.masks.values())
    level = "" if info.level is None or is_dense else f"level {info.level}"
    seed = "" if info.seed is None else f"seed {info.seed}"
    return info.criterion or ("dense" if is_dense else "mask"), level, seed


def _distinguishing_details(infos: Sequence[MaskInfo], texts: Sequence[str]) -> list[list[str]]:
    """Per mask the details in which it differs from masks with the same text, and its name if there are none."""
    extras: list[list[str]] = []
    for info, text in zip(infos, texts, strict=True):
        same_text = [other for other, other_text in zip(infos, texts, strict=True) if other_text == text]
        keys = dict.fromkeys(key for other in same_text for key in other.details)
        differing = [key for key in keys if len({other.details.get(key) for other in same_text}) > 1]
        values = [info.details.get(key) for key in differing]
        extra = [value for value in values if value]
        same_details = [other for other in same_text if [other.details.get(key) for key in differing] == values]
        if len(same_details) > 1 and info.name != text:
            extra.append(_shorten_name(info.name, [other.name for other in same_details]))
        extras.append(extra)
    return extras


def _shorten_name(name: str, names: Sequence[str]) -> str:
    """The shortest prefix of a name, of at least 8 characters, that no other of the names has."""
    for length in range(8, len(name)):
        if [other[:length] for other in names].count(name[:length]) == 1:
            return name[:length]
    return name
