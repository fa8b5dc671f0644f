"""One run: its facts in groups, its parents and children, its certificate, its masks. Plain data for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supermask.analysis import connected_units, densities
from supermask.datasets.facts import DATASETS
from supermask.execute.progress import duration
from supermask.lineage import layers_of
from supermask.masks import unpack
from supermask.networks import maskables
from supermask.records import unpack_curve
from supermask.runs import Run
from supermask.serve.pictures import has_pixels
from supermask.serve.shelf import Shelf
from supermask.store import Damaged
from supermask.store.entry import Entry
from supermask.tables import COLUMNS, Row, Value

Masks = dict[str, NDArray[np.bool_]]

MOST_CHILDREN = 200

RESULTS = (
    *(name for name in COLUMNS if name.startswith(("early_stop", "final_", "initial_"))),
    "test_accuracy_std",
    "thresholded_test_accuracy",
    "expected_test_accuracy",
    "expected_density",
    "hardened",
    "diverged_at",
)
TRAINING = (
    *("iterations", "first_iteration", "optimizer", "lr", "batch_size", "evaluate_every"),
    *("momentum", "weight_decay", "lr_drops", "lr_drop_factor", "warmup"),
)
MADE = ("seconds", "engine", "torch", "environment", "data_fingerprint", "data_note")
NOT_HERE = ("id", "parent", "study", "treatment", "certificate", "status", "network", "dataset", "seed", "level")


@dataclass(frozen=True)
class Relative:
    """Another run, as a link."""

    id: str
    label: str


@dataclass(frozen=True)
class Layer:
    """A masked tensor of a run."""

    number: int
    name: str
    shape: str
    weights: int
    kept: int
    units: int
    dead: int | None

    @property
    def share(self) -> float:
        """Kept weights of all, in [0, 1]."""
        return self.kept / self.weights


@dataclass(frozen=True)
class RunPage:
    """All that the page of a run says."""

    id: str
    label: str
    row: Row
    studies: list[tuple[str, str]]
    """(study, treatment) for every known study that it belongs to."""
    facts: dict[str, list[tuple[str, str, str]]]
    """Heading -> (name, value, what it means)."""
    parents: list[Relative]
    """The nearest first."""
    children: list[Relative]
    more_children: int
    certificate: dict[str, list[str]]
    """Promise -> what breaks it."""
    layers: list[Layer]
    pixels: bool
    """Whether there is a picture of the first layer's pixels."""
    has_curve: bool
    damaged: str


def run_page(shelf: Shelf, run_id: str, studies: list[tuple[str, str]]) -> RunPage:
    """The page of a run that is on the shelf. Its tensors may be damaged: then all the rest is shown."""
    row, facts = shelf.rows[run_id], shelf.facts(run_id)
    damaged, layers, pixels, has_curve = "", [], False, False
    try:
        entry = shelf.read(run_id)
        masks = masks_of(entry)
        layers = list(_layers(masks))
        pixels = has_pixels(masks, DATASETS[facts["dataset"]].image_shape)
        has_curve = len(unpack_curve(entry.tensors).iterations) > 1
    except Damaged as damage:
        damaged = str(damage)
    children = [each for each in shelf.rows.values() if each.get("parent") == run_id]
    return RunPage(
        id=run_id,
        label=label_of(row),
        row=row,
        studies=studies,
        facts=dict(_groups(row)),
        parents=list(_parents(shelf, row)),
        children=[Relative(str(each["id"]), label_of(each)) for each in children[:MOST_CHILDREN]],
        more_children=max(0, len(children) - MOST_CHILDREN),
        certificate=facts["certificate"]["checks"],
        layers=layers,
        pixels=pixels,
        has_curve=has_curve,
        damaged=damaged,
    )


def label_of(row: Row) -> str:
    """`large_final, rewind, zero, level 3, seed 0`."""
    level = f", level {row['level']}" if row["level"] else ""
    return f"{row['treatment']}{level}, seed {row['seed']}"


def masks_of(entry: Entry) -> Masks:
    """Its masks as arrays; all ones of a network that nothing was pruned from. Raises Damaged."""
    run = Run.from_data(entry.facts)
    found = maskables(layers_of(run))
    if run.parent is None and run.learning is None:
        return {name: np.ones(m.shape, dtype=bool) for name, m in found.items()}
    try:
        return {name: unpack(entry.tensors[f"mask/{name}"], m.shape) for name, m in found.items()}
    except (KeyError, ValueError) as error:
        raise Damaged(run.id, f"it has no mask that fits its network ({error})") from error


def curve_figure(entry: Entry) -> dict[str, Any]:
    """A Plotly figure of the validation loss at every evaluation; another view of it is the accuracy."""
    curve = unpack_curve(entry.tensors)
    best = entry.facts["metrics"].get("early_stop_iteration")
    loss = [value if np.isfinite(value) else None for value in curve.validation_loss]
    accuracy = [100 * value if np.isfinite(value) else None for value in curve.validation_accuracy]
    views = []
    for label, title, values in (
        ("Validation loss", "Validation loss (nats)", loss),
        ("Validation accuracy", "Validation accuracy (%)", accuracy),
    ):
        trace = {
            "x": curve.iterations,
            "y": values,
            "name": label.lower(),
            "mode": "lines",
            "line": {"width": 2, "color": "#0072B2"},
            "hovertemplate": "iteration %{x:,}<br>%{y:.5g}<extra></extra>",
        }
        layout = {
            "xaxis": {"title": {"text": "Iteration"}},
            "yaxis": {"title": {"text": title}},
            "showlegend": False,
            "margin": {"l": 64, "r": 16, "t": 16, "b": 48},
            "shapes": [] if best is None else [_rule(best)],
        }
        views.append({"label": label, "data": [trace], "layout": layout})
    return {**views[0], "views": views[1:]}


def _rule(x: int) -> dict[str, Any]:
    """A dotted vertical line."""
    line = {"dash": "dot", "width": 1, "color": "#888888"}
    return {"type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line}


def _groups(row: Row) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    known = {*RESULTS, *TRAINING, *MADE, *NOT_HERE}
    done = tuple(name for name in COLUMNS if name not in known)
    for heading, names in (("Results", RESULTS), ("What was done", done), ("Training", TRAINING), ("Made by", MADE)):
        told = [(name, _text(name, row[name]), COLUMNS[name].meaning) for name in names if row.get(name) is not None]
        if told:
            yield heading, told


def _text(name: str, value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "seconds" and isinstance(value, int | float):
        return duration(float(value))
    if name == "data_fingerprint":
        return f"{str(value)[:16]}…"
    if isinstance(value, float):
        return f"{100 * value:.2f}%" if "accuracy" in name or "density" in name else f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _parents(shelf: Shelf, row: Row) -> Iterator[Relative]:
    rows: Mapping[str, Row] = shelf.rows
    parent = row.get("parent")
    while parent in rows:
        own = rows[str(parent)]
        yield Relative(str(parent), label_of(own))
        parent = own.get("parent")


def _layers(masks: Masks) -> Iterator[Layer]:
    density, units = densities(masks), connected_units(masks)
    for number, (name, mask) in enumerate(masks.items()):
        shape = " × ".join(map(str, mask.shape))
        found = units[name]
        yield Layer(number, name, shape, density[name].weights, density[name].kept, found.units, found.dead)
