"""One run: its facts in groups, its parents and children, its certificate, its masks. Plain data for the page.

Masks as pictures: PNG images of arrays, one pixel a value, as large as they are; the page scales them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supermask.analysis.masks import Masks, layer_densities, pixel_map, unit_connectivity
from supermask.core.masks import unpack
from supermask.core.text import Row, Value, format_duration
from supermask.datasets.specs import DATASETS
from supermask.networks.sequential import prunable_tensors
from supermask.serve.store_cache import CachedStore
from supermask.store import CorruptEntry
from supermask.store.files.entry import Entry
from supermask.store.records import decode_curve
from supermask.store.replay import run_architecture
from supermask.store.tables import COLUMNS
from supermask.study.run import Run

KEPT, PRUNED = (11, 60, 122), (240, 242, 246)
"""Dark blue and nearly white: in dark surroundings as well, the picture has a ground of its own."""

WHITE, DEEP = np.array([255.0, 255.0, 255.0]), np.array([10.0, 47.0, 94.0])

MOST_PIXELS = 4_000_000


def mask_png(mask: NDArray[np.bool_]) -> bytes:
    """A mask as PNG: a row a unit, a column an input. Of a convolution a pixel is the kept share of a window."""
    if mask.ndim == 4:
        return fraction_png(mask.mean(axis=(2, 3)), 1.0)
    colours = np.array([PRUNED, KEPT], dtype=np.uint8)
    return _png(colours[mask.astype(np.uint8)])


def pixel_map_png(mask: NDArray[np.bool_], image_shape: tuple[int, int, int]) -> bytes:
    """How much of each pixel a first layer keeps, as PNG; the darkest is the most. Raises ValueError: see `pixel_map`.

    Source: paper.md section 8.
    """
    share = pixel_map(mask, image_shape)
    return fraction_png(share, float(share.max()) or 1.0)


def fraction_png(share: NDArray[np.float64], top: float) -> bytes:
    """Values from 0 (white) to `top` (dark blue) as PNG."""
    amount = np.clip(share / top, 0.0, 1.0)[..., None]
    return _png((WHITE + amount * (DEEP - WHITE)).round().astype(np.uint8))


def has_pixel_weights(masks: Masks, image_shape: tuple[int, int, int]) -> bool:
    """Whether the first layer has weights of its own for each pixel."""
    first = next(iter(masks.values()))
    return first.ndim == 2 and first.shape[1] == int(np.prod(image_shape))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    height, width = pixels.shape[:2]
    every = max(1, int(np.ceil((height * width / MOST_PIXELS) ** 0.5)))
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[::every, ::every])).save(file, "PNG", optimize=False)
    return file.getvalue()


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
PROVENANCE_COLUMNS = ("seconds", "engine", "torch", "environment", "data_fingerprint", "data_note")
HIDDEN_COLUMNS = ("id", "parent", "study", "treatment", "certificate", "status", "network", "dataset", "seed", "level")


@dataclass(frozen=True)
class RunLink:
    """Another run, as a link."""

    id: str
    label: str


@dataclass(frozen=True)
class LayerSummary:
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
    parents: list[RunLink]
    """The nearest first."""
    children: list[RunLink]
    more_children: int
    certificate: dict[str, list[str]]
    """Promise -> what breaks it."""
    layers: list[LayerSummary]
    pixels: bool
    """Whether there is a picture of the first layer's pixels."""
    has_curve: bool
    damaged: str


def run_page(shelf: CachedStore, run_id: str, studies: list[tuple[str, str]]) -> RunPage:
    """The page of a run that is on the shelf. Its tensors may be damaged: then all the rest is shown."""
    row, facts = shelf.rows[run_id], shelf.facts(run_id)
    damaged, layers, pixels, has_curve = "", [], False, False
    try:
        entry = shelf.read(run_id)
        masks = load_masks(entry)
        layers = list(_layers(masks))
        pixels = has_pixel_weights(masks, DATASETS[facts["dataset"]].image_shape)
        has_curve = len(decode_curve(entry.tensors).iterations) > 1
    except CorruptEntry as damage:
        damaged = str(damage)
    children = [each for each in shelf.rows.values() if each.get("parent") == run_id]
    return RunPage(
        id=run_id,
        label=run_label(row),
        row=row,
        studies=studies,
        facts=dict(_groups(row)),
        parents=list(_parents(shelf, row)),
        children=[RunLink(str(each["id"]), run_label(each)) for each in children[:MOST_CHILDREN]],
        more_children=max(0, len(children) - MOST_CHILDREN),
        certificate=facts["certificate"]["checks"],
        layers=layers,
        pixels=pixels,
        has_curve=has_curve,
        damaged=damaged,
    )


def run_label(row: Row) -> str:
    """`large_final, rewind, zero, level 3, seed 0`."""
    level = f", level {row['level']}" if row["level"] else ""
    return f"{row['treatment']}{level}, seed {row['seed']}"


def load_masks(entry: Entry) -> Masks:
    """Its masks as arrays; all ones of a network that nothing was pruned from. Raises Damaged."""
    run = Run.from_data(entry.facts)
    found = prunable_tensors(run_architecture(run))
    if run.parent is None and run.learning is None:
        return {name: np.ones(m.shape, dtype=bool) for name, m in found.items()}
    try:
        return {name: unpack(entry.tensors[f"mask/{name}"], m.shape) for name, m in found.items()}
    except (KeyError, ValueError) as error:
        raise CorruptEntry(run.id, f"it has no mask that fits its network ({error})") from error


def loss_curve_plot(entry: Entry) -> dict[str, Any]:
    """A Plotly figure of the validation loss at every evaluation; another view of it is the accuracy."""
    curve = decode_curve(entry.tensors)
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
    known = {*RESULTS, *TRAINING, *PROVENANCE_COLUMNS, *HIDDEN_COLUMNS}
    done = tuple(name for name in COLUMNS if name not in known)
    for heading, names in (
        ("Results", RESULTS),
        ("What was done", done),
        ("Training", TRAINING),
        ("Made by", PROVENANCE_COLUMNS),
    ):
        told = [(name, _text(name, row[name]), COLUMNS[name].meaning) for name in names if row.get(name) is not None]
        if told:
            yield heading, told


def _text(name: str, value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "seconds" and isinstance(value, int | float):
        return format_duration(float(value))
    if name == "data_fingerprint":
        return f"{str(value)[:16]}…"
    if isinstance(value, float):
        return f"{100 * value:.2f}%" if "accuracy" in name or "density" in name else f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _parents(shelf: CachedStore, row: Row) -> Iterator[RunLink]:
    rows: Mapping[str, Row] = shelf.rows
    parent = row.get("parent")
    while parent in rows:
        own = rows[str(parent)]
        yield RunLink(str(parent), run_label(own))
        parent = own.get("parent")


def _layers(masks: Masks) -> Iterator[LayerSummary]:
    density, units = layer_densities(masks), unit_connectivity(masks)
    for number, (name, mask) in enumerate(masks.items()):
        shape = " × ".join(map(str, mask.shape))
        found = units[name]
        yield LayerSummary(number, name, shape, density[name].weights, density[name].kept, found.units, found.dead)
